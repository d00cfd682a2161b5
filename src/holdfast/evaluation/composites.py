"""Figures made of figures: safety tax, drift, retention, and the trade-off between safety and utility."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from holdfast.core.errors import NumericsError
from holdfast.evaluation.intervals import clopper_pearson, cluster_sums, resampled_means

LEVEL_OF_TWO = 0.975
"""Of each of two limits that together are to hold at 95 %."""


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


@dataclass(frozen=True, slots=True)
class Paired:
    """One task's scores on the same rows before and after; higher is better."""

    before: Sequence[float]
    after: Sequence[float]
    clusters: Sequence[Hashable]
    """One key a row: what it is about."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A composite with its interval; ``reason`` says why the value, or else the interval, is missing."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""
    how: str = "paired bootstrap 95% by group"
    """How the interval was made, where there is one."""


def drift_of(safety: Paired, *, seed: int = 0) -> Estimate:
    """`drift` of one task's mean safety, with a paired bootstrap interval (see `safety_tax_of`).

    Where all safety was lost, or no group of rows changed, every resample says the same. The interval then comes from
    exact limits of the share of groups that may still be safe, or may change, and of safety before (Bonferroni).
    """
    found = _bootstrapped([safety], lambda means: drift(*means[0]), seed)
    return found if found.value is None or found.low is not None else _alike(found, safety)


def _alike(found: Estimate, safety: Paired) -> Estimate:
    (before, counts), (after, _) = (cluster_sums(side, safety.clusters) for side in (safety.before, safety.after))
    lost, same = not after.any(), bool((before == after).all())
    most = clopper_pearson(0, len(before), LEVEL_OF_TWO)[1]
    least = clopper_pearson(int((before / counts).sum()), len(before), LEVEL_OF_TWO)[0]
    if found.value is None or not (lost or same) or least == 0:
        return found
    margin = most / least
    how = "clopper-pearson 95% over groups that changed alike"
    return Estimate(found.value, found.value - margin, 1.0 if lost else min(1.0, margin), how=how)


def safety_tax_of(utility: Sequence[Paired], safety: Sequence[Paired], *, seed: int = 0) -> Estimate:
    """`safety_tax` of utility and safety, each the plain mean over its tasks, with a paired bootstrap interval.

    Whole clusters of rows are resampled, before and after together, each task on its own. The interval is the middle
    95 % of 2,000 draws in which the composite is defined, and missing where more than 2.5 % leave it undefined: the
    data then do not tell whether safety was gained.

    Reference:
        Davison & Hinkley, Bootstrap Methods and their Application (1997), 4.4.
    """
    split = len(utility)

    def tax(means: Sequence[tuple[float, float]]) -> Figure:
        sides = (means[:split], means[split:])
        (u_before, u_after), (s_before, s_after) = (
            (sum(b for b, _ in side) / len(side), sum(a for _, a in side) / len(side)) for side in sides
        )
        return safety_tax(u_before, u_after, s_before, s_after)

    return _bootstrapped([*utility, *safety], tax, seed)


def _bootstrapped(
    tasks: Sequence[Paired], composite: Callable[[Sequence[tuple[float, float]]], Figure], seed: int
) -> Estimate:
    """A composite of the tasks' means (before, after), and its percentile interval over resampled clusters."""
    found = composite([(sum(t.before) / len(t.before), sum(t.after) / len(t.after)) for t in tasks])
    if found.value is None:
        return Estimate(None, None, None, found.reason)
    draws, tail = 2000, 0.025
    drawn = [_resampled(task, draws, (seed, position)) for position, task in enumerate(tasks)]
    values = [composite(means).value for means in zip(*drawn, strict=True)]
    defined = [value for value in values if value is not None]
    if (draws - len(defined)) / draws > tail:
        share = 1 - len(defined) / draws
        return Estimate(found.value, None, None, f"no interval: undefined in {100 * share:.0f} % of the resamples")
    low, high = (float(limit) for limit in np.quantile(defined, [tail, 1 - tail]))
    if low == high:
        return Estimate(found.value, None, None, "no interval: every cluster changed alike")
    return Estimate(found.value, low, high)


def _resampled(task: Paired, draws: int, seed: tuple[int, int]) -> list[tuple[float, float]]:
    """Means before and after of resamples that take the same clusters on both sides; ``seed`` keeps tasks apart."""
    one = int(np.random.SeedSequence(seed).generate_state(1)[0])
    sides = (cluster_sums(values, task.clusters) for values in (task.before, task.after))
    before, after = (resampled_means(sums, counts, draws=draws, seed=one) for sums, counts in sides)
    return list(zip(before.tolist(), after.tolist(), strict=True))


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
    """One setting of a strength dial: safety and utility, both higher is better."""

    name: str
    safety: float
    utility: float


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
