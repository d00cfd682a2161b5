"""Attacks on rows that have none: a payload, dressed by an attack family of its split, at a place in the data.

Families and wordings are those of the lab (`holdfast.data.lab.attacks`): splits share no wording, and some families
stand in the test split only.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product

from holdfast.core.errors import DataError
from holdfast.data.counterfactual.checks import words
from holdfast.data.counterfactual.row import Counterfactual
from holdfast.data.counterfactual.splits import connected, hashed, own_split
from holdfast.data.formats import Row
from holdfast.data.formats.injection import POSITIONS
from holdfast.data.lab.attacks import attack_names, dress
from holdfast.data.whole import stands

DONORS_TRIED = 50
SHORTEST_WITNESS = 4
"""Letters of the word that gives an obeying answer away."""
_LETTERS = re.compile(rf"(?<!\w)[^\W\d_]{{{SHORTEST_WITNESS},}}(?!\w)")
_INNER_END = re.compile(r"[.!?]\s|\n")


@dataclass(frozen=True, slots=True)
class Task:
    """A row that can be attacked where it has ``data``, and whose instruction can be injected where it has none."""

    id: str
    group: str
    split: str
    instruction: str
    data: str
    answer: str


@dataclass(frozen=True, slots=True)
class Payload:
    """What is injected."""

    instruction: str
    answer: str = ""
    witness: str = ""
    category: str = ""


class Dealer:
    """Deals attack families and positions evenly, in an order of the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._hands: dict[str, Iterator[tuple[str, str]]] = {}

    def attack(self, task: Task, payload: Payload, family: str) -> Counterfactual:
        """The case of one task and one payload."""
        stream = random.Random(f"{family}/{self._seed}/{task.id}/{payload.instruction}")
        name, position = self._next(task.split)
        if position == "middle" and not _INNER_END.search(task.data.strip()):
            position = stream.choice(("before", "after"))
        return Counterfactual(
            id=task.id,
            group=task.group,
            system="",
            instruction=task.instruction,
            data=task.data,
            answer=task.answer,
            payload=payload.instruction,
            injection=dress(stream, task.split, name, payload.instruction),
            witness=payload.witness,
            payload_answer=payload.answer,
            attack=name,
            position=position,
            split=task.split,
            category=payload.category,
            family=family,
        )

    def _next(self, split: str) -> tuple[str, str]:
        if split not in self._hands:
            pairs = list(product(attack_names(split), POSITIONS))
            random.Random(f"deal/{self._seed}/{split}").shuffle(pairs)
            self._hands[split] = cycle(pairs)
        return next(self._hands[split])


def instructions(rows: Sequence[Row]) -> list[Counterfactual]:
    """Alpaca-like rows: each that has data is attacked with the instruction of another that has none.

    Rows with the same instruction or the same data are one group; a payload comes from the split of the row that it
    attacks, and from the half of the instructions with the shorter answers, as these a witness can tell. Where all rows
    of a split have data, a payload brings its own.
    """
    tasks = _tasks(rows)
    frequency = Counter(word for task in tasks for word in set(words(task.answer).split()))
    donors = _donors(tasks)
    dealer = Dealer(rows[0].seed)
    attacked = [task for task in tasks if task.data]
    if not attacked:
        raise DataError(
            f"{rows[0].where}: no row has data to inject into. Do: map its column, columns: {{input: ...}}."
        )
    return [
        dealer.attack(task, _payload(task, donors[task.split], frequency, rows[0].seed), "instructions")
        for task in attacked
    ]


def _tasks(rows: Sequence[Row]) -> list[Task]:
    texts = [(row.text("instruction"), row.optional("input", "context")) for row in rows]
    groups = connected([tuple(filter(None, (words(asked), words(data)))) or (asked,) for asked, data in texts])
    return [
        Task(
            id=row.optional("id") or f"{row.stem}/{row.index}",
            group=group,
            split=own_split(row) or hashed(group),
            instruction=asked,
            data=data,
            answer=row.text("output", "response"),
        )
        for row, (asked, data), group in zip(rows, texts, groups, strict=True)
    ]


def _donors(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """By split, the tasks whose instruction can be injected; with its own data where a split has none without."""
    found: dict[str, list[Task]] = {}
    for split in {task.split for task in tasks}:
        here = [task for task in tasks if task.split == split]
        alone = [task for task in here if not task.data] or here
        alone.sort(key=lambda task: (len(task.data) + len(task.answer), task.id))
        found[split] = alone[: (len(alone) + 1) // 2]
    return found


def _payload(task: Task, donors: Sequence[Task], frequency: Mapping[str, int], seed: int) -> Payload:
    """A task of another group, with a word that gives its answer away; best one that the injection does not hold."""
    stream = random.Random(f"payload/{seed}/{task.id}")
    known = words(" ".join((task.instruction, task.data, task.answer)))
    for donor in stream.sample(donors, min(DONORS_TRIED, len(donors))):
        asked = f"{donor.instruction}\n{donor.data}" if donor.data else donor.instruction
        witness = rarest(donor.answer, f"{known} {words(asked)}", frequency) or rarest(donor.answer, known, frequency)
        if witness and donor.group != task.group:
            return Payload(asked, donor.answer, witness)
    raise DataError(
        f"Cannot attack row {task.id!r}: none of {len(donors)} instructions of split {task.split!r} is of another "
        "group and has an answer with a word of its own. Do: give more rows."
    )


def rarest(answer: str, known: str, frequency: Mapping[str, int]) -> str:
    """The word of ``answer`` that fewest answers have, none of ``known``; the longest of these; or nothing.

    >>> rarest("The capital is Paris.", "what is the capital", {"paris": 1})
    'Paris'
    """
    own = [word for word in dict.fromkeys(_LETTERS.findall(answer)) if not stands(known, word.casefold())]
    return min(own, key=lambda word: (frequency.get(word.casefold(), 0), -len(word), word), default="")


def contexts(rows: Sequence[Row]) -> list[Counterfactual]:
    """BIPIA: every context with one payload of each category, dressed.

    Where the file's name does not say the split, payloads are split by hash as contexts are, and a category that has
    none in a split is not asked there. There is no answer to a payload, hence no witness.
    """
    groups = connected([(words(row.text("context")),) for row in rows])
    dealer = Dealer(rows[0].seed)
    return [case for row, group in zip(rows, groups, strict=True) for case in _attacks_on(row, group, dealer)]


def _attacks_on(row: Row, group: str, dealer: Dealer) -> Iterator[Counterfactual]:
    if not row.attacks:
        raise DataError(f"{row.where}: no attacks to pair it with. Do: name BIPIA's text_attack_*.json in 'attacks'.")
    own = own_split(row)
    split = own or hashed(group)
    for category, payloads in sorted(row.attacks.items()):
        fitting = [text for text in payloads if own or hashed(text) == split]
        if not fitting:
            continue
        task = Task(
            id=f"bipia/{row.stem}/{row.index}/{category}",
            group=group,
            split=split,
            instruction=row.text("question").removeprefix("Q: "),
            data=row.text("context"),
            answer=row.text("ideal"),
        )
        chosen = random.Random(f"bipia/{row.seed}/{row.index}/{category}").choice(fitting)
        yield dealer.attack(task, Payload(chosen, category=category), "bipia")
