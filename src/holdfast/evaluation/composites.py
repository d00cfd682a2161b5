"""Figures made of figures: safety tax, drift, retention, and the trade-off between safety and utility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from holdfast.core.errors import NumericsError


@dataclass(frozen=True, slots=True)
class Figure:
    """A composite number; ``value`` is ``None`` with a reason where it is undefined."""

    value: float | None
    reason: str = ""


def safety_tax(utility_before: float, utility_after: float, safety_before: float, safety_after: float) -> Figure:
    """Utility lost per safety gained, both relative: ``((U0 - U1) / U0) / ((S1 - S0) / S0)``.

    Undefined where safety was not gained, or where a starting value is 0. Negative: both improved.

    >>> safety_tax(0.8, 0.4, 0.5, 0.75).value
    1.0
    """
    if utility_before <= 0 or safety_before <= 0:
        return Figure(None, "undefined: utility or safety before is 0, so a relative change does not exist")
    if safety_after <= safety_before:
        return Figure(None, "undefined: safety was not gained")
    lost = (utility_before - utility_after) / utility_before
    gained = (safety_after - safety_before) / safety_before
    return Figure(lost / gained)


def drift(safety_before: float, safety_after: float) -> Figure:
    """Alignment drift ``(S0 - S1) / S0``, signed: a loss of safety is positive.

    >>> drift(0.5, 0.25).value
    0.5
    """
    if safety_before <= 0:
        return Figure(None, "undefined: safety before is 0")
    return Figure((safety_before - safety_after) / safety_before)


def drift_reduction(method: Figure, plain: Figure) -> Figure:
    """``1 - drift(method) / drift(plain)``: 1 where the method kept everything that plain fine-tuning lost."""
    if method.value is None or plain.value is None:
        return Figure(None, method.reason or plain.reason)
    if plain.value <= 0:
        return Figure(None, "undefined: plain fine-tuning lost no safety")
    return Figure(1 - method.value / plain.value)


def retention(merged: Mapping[str, float], single: Mapping[str, float]) -> Figure:
    """Mean over tasks of score(merged) / score(the task's own single adapter).

    Raises:
        NumericsError: the two sides name different tasks.

    >>> retention({"a": 0.4, "b": 0.9}, {"a": 0.5, "b": 0.9}).value
    0.9
    """
    if set(merged) != set(single) or not merged:
        raise NumericsError(
            f"Retention: got tasks {sorted(merged)} merged and {sorted(single)} single, "
            "expected the same ones, at least one."
        )
    zero = sorted(name for name, score in single.items() if score <= 0)
    if zero:
        return Figure(None, f"undefined: the single-task adapter scores 0 on {', '.join(zero)}")
    return Figure(sum(merged[name] / single[name] for name in merged) / len(merged))


@dataclass(frozen=True, slots=True)
class TradeOffPoint:
    """One setting of a strength dial: safety and utility, both higher is better, with intervals where known."""

    name: str
    safety: float
    utility: float
    safety_interval: tuple[float, float] | None = None
    utility_interval: tuple[float, float] | None = None


def pareto_set(points: Sequence[TradeOffPoint]) -> list[TradeOffPoint]:
    """Points that no other point beats: none is at least as good in both and better in one. By rising safety."""

    def beaten(point: TradeOffPoint) -> bool:
        return any(
            other.safety >= point.safety
            and other.utility >= point.utility
            and (other.safety > point.safety or other.utility > point.utility)
            for other in points
        )

    return sorted((p for p in points if not beaten(p)), key=lambda p: (p.safety, -p.utility, p.name))


def hypervolume(points: Sequence[TradeOffPoint], base: TradeOffPoint) -> float:
    """Area of (safety, utility) that is better than ``base`` in both and reached by at least one point.

    A point that gains one by giving up the other below the base adds nothing, so doing nothing is not rewarded.

    >>> a, b = TradeOffPoint("a", 0.6, 0.9), TradeOffPoint("b", 0.9, 0.6)
    >>> round(hypervolume([a, b], TradeOffPoint("base", 0.5, 0.5)), 10)
    0.07
    """
    area = 0.0
    reached = base.safety
    for point in pareto_set([p for p in points if p.safety > base.safety and p.utility > base.utility]):
        area += max(0.0, point.safety - reached) * (point.utility - base.utility)
        reached = max(reached, point.safety)
    return area


def utility_at_safety(points: Sequence[TradeOffPoint], safety: float) -> Figure:
    """Utility at a matched safety: the largest utility at ``safety`` on the Pareto set, linear between neighbours.

    Undefined above the safest point. Below the least safe point it is that point's utility: it is at least as safe.
    """
    front = pareto_set(points)
    if not front:
        return Figure(None, "undefined: no points")
    if safety > front[-1].safety:
        return Figure(None, f"undefined: the safest point reaches {front[-1].safety:.3f}, below {safety:.3f}")
    if safety <= front[0].safety:
        return Figure(front[0].utility)
    left, right = next((a, b) for a, b in pairwise(front) if a.safety < safety <= b.safety)
    share = (safety - left.safety) / (right.safety - left.safety)
    return Figure(left.utility + share * (right.utility - left.utility))
