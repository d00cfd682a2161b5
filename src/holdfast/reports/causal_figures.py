"""Curves of terms and gates as SVG text. Positions across are percentages, so a chart is as wide as its column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from holdfast.reports.charts import Plot
from holdfast.reports.figures import nice_ticks

HEIGHT = 120
"""Pixels of a plot; labels stand in the margin that the style leaves."""
STYLES = 6
"""Styles of lines that the page has; more lines begin again."""
WANTED = 3
"""Ticks up, about."""


def style(position: int) -> str:
    """Class of a plot's line, counted from 0."""
    return f"line{1 + position % STYLES}"


def names_of(plots: Sequence[Plot]) -> list[str]:
    """What the lines stand for, in the order of their styles; empty where every plot has one line."""
    return list(dict.fromkeys(line.label for plot in plots for line in plot.lines if line.label))


def key(position: int) -> str:
    """The stroke of a line, for a legend; counted from 1."""
    return (
        '<svg class="key" width="28" height="14" aria-hidden="true" focusable="false">'
        f'<line class="{style(position - 1)}" x1="0" y1="7" x2="28" y2="7"/></svg>'
    )


def curves(plots: Sequence[Plot]) -> list[str]:
    """One SVG a plot, each on its own scale; all over the same steps."""
    last = max((x for plot in plots for line in plot.lines for x, _ in line.points), default=1.0) or 1.0
    names = names_of(plots)
    return [_curve(plot, last, names) for plot in plots]


def _curve(plot: Plot, last: float, names: Sequence[str]) -> str:
    heights = [y for line in plot.lines for _, y in line.points if math.isfinite(y)]
    ticks = nice_ticks(min([0.0, *heights]), max([0.0, *heights]), WANTED)
    parts = [_rule(tick, ticks) for tick in ticks]
    parts += [
        f'<text class="{where}" x="{x}%" y="{HEIGHT + 18}">{label}</text>'
        for where, x, label in (("middle", 0, "0"), ("left", 100, f"{last:,.0f}"))
    ]
    lines = [
        f'<polyline class="{style(names.index(line.label) if line.label else 0)}" points="{points}"/>'
        for line in plot.lines
        if (points := _points(line.points, last, ticks))
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="100%" height="{HEIGHT}" role="img">'
        f"<title>{escape(plot.told)}</title>{''.join(parts)}"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{HEIGHT}">{"".join(lines)}</svg>'
        "</svg>"
    )


def _points(points: Sequence[Sequence[float]], last: float, ticks: Sequence[float]) -> str:
    span = ticks[-1] - ticks[0]
    return " ".join(f"{100 * x / last:.4g},{100 * (ticks[-1] - y) / span:.4g}" for x, y in points if math.isfinite(y))


def _rule(tick: float, ticks: Sequence[float]) -> str:
    y = HEIGHT * (ticks[-1] - tick) / (ticks[-1] - ticks[0])
    line = f'<line class="rule" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>'
    return f'{line}<text class="left" x="-6" y="{y + 4:.4g}">{f"{tick:g}".replace("-", "−")}</text>'
