"""Trade-off curves of several methods on the same prompts: the area under each, and utility at matched safety."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.core.results import Metric
from holdfast.evaluation.aligned import Asked, Prompts, asked_in, columns_of
from holdfast.evaluation.composites import TradeOffPoint, hypervolume
from holdfast.evaluation.crossed import DRAWS, LEVEL, Array, crossed_means
from holdfast.evaluation.log import read_log

Logs = Mapping[float, Path]
"""By value of a dial, the log of what was measured there."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One method: mean over seeds of safety and utility at every value of its dial, and in every resample."""

    values: tuple[float, ...]
    safety: Array
    """``(values, 1 + draws)``; the first column is the measured one."""
    utility: Array
    n: int
    """Answers at each value, over tasks and seeds."""

    def points(self, draw: int = 0) -> list[TradeOffPoint]:
        """The curve as measured, or in a resample."""
        return [
            TradeOffPoint(f"{value:g}", float(self.safety[i, draw]), float(self.utility[i, draw]))
            for i, value in enumerate(self.values)
        ]


@dataclass(frozen=True, slots=True)
class Front:
    """What `front` found."""

    metrics: tuple[Metric, ...]
    """``front/hypervolume`` by row, and its ``/difference`` from the reference."""
    curves: dict[str, list[tuple[float, float]]]
    """Safety and utility of every value, by row."""


def front(rows: Mapping[str, Sequence[Logs]], reference: str, safety: Sequence[str], utility: Sequence[str]) -> Front:
    """The area that each method's curve reaches beyond the worst safety and the worst utility of any.

    Safety and utility are means over tasks of their main figures, turned so that 1 is best. Intervals come from one
    bootstrap of prompts and seeds for all rows (`crossed_means`), so differences are paired.

    Args:
        rows: By label, the logs of each seed, all with the same values of the dial.
        reference: Label of the row that the others are compared with.
        safety: Names of the tasks that make safety.
        utility: Names of those that make utility.
    Raises:
        DataError: a task is missing somewhere, prompts differ, or seeds have different values of the dial.
    """
    curves = {label: _curve(label, seeds, rows, (safety, utility)) for label, seeds in rows.items()}
    corner = TradeOffPoint(
        "worst",
        min(float(curve.safety[:, 0].min()) for curve in curves.values()),
        min(float(curve.utility[:, 0].min()) for curve in curves.values()),
    )
    areas = {
        label: np.array([hypervolume(curve.points(draw), corner) for draw in range(1 + DRAWS)])
        for label, curve in curves.items()
    }
    metrics = []
    for label, area in areas.items():
        metrics.append(_metric("front/hypervolume", label, area, curves[label].n))
        if label != reference:
            change = area - areas[reference]
            metrics.append(_metric("front/hypervolume/difference", label, change, curves[label].n))
    shown = {label: [(p.safety, p.utility) for p in curve.points()] for label, curve in curves.items()}
    return Front(tuple(metrics), {f"front [row={label}]": points for label, points in shown.items()})


def _metric(name: str, label: str, draws: Array, n: int) -> Metric:
    tail = (1 - LEVEL) / 2
    low, high = (float(limit) for limit in np.quantile(draws[1:], [tail, 1 - tail]))
    return Metric(
        name=name,
        value=float(draws[0]),
        n=n,
        low=low,
        high=high,
        interval="two-way bootstrap 95% by group and seed",
        higher_is_better=True,
        group=f"row={label}",
    )


def _curve(
    label: str,
    seeds: Sequence[Logs],
    rows: Mapping[str, Sequence[Logs]],
    tasks: tuple[Sequence[str], Sequence[str]],
) -> Curve:
    values = tuple(sorted(seeds[0]))
    if any(tuple(sorted(logs)) != values for logs in seeds):
        raise DataError(f"{label}: its seeds have different values of the dial, expected the same. Do: run it again.")
    first = [_first(next(iter(rows.values()))[seed]) for seed in range(len(seeds))]
    drawn = [[_of_task(first, name, values, seeds) for name in side] for side in tasks]
    safety, utility = (np.mean(side, axis=0) for side in drawn)
    n = sum(len(found[name][0].records) for found in first for side in tasks for name in side)
    return Curve(values, safety, utility, n)


def _first(logs: Logs) -> dict[str, tuple[Asked, int]]:
    """The tasks of the first log of a seed: every other one of that seed must have asked the same."""
    header, records = read_log(logs[min(logs)])
    return {head.name: (asked_in(head, records), header.seed) for head in header.tasks}


def _of_task(
    first: Sequence[Mapping[str, tuple[Asked, int]]], name: str, values: Sequence[float], seeds: Sequence[Logs]
) -> Array:
    """A task's figure at every value, 1 at best: as measured, then in every resample, ``(values, 1 + draws)``.

    Seeds may have prompts of their own: what a seed was not asked is missing there.
    """
    if name not in first[0]:
        known = ", ".join(first[0])
        raise DataError(f"No task {name!r} in the logs: got {known}. Do: measure the same tasks everywhere.")
    prompts = Prompts(tuple(found[name][0] for found in first))
    grids = {}
    for value in values:
        asked = zip(seeds, prompts.asked, strict=True)
        seen = [columns_of(logs[value], read_log(logs[value]), {name: own})[name] for logs, own in asked]
        grids[f"{value:g}"] = prompts.grid(seen)
    means = crossed_means(grids, prompts.clusters, rates=False, seed=first[0][name][1])
    return np.array([[mean.value, *mean.draws] for mean in means.values()])
