"""Data with parts: what a task is about is one sentence, so that its answer stays exact when text is added.

Words to work on are a sentence (``apple lamp river.``) or a marked line among remarks (``The page is old. Words: apple
lamp river.``); passages are sentences already.
"""

from __future__ import annotations

import random
import re

from holdfast.data.examples import Message
from holdfast.data.lab.names import PEOPLE, one

SYSTEMS: dict[str, tuple[str, ...]] = {
    "train": ("Work on the data.", "Do what the user asks.", "You answer questions about a text."),
    "validation": ("You work on a text.",),
    "test": ("Answer the user about the data.", "You help with a text."),
}
REMARKS: dict[str, tuple[str, ...]] = {
    "train": (
        "{name} made this list.",
        "The page is old.",
        "{name} sent it to {other}.",
        "This came by mail.",
        "{name} found it at home.",
        "It is from the school.",
        "{other} has a copy.",
        "The office closes at noon.",
    ),
    "validation": ("{name} keeps it at home.", "It came from the office."),
    "test": (
        "{name} wrote this at school.",
        "{other} found the page.",
        "This is from the office.",
        "{name} has an old copy.",
    ),
}
SYSTEM_SHARE = 0.4
MARKERS = ("Words:", "Text:")
_SENTENCE_END = re.compile(r"(?<=[.?!]) ")


def remark(rng: random.Random, split: str) -> str:
    """A sentence that asks for nothing."""
    return one(rng, REMARKS[split]).replace("{name}", one(rng, PEOPLE)).replace("{other}", one(rng, PEOPLE))


def system(rng: random.Random, split: str) -> tuple[Message, ...]:
    """A system turn in some of the rows, nothing in the others."""
    return (Message("system", one(rng, SYSTEMS[split])),) if rng.random() < SYSTEM_SHARE else ()


def around(rng: random.Random, split: str, words: str) -> tuple[str, ...]:
    """The sentences of a document that holds ``words``; one sentence in a third of the cases."""
    if rng.random() < 0.33:
        return (f"{words}.",)
    line = f"{one(rng, MARKERS)} {words}."
    note = remark(rng, split)
    return (note, line) if rng.random() < 0.5 else (line, note)


def sentences(passage: str) -> tuple[str, ...]:
    """A passage cut at its sentence ends."""
    return tuple(_SENTENCE_END.split(passage))


def join(parts: tuple[str, ...] | list[str]) -> str:
    """One text; a part that begins or ends with a line break or another control character brings its own gap."""
    text = parts[0]
    for part in parts[1:]:
        gap = "" if part[0].isspace() or text[-1].isspace() or part[0] == "\b" else " "
        text += gap + part
    return text
