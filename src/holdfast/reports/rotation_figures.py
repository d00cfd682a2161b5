"""Small charts of rotation as SVG text. Positions across are percentages, so a chart is as wide as its column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from holdfast.reports.charts import Chart, Line, Plot, Points
from holdfast.reports.figures import Ends, decades

HEIGHT = 120
"""Pixels of the plot; labels stand in the margin that the style leaves."""
MOST_TICKS = 5
DOTTED = 12
"""Lines with at most this many points show each of them."""


def small_charts(chart: Chart) -> list[str]:
    """One SVG a plot, all on the same axes."""
    heights = [y for line in _lines(chart) for _, y in line.points]
    depth = max((x for line in _lines(chart) for x, _ in line.points), default=0.0)
    last = 1.0 if chart.across == "share" else max(depth, 1.0)
    ends = decades(heights) if chart.up == "log" else None
    return [_small(plot, chart, last, ends) for plot in chart.plots]


def names_of(chart: Chart) -> list[str]:
    """What the lines of a chart stand for, in the order of their styles."""
    return list(dict.fromkeys(line.label for line in _lines(chart) if line.label))


def key(position: int) -> str:
    """The stroke of a line, for a legend."""
    return (
        '<svg class="key" width="28" height="14" aria-hidden="true" focusable="false">'
        f'<line class="line{position}" x1="0" y1="7" x2="28" y2="7"/></svg>'
    )


def _lines(chart: Chart) -> Iterable[Line]:
    return (line for plot in chart.plots for line in plot.lines)


def _small(plot: Plot, chart: Chart, last: float, ends: Ends | None) -> str:
    parts = [_rule(*tick) for tick in (_decade_ticks(ends) if ends else _share_ticks())]
    stops = ((0, "0 %"), (0.5, "50 %"), (1, "100 %")) if chart.across == "share" else ((0, "0"), (last, f"{last:g}"))
    parts += [_under(x / last, label) for x, label in stops]
    parts += [f'<line class="mark" x1="{100 * x:.4g}%" y1="0" x2="{100 * x:.4g}%" y2="{HEIGHT}"/>' for x in chart.marks]
    inner, dots = [], []
    styles = {name: position for position, name in enumerate(names_of(chart), start=1)}
    for line in plot.lines:
        style = f"line{styles.get(line.label, 1)}"
        places = _places(line.points, last, ends)
        if line.low:
            around = [*_places(line.high, last, ends), *reversed(_places(line.low, last, ends))]
            inner.append(f'<polygon class="band" points="{_joined(around)}"/>')
        inner.append(f'<polyline class="{style}" points="{_joined(places)}"/>' if places else "")
        if len(places) <= DOTTED:
            dots += [f'<circle class="{style}" cx="{x:.4g}%" cy="{HEIGHT * y / 100:.4g}" r="2.5"/>' for x, y in places]
    stretched = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{HEIGHT}">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="100%" height="{HEIGHT}" role="img">'
        f"<title>{escape(plot.told)}</title>{''.join(parts)}{stretched}{''.join(inner)}</svg>{''.join(dots)}</svg>"
    )


def _places(points: Points, last: float, ends: Ends | None) -> list[tuple[float, float]]:
    """Percent from the left and from the top; on a scale of powers of ten, 0 has no place."""
    if ends is None:
        return [(100 * x / last, 100 * (1 - y)) for x, y in points]
    return [(100 * x / last, 100 * (ends[1] - math.log10(y)) / (ends[1] - ends[0])) for x, y in points if y > 0]


def _joined(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.4g},{y:.4g}" for x, y in places)


def _share_ticks() -> list[tuple[float, str]]:
    return [(HEIGHT * (1 - share), f"{share:.0%}".replace("%", " %")) for share in (0.0, 0.5, 1.0)]


def _decade_ticks(ends: Ends) -> list[tuple[float, str]]:
    span = int(ends[1] - ends[0])
    every = math.ceil(span / (MOST_TICKS - 1))
    return [(HEIGHT * i / span, f"{100 * 10 ** (ends[1] - i):g} %") for i in range(0, span + 1, every)]


def _rule(y: float, label: str) -> str:
    line = f'<line class="rule" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>'
    return f'{line}<text class="left" x="-6" y="{y + 4:.4g}">{label}</text>'


def _under(part: float, label: str) -> str:
    where = "left" if part == 1 else "middle"
    return f'<text class="{where}" x="{100 * part:.4g}%" y="{HEIGHT + 16}">{label}</text>'
