"""What ``--weights`` and ``--sweep`` of ``holdfast merge`` say: numbers with commas, and a range of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from holdfast.core.errors import ConfigError

DIAL = "alpha"
MOST = 1000
"""Values of a sweep at most: each is a folder."""


def weights_of(words: str, values: Sequence[float], adapters: int) -> list[float]:
    """One for each adapter, with the first value of a sweep for the last; empty where all are 1."""
    given = _numbers("--weights", words) if words else []
    if not values:
        return given
    if given and len(given) != adapters - 1:
        raise ConfigError(
            f"--sweep sets the weight of the last adapter, so --weights is for the others: got {len(given)} for "
            f"{adapters - 1}. Do: give {adapters - 1}, or none."
        )
    return [*(given or [1.0] * (adapters - 1)), values[0]]


def _numbers(option: str, words: str) -> list[float]:
    wrong = ConfigError(f"Cannot read {option} {words!r}: expected finite numbers with commas, e.g. 1,0.5.")
    try:
        found = [float(word) for word in words.split(",")]
    except ValueError as problem:
        raise wrong from problem
    if not all(map(isfinite, found)):
        raise wrong
    return found


def sweep_values(sweep: str) -> list[float]:
    """The values of a sweep.

    >>> sweep_values("alpha=0:1:0.25"), sweep_values("alpha=0.1,3")
    ([0.0, 0.25, 0.5, 0.75, 1.0], [0.1, 3.0])
    """
    if not sweep:
        return []
    key, equals, words = sweep.partition("=")
    wrong = ConfigError(f"Cannot read --sweep {sweep!r}: expected {DIAL}=FROM:TO:STEP or {DIAL}=0.1,0.3,1.")
    if key != DIAL or not equals:
        raise wrong
    if ":" not in words:
        values = _numbers("--sweep", words)
        _refuse_many(sweep, len(values))
    else:
        try:
            first, last, step = (float(word) for word in words.split(":"))
        except ValueError as problem:
            raise wrong from problem
        if not (all(map(isfinite, (first, last, step))) and step > 0 and first <= last):
            raise wrong
        steps = (last - first) / step + 1e-9
        _refuse_many(sweep, steps + 1)
        values = [round(first + place * step, 12) for place in range(int(steps) + 1)]
    named = [f"{value:g}" for value in values]
    if len(set(named)) < len(named):
        raise ConfigError(f"--sweep {sweep!r} has a value twice, to six digits. Do: take one out, or a larger step.")
    return values


def _refuse_many(sweep: str, count: float) -> None:
    if count >= MOST + 1:
        raise ConfigError(
            f"--sweep {sweep!r} has {count:.6g} values, a folder for each: expected at most {MOST:,}. Do: take a "
            "larger step."
        )
