"""Drawing rows: exactly ``n``, and outside the training split never the same prompt twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from holdfast.core.errors import DataError
from holdfast.data.examples import Example

ATTEMPTS = 60
"""Draws allowed per row before a family counts as exhausted."""

T = TypeVar("T")


def prompt(row: Example) -> Hashable:
    """What two rows may not share."""
    return row.messages


def draw_by(key: Callable[[T], Hashable], make: Callable[[int], T], n: int, split: str) -> list[T]:
    """Call ``make(i)`` until there are ``n`` results; outside training their keys are distinct.

    Raises DataError when the family does not hold that many distinct keys.
    """
    if split == "train":
        return [make(i) for i in range(n)]
    made: dict[Hashable, T] = {}
    for _ in range(n * ATTEMPTS):
        if len(made) == n:
            break
        item = make(len(made))
        made.setdefault(key(item), item)
    if len(made) < n:
        raise DataError(
            f"Drawing lab rows failed: got {len(made)} distinct {split} prompts, expected {n}. Do ask for fewer rows."
        )
    return list(made.values())


def draw(make: Callable[[int], Example], n: int, split: str) -> list[Example]:
    """`draw_by` prompt."""
    return draw_by(prompt, make, n, split)
