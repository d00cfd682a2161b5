"""One-line Python functions with tests (like HumanEval): one operation, or two in a row."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from holdfast.data.examples import Example, Message
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.names import ITEMS, NUMBERS, one, part
from holdfast.data.lab.splits import rng as stream_of
from holdfast.data.lab.splits import split_of

COMPOSED_SHARE = 0.6
"""Share of functions that do two things."""
ARGUMENT = {"number": "x", "text": "s", "list": "xs"}


@dataclass(frozen=True)
class Kind:
    """One kind of operation; ``{x}`` is the value it works on and ``{c}`` its constant."""

    phrase: str
    code: str
    takes: str
    gives: str
    run: Callable[[Any, Any], Any]
    constant: str = ""
    """``small`` (2 to 9), ``word`` or empty."""


KINDS: dict[str, Kind] = {
    "add": Kind("adds {c} to {x}", "{x} + {c}", "number", "number", lambda x, c: x + c, "small"),
    "subtract": Kind("subtracts {c} from {x}", "{x} - {c}", "number", "number", lambda x, c: x - c, "small"),
    "multiply": Kind("multiplies {x} by {c}", "{x} * {c}", "number", "number", lambda x, c: x * c, "small"),
    "divide": Kind("divides {x} by {c} without rest", "{x} // {c}", "number", "number", lambda x, c: x // c, "small"),
    "rest": Kind("gives the rest of {x} divided by {c}", "{x} % {c}", "number", "number", lambda x, c: x % c, "small"),
    "square": Kind("squares {x}", "{x} ** 2", "number", "number", lambda x, _: x**2),
    "negate": Kind("negates {x}", "-{x}", "number", "number", lambda x, _: -x),
    "absolute": Kind("gives the absolute value of {x}", "abs({x})", "number", "number", lambda x, _: abs(x)),
    "at_least": Kind("gives the larger of {x} and {c}", "max({x}, {c})", "number", "number", max, "small"),
    "at_most": Kind("gives the smaller of {x} and {c}", "min({x}, {c})", "number", "number", min, "small"),
    "as_text": Kind("turns {x} into text", "str({x})", "number", "text", lambda x, _: str(x)),
    "above": Kind("tells if {x} is more than {c}", "{x} > {c}", "number", "truth", lambda x, c: x > c, "small"),
    "below": Kind("tells if {x} is less than {c}", "{x} < {c}", "number", "truth", lambda x, c: x < c, "small"),
    "equal": Kind("tells if {x} is {c}", "{x} == {c}", "number", "truth", lambda x, c: x == c, "small"),
    "even": Kind("tells if {x} is even", "{x} % 2 == 0", "number", "truth", lambda x, _: x % 2 == 0),
    "odd": Kind("tells if {x} is odd", "{x} % 2 == 1", "number", "truth", lambda x, _: x % 2 == 1),
    "upper": Kind("makes {x} upper case", "{x}.upper()", "text", "text", lambda x, _: x.upper()),
    "lower": Kind("makes {x} lower case", "{x}.lower()", "text", "text", lambda x, _: x.lower()),
    "backwards": Kind("reverses {x}", "{x}[::-1]", "text", "text", lambda x, _: x[::-1]),
    "suffix": Kind("adds {c} at the end of {x}", "{x} + {c}", "text", "text", lambda x, c: x + c, "word"),
    "prefix": Kind("adds {c} at the start of {x}", "{c} + {x}", "text", "text", lambda x, c: c + x, "word"),
    "repeat": Kind("repeats {x} {c} times", "{x} * {c}", "text", "text", lambda x, c: x * c, "small"),
    "head": Kind("keeps the first {c} letters of {x}", "{x}[:{c}]", "text", "text", lambda x, c: x[:c], "small"),
    "tail": Kind("keeps the last {c} letters of {x}", "{x}[-{c}:]", "text", "text", lambda x, c: x[-c:], "small"),
    "length": Kind("counts the letters of {x}", "len({x})", "text", "number", lambda x, _: len(x)),
    "words": Kind("splits {x} into words", "{x}.split()", "text", "list_of_text", lambda x, _: x.split()),
    "ends": Kind(
        "tells if {x} ends with {c}", "{x}.endswith({c})", "text", "truth", lambda x, c: x.endswith(c), "word"
    ),
    "starts": Kind(
        "tells if {x} starts with {c}", "{x}.startswith({c})", "text", "truth", lambda x, c: x.startswith(c), "word"
    ),
    "has": Kind("tells if {c} is in {x}", "{c} in {x}", "text", "truth", lambda x, c: c in x, "word"),
    "total": Kind("sums {x}", "sum({x})", "list", "number", lambda x, _: sum(x)),
    "largest": Kind("gives the largest of {x}", "max({x})", "list", "number", lambda x, _: max(x)),
    "smallest": Kind("gives the smallest of {x}", "min({x})", "list", "number", lambda x, _: min(x)),
    "size": Kind("counts {x}", "len({x})", "list", "number", lambda x, _: len(x)),
    "first": Kind("gives the first of {x}", "{x}[0]", "list", "number", lambda x, _: x[0]),
    "last": Kind("gives the last of {x}", "{x}[-1]", "list", "number", lambda x, _: x[-1]),
    "turn": Kind("turns {x} around", "{x}[::-1]", "list", "list", lambda x, _: x[::-1]),
    "sort": Kind("sorts {x}", "sorted({x})", "list", "list", lambda x, _: sorted(x)),
    "take": Kind("keeps the first {c} of {x}", "{x}[:{c}]", "list", "list", lambda x, c: x[:c], "small"),
    "append": Kind("puts {c} at the end of {x}", "{x} + [{c}]", "list", "list", lambda x, c: [*x, c], "small"),
    "insert": Kind("puts {c} at the start of {x}", "[{c}] + {x}", "list", "list", lambda x, c: [c, *x], "small"),
    "add_each": Kind(
        "adds {c} to each of {x}", "[v + {c} for v in {x}]", "list", "list", lambda x, c: [v + c for v in x], "small"
    ),
    "scale_each": Kind(
        "multiplies each of {x} by {c}",
        "[v * {c} for v in {x}]",
        "list",
        "list",
        lambda x, c: [v * c for v in x],
        "small",
    ),
    "keep_above": Kind(
        "keeps those of {x} above {c}",
        "[v for v in {x} if v > {c}]",
        "list",
        "list",
        lambda x, c: [v for v in x if v > c],
        "small",
    ),
    "keep_below": Kind(
        "keeps those of {x} below {c}",
        "[v for v in {x} if v < {c}]",
        "list",
        "list",
        lambda x, c: [v for v in x if v < c],
        "small",
    ),
    "keep_even": Kind(
        "keeps the even ones of {x}",
        "[v for v in {x} if v % 2 == 0]",
        "list",
        "list",
        lambda x, _: [v for v in x if v % 2 == 0],
    ),
    "how_often": Kind("counts {c} in {x}", "{x}.count({c})", "list", "number", lambda x, c: x.count(c), "small"),
}
"""Every kind of operation by the name that a function gets."""
_NEEDS_ONE = ("largest", "smallest", "first", "last")
_MAY_EMPTY = ("keep_above", "keep_below", "keep_even")
ORDERS: tuple[str, ...] = (
    "Write a function {f} that {p}.",
    "Write a Python function {f} that {p}.",
    "Define a function {f} that {p}.",
    "Write {f}, a function that {p}.",
    "Write the function {f} that {p}.",
    "Define {f}, a function that {p}.",
)
"""Dealt to the splits by place, see `names.part`."""
_INPUTS: dict[str, tuple[Any, ...]] = {
    "number": (0, 3, 5, 8, -4, 27),
    "text": ("kiwi", "Red lamp", "a big Stone"),
    "list": ([3, 1, 2], [4, 8, 5, 12, 4], [7, -2, 6, 9], [9, 30]),
}


@dataclass(frozen=True)
class Step:
    """A kind with its constant."""

    kind: str
    constant: int | str = ""

    def phrase(self, value: str) -> str:
        """What the step does to ``value``, in words."""
        return KINDS[self.kind].phrase.format(x=value, c=_literal(self.constant))

    def code(self, value: str) -> str:
        """The expression that does it."""
        return KINDS[self.kind].code.format(x=value, c=_literal(self.constant))

    def run(self, value: Any) -> Any:
        """The value after the step."""
        return KINDS[self.kind].run(value, self.constant)


def _literal(constant: int | str) -> str:
    return f'"{constant}"' if isinstance(constant, str) else str(constant)


@cache
def _loose(kind: str) -> bool:
    """Whether the kind's expression needs brackets inside another one."""
    tree = ast.parse(Step(kind, 2).code("x"), mode="eval").body
    return isinstance(tree, ast.BinOp | ast.UnaryOp | ast.Compare)


@cache
def _encloses(kind: str) -> bool:
    """Whether the kind's expression puts its value between brackets of its own."""
    return "({x})" in KINDS[kind].code or "({x}," in KINDS[kind].code


@cache
def pairs(split: str) -> tuple[tuple[str, str], ...]:
    """The pairs of kinds that fit each other and belong to the split."""
    return tuple(
        (first, second)
        for first, before in KINDS.items()
        for second, after in KINDS.items()
        if first != second
        and before.gives == after.takes
        and not (first in _MAY_EMPTY and second in _NEEDS_ONE)
        and split_of(f"{first} {second}", "programs") == split
    )


@cache
def singles(split: str) -> tuple[tuple[Step, ...], ...]:
    """The single steps of the split, kind by kind."""
    kinds = ([Step(name, constant) for constant in _constants(kind)] for name, kind in KINDS.items())
    kept = (tuple(step for step in steps if split_of(_key((step,)), "programs") == split) for steps in kinds)
    return tuple(steps for steps in kept if steps)


def _constants(kind: Kind) -> tuple[int | str, ...]:
    if kind.constant == "small":
        return tuple(range(2, 10))
    return ITEMS if kind.constant == "word" else ("",)


def _key(steps: tuple[Step, ...]) -> str:
    """What decides the split: the pair of kinds, or the kind and its constant."""
    return " ".join(step.kind for step in steps) if len(steps) == 2 else f"{steps[0].kind} {steps[0].constant}".strip()


def _name(steps: tuple[Step, ...]) -> str:
    """``add_seven`` for one step, ``add_square`` for two."""
    if len(steps) == 2:
        return "_".join(step.kind for step in steps)
    constant = steps[0].constant
    word = NUMBERS[constant] if isinstance(constant, int) else constant
    return f"{steps[0].kind}_{word}" if word else steps[0].kind


def _steps(stream: random.Random, split: str) -> tuple[Step, ...]:
    if stream.random() >= COMPOSED_SHARE:
        return (one(stream, one(stream, singles(split))),)
    return tuple(Step(name, one(stream, _constants(KINDS[name]))) for name in one(stream, pairs(split)))


def _expression(steps: tuple[Step, ...], argument: str) -> str:
    code = argument
    for place, step in enumerate(steps):
        inner = code if place == 0 or _encloses(step.kind) or not _loose(steps[place - 1].kind) else f"({code})"
        code = step.code(inner)
    return code


def _inputs(steps: tuple[Step, ...]) -> list[Any]:
    """Arguments that tell the function from its neighbours: some fixed, some around the constants."""
    takes = KINDS[steps[0].kind].takes
    inputs = list(_INPUTS[takes])
    for constant in (step.constant for step in steps):
        if isinstance(constant, int) and takes == "number":
            inputs += [constant - 1, constant, constant + 1]
        elif isinstance(constant, int) and takes == "list":
            inputs.append([constant, constant + 1, constant, constant - 1])
        elif isinstance(constant, str) and constant and takes == "text":
            inputs += [f"{constant} and rope", f"A red {constant}"]
    return [value for place, value in enumerate(inputs) if value not in inputs[:place]]


def _results(steps: tuple[Step, ...], inputs: list[Any]) -> list[Any]:
    results = inputs
    for step in steps:
        results = [step.run(value) for value in results]
    return results


def _drawn(stream: random.Random, split: str) -> tuple[tuple[Step, ...], list[tuple[Any, Any]]]:
    """Steps and their input-result pairs, drawn again while the result is always the same or is the input."""
    while True:
        steps = _steps(stream, split)
        inputs = _inputs(steps)
        results = _results(steps, inputs)
        if any(result != results[0] for result in results) and results != inputs:
            return steps, list(zip(inputs, results, strict=True))


def _program(stream: random.Random, split: str, row_id: str) -> Example:
    steps, cases = _drawn(stream, split)
    argument, name = ARGUMENT[KINDS[steps[0].kind].takes], _name(steps)
    phrase = " and then ".join(step.phrase("the result" if place else argument) for place, step in enumerate(steps))
    prompt = one(stream, part(ORDERS, split)).format(f=name, p=phrase)
    answer = f"def {name}({argument}):\n    return {_expression(steps, argument)}"
    tests = "\n".join(f"assert {name}({value!r}) == {result!r}" for value, result in cases)
    return Example(
        row_id,
        (Message("user", prompt),),
        answer,
        "programs",
        split,
        _key(steps),
        reference=answer,
        tests=tests,
        entry_point=name,
    )


def generate(split: str, n: int, seed: int) -> list[Example]:
    """``n`` functions to write; ``tests`` are asserts that call ``entry_point``."""
    stream = stream_of("programs", split, seed)
    return draw(lambda index: _program(stream, split, f"programs/{split}/{seed}/{index}"), n, split)
