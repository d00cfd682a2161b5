"""Markdown that shows text as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.reports.charts import Chart


def charted(chart: Chart) -> Iterable[str]:
    """The numbers of small charts."""
    yield f"### {text(chart.title)}"
    yield table(chart.head, chart.rows)
    yield "Median over blocks [lowest, highest]."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are shown as they stand."""
    escaped = [[text(cell) for cell in row] for row in (head, *rows)]
    lines = [escaped[0], ["---"] * len(head), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(said: str) -> str:
    """Text that Markdown shows as it stands: no markup, no table cell that ends early."""
    flat = " ".join(said.split())
    for mark in "\\`*_[]<>|":
        flat = flat.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return flat


def code(said: str) -> str:
    """Model output as a code span whose fence no output can close."""
    flat = " ".join(said.split()) or "(empty)"
    fence = "`" * (longest_run(flat) + 1)
    return f"{fence} {flat} {fence}"


def longest_run(said: str) -> int:
    """Most backticks in a row."""
    return max((len(run) for run in "".join(c if c == "`" else " " for c in said).split()), default=0)
