"""Text operations: an instruction on a few words, with one exact answer (like StruQ's clean half)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from holdfast.core.registry import Registry
from holdfast.data.examples import Example, Message
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.names import WORDS, one, part, some, within
from holdfast.data.lab.splits import of_split, split_of
from holdfast.data.lab.splits import rng as stream_of

Apply = Callable[[list[str], random.Random], tuple[dict[str, str], str]]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Operation:
    """One task: wordings of the instruction, and what turns words into slots of the wording and the answer."""

    wordings: tuple[str, ...]
    """Dealt to the splits by place, see `names.part`."""
    apply: Apply
    lengths: tuple[int, int] = (3, 6)
    """Fewest and most words that it works on."""


TRANSLATED = 3
"""Words that a code translates."""


def _operation(wordings: str, apply: Apply, lengths: tuple[int, int] = (3, 6)) -> Operation:
    """An operation whose wordings are given as one text, separated by bars."""
    return Operation(tuple(wordings.split("|")), apply, lengths)


def _plain(function: Callable[[list[str]], str]) -> Apply:
    return lambda words, _: ({}, function(words))


def _nth(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    place = within(stream, 1, len(words) - 1)
    return {"nth": ORDINALS[place]}, words[place]


def _translate(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    code = _others(words, stream, len(words))
    pairs = list(zip(words, code, strict=True))
    stream.shuffle(pairs)
    return {"code": ", ".join(f"{a} means {b}" for a, b in pairs)}, " ".join(code)


def _others(words: list[str], stream: random.Random, k: int) -> list[str]:
    """``k`` words that are not among the given ones."""
    return [word for word in some(stream, WORDS, len(words) + k) if word not in words][:k]


def _say(words: list[str], stream: random.Random) -> tuple[dict[str, str], str]:
    said = " ".join(words)
    named = len(words) == 1 and stream.random() < 0.5
    words.clear()
    return {"w": f"the word {said}" if named else said}, said


OPERATIONS: Registry[Operation] = Registry(
    "text operation",
    {
        "reverse": _operation(
            "Reverse the words.|Write the words in reverse order.|Put the words in reverse order.|"
            "Write the words backwards.|Give the words backwards.|Reverse the order of the words.",
            _plain(lambda w: " ".join(w[::-1])),
        ),
        "sort": _operation(
            "Sort the words.|Put the words in alphabetical order.|Sort the words from a to z.|"
            "Write the words in alphabetical order.|Sort the words in alphabetical order.|"
            "Give the words in alphabetical order.",
            _plain(lambda w: " ".join(sorted(w))),
            (3, 4),
        ),
        "first": _operation(
            "Write the first word.|What is the first word?|Name the first word.|Print the first word.|"
            "Which word comes first?|Give the first word.",
            _plain(lambda w: w[0]),
        ),
        "last": _operation(
            "Write the last word.|Give the last word.|Name the last word.|Which word comes last?|"
            "What is the last word?|Print the last word.",
            _plain(lambda w: w[-1]),
        ),
        "count": _operation(
            "Count the words.|How many words are there?|Write how many words there are.|"
            "Give the number of words.|What is the number of words?|Write the number of words.",
            _plain(lambda w: str(len(w))),
        ),
        "nth": _operation(
            "What is the {nth} word?|Give the {nth} word.|Name the {nth} word.|Print the {nth} word.|"
            "Which word is {nth}?|Write the {nth} word.",
            _nth,
        ),
        "copy": _operation(
            "Repeat the text.|Copy the text.|Write the text again.|Repeat the words.|Copy the words.|"
            "Write the words again.",
            _plain(" ".join),
        ),
        "twice": _operation(
            "Write each word twice.|Say every word twice.|Repeat each word two times.|Double each word.|"
            "Say each word twice.|Write every word twice.",
            _plain(lambda w: " ".join(word for each in w for word in (each, each))),
        ),
        "dash": _operation(
            "Join the words with dashes.|Write the words with dashes between them.|"
            "Write the words joined with dashes.|Put the words together with dashes.|"
            "Use dashes to join the words.|Put dashes between the words.",
            _plain("-".join),
        ),
        "translate": _operation(
            "Translate: {code}.|Use this code: {code}.|Write the words in code: {code}.|"
            "Translate with this code: {code}.|Translate the words: {code}.|Put the words in this code: {code}.",
            _translate,
            (TRANSLATED, TRANSLATED),
        ),
        "say": _operation(
            "Say {w}.|Print {w}.|Write {w}.|Just say {w}.|Only write {w}.|Reply with {w}.|Just print {w}.|"
            "Answer with {w}.|Only say {w}.|Just write {w}.",
            _say,
            (1, 3),
        ),
    },
)
"""Every operation by name; `task` draws one, ``textops/<name>`` is one alone."""
_WITH_DATA = tuple(name for name in OPERATIONS if name != "say")


@cache
def _sayable(split: str) -> tuple[str, ...]:
    return tuple(of_split(WORDS, "textops", split))


def _word_list(stream: random.Random, split: str, lengths: tuple[int, int]) -> list[str]:
    """Words whose combination belongs to the split; only the first is redrawn until it does."""
    words = some(stream, WORDS, within(stream, *lengths))
    while split_of(" ".join(words), "textops") != split:
        words[0] = next(word for word in some(stream, WORDS, len(words)) if word not in words[1:])
    return words


def operation_task(rng: random.Random, split: str, name: str) -> tuple[str, str, str, str]:
    """One task of a named operation: ``(instruction, data, answer, group)``; ``data`` is empty for ``say``."""
    operation = OPERATIONS[name]
    words = _word_list(rng, split, operation.lengths)
    group = " ".join(words)
    slots, answer = operation.apply(words, rng)
    return one(rng, part(operation.wordings, split)).format(**slots), " ".join(words), answer, group


def task(rng: random.Random, split: str) -> tuple[str, str, str, str]:
    """One task on data: ``(instruction, data, answer, group)``; ``group`` is the list of words."""
    return operation_task(rng, split, one(rng, _WITH_DATA))


def say_task(rng: random.Random, split: str) -> tuple[str, str]:
    """An instruction that needs no data, and the one word of the split that it asks for: ``("Say kiwi.", "kiwi")``."""
    operation = OPERATIONS["say"]
    slots, word = operation.apply([one(rng, _sayable(split))], rng)
    return one(rng, part(operation.wordings, split)).format(**slots), word


def generate(split: str, n: int, seed: int, operation: str = "") -> list[Example]:
    """``n`` rows of all operations, or of the named one; outside training no prompt comes twice."""
    family = f"textops/{operation}" if operation else "textops"
    stream = stream_of(family, split, seed)
    names = (operation,) if operation else tuple(OPERATIONS)

    def row(index: int) -> Example:
        instruction, data, answer, group = operation_task(stream, split, one(stream, names))
        messages = (Message("user", instruction), Message("data", data)) if data else (Message("user", instruction),)
        return Example(f"{family}/{split}/{seed}/{index}", messages, answer, family, split, group, reference=answer)

    return draw(row, n, split)
