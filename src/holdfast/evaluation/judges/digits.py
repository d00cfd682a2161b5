"""Error on the tokens that matter: which share of the digits of results is not the model's first choice."""

from __future__ import annotations

from holdfast.evaluation.judges.base import FAILED, Judge, Sample, Score, each


def _decide(sample: Sample) -> Score:
    wrong = sum(not first for _, first in sample.option_scores)
    scored = len(sample.option_scores)
    if not scored:
        return Score(None, FAILED, "no digit of a result in the answer")
    return Score(wrong / scored, "wrong" if wrong else "right", f"{wrong} of {scored} tokens")


DIGITS = Judge("digits", 1, "wrong", each(_decide))
