"""Many logs of the same prompts as one table: a row an arm, each the mean over seeds, against a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.core.results import Metric
from holdfast.evaluation.aligned import Asked, asked_in, columns_of
from holdfast.evaluation.composites import Estimate
from holdfast.evaluation.crossed import (
    Array,
    CrossedMean,
    crossed_means,
    difference_of,
    interval_name,
    mean_of,
    removed_of,
    synergy_of,
)
from holdfast.evaluation.log import read_log
from holdfast.evaluation.measures import cluster_of

BEFORE = "before"
"""Label of the row for the model before any change."""


@dataclass(frozen=True, slots=True)
class Table:
    """What `table` found."""

    metrics: tuple[Metric, ...]
    """``table/<task>/<figure>``, then its ``/difference`` from the reference and the share ``/removed``; by row; last
    the ``/synergy`` of a row that combines others."""
    per_seed: dict[str, list[tuple[float, float]]]
    """The value of each seed, numbered from 1, by ``<name> [row=<label>]``."""
    notes: tuple[str, ...]


def table(before: Path, rows: Mapping[str, Sequence[Path]], reference: str, synergy: Sequence[str] = ()) -> Table:
    """Give the main figure of every task that all logs have, for each row the mean over its seeds.

    Intervals come from one two-way bootstrap of prompts (clustered by group) and seeds (`crossed_means`), the same
    resamples for every row, so that differences are paired.

    Args:
        before: Log of the model before any change.
        rows: By label, one log a seed in one order for all rows, or one log.
        reference: Label of the row that the others are compared with.
        synergy: Label of a row that combines others, then theirs: what it gains beyond the sum of their gains.
    Raises:
        DataError: not logs, no task in common, other rows under the same ids, rows in only some logs, or other judges.
    """
    header, records = read_log(before)
    asked = {head.name: asked_in(head, records) for head in header.tasks}
    answers = {BEFORE: [columns_of(before, (header, records), asked)]}
    answers |= {label: [columns_of(path, read_log(path), asked) for path in paths] for label, paths in rows.items()}
    seen = [columns for seeds in answers.values() for columns in seeds]
    common = [name for name in asked if all(name in columns for columns in seen)]
    if not common:
        raise DataError(
            f"No task stands in all logs of the table: got {', '.join(asked)} in {before} and others elsewhere. "
            "Do: evaluate every model on the same tasks."
        )
    alone = sorted({name for columns in seen for name in columns} - set(common))
    notes = [f"{name}: not every log has this task; it was left out." for name in alone]
    columns = []
    for position, name in enumerate(common):
        grids = {label: np.column_stack([seed[name] for seed in seeds]) for label, seeds in answers.items()}
        columns.append(_column(asked[name], grids, (reference, *synergy), header.seed, position))
    per_seed = {name: values for column in columns for name, values in column.per_seed().items()}
    return Table(tuple(metric for column in columns for metric in column.metrics()), per_seed, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Column:
    """One task's part of the table."""

    asked: Asked
    grids: Mapping[str, Array]
    """Values by row, ``(prompts, seeds)``."""
    means: Mapping[str, CrossedMean]
    """Rows of which every seed has a valid answer."""
    rates: bool
    reference: str
    synergy: tuple[str, ...]
    seed: int
    """As the logs' header has it."""

    @property
    def name(self) -> str:
        """The figure's name without its suite."""
        return f"table/{self.asked.figure.name.partition('/')[2]}"

    def metrics(self) -> Iterator[Metric]:
        """Row by row: the value, the difference from the reference, the share removed."""
        for label in self.grids:
            hits = int(np.nansum(self.grids[label])) if self.rates and label in self.means else None
            yield self._metric(label, "", (label,), mean_of).model_copy(update={"k": hits})
            if label != self.reference:
                yield self._metric(label, "/difference", (label, self.reference), difference_of)
            if label not in (self.reference, BEFORE):
                yield self._metric(label, "/removed", (label, self.reference, BEFORE), removed_of)
        if self.synergy:
            yield self._metric(self.synergy[0], "/synergy", (*self.synergy, self.reference), _together)

    def _metric(self, label: str, part: str, of: tuple[str, ...], estimate: Callable[..., Estimate]) -> Metric:
        empty = [name for name in of if name not in self.means]
        means = [self.means[name] for name in of if not empty]
        found = Estimate(None, None, None, _no_row(empty[0], self.grids[empty[0]])) if empty else estimate(*means)
        grid = self.grids[label]
        n = int(np.isfinite(grid).sum())
        return Metric(
            name=self.name + part,
            value=found.value,
            n=n,
            n_invalid=grid.size - n,
            low=found.low,
            high=found.high,
            interval="" if found.low is None else interval_name(means),
            higher_is_better=part == "/removed" or self.asked.figure.higher_is_better,
            reason=found.reason,
            judge=self.asked.head.judges[0],
            cluster="group",
            decoding=self.asked.head.decoding,
            seed=self.seed,
            group=f"row={label}",
        )

    def per_seed(self) -> dict[str, list[tuple[float, float]]]:
        """The value of each seed, numbered from 1."""
        values = {label: enumerate(mean.per_seed, start=1) for label, mean in self.means.items()}
        return {f"{self.name} [row={label}]": [(float(i), v) for i, v in row] for label, row in values.items()}


def _together(whole: CrossedMean, *others: CrossedMean) -> Estimate:
    """`synergy_of` a row, its parts and, last, the reference."""
    return synergy_of(whole, others[:-1], others[-1])


def _column(asked: Asked, grids: Mapping[str, Array], labels: tuple[str, ...], seed: int, position: int) -> _Column:
    """``labels``: the reference, then those of the synergy. ``position`` of the task gives it resamples of its own."""
    valid = {label: grid for label, grid in grids.items() if np.isfinite(grid).any(axis=0).all()}
    rates = asked.task.binary and all(set(grid[np.isfinite(grid)]) <= {0.0, 1.0} for grid in valid.values())
    one = int(np.random.SeedSequence((seed, position)).generate_state(1)[0])
    clusters = [cluster_of(record) for record in asked.records]
    means = crossed_means(valid, clusters, rates=rates, seed=one) if valid else {}
    return _Column(asked, grids, means, rates, labels[0], labels[1:], seed)


def _no_row(label: str, grid: Array) -> str:
    return f"{label}: no valid row of {len(grid)}" + (" in one of the seeds" if grid.shape[1] > 1 else "")
