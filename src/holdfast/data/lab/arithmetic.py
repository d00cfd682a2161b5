"""Small word problems of one to three steps with a short reasoning (like GSM8K).

A template is a sequence of sentence parts: an opening, zero to two changes, a question. The parts are shared by the
splits, their sequences are not; neither are the things that are counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from holdfast.data.examples import Example, Message
from holdfast.data.lab.names import ITEMS, PEOPLE, one, some, within
from holdfast.data.lab.splits import of_split
from holdfast.data.lab.splits import rng as stream_of

Step = tuple[str, str, int]
"""A sentence, the reasoning it adds (empty when nothing is computed), and the total after it."""
Part = Callable[[random.Random, int], "Step | None"]
"""Makes a sentence from the total before it; None when it does not fit (a half of an odd number)."""


def _step(sentence: str, left: int, sign: str, right: int) -> Step:
    total = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
    return sentence, f"{left} {sign} {right} = {total}.", total


def _holds(verb: str) -> Part:
    def make(stream: random.Random, _: int) -> Step:
        number = within(stream, 4, 60)
        return f"{{p}} {verb} {number} {{i}}.", "", number

    return make


def _groups(sentence: str) -> Part:
    def make(stream: random.Random, _: int) -> Step:
        count, each = within(stream, 2, 9), within(stream, 3, 12)
        return _step(sentence.format(count=count, each=each, p="{p}", i="{i}"), count, "*", each)

    return make


def _two(sentence: str, sign: str) -> Part:
    def make(stream: random.Random, _: int) -> Step:
        first, second = within(stream, 3, 50), within(stream, 2, 40)
        if sign == "-":
            first, second = max(first, second) + 1, min(first, second)
        return _step(sentence.format(a=first, b=second, p="{p}", q="{q}", i="{i}"), first, sign, second)

    return make


def _more(sentence: str) -> Part:
    def make(stream: random.Random, total: int) -> Step:
        number = within(stream, 2, 40)
        return _step(sentence.format(n=number, p="{p}", q="{q}", i="{i}"), total, "+", number)

    return make


def _less(sentence: str) -> Part:
    def make(stream: random.Random, total: int) -> Step | None:
        if total < 3:
            return None
        number = within(stream, 1, min(total - 1, 40))
        return _step(sentence.format(n=number, p="{p}", q="{q}", i="{i}"), total, "-", number)

    return make


def _times(sentence: str, factor: int) -> Part:
    def make(_: random.Random, total: int) -> Step | None:
        return _step(sentence, total, "*", factor) if total < 100 else None

    return make


def _shares(sentence: str, parts: int) -> Part:
    def make(_: random.Random, total: int) -> Step | None:
        return _step(sentence, total, "/", parts) if total % parts == 0 and total > parts else None

    return make


OPENINGS: dict[str, Part] = {
    "has": _holds("has"),
    "buys": _holds("buys"),
    "finds": _holds("finds"),
    "owns": _holds("owns"),
    "boxes": _groups("{p} has {count} boxes with {each} {i} in each box."),
    "bags": _groups("{p} buys {count} bags of {each} {i}."),
    "rows": _groups("{p} puts {i} in {count} rows of {each}."),
    "days": _groups("{p} makes {each} {i} a day for {count} days."),
    "both": _two("{p} has {a} {i} and {q} brings {b} more.", "+"),
    "days_sum": _two("{p} finds {a} {i} one day and {b} {i} the next day.", "+"),
    "shop": _two("A shop has {a} {i} and sells {b} to {p}.", "-"),
    "broken": _two("{p} has {a} {i} but {b} of them are broken.", "-"),
}
CHANGES: dict[str, Part] = {
    "buys": _more("{p} buys {n} more."),
    "gets": _more("{q} gives {p} {n} more."),
    "finds": _more("Then {p} finds {n} more."),
    "makes": _more("{p} makes {n} more {i}."),
    "gives": _less("{p} gives {n} to {q}."),
    "loses": _less("{p} loses {n} of them."),
    "sells": _less("Then {p} sells {n} {i}."),
    "takes": _less("{q} takes {n} of them."),
    "doubles": _times("Then the number of {i} doubles.", 2),
    "triples": _times("Then the number of {i} grows to three times as many.", 3),
    "half": _shares("{p} keeps only half of them.", 2),
    "gives_half": _shares("{p} gives half of the {i} to {q}.", 2),
    "third": _shares("{p} keeps only a third of them.", 3),
}
QUESTIONS: tuple[str, ...] = (
    "How many {i} are there now?",
    "How many {i} are left in the end?",
    "What is the number of {i} now?",
    "How many {i} are there in the end?",
    "How many {i} are there?",
)
STEPS_WEIGHTS: tuple[float, float, float] = (0.2, 0.5, 0.3)
"""Share of problems with no, one and two changes after the opening."""


@cache
def templates(split: str, changes: int) -> tuple[tuple[str, ...], ...]:
    """The sequences of parts of one split that have so many changes."""
    sequences: list[tuple[str, ...]] = [(name,) for name in OPENINGS]
    for _ in range(changes):
        sequences = [(*seq, name) for seq in sequences for name in CHANGES if name not in seq]
    if changes == 0:
        sequences = [(name,) for name in OPENINGS if name not in ("has", "buys", "finds", "owns")]
    keys = of_split((" ".join(seq) for seq in sequences), "arithmetic", split)
    return tuple(tuple(key.split()) for key in keys)


@cache
def _items(split: str) -> tuple[str, ...]:
    return tuple(of_split(ITEMS, "arithmetic/items", split))


def _problem(stream: random.Random, split: str) -> tuple[str, str, int, str]:
    """Question, reasoning, result and template of one problem."""
    while True:
        draw = stream.random()
        changes = 0 if draw < STEPS_WEIGHTS[0] else 1 if draw < STEPS_WEIGHTS[0] + STEPS_WEIGHTS[1] else 2
        sequences = templates(split, changes)
        if not sequences:
            continue
        template = one(stream, sequences)
        steps: list[Step] = []
        for place, name in enumerate(template):
            made = OPENINGS[name](stream, 0) if place == 0 else CHANGES[name](stream, steps[-1][2])
            if made is None:
                break
            steps.append(made)
        else:
            sentences = " ".join(step[0] for step in steps)
            reasoning = " ".join(step[1] for step in steps if step[1])
            return sentences, reasoning, steps[-1][2], " ".join(template)


def generate(split: str, n: int, seed: int) -> list[Example]:
    """``n`` word problems; ``answer`` ends in ``#### result`` and ``reference`` is the result."""
    stream = stream_of("arithmetic", split, seed)
    out = []
    for index in range(n):
        text, reasoning, total, template = _problem(stream, split)
        first, second = some(stream, PEOPLE, 2)
        text = f"{text} {one(stream, QUESTIONS)}".format(p=first, q=second, i=one(stream, _items(split)) + "s")
        out.append(
            Example(
                f"arithmetic/{split}/{seed}/{index}",
                (Message("user", text),),
                f"{reasoning} #### {total}",
                "arithmetic",
                split,
                template,
                reference=str(total),
            )
        )
    return out
