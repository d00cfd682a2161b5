"""Drawing rows: exactly ``n``, and outside the training split never the same prompt twice."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.errors import DataError
from holdfast.data.examples import Example

ATTEMPTS = 60
"""Draws allowed per row before a family counts as exhausted."""


def draw(make: Callable[[int], Example], n: int, split: str) -> list[Example]:
    """Call ``make(i)`` until there are ``n`` rows; validation and test rows have distinct prompts.

    Raises DataError when the family does not hold that many distinct prompts.
    """
    if split == "train":
        return [make(i) for i in range(n)]
    rows: list[Example] = []
    seen: set[tuple[object, ...]] = set()
    for _ in range(n * ATTEMPTS):
        if len(rows) == n:
            break
        row = make(len(rows))
        if row.messages not in seen:
            seen.add(row.messages)
            rows.append(row)
    if len(rows) < n:
        raise DataError(
            f"Drawing lab rows failed: got {len(rows)} distinct {split} prompts, expected {n}. Do ask for fewer rows."
        )
    return rows
