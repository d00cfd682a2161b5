"""The answers of several logs to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.evaluation.compare import same_judges
from holdfast.evaluation.crossed import Array
from holdfast.evaluation.log import Header, Record, TaskHead
from holdfast.evaluation.measures import Figure, cluster_of, figures
from holdfast.evaluation.suite import shown_task
from holdfast.evaluation.tasks import Task


@dataclass(frozen=True, slots=True)
class Asked:
    """What one task asks, as the first log has it."""

    head: TaskHead
    task: Task
    figure: Figure
    records: tuple[Record, ...]
    """Those that the figure is about."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What every seed was asked in one task; seeds may share their prompts or have their own."""

    asked: tuple[Asked, ...]
    """By seed."""

    def _places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for each in self.asked:
            for record in each.records:
                found.setdefault(record.id, len(found))
        return found

    @property
    def clusters(self) -> list[Hashable]:
        """What each prompt is about."""
        known = {record.id: cluster_of(record) for each in self.asked for record in each.records}
        return [known[key] for key in self._places()]

    def grid(self, columns: Sequence[Array]) -> Array:
        """Values by seed become ``(prompts, seeds)``, 1 at best; nan where a seed was not asked."""
        places, better = self._places(), self.asked[0].figure.higher_is_better
        grid = np.full((len(places), len(columns)), np.nan)
        for number, values in enumerate(columns):
            own = [places[record.id] for record in self.asked[number].records]
            grid[own, number] = values if better else 1 - values
        return grid


def asked_in(head: TaskHead, records: Sequence[Record]) -> Asked:
    """A task of a log, with the rows that its main figure is about."""
    task = shown_task(head, head.judges[0])
    figure = figures(task)[0]
    return Asked(head, task, figure, tuple(figure.rows(record for record in records if record.task == head.name)))


def columns_of(path: Path, log: tuple[Header, list[Record]], asked: Mapping[str, Asked]) -> dict[str, Array]:
    """The figure's value of every prompt by task, in the order of the first log; nan where it cannot be judged."""
    header, records = log
    columns = {}
    for head in header.tasks:
        if head.name not in asked:
            columns[head.name] = np.empty(0)
            continue
        first = asked[head.name]
        same_judges(first.head, head)
        own = {record.id: record for record in first.figure.rows(r for r in records if r.task == head.name)}
        _same_prompts(path, first, own)
        values = [first.figure.value(own[record.id].scores[head.judges[0]]) for record in first.records]
        columns[head.name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return columns


def _same_prompts(path: Path, first: Asked, own: Mapping[str, Record]) -> None:
    wanted = {record.id: record.sample.example for record in first.records}
    alone = sorted(wanted.keys() ^ own.keys())
    other = [ident for ident in wanted if ident in own and own[ident].sample.example != wanted[ident]]
    if alone or other:
        what = f"{len(alone)} rows stand in only one log" if alone else f"{len(other)} rows are not the same"
        raise DataError(
            f"{first.head.name}: {what} (first: {(alone or other)[0]!r}): got {path}, expected the prompts of the "
            "first log. Do: evaluate every model on the same rows, with one seed and one limit."
        )
