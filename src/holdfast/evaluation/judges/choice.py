"""Multiple choice by likelihood: the option with the largest log-probability a token."""

from __future__ import annotations

import string

from holdfast.core.errors import DataError
from holdfast.data.examples import Example
from holdfast.evaluation.judges.base import FAILED, Judge, Sample, Score, each


def right_option(example: Example) -> int:
    """Index of the right option, from the letter in ``reference``.

    Raises:
        DataError: no options, or the letter names none of them.
    """
    letter = example.reference.strip().upper()
    index = string.ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if not 0 <= index < len(example.options):
        raise DataError(
            f"Cannot judge row {example.id!r} by choice: got reference {example.reference!r} for "
            f"{len(example.options)} options, expected the letter of one of them."
        )
    return index


def _decide(sample: Sample) -> Score:
    right = right_option(sample.example)
    scores = sample.option_scores
    if len(scores) != len(sample.example.options) or any(tokens < 1 for _, tokens in scores):
        return Score(None, FAILED, f"{len(scores)} option scores for {len(sample.example.options)} options")
    means = [total / tokens for total, tokens in scores]
    chosen = max(range(len(means)), key=means.__getitem__)
    return Score(
        float(chosen == right), "right" if chosen == right else "wrong", f"chose {string.ascii_uppercase[chosen]}"
    )


CHOICE = Judge("choice", 1, "right", each(_decide))
