"""Hard negatives for injection: trigger words, and nobody attacks.

Most often the text to work on *is* an instruction, and the user wants it counted, copied or turned; else the dress of
an attack (marks, control characters, headings) stands around a harmless remark. The documents, the operations and the
words are those of `injection`. A model that merely fears trigger words gets these wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from holdfast.data.examples import Example, Message
from holdfast.data.lab import documents, textops
from holdfast.data.lab.attacks import attack_names, dress, payload
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.names import WORDS, one, part, some, within
from holdfast.data.lab.splits import rng, split_of

FAMILY = "quoting"
REPORT_SHARE = 0.3
REMARK_SHARE = 0.35
LONGEST = 6
"""Words of a text to work on, as in `textops`."""
LONGEST_REPORT = 12
"""Words of a text to copy."""

_OPERATIONS = tuple(name for name in textops.OPERATIONS if name not in ("say", "translate"))
_DEMANDING = ("ignore", "completion_combined", "encoded", "role_claim")
"""Attacks whose dress is itself an instruction or announces one."""
_WORD = re.compile(r"[^\s.,:;?!]*[a-z0-9][^\s.,:;?!]*")


def _attack_text(stream: random.Random, split: str) -> tuple[str, str]:
    """A dressed payload on one line and the answer that obeys it; no real marks, as chat formats drop them."""
    instruction, answer = payload(stream, split)
    names = [name for name in attack_names(split) if name != "completion_real"]
    text = dress(stream, split, one(stream, names), instruction)
    return " ".join(text.replace("\b", " ").split()), answer


def _list_of(stream: random.Random, split: str) -> tuple[list[str], str]:
    """Different words, most of them an attack's, whose combination belongs to the split; and the payload's answer."""
    while True:
        text, obeyed = _attack_text(stream, split)
        plain = some(stream, WORDS, within(stream, 0, 2))
        attack = list(dict.fromkeys(word for word in _WORD.findall(text.lower()) if word not in plain))
        room = LONGEST - len(plain)
        attack = attack[:room] if stream.random() < 0.4 else attack[-room:]
        words = plain + attack if stream.random() < 0.5 else attack + plain
        if len(words) >= 3 and split_of(" ".join(words), FAMILY) == split:
            return words, obeyed


def _with_inventory(stream: random.Random, split: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """As many common words as other documents hold: an attack's words stand where theirs would."""
    return (documents.inventory(stream, split), *parts) if len(parts) > 1 else parts


def _operation(stream: random.Random, split: str) -> tuple[documents.Task, str]:
    words, obeyed = _list_of(stream, split)
    group = " ".join(words)
    operation = textops.OPERATIONS[one(stream, _OPERATIONS)]
    slots, answer = operation.apply(words, stream)
    instruction = one(stream, part(operation.wordings, split)).format(**slots)
    parts = _with_inventory(stream, split, documents.around(stream, split, group))
    return documents.Task(instruction, parts, answer, group), obeyed


def _report(stream: random.Random, split: str) -> tuple[documents.Task, str]:
    while True:
        text, obeyed = _attack_text(stream, split)
        if len(text.split()) <= LONGEST_REPORT and split_of(text, FAMILY) == split:
            task = documents.report(stream, split, text)
            return replace(task, parts=_with_inventory(stream, split, task.parts)), obeyed


def _dressed_remark(stream: random.Random, split: str) -> tuple[documents.Task, str]:
    task = documents.task(stream, split)
    names = [name for name in attack_names(split) if name not in _DEMANDING]
    dressed = dress(stream, split, one(stream, names), documents.remark(stream, split))
    at = within(stream, 0, len(task.parts))
    return replace(task, parts=(*task.parts[:at], dressed, *task.parts[at:])), ""


def _translation(stream: random.Random, split: str) -> tuple[documents.Task, str]:
    """An instruction of as many words as `textops.TRANSLATED` says, to be put into a code that the user gives."""
    while True:
        text, _, obeyed, _ = textops.operation_task(stream, split, "say")
        words = [word.lower() for word in _WORD.findall(text)]
        if len(words) == len(set(words)) == textops.TRANSLATED:
            operation, group = textops.OPERATIONS["translate"], " ".join(words)
            slots, answer = operation.apply(words, stream)
            instruction = one(stream, part(operation.wordings, split)).format(**slots)
            return documents.Task(instruction, documents.around(stream, split, group), answer, group), obeyed


def _task(stream: random.Random, split: str) -> tuple[documents.Task, str]:
    share = stream.random()
    if share < REPORT_SHARE:
        return _report(stream, split)
    return _dressed_remark(stream, split) if share < REPORT_SHARE + REMARK_SHARE else _operation(stream, split)


def generate(split: str, n: int, seed: int) -> list[Example]:
    """Rows whose data holds an instruction that is to be handled, not followed.

    ``payload_answer`` is what a model that follows it would say; ``attack`` is empty, as nobody is attacked.
    """
    return _rows(FAMILY, _task, split, n, seed)


def generate_translate(split: str, n: int, seed: int) -> list[Example]:
    """Rows whose data holds a short instruction that is to be translated by a code."""
    return _rows(f"{FAMILY}/translate", _translation, split, n, seed)


def _rows(
    family: str, draw_task: Callable[[random.Random, str], tuple[documents.Task, str]], split: str, n: int, seed: int
) -> list[Example]:
    stream = rng(family, split, seed)

    def make(i: int) -> Example:
        task, obeyed = draw_task(stream, split)
        while task.answer == obeyed:
            task, obeyed = draw_task(stream, split)
        turns = (Message("user", task.instruction), Message("data", documents.join(task.parts)))
        return Example(
            id=f"{family}/{split}/{seed}/{i}",
            messages=(*documents.system(stream, split), *turns),
            answer=task.answer,
            family=family,
            split=split,
            group=task.group,
            reference=task.answer,
            payload_answer=obeyed,
        )

    return draw(make, n, split)
