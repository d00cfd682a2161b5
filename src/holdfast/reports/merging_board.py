"""The rows of a table that merge or repair, against each other: safety by utility, the Pareto set, the safety tax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.cells import shown
from holdfast.reports.names import number
from holdfast.reports.panels import figure_of, source_of
from holdfast.reports.table_panel import Arm, Axes, Column, Point, TablePanel
from holdfast.reports.view import Figure

MADE = frozenset({"merge", "repair"})
"""Kinds of step that make what is compared."""
UNCLEAR = "the gain of safety is not clear from 0"
Sides = tuple[tuple[str, ...], tuple[str, ...]]
"""Tasks that make safety, and those that make utility."""


@dataclass(frozen=True, slots=True)
class Tax:
    """Utility lost per safety gained by one row, both as shares of the reference's."""

    label: str
    value: float | None
    text: str
    reason: str
    """Why it is missing."""
    lost: str
    """What utility changed by, with its interval."""
    gained: str
    """What safety changed by."""


@dataclass(frozen=True, slots=True)
class Board:
    """One table as a plane of safety and utility."""

    id: str
    title: str
    reference: str
    tasks: Sides
    axes: Axes
    """Utility across, safety upwards; both are 1 at best."""
    front: tuple[str, ...]
    """Rows that no other row beats, by rising safety."""
    taxes: tuple[Tax, ...]
    left_out: tuple[str, ...]
    """One sentence a row that has no place."""


def boards(steps: Sequence[StepRecord], tables: Sequence[TablePanel]) -> tuple[Board, ...]:
    """One for each table that has a row of a merge or repair step, and tasks of safety and of utility."""
    by_id = {step.id: step for step in steps}
    made = []
    for table in tables:
        merged = [step for ids in made_by_row(by_id[table.id], by_id).values() for step in ids]
        tasks = _tasks(table, merged, by_id)
        if merged and all(tasks) and (board := _board(table, tasks)):
            made.append(board)
    return tuple(made)


def made_by_row(table: StepRecord, steps: Mapping[str, StepRecord]) -> dict[str, list[StepRecord]]:
    """The merge and repair steps behind each row of a table, a seed each; rows of anything else are left out."""
    found: dict[str, list[StepRecord]] = {}
    for label, ids in table.config.get("rows", {}).items():
        measured = [steps[name] for name in ids if name in steps]
        made = [steps[name] for name in map(source_of, measured) if name in steps and steps[name].do in MADE]
        if made:
            found[label] = made
    return found


def _tasks(table: TablePanel, merged: Sequence[StepRecord], steps: Mapping[str, StepRecord]) -> Sides:
    """As the first merge chose its dial by them; where none did, by the suites of the measured figures."""
    known = [column.task for column in table.columns if _between_0_and_1(table, column)]
    selects = [step.config["select"] for step in merged if step.config.get("select")]
    for select in selects[:1]:
        wanted = [[str(task["name"]) for task in select[side]] for side in ("safety", "utility")]
        if all(set(names) <= set(known) for names in wanted):
            return tuple(wanted[0]), tuple(wanted[1])
    before = steps.get(str(steps[table.id].config.get("before")))
    suites = {m.name.partition("/")[2]: m.name.partition("/")[0] for m in before.metrics} if before else {}
    of = {column.task: suites.get(column.name.partition("/")[2], "") for column in table.columns}
    safety, utility = (tuple(task for task in known if of[task] == suite) for suite in ("safety", "utility"))
    return safety, utility


def _between_0_and_1(table: TablePanel, column: Column) -> bool:
    values = [arm.cells[table.columns.index(column)].figure.value for arm in table.arms]
    return all(value is None or 0 <= value <= 1 for value in values)


def _board(table: TablePanel, tasks: Sides) -> Board | None:
    from holdfast.evaluation.composites import TradeOffPoint, pareto_set

    means = {arm.label: tuple(_of_arm(table, arm, side) for side in tasks) for arm in table.arms}
    placed = {label: pair for label, pair in means.items() if all(f.value is not None for f in pair)}
    if table.reference not in placed:
        return None
    missing = (
        f"{label} has no place: {figure.reason}."
        for label, pair in means.items()
        for figure in [f for f in pair if f.value is None][:1]
    )
    points = [
        TradeOffPoint(label, safety.value, utility.value)  # type: ignore[arg-type]
        for label, (safety, utility) in placed.items()
    ]
    y, x = (
        Column("", _called(side), word, True, "", "") for side, word in zip(tasks, ("Safety", "Utility"), strict=True)
    )
    arms = [arm for arm in table.arms if arm.label in placed]
    return Board(
        id=table.id,
        title=table.title,
        reference=table.reference,
        tasks=tasks,
        axes=Axes(x, y, tuple(Point(arm.label, arm.role, *reversed(placed[arm.label])) for arm in arms)),
        front=tuple(point.name for point in pareto_set(points)),
        taxes=tuple(_tax(table, arm, tasks, placed) for arm in arms if arm.role == "arm"),
        left_out=tuple(missing),
    )


def _called(tasks: Sequence[str]) -> str:
    return tasks[0] if len(tasks) == 1 else f"mean of {len(tasks)} tasks"


def _of_arm(table: TablePanel, arm: Arm, tasks: Sequence[str]) -> Figure:
    """The mean of an arm's figures, each turned so that 1 is best."""
    cells = [(c, cell.figure) for c, cell in zip(table.columns, arm.cells, strict=True) if c.task in tasks]
    return _mean(cells, about=1.0)


def _change(table: TablePanel, arm: Arm, tasks: Sequence[str]) -> Figure:
    """The mean of an arm's differences from the reference, above 0 where it is better."""
    cells = [(c, cell.difference) for c, cell in zip(table.columns, arm.cells, strict=True) if c.task in tasks]
    return _mean([(column, figure) for column, figure in cells if figure is not None], about=0.0)


def _mean(cells: Sequence[tuple[Column, Figure]], about: float) -> Figure:
    """The plain mean over tasks.

    Its limits are the means of the tasks' limits. A mean varies at most as much as its parts do on average, however
    these hang together, so the interval is wide enough whether or not tasks share seeds.
    """
    turned = [_turned(column, figure, about) for column, figure in cells]
    missing = [f"{column.task}: {figure.reason}" for column, figure in cells if figure.value is None]
    value, low, high = (_of_all([found[part] for found in turned]) for part in range(3))
    n = sum(figure.n for _, figure in cells)
    found = Metric(name="", value=value, n=n, low=low, high=high, reason="; ".join(missing))
    return figure_of(found, signed=not about, rate=True)


def _turned(column: Column, figure: Figure, about: float) -> tuple[float | None, float | None, float | None]:
    if column.higher_is_better:
        return figure.value, figure.low, figure.high
    value, high, low = (None if end is None else about - end for end in (figure.value, figure.low, figure.high))
    return value, low, high


def _of_all(ends: Sequence[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return sum(known) / len(known) if ends and len(known) == len(ends) else None


def _tax(table: TablePanel, arm: Arm, tasks: Sides, placed: Mapping[str, tuple[Figure, ...]]) -> Tax:
    from holdfast.evaluation.composites import safety_tax

    (safety_before, utility_before), (safety, utility) = placed[table.reference], placed[arm.label]
    found = safety_tax(utility_before.value, utility.value, safety_before.value, safety.value)  # type: ignore[arg-type]
    gained, kept = (_change(table, arm, side) for side in tasks)
    unclear = found.value is not None and gained.low is not None and gained.low <= 0
    value, reason = (None, UNCLEAR) if unclear else (found.value, found.reason)
    text = "" if value is None else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
    return Tax(arm.label, value, text, reason, f"utility {shown(kept)}", f"safety {shown(gained)}")


def told_tax(tax: Tax) -> str:
    """A tax in one line.

    >>> told_tax(Tax("ties", None, "", "undefined: safety was not gained", "utility –", "safety –"))
    'ties: no tax, undefined: safety was not gained (utility –, safety –)'
    """
    return f"{tax.label}: {tax.text or f'no tax, {tax.reason}'} ({tax.lost}, {tax.gained})"


def share(value: float) -> str:
    """A share as percent.

    >>> share(0.9275)
    '92.8 %'
    """
    return f"{number(value, rate=True)} %"
