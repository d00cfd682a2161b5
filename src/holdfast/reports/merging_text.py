"""The panel of merging and repair as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.reports.cells import shown
from holdfast.reports.markdown import charted, table, text
from holdfast.reports.merging_board import Board, told_tax
from holdfast.reports.merging_panel import MergingPanel, Retention
from holdfast.reports.merging_rules import Multiples
from holdfast.reports.names import DASH

PLACED = (
    "Safety and utility are plain means over tasks, each figure turned so that 1 is best. Limits of a mean are the "
    "means of the tasks' limits: wide enough however the tasks hang together."
)
PARETO = (
    "Pareto set: rows that no other row beats in one without losing the other. It goes by the values; where intervals "
    "overlap, rows need not differ."
)
TAXED = (
    "Safety tax: utility lost per safety gained, both as shares of the reference's. 0 costs nothing; below 0 utility "
    "rose as well. The record holds means, so the tax has no interval of its own; what was lost and gained has one, on "
    "the same prompts and seeds."
)
KEPT = "Retention: the mean over tasks of the merged score as a share of that of the task's own expert alone."
BOARD_HEAD = ("Row", "Safety", "Utility", "Pareto set")
TAX_HEAD = ("Row", "Safety tax", "Against the reference")


def blocks(panel: MergingPanel) -> Iterable[str]:
    """Markdown: the plane of each table, taxes, then curves as tables."""
    yield "## Merging and repair"
    for board in panel.boards:
        yield f"### Safety against utility: {text(board.title)}"
        yield f"{text(made_of(board))} {PLACED} {PARETO}"
        yield table(BOARD_HEAD, placed(board))
        yield from (f"{DASH} {text(sentence)}" for sentence in board.left_out)
        yield f"### Safety tax: {text(board.title)}"
        yield f"Reference: {text(board.reference)}. {TAXED}"
        yield table(TAX_HEAD, taxed(board))
    for one in panel.retention:
        yield f"### Retention: {text(one.id)}"
        yield KEPT
        yield table(kept_head(one), one.rows)
    for multiples in (*panel.fronts, *panel.dials):
        yield from _multiples(multiples)
    for multiples, halves in panel.spectra:
        yield from _multiples(multiples)
        if halves is not None:
            yield from charted(halves)


def _multiples(one: Multiples) -> Iterable[str]:
    yield f"### {text(one.title)}"
    yield table(one.head, one.rows)


def made_of(board: Board) -> str:
    """Which tasks make the two axes."""
    safety, utility = (", ".join(side) for side in board.tasks)
    return f"Safety: {safety}. Utility: {utility}."


def placed(board: Board) -> list[tuple[str, ...]]:
    """A row a point."""
    return [
        (point.label, shown(point.y), shown(point.x), "yes" if point.label in board.front else "no")
        for point in board.axes.points
    ]


def taxed(board: Board) -> list[tuple[str, ...]]:
    """A row a tax."""
    return [(tax.label, tax.text or f"{DASH} ({tax.reason})", f"{tax.lost}, {tax.gained}") for tax in board.taxes]


def kept_head(one: Retention) -> tuple[str, ...]:
    """Rule, then the numbers of experts."""
    return ("Rule", *(f"{count:g} experts" for count in one.counts))


def lines(panel: MergingPanel) -> Iterable[str]:
    """Terminal: the Pareto set and the taxes of each table, and what is kept of the most experts."""
    for board in panel.boards:
        yield f"{board.title}: no other row beats {', '.join(board.front)} in safety and utility together."
        yield from (f"Safety tax of {told_tax(tax)}" for tax in board.taxes if tax.value is not None)
    for one in panel.retention:
        yield from (f"{one.id}: {row[0]} keeps {row[-1]} with {one.counts[-1]:g} experts" for row in one.rows)
