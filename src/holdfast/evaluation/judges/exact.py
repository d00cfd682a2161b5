"""Numeric and literal exact match, with GSM8K's `####` marker read first."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from holdfast.core.errors import DataError
from holdfast.evaluation.judges.base import INVALID, Judge, Sample, Score, each
from holdfast.evaluation.judges.phrases import normalised

_NUMBER = re.compile(r"[-+−]?\s?[$€£¥₩]?\s?[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?%?(?<=[\d%])")
_MARKER = "####"


def parse_number(text: str) -> Decimal | None:
    """The value of one written number, or ``None``: commas, sign, decimals, currency and percent signs are read over.

    >>> parse_number("-$1,250.50"), parse_number("70,000."), parse_number("three")
    (Decimal('-1250.50'), Decimal('70000'), None)
    """
    bare = re.sub(r"[$€£¥₩,%\s]", "", text.replace("−", "-")).rstrip(".")
    try:
        value = Decimal(bare)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _first_number(text: str) -> Decimal | None:
    return next((value for m in _NUMBER.finditer(text) if (value := parse_number(m.group())) is not None), None)


def _last_number(text: str) -> Decimal | None:
    values = [value for m in _NUMBER.finditer(text) if (value := parse_number(m.group())) is not None]
    return values[-1] if values else None


def marked_answer(output: str) -> str | None:
    """The rest of the line after the last ``####``, or ``None`` without a marker."""
    if _MARKER not in output:
        return None
    return output.rsplit(_MARKER, 1)[1].strip().split("\n", 1)[0].strip()


def _numeric(output: str, target: Decimal) -> Score:
    marked = marked_answer(output)
    if marked is not None:
        value = _first_number(marked)
        return Score(float(value == target), "right" if value == target else "wrong", f"after {_MARKER}: {marked[:40]}")
    value = _last_number(output)
    if value is None:
        return Score(0.0, "no_answer", "no number")
    return Score(
        float(value == target), "right_unmarked" if value == target else "wrong_unmarked", f"last number {value}"
    )


def _decide(sample: Sample) -> Score:
    reference = sample.example.reference or sample.example.answer
    if not reference.strip():
        raise DataError(f"Cannot judge row {sample.example.id!r} by exact match: it has neither reference nor answer.")
    if not sample.output.strip():
        return Score(None, INVALID, "empty")
    gold = marked_answer(reference) or reference
    target = parse_number(gold)
    if target is not None:
        return _numeric(sample.output, target)
    given = marked_answer(sample.output) or sample.output
    right = normalised(given).strip(" .\"'") == normalised(gold).strip(" .\"'")
    return Score(float(right), "right" if right else "wrong")


EXACT = Judge("exact", 1, "right", each(_decide))
