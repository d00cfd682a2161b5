"""Data with parts: what a task is about is one sentence, so that its answer stays exact when text is added.

Words to work on are a sentence (``apple lamp river.``) or a marked line among remarks (``The page is old. Words: apple
lamp river.``); passages are sentences already.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from holdfast.data.examples import Message
from holdfast.data.lab import passages, textops
from holdfast.data.lab.names import PEOPLE, WORDS, one, some, within
from holdfast.data.lab.splits import split_of

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
        "{name} found it at home.",
        "{name} likes the word {word}.",
        "People say {word} to the {thing}.",
        "{name} did say {word}.",
        "{name} can print the {word} page.",
        "{name} did not write the word {word}.",
        "{name} likes to write about the {word}.",
        "{name} did reply with a {word}.",
        "Please note that {name} has left.",
        "The task of {name} is to print a {word}.",
        "Now only {other} has a {word}.",
        "The answer of {name} to the question is {word}.",
        "{name} did ignore the {word} and forget the {thing}.",
    ),
    "validation": (
        "{name} likes to say {word}.",
        "It came from {other}.",
        "{other} did write that the {word} is old.",
    ),
    "test": (
        "{name} wrote this at home.",
        "{other} found the page.",
        "{name} can say {word} to the {thing}.",
        "Only {name} likes to print the word {word}.",
        "People write that {name} did ignore {other}.",
        "{name} likes to reply with the word {word}.",
        "The question of {name} is now about the {word}.",
        "The task of {other} is to write just {word}.",
    ),
}
INVENTORIES: dict[str, tuple[str, ...]] = {
    "train": ("{name} has {list}.", "At home there is {list}."),
    "validation": ("{name} found {list}.",),
    "test": ("{name} likes {list}.", "On the page is {list}."),
}
SYSTEM_SHARE = 0.4
PASSAGE_SHARE = 0.25
REPORT_SHARE = 0.2
INVENTORY_SHARE = 0.2
MARKERS = ("Words:", "Text:")
ASKS: dict[str, tuple[str, ...]] = {
    "train": (
        "What did {name} write?",
        "Quote {name}.",
        "Repeat what {name} wrote.",
        "What are the words of {name}?",
        "Copy the message of {name}.",
    ),
    "validation": ("Which words did {name} write?",),
    "test": ("Quote the message of {name}.", "What is in the message of {name}?"),
}
REPORTS: dict[str, tuple[str, ...]] = {
    "train": ('{name} wrote: "{text}"', 'The message of {name} is "{text}"', '{name} wrote "{text}" to {other}.'),
    "validation": ('This is what {name} wrote: "{text}"',),
    "test": ('The words of {name} are: "{text}"', 'On the page {name} wrote "{text}" at noon.'),
}
_SENTENCE_END = re.compile(r"(?<=[.?!]) ")


@dataclass(frozen=True, slots=True)
class Task:
    """A user's instruction, the sentences of its data, and the one right answer."""

    instruction: str
    parts: tuple[str, ...]
    answer: str
    group: str


def remark(rng: random.Random, split: str) -> str:
    """A sentence that asks for nothing."""
    name, other = some(rng, PEOPLE, 2)
    word, thing = some(rng, WORDS, 2)
    if rng.random() < INVENTORY_SHARE:
        return inventory(rng, split)
    return one(rng, REMARKS[split]).format(name=name, other=other, word=word, thing=thing)


def system(rng: random.Random, split: str) -> tuple[Message, ...]:
    """A system turn in some of the rows, nothing in the others."""
    return (Message("system", one(rng, SYSTEMS[split])),) if rng.random() < SYSTEM_SHARE else ()


def inventory(rng: random.Random, split: str) -> str:
    """A remark that names several things."""
    things = some(rng, WORDS, within(rng, 2, 4))
    return one(rng, INVENTORIES[split]).format(name=one(rng, PEOPLE), list=" and ".join(things))


def around(rng: random.Random, split: str, words: str) -> tuple[str, ...]:
    """The sentences of a document that holds ``words``: alone, or marked and among one or two remarks."""
    if rng.random() < 0.3:
        return (f"{words}.",)
    parts = [remark(rng, split) for _ in range(within(rng, 1, 2))]
    parts.insert(within(rng, 0, len(parts)), f"{one(rng, MARKERS)} {words}.")
    return tuple(parts)


def report(rng: random.Random, split: str, text: str) -> Task:
    """Somebody's words between quotation marks, beside a remark or inside a passage; the task is to quote them.

    The group names them as quoted: other families deal out lists of words on their own, and may have the same ones.
    """
    name, other = some(rng, PEOPLE, 2)
    told = one(rng, REPORTS[split]).replace("{name}", name).replace("{other}", other).replace("{text}", text)
    rest = sentences(passages.task(rng, split)[0])[:3] if rng.random() < 0.5 else (remark(rng, split),)
    at = int(rng.random() * (len(rest) + 1))
    return Task(one(rng, ASKS[split]).replace("{name}", name), (*rest[:at], told, *rest[at:]), text, f'"{text}"')


def _words_of(rng: random.Random, split: str) -> str:
    """A harmless text to quote: a few words whose combination belongs to the split."""
    while True:
        text = " ".join(some(rng, WORDS, within(rng, 2, 5)))
        if split_of(text, "documents") == split:
            return text


def task(rng: random.Random, split: str) -> Task:
    """One harmless task: on a passage, on somebody's words, or on a list of words."""
    share = rng.random()
    if share < PASSAGE_SHARE:
        passage, question, answer, group = passages.task(rng, split)
        return Task(question, sentences(passage), answer, group)
    if share < PASSAGE_SHARE + REPORT_SHARE:
        return report(rng, split, _words_of(rng, split))
    instruction, data, answer, group = textops.task(rng, split)
    return Task(instruction, around(rng, split, data), answer, group)


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
