"""Text operations: an instruction on a few words, with one exact answer (like StruQ's clean half)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.core.registry import Registry
from holdfast.data.examples import Example, Message
from holdfast.data.lab.names import NUMBERS, WORDS, one, part, some, within
from holdfast.data.lab.splits import rng as stream_of
from holdfast.data.lab.splits import split_of

Apply = Callable[[list[str], random.Random], tuple[dict[str, str], str]]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Operation:
    """One task: wordings of the instruction, and what turns words into slots of the wording and the answer."""

    wordings: tuple[str, ...]
    """Dealt to the splits by place, see `names.part`."""
    apply: Apply


def _plain(function: Callable[[list[str]], str]) -> Apply:
    return lambda words, _: ({}, function(words))


def _nth(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    place = within(stream, 1, len(words) - 1)
    return {"nth": ORDINALS[place]}, words[place]


def _translate(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    kept = words[:3]
    code = [word for word in some(stream, WORDS, len(words) + 3) if word not in words][: len(kept)]
    pairs = list(zip(kept, code, strict=True))
    order = some(stream, pairs, len(pairs))
    words[3:] = []
    return {"code": ", ".join(f"{a} means {b}" for a, b in order)}, " ".join(code)


def _after(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    place = within(stream, 1, len(words) - 1)
    return {"w": words[place - 1]}, words[place]


def _before(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    place = within(stream, 1, len(words) - 1)
    return {"w": words[place]}, words[place - 1]


def _other(words: list[str], stream: random.Random) -> str:
    return next(word for word in some(stream, WORDS, len(words) + 1) if word not in words)


def _replace(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    old, new = one(stream, words), _other(words, stream)
    return {"w": old, "v": new}, " ".join(new if word == old else word for word in words)


def _append(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    new = _other(words, stream)
    return {"w": new}, " ".join([*words, new])


def _prepend(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    new = _other(words, stream)
    return {"w": new}, " ".join([new, *words])


def _drop(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    gone = one(stream, words)
    return {"w": gone}, " ".join(word for word in words if word != gone)


def _contains(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    there = stream.random() < 0.5
    return {"w": one(stream, words) if there else _other(words, stream)}, "yes" if there else "no"


def _say(words: list[str], _: random.Random) -> tuple[dict[str, str], str]:
    word = words[0]
    words.clear()
    return {"w": word}, word


OPERATIONS: Registry[Operation] = Registry(
    "text operation",
    {
        "reverse": Operation(
            (
                "Reverse the words.",
                "Write the words in reverse order.",
                "Put the words in reverse order.",
                "Write the words backwards.",
                "Give the words backwards.",
                "Reverse the order of the words.",
            ),
            _plain(lambda w: " ".join(w[::-1])),
        ),
        "sort": Operation(
            (
                "Sort the words.",
                "Put the words in alphabetical order.",
                "Sort the words from a to z.",
                "Write the words in alphabetical order.",
                "Sort the words in alphabetical order.",
                "Give the words in alphabetical order.",
            ),
            _plain(lambda w: " ".join(sorted(w))),
        ),
        "sort_down": Operation(
            (
                "Sort the words from z to a.",
                "Put the words in order from z to a.",
                "Write the words from z to a.",
                "Sort the words downwards.",
                "Order the words from z to a.",
                "Give the words sorted from z to a.",
            ),
            _plain(lambda w: " ".join(sorted(w, reverse=True))),
        ),
        "first": Operation(
            (
                "Write the first word.",
                "What is the first word?",
                "Give the first word.",
                "Which word comes first?",
                "Print the first word.",
                "Name the first word.",
            ),
            _plain(lambda w: w[0]),
        ),
        "last": Operation(
            (
                "Write the last word.",
                "What is the last word?",
                "Give the last word.",
                "Which word comes last?",
                "Print the last word.",
                "Name the last word.",
            ),
            _plain(lambda w: w[-1]),
        ),
        "count": Operation(
            (
                "Count the words.",
                "How many words are there?",
                "Write how many words there are.",
                "Give the number of words.",
                "What is the number of words?",
                "Write the number of words.",
            ),
            _plain(lambda w: str(len(w))),
        ),
        "nth": Operation(
            (
                "Write the {nth} word.",
                "What is the {nth} word?",
                "Give the {nth} word.",
                "Which word is {nth}?",
                "Print the {nth} word.",
                "Name the {nth} word.",
            ),
            _nth,
        ),
        "copy": Operation(
            (
                "Repeat the text.",
                "Copy the text.",
                "Write the text again.",
                "Repeat the words.",
                "Copy the words.",
                "Write the words again.",
            ),
            _plain(" ".join),
        ),
        "twice": Operation(
            (
                "Write each word twice.",
                "Say each word twice.",
                "Repeat each word two times.",
                "Double each word.",
                "Write every word twice.",
                "Say every word twice.",
            ),
            _plain(lambda w: " ".join(word for each in w for word in (each, each))),
        ),
        "drop_first": Operation(
            (
                "Remove the first word.",
                "Write all but the first word.",
                "Drop the first word.",
                "Leave out the first word.",
                "Delete the first word.",
                "Give all but the first word.",
            ),
            _plain(lambda w: " ".join(w[1:])),
        ),
        "drop_last": Operation(
            (
                "Remove the last word.",
                "Write all but the last word.",
                "Drop the last word.",
                "Leave out the last word.",
                "Delete the last word.",
                "Give all but the last word.",
            ),
            _plain(lambda w: " ".join(w[:-1])),
        ),
        "dash": Operation(
            (
                "Join the words with dashes.",
                "Write the words with dashes between them.",
                "Put dashes between the words.",
                "Use dashes to join the words.",
                "Put the words together with dashes.",
                "Write the words joined with dashes.",
            ),
            _plain("-".join),
        ),
        "comma": Operation(
            (
                "Join the words with commas.",
                "Write the words with commas between them.",
                "Put commas between the words.",
                "Use commas to join the words.",
                "Put the words together with commas.",
                "Write the words joined with commas.",
            ),
            _plain(", ".join),
        ),
        "swap_ends": Operation(
            (
                "Swap the first and last word.",
                "Swap the first word with the last word.",
                "Let the first and last word trade places.",
                "Put the last word first and the first word last.",
                "Exchange the first and last word.",
                "Let the first word and the last word swap places.",
            ),
            _plain(lambda w: " ".join([w[-1], *w[1:-1], w[0]])),
        ),
        "translate": Operation(
            (
                "Translate: {code}.",
                "Use this code: {code}.",
                "Write the words in code: {code}.",
                "Translate with this code: {code}.",
                "Translate the words: {code}.",
                "Put the words in this code: {code}.",
            ),
            _translate,
        ),
        "say": Operation(
            (
                "Say {w}.",
                "Print the word {w}.",
                "Write {w}.",
                "Say the word {w}.",
                "Just say {w}.",
                "Print {w}.",
                "Only write {w}.",
                "Reply with {w}.",
                "Write the word {w}.",
                "Reply with the word {w}.",
            ),
            _say,
        ),
        "after": Operation(
            (
                "Which word comes after {w}?",
                "Write the word after {w}.",
                "Give the word after {w}.",
                "What comes after {w}?",
                "What word is after {w}?",
                "Name the word after {w}.",
            ),
            _after,
        ),
        "before": Operation(
            (
                "Which word comes before {w}?",
                "Write the word before {w}.",
                "Give the word before {w}.",
                "What comes before {w}?",
                "What word is before {w}?",
                "Name the word before {w}.",
            ),
            _before,
        ),
        "replace": Operation(
            (
                "Replace {w} with {v}.",
                "Write {v} in place of {w}.",
                "Put {v} in place of {w}.",
                "Change {w} to {v}.",
                "Use {v} in place of {w}.",
                "Change the word {w} to {v}.",
            ),
            _replace,
        ),
        "number": Operation(
            (
                "Number the words.",
                "Write a number before each word.",
                "Put a number before each word.",
                "Give each word a number.",
                "Number each word.",
                "Write each word with its number.",
            ),
            _plain(lambda w: " ".join(f"{i} {word}" for i, word in enumerate(w, 1))),
        ),
        "append": Operation(
            (
                "Add {w} at the end.",
                "Put {w} at the end.",
                "Write the words and then {w}.",
                "Put {w} after the words.",
                "Write {w} at the end.",
                "Add {w} after the words.",
            ),
            _append,
        ),
        "prepend": Operation(
            (
                "Add {w} at the start.",
                "Put {w} at the start.",
                "Write {w} and then the words.",
                "Put {w} before the words.",
                "Write {w} at the start.",
                "Add {w} before the words.",
            ),
            _prepend,
        ),
        "drop": Operation(
            (
                "Remove {w}.",
                "Drop the word {w}.",
                "Write all words but {w}.",
                "Leave out {w}.",
                "Delete {w}.",
                "Remove the word {w}.",
            ),
            _drop,
        ),
        "first_two": Operation(
            (
                "Write the first two words.",
                "What are the first two words?",
                "Give the first two words.",
                "Which two words come first?",
                "Print the first two words.",
                "Name the first two words.",
            ),
            _plain(lambda w: " ".join(w[:2])),
        ),
        "last_two": Operation(
            (
                "Write the last two words.",
                "What are the last two words?",
                "Give the last two words.",
                "Which two words come last?",
                "Print the last two words.",
                "Name the last two words.",
            ),
            _plain(lambda w: " ".join(w[-2:])),
        ),
        "contains": Operation(
            (
                "Is {w} in the text?",
                "Does the text contain {w}?",
                "Is the word {w} there?",
                "Do the words contain {w}?",
                "Is {w} one of the words?",
                "Does the text contain the word {w}?",
            ),
            _contains,
        ),
    },
)
"""Every operation by name; `task` draws one, ``textops/<name>`` is one alone."""
_WITH_DATA = tuple(name for name in OPERATIONS if name != "say")


def _word_list(stream: random.Random, split: str) -> list[str]:
    """Three to six words whose combination belongs to the split."""
    words = some(stream, WORDS, within(stream, 3, 6))
    while split_of(" ".join(words), "textops") != split:
        words[0] = next(word for word in some(stream, WORDS, len(words)) if word not in words[1:])
    return words


def operation_task(rng: random.Random, split: str, name: str) -> tuple[str, str, str, str]:
    """One task of a named operation: ``(instruction, data, answer, group)``; ``data`` is empty for ``say``."""
    operation = OPERATIONS[name]
    words = _word_list(rng, split)
    group = " ".join(words)
    slots, answer = operation.apply(words, rng)
    return one(rng, part(operation.wordings, split)).format(**slots), " ".join(words), answer, group


def task(rng: random.Random, split: str) -> tuple[str, str, str, str]:
    """One task on data: ``(instruction, data, answer, group)``; ``group`` is the list of words."""
    return operation_task(rng, split, one(rng, _WITH_DATA))


def say_task(rng: random.Random, split: str) -> tuple[str, str]:
    """An instruction that needs no data, and the one word it asks for: ``("Say kiwi.", "kiwi")``."""
    word = one(rng, WORDS)
    return one(rng, part(OPERATIONS["say"].wordings, split)).format(w=word), word


def generate(split: str, n: int, seed: int, operation: str = "") -> list[Example]:
    """``n`` rows of all operations, or of the named one."""
    family = f"textops/{operation}" if operation else "textops"
    stream = stream_of(family, split, seed)
    names = (operation,) if operation else tuple(OPERATIONS)
    out = []
    for index in range(n):
        instruction, data, answer, group = operation_task(stream, split, one(stream, names))
        messages = (Message("user", instruction), Message("data", data)) if data else (Message("user", instruction),)
        out.append(
            Example(f"{family}/{split}/{seed}/{index}", messages, answer, "textops", split, group, reference=answer)
        )
    return out
