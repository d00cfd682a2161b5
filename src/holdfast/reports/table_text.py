"""The table as Markdown blocks and as a terminal table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from holdfast.core.wording import cut
from holdfast.reports.cells import shown, written
from holdfast.reports.markdown import table, text
from holdfast.reports.names import DASH
from holdfast.reports.table_panel import Arm, Cell, TablePanel

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTE = (
    "Harm or gain removed: the share of the reference's change from before that the row removes, 1 − (row − before) / "
    "(reference − before); 100 % where nothing of it is left. Rises or falls further by: the share of that change that "
    "the row adds to it. "
    "Intervals resample prompts and seeds together, the same for all rows."
)
ACROSS = 3
"""Tasks beside each other on a terminal."""
LABEL = 17


def blocks(panel: TablePanel) -> Iterator[str]:
    """Markdown: the values with the share removed, then differences and single seeds."""
    yield f"## {text(panel.title)}"
    yield f"{panel.counted} Reference: {text(panel.reference)}."
    heads = [f"{column.label} {column.arrow}, {column.task}" for column in panel.columns]
    yield table(("Row", *heads), [(_name(arm), *map(_written, arm.cells)) for arm in panel.arms])
    yield NOTE
    yield from (f"{DASH} {text(reason)}" for reason in panel.reasons)
    yield f"### Difference from {text(panel.reference)}"
    arms = [arm for arm in panel.arms if arm.role != "reference"]
    yield table(("Row", *heads), [(_name(arm), *(shown(cell.difference) for cell in arm.cells)) for arm in arms])
    seeded = [arm for arm in panel.arms if arm.seeds > 1]
    if seeded:
        yield "### Seed by seed"
        yield table(("Row", *heads), [(arm.label, *(" · ".join(c.per_seed) for c in arm.cells)) for arm in seeded])


def _name(arm: Arm) -> str:
    return f"{arm.label} (reference)" if arm.role == "reference" else arm.label


def _written(cell: Cell) -> str:
    removed = f"; {cell.word} {shown(cell.removed)}" if cell.removed and cell.figure.value is not None else ""
    return written(cell.figure) + removed


def print_table(panel: TablePanel, out: Console) -> None:
    """Everything a terminal shows of a table."""
    from rich.text import Text

    for part in terminal(panel):
        out.print(part)
    for reason in reasons(panel):
        out.print(Text(reason))
    out.print(Text(NOTE, style="dim"))


def terminal(panel: TablePanel) -> Iterator[Table]:
    """Tables of at most three tasks, so that they fit 80 columns: value, interval, share removed under each other."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for start in range(0, len(panel.columns), ACROSS):
        columns = panel.columns[start : start + ACROSS]
        title = panel.title if start == 0 else f"{panel.title}, continued"
        made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column(panel.counted[:-1], width=LABEL)
        for column in columns:
            made.add_column(Text(f"{column.arrow} {column.label}\n{column.task}"), justify="right")
        for arm in panel.arms:
            cells = map(_stacked, arm.cells[start : start + ACROSS])
            made.add_row(Text(cut(_name(arm), 2 * LABEL)), *(Text(cell) for cell in cells))
        yield made


def _stacked(cell: Cell) -> str:
    if cell.figure.value is None:
        return DASH
    lines = [cell.figure.text, cell.figure.bounds]
    if cell.removed is not None:
        lines += [cell.word, cell.removed.text, cell.removed.bounds]
    return "\n".join(filter(None, lines))


def reasons(panel: TablePanel) -> Iterable[str]:
    """Why a dash stands in the table."""
    for column, arms in ((c, [(arm, arm.cells[i]) for arm in panel.arms]) for i, c in enumerate(panel.columns)):
        yield from (
            f"{DASH} {column.label}, {column.task}, {arm.label}: {cell.figure.reason}"
            for arm, cell in arms
            if cell.figure.value is None
        )
    yield from (f"{DASH} {reason}" for reason in panel.reasons)
