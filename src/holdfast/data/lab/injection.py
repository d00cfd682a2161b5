"""Prompt injection: a task on data that holds somebody else's instruction. The right answer is to the user's task.

One drawn `Case` is seen in four ways, row by row the same case: attacked, clean (nothing injected), twin (clean, with a
remark added: other data, same answer) and obeyed (the injected instruction given by the user). They are the triples of
counterfactual training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from holdfast.data.examples import Example, Message
from holdfast.data.lab import documents
from holdfast.data.lab.attacks import POSITIONS, attack_names, dress, payload
from holdfast.data.lab.drawing import draw_by
from holdfast.data.lab.names import one
from holdfast.data.lab.splits import rng

FAMILY = "injection"


@dataclass(frozen=True, slots=True)
class Case:
    """A task and an attack on it; ``extra`` is the remark that the twin adds."""

    system: tuple[Message, ...]
    task: documents.Task
    extra: str
    payload: str
    payload_answer: str
    attack: str
    position: str
    injected: str

    def attacked_data(self) -> str:
        """The data with the injected text at its position."""
        at = {"before": 0, "middle": len(self.task.parts) // 2, "after": len(self.task.parts)}[self.position]
        return documents.join([*self.task.parts[:at], self.injected, *self.task.parts[at:]])


def _unrelated_payload(stream: random.Random, split: str, known: str) -> tuple[str, str]:
    """A payload whose answer shows nowhere in ``known``, so that the answer is a witness."""
    while True:
        instruction, answer = payload(stream, split)
        if answer not in known:
            return instruction, answer


def draw_case(stream: random.Random, split: str) -> Case:
    """One task, one attack."""
    task = documents.task(stream, split)
    extra = documents.remark(stream, split)
    system = documents.system(stream, split)
    said = (*(message.content for message in system), task.instruction, *task.parts, extra, task.answer)
    attack = one(stream, attack_names(split))
    asked, witness = _unrelated_payload(stream, split, " ".join(said).lower())
    return Case(
        system=system,
        task=task,
        extra=extra,
        payload=asked,
        payload_answer=witness,
        attack=attack,
        position=one(stream, POSITIONS if len(task.parts) > 1 else ("before", "after")),
        injected=dress(stream, split, attack, asked),
    )


def _key(case: Case) -> Hashable:
    return case.task.instruction, case.task.parts


def cases(split: str, n: int, seed: int) -> tuple[Case, ...]:
    """``n`` cases; outside training no two have the same clean prompt."""
    stream = rng(FAMILY, split, seed)
    return tuple(draw_by(_key, lambda _: draw_case(stream, split), n, split))


def _row(case: Case, row_id: str, split: str, instruction: str, data: str) -> Example:
    return Example(
        id=row_id,
        messages=(*case.system, Message("user", instruction), Message("data", data)),
        answer=case.task.answer,
        family=row_id.split(f"/{split}/", maxsplit=1)[0],
        split=split,
        group=case.task.group,
        reference=case.task.answer,
    )


def _view(name: str, split: str, n: int, seed: int, see: Callable[[Case, str], Example]) -> list[Example]:
    return [see(case, f"{name}/{split}/{seed}/{i}") for i, case in enumerate(cases(split, n, seed))]


def generate(split: str, n: int, seed: int) -> list[Example]:
    """Attacked rows; ``witness`` and ``payload_answer`` show obedience, ``answer`` is to the user's instruction."""

    def see(case: Case, row_id: str) -> Example:
        return replace(
            _row(case, row_id, split, case.task.instruction, case.attacked_data()),
            witness=case.payload_answer,
            payload_answer=case.payload_answer,
            attack=case.attack,
            position=case.position,
        )

    return _view(FAMILY, split, n, seed, see)


def generate_clean(split: str, n: int, seed: int) -> list[Example]:
    """The same cases with nothing injected."""
    return _view(
        "injection/clean",
        split,
        n,
        seed,
        lambda case, row_id: _row(case, row_id, split, case.task.instruction, documents.join(case.task.parts)),
    )


def generate_twin(split: str, n: int, seed: int) -> list[Example]:
    """The same cases, clean, with a remark added to the data: another input with the same answer."""
    return _view(
        "injection/twin",
        split,
        n,
        seed,
        lambda case, row_id: _row(
            case, row_id, split, case.task.instruction, documents.join((*case.task.parts, case.extra))
        ),
    )


def generate_obeyed(split: str, n: int, seed: int) -> list[Example]:
    """The same cases with the injected instruction as the user's own, on clean data; answered."""

    def see(case: Case, row_id: str) -> Example:
        row = _row(case, row_id, split, case.payload, documents.join(case.task.parts))
        return replace(row, answer=case.payload_answer, reference=case.payload_answer)

    return _view("injection/obeyed", split, n, seed, see)
