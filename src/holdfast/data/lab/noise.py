"""Word problems whose answers hold planted noise: digits that are replaced by others, at known places."""

from __future__ import annotations

import random
from dataclasses import replace

from holdfast.data.examples import Example
from holdfast.data.lab import arithmetic
from holdfast.data.lab.splits import rng

SHARE = 0.1
"""Of the digits of an answer."""
DIGITS = "0123456789"


def generate(split: str, n: int, seed: int) -> list[Example]:
    """The rows of `arithmetic.generate`; each digit of ``answer`` is another one with probability `SHARE`.

    ``without_noise`` is the answer as it was; ``reference`` stays the right result.
    """
    stream = rng("arithmetic/noisy", split, seed)
    return [
        replace(row, answer=_noisy(stream, row.answer), without_noise=row.answer)
        for row in arithmetic.generate(split, n, seed)
    ]


def _noisy(stream: random.Random, answer: str) -> str:
    return "".join(_other(stream, c) if c in DIGITS and stream.random() < SHARE else c for c in answer)


def _other(stream: random.Random, digit: str) -> str:
    return stream.choice([other for other in DIGITS if other != digit])
