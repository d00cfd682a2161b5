"""The table of a step ``do: table`` as a reader sees it: a row an arm, a column a task, and one pair of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.names import measure_words, number, split_name
from holdfast.reports.panels import figure_of

if TYPE_CHECKING:
    from holdfast.reports.view import Figure

BEFORE = "before"
"""Row of the model before any change."""
ATTACK = "attack_success_rate"

_DERIVED = ("/difference", "/removed", "/synergy")
"""What is made of a figure and shown beside it, or in a note."""


@dataclass(frozen=True, slots=True)
class Column:
    """One task's main figure."""

    name: str
    """As the metric has it, e.g. ``table/lab/harmful/attack_success_rate``."""
    task: str
    label: str
    higher_is_better: bool
    removed: str
    """What the share removed is one of: ``harm removed`` or ``gain removed``, by the reference's change."""
    further: str
    """What is said instead where less than none of it is removed: ``rises further by`` or ``falls further by``."""

    @property
    def arrow(self) -> str:
        """Which direction is good."""
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm on one task."""

    figure: Figure
    difference: Figure | None
    """From the reference; ``None`` in the reference's own row."""
    removed: Figure | None
    """Share of the reference's change that is gone, or that is added; ``None`` in its own row and in that of before."""
    word: str
    """Which of the two it is: the column's ``removed`` or ``further``."""
    per_seed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """One row."""

    label: str
    role: str
    """``before``, ``reference`` or ``arm``."""
    seeds: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One arm on the axes, with its two figures."""

    label: str
    role: str
    x: Figure
    y: Figure


@dataclass(frozen=True, slots=True)
class Axes:
    """Safety against utility, on the task of each that the reference changed most."""

    x: Column
    y: Column
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class TablePanel:
    """One table."""

    id: str
    title: str
    reference: str
    columns: tuple[Column, ...]
    arms: tuple[Arm, ...]
    axes: Axes | None
    """``None`` where no attack success or no rate of utility was measured."""
    reasons: tuple[str, ...]
    """Why no share is given for a task, one sentence each."""

    @property
    def counted(self) -> str:
        """E.g. ``Mean over 3 seeds.``"""
        most = max(arm.seeds for arm in self.arms)
        return "One seed." if most < 2 else f"Mean over {most} seeds."


def table_panels(steps: Sequence[StepRecord]) -> tuple[TablePanel, ...]:
    """One panel a finished table."""
    by_id = {step.id: step for step in steps}
    return tuple(_panel(step, by_id) for step in steps if step.do == "table" and step.metrics)


def _panel(step: StepRecord, steps: dict[str, StepRecord]) -> TablePanel:
    found = {(metric.name, metric.group.removeprefix("row=")): metric for metric in step.metrics}
    base = {name: metric for (name, _), metric in found.items() if not name.endswith(_DERIVED)}
    reference = str(step.config.get("reference", ""))
    columns = tuple(_column(name, metric, found.get((f"{name}/difference", BEFORE))) for name, metric in base.items())
    labels = tuple(dict.fromkeys(label for _, label in found))
    arms = tuple(_arm(label, columns, found, step, reference) for label in labels)
    cells = [(column, cell.removed) for arm in arms for column, cell in zip(columns, arm.cells, strict=True)]
    missing = [f"{c.label}, {c.task}: {r.reason}." for c, r in cells if r is not None and r.value is None]
    return TablePanel(
        id=step.id,
        title=str(step.config.get("title") or step.id),
        reference=reference,
        columns=columns,
        arms=arms,
        axes=_axes(step, steps, columns, arms),
        reasons=tuple(dict.fromkeys(missing)),
    )


def _column(name: str, metric: Metric, before: Metric | None) -> Column:
    """``before`` is the difference of before from the reference: below 0, the figure rose."""
    _, task, measure = split_name(name)
    rose = before is not None and before.value is not None and before.value < 0
    word = "gain removed" if rose == metric.higher_is_better else "harm removed"
    further = "rises further by" if rose else "falls further by"
    return Column(name, task, measure_words(measure), metric.higher_is_better, word, further)


def _arm(
    label: str,
    columns: Sequence[Column],
    found: dict[tuple[str, str], Metric],
    step: StepRecord,
    reference: str,
) -> Arm:
    role = label if label == BEFORE else "reference" if label == reference else "arm"
    values = [[y for _, y in step.curves.get(f"{column.name} [row={label}]", ())] for column in columns]
    cells = tuple(_cell(column, label, found, own) for column, own in zip(columns, values, strict=True))
    return Arm(label, role, max((len(own) for own in values), default=1), cells)


def _cell(column: Column, label: str, found: dict[tuple[str, str], Metric], per_seed: Sequence[float]) -> Cell:
    name = column.name
    own = found[(name, label)]
    rate = any(metric.k is not None for (known, _), metric in found.items() if known == name)
    difference, removed = (found.get((f"{name}/{part}", label)) for part in ("difference", "removed"))
    word = column.removed
    if removed is not None and removed.value is not None and removed.value < 0:
        removed, word = _negated(removed), column.further
    return Cell(
        figure=figure_of(own, rate=rate),
        difference=figure_of(difference, signed=True, rate=rate) if difference else None,
        removed=figure_of(removed, rate=True) if removed else None,
        word=word,
        per_seed=tuple(number(value, rate=rate) for value in per_seed),
    )


def _negated(metric: Metric) -> Metric:
    low, high = (None if limit is None else -limit for limit in (metric.high, metric.low))
    return metric.model_copy(update={"value": -(metric.value or 0.0), "low": low, "high": high})


def _axes(
    step: StepRecord, steps: dict[str, StepRecord], columns: Sequence[Column], arms: Sequence[Arm]
) -> Axes | None:
    before = steps.get(str(step.config.get("before")))
    useful = {m.name.partition("/")[2] for m in before.metrics if m.name.startswith("utility/")} if before else set()
    attacked = [i for i, column in enumerate(columns) if column.name.endswith(f"/{ATTACK}")]
    rated = [
        i
        for i, column in enumerate(columns)
        if column.name.partition("/")[2] in useful and column.higher_is_better and arms[0].cells[i].figure.rate
    ]
    x, y = (_most_changed(chosen, arms) for chosen in (rated, attacked))
    if x is None or y is None:
        return None
    points = [Point(arm.label, arm.role, arm.cells[x].figure, arm.cells[y].figure) for arm in arms]
    drawn = tuple(point for point in points if point.x.value is not None and point.y.value is not None)
    return Axes(columns[x], columns[y], drawn) if drawn else None


def _most_changed(columns: Sequence[int], arms: Sequence[Arm]) -> int | None:
    """The column in which before and the reference are farthest apart."""
    first = next((arm for arm in arms if arm.role == BEFORE), arms[0])

    def change(column: int) -> float:
        difference = first.cells[column].difference
        return abs(difference.value) if difference is not None and difference.value is not None else 0.0

    return max(columns, key=change, default=None)
