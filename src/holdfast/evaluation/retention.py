"""What merged adapters keep of the scores that each has alone, by rule and number of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.core.results import Metric
from holdfast.evaluation.aligned import Asked, asked_in, columns_of
from holdfast.evaluation.crossed import Array, CrossedMean, crossed_means, interval_name, kept_of
from holdfast.evaluation.log import read_log
from holdfast.evaluation.measures import cluster_of

Merge = tuple[str, int]
"""Label of a row and number of adapters."""
ALONE: Merge = ("", 1)
"""In place of a merge: each task's own adapter."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What `retention` found."""

    metrics: tuple[Metric, ...]
    """``retention/mean`` by row and number of adapters."""
    curves: dict[str, list[tuple[float, float]]]
    """Number of adapters and retention, by ``retention [row=<label>]``; without those that could not be computed."""


def retention(alone: Sequence[Path], rows: Mapping[str, Sequence[Path]]) -> Retention:
    """Mean over tasks of the score of a merge, as a share of the score of the task's own adapter.

    The log of a merge has one task for each adapter in it. Logs of a row with the same tasks are its seeds, in one
    order everywhere. A score is the task's main figure, turned so that 1 is best, and a mean over seeds. Intervals
    come from one bootstrap of prompts and seeds for all rows (`crossed_means`).

    Args:
        alone: Logs of the adapters alone, in any order of the tasks, and of each task in the order of its seeds.
        rows: By label, the logs of all its merges.
    Raises:
        DataError: not logs, a task without a log of its own adapter, other prompts, or two sets of as many tasks in
            one row.
        NumericsError: numbers of seeds differ.
    """
    asked, seed = _asked(alone)
    grids: dict[str, dict[Merge, list[Array]]] = {name: {} for name in asked}
    for path in alone:
        _add(grids, path, asked)
    for label, paths in rows.items():
        for path in paths:
            _add(grids, path, asked, label)
    means = {name: _means(asked[name], of_task, seed) for name, of_task in grids.items()}
    metrics: list[Metric] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for label in rows:
        found = {merge[1]: _metric(merge, grids, means, seed) for merge in _merges(grids, label)}
        metrics += found.values()
        points = [(float(count), metric.value) for count, metric in found.items() if metric.value is not None]
        curves[f"retention [row={label}]"] = points
    return Retention(tuple(metrics), curves)


def _asked(alone: Sequence[Path]) -> tuple[dict[str, Asked], int]:
    """What each task asks, by the first log that has it; and the seed of the first log."""
    asked: dict[str, Asked] = {}
    logs = [read_log(path) for path in alone]
    for header, records in logs:
        for head in header.tasks:
            asked.setdefault(head.name, asked_in(head, records))
    return asked, logs[0][0].seed


def _add(grids: dict[str, dict[Merge, list[Array]]], path: Path, asked: Mapping[str, Asked], label: str = "") -> None:
    """Put the values of a log, 1 at best, under its tasks; without a label, it is that of an adapter alone."""
    columns = columns_of(path, read_log(path), asked)
    unknown = sorted(columns.keys() - asked.keys())
    if unknown:
        raise DataError(
            f"Retention: got task {unknown[0]!r} in {path}, expected those of the adapters alone: {', '.join(asked)}. "
            "Do: measure each adapter alone on its task first."
        )
    merge = (label, len(columns)) if label else ALONE
    for name, column in columns.items():
        best = column if asked[name].figure.higher_is_better else 1 - column
        grids[name].setdefault(merge, []).append(best)


def _merges(grids: Mapping[str, Mapping[Merge, list[Array]]], label: str) -> list[Merge]:
    """The merges of a row, by number of adapters."""
    found = sorted({merge for of_task in grids.values() for merge in of_task if merge[0] == label})
    for merge in found:
        tasks = [name for name, of_task in grids.items() if merge in of_task]
        if len(tasks) != merge[1]:
            raise DataError(
                f"Retention: got merges of {merge[1]} adapters with different tasks in row {label!r}: "
                f"{', '.join(tasks)}. Do: give one row the same tasks for one number of adapters."
            )
    return found


def _means(asked: Asked, of_task: Mapping[Merge, list[Array]], seed: int) -> dict[Merge, CrossedMean]:
    """The score of one task with every merge; the same ``seed`` for every task draws the same seeds in all of them."""
    grids = {f"{label} {count}": np.column_stack(columns) for (label, count), columns in of_task.items()}
    rates = asked.task.binary and all(set(grid[np.isfinite(grid)]) <= {0.0, 1.0} for grid in grids.values())
    found = crossed_means(grids, [cluster_of(record) for record in asked.records], rates=rates, seed=seed)
    return dict(zip(of_task, found.values(), strict=True))


def _metric(
    merge: Merge,
    grids: Mapping[str, Mapping[Merge, list[Array]]],
    means: Mapping[str, Mapping[Merge, CrossedMean]],
    seed: int,
) -> Metric:
    tasks = [name for name, of_task in grids.items() if merge in of_task]
    answers = np.concatenate([column for name in tasks for column in grids[name][merge]])
    pairs = {name: (means[name][merge], means[name][ALONE]) for name in tasks}
    kept = kept_of(pairs)
    n = int(np.isfinite(answers).sum())
    return Metric(
        name="retention/mean",
        value=kept.value,
        n=n,
        n_invalid=len(answers) - n,
        low=kept.low,
        high=kept.high,
        interval="" if kept.low is None else interval_name([mean for pair in pairs.values() for mean in pair]),
        higher_is_better=True,
        reason=kept.reason,
        cluster="group",
        seed=seed,
        group=f"row={merge[0]}, experts={merge[1]}",
    )
