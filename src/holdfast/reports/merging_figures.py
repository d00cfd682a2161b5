"""Charts of merging and repair as SVG text. Positions across are percentages, so a chart is as wide as its column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from holdfast.core.wording import cut
from holdfast.reports.charts import Points
from holdfast.reports.figures import decades, nice_ticks
from holdfast.reports.merging_board import Tax
from holdfast.reports.merging_panel import Kept, Retention
from holdfast.reports.merging_rules import Multiples, Small, Trace

HEIGHT, KEPT_HEIGHT = 130, 280
"""Pixels of a small plot, and at least of that of retention; labels stand in the margin that the style leaves."""
BAR, LANE = 12, 24
"""Pixels: a tax bar's height, and that of its row."""
LINE, LONGEST, STYLES, APART = 16, 16, 6, 3
"""Pixels between labels at the side, letters of one, styles of lines, pixels between intervals of the same count."""
MARGIN = 0.04
"""Share of the way from the fewest to the most experts that is left free at both sides."""
STOPS = 5
"""Values of a dial that are named below its chart, at most."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Ticks = tuple[tuple[float, str], ...]
"""Places with their names; the first and the last are the ends of the axis."""


def small_charts(multiples: Multiples) -> list[str]:
    """One SVG a plot; the upward axis is the same for all."""
    points = [point for plot in multiples.plots for trace in plot.traces for point in trace.points]
    if multiples.kind == "spectrum":
        up = _powers([y for _, y in points])
        return [_small(plot, _ranks(plot), up, mark=1.0) for plot in multiples.plots]
    up = _percent([y for _, y in points])
    if multiples.kind == "dial":
        return [_small(plot, _stops(plot.stops), up) for plot in multiples.plots]
    across = _percent([x for x, _ in points])
    return [_small(plot, across, up) for plot in multiples.plots]


def key(kind: str) -> str:
    """The stroke of a kind of line, for a legend."""
    return (
        '<svg class="key" width="28" height="14" aria-hidden="true" focusable="false">'
        f'<line class="{kind}" x1="0" y1="7" x2="28" y2="7"/></svg>'
    )


def _small(plot: Small, across: Ticks, up: Ticks, *, mark: float | None = None) -> str:
    log = mark is not None
    parts = [_rule(HEIGHT * (1 - _part(y, up, log=log)), name) for y, name in up if name]
    parts += [_under(_part(x, across), name) for x, name in across if name]
    for x in plot.uprights:
        at = f"{100 * _part(x, across):.4g}%"
        parts.append(f'<line class="mark" x1="{at}" y1="0" x2="{at}" y2="{HEIGHT}"/>')
    if mark is not None and up[0][0] < mark < up[-1][0]:
        y = HEIGHT * (1 - _part(mark, up, log=True))
        parts.append(f'<line class="mark" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>')
    drawn = [(trace, [(_part(x, across), 1 - _part(y, up, log=log)) for x, y in trace.points]) for trace in plot.traces]
    lines = "".join(_polyline(trace, places) for trace, places in drawn)
    parts.append(
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{HEIGHT}">{lines}</svg>',
    )
    parts += [_circle(trace.kind, place, 2.5) for trace, places in drawn if trace.dotted for place in places]
    parts += [_circle("ring", (_part(x, across), 1 - _part(y, up)), 6) for x, y in plot.rings]
    return _svg("plot", HEIGHT, plot.told, parts)


def _polyline(trace: Trace, places: Sequence[tuple[float, float]]) -> str:
    joined = " ".join(f"{100 * x:.4g},{100 * y:.4g}" for x, y in places)
    return f'<polyline class="{trace.kind}" points="{joined}"/>' if places else ""


def _circle(kind: str, place: tuple[float, float], radius: float) -> str:
    return f'<circle class="{kind}" cx="{100 * place[0]:.4g}%" cy="{HEIGHT * place[1]:.4g}" r="{radius:g}"/>'


def _part(value: float, ticks: Ticks, *, log: bool = False) -> float:
    """How far along an axis a value lies, from 0 to 1."""
    low, high, at = (math.log10(v) if log else v for v in (ticks[0][0], ticks[-1][0], value))
    return min(1.0, max(0.0, (at - low) / (high - low)))


def _percent(values: Sequence[float]) -> Ticks:
    """Round shares close around the values; every second, third, ... has its name, about three of them."""
    ticks = nice_ticks(min(values), max(values), 8)
    every = math.ceil(len(ticks) / 4)
    return tuple(
        (tick, "" if i % every else f"{100 * tick:g} %") for i, tick in zip(range(len(ticks))[::-1], ticks, strict=True)
    )


def _powers(values: Sequence[float]) -> Ticks:
    low, high = (int(end) for end in decades(values))
    every = math.ceil((high - low) / 4)
    named = set(range(high, low - 1, -every))
    ticks = sorted({low, high} | named)
    return tuple((10.0**e, f"10{str(e).translate(SUPERSCRIPTS)}" if e in named else "") for e in ticks)


def _ranks(plot: Small) -> Ticks:
    last = max((x for trace in plot.traces for x, _ in trace.points), default=2.0)
    return ((1.0, "1"), (max(last, 2.0), f"{last:g}"))


def _stops(names: Sequence[str]) -> Ticks:
    """The values of a dial; of many, every second or third has its name."""
    every = math.ceil(len(names) / STOPS)
    named = tuple((float(i), name if i % every == 0 else "") for i, name in enumerate(names))
    return named if len(named) > 1 else (*named, (1.0, ""))


def _rule(y: float, name: str) -> str:
    line = f'<line class="rule" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>'
    return f'{line}<text class="left" x="-6" y="{y + 4:.4g}">{name}</text>'


def _under(part: float, name: str, height: float = HEIGHT) -> str:
    return f'<text class="middle" x="{100 * part:.4g}%" y="{height + 19:g}">{escape(name)}</text>'


def _svg(kind: str, height: float, told: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" width="100%" height="{height:g}" role="img">'
        f"<title>{escape(told)}</title>{''.join(parts)}</svg>"
    )


def tax_ticks(taxes: Sequence[Tax]) -> tuple[float, ...]:
    """Round numbers around 0 and all taxes that have a value."""
    values = [tax.value for tax in taxes if tax.value is not None]
    return nice_ticks(min([0.0, *values]), max([0.0, *values]), 4)


def tax_bar(tax: Tax, ticks: Sequence[float]) -> str:
    """A bar from 0; to the left where utility was gained as well."""
    assert tax.value is not None
    zero, end = (100 * (v - ticks[0]) / (ticks[-1] - ticks[0]) for v in (0.0, tax.value))
    left, width = min(zero, end), abs(end - zero)
    stops = (100 * (tick - ticks[0]) / (ticks[-1] - ticks[0]) for tick in ticks)
    grid = "".join(f'<line x1="{x:.4g}%" y1="0" x2="{x:.4g}%" y2="{LANE}"/>' for x in stops)
    top = (LANE - BAR) / 2
    parts = [
        f'<g class="grid">{grid}</g>',
        f'<rect class="tax" x="{left:.4g}%" y="{top:g}" width="{width:.4g}%" height="{BAR}"/>',
        f'<line class="zero" x1="{zero:.4g}%" y1="0" x2="{zero:.4g}%" y2="{LANE}"/>',
    ]
    return _svg("track", LANE, f"Safety tax of {tax.label}: {tax.text}; {tax.lost}, {tax.gained}", parts)


def tax_axis(ticks: Sequence[float]) -> str:
    """The numbers under the bars. Decoration: every bar says its own."""
    texts = [
        f'<text x="{100 * (tick - ticks[0]) / (ticks[-1] - ticks[0]):.4g}%" y="12" class="middle">'
        f"{f'{tick:g}'.replace('-', '−')}</text>"
        for tick in ticks
    ]
    return f'<svg class="axis" height="16" width="100%" aria-hidden="true" focusable="false">{"".join(texts)}</svg>'


def retention(panel: Retention) -> str:
    """A line a rule over the number of experts, with intervals, and the rules' names at the right."""
    ends = [v for k in panel.rules for _, f in k.points for v in (f.value, f.low, f.high) if v is not None]
    up = tuple((tick, f"{100 * tick:g} %") for tick in nice_ticks(min(ends, default=0.0), max(ends, default=1.0)))
    first, last = panel.counts[0], panel.counts[-1]
    aside = (last - first or 1) * MARGIN
    across = ((first - aside, ""), *((count, f"{count:g}") for count in panel.counts), (last + aside, ""))
    drawn = [kept for kept in panel.rules if _values(kept)]
    height = max(KEPT_HEIGHT, (LINE + 2) * len(drawn))
    parts = [_rule(height * (1 - _part(y, up)), name) for y, name in up]
    parts += [_under(_part(x, across), name, height) for x, name in across if name]
    if up[0][0] < 1 < up[-1][0]:
        y = height * (1 - _part(1.0, up))
        parts.append(f'<line class="mark" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>')
    lines, dots = [], []
    for i, kept in enumerate(drawn):
        style = f"line{i % STYLES + 1}"
        places = [(_part(x, across), 1 - _part(y, up)) for x, y in _values(kept)]
        lines.append(_polyline(Trace(style, ()), places))
        shift = APART * (i - (len(drawn) - 1) / 2) if barred(panel) else None
        dots.append(_dots(kept, up, across, height, style, shift))
    parts.append(
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{height}">{"".join(lines)}</svg>'
    )
    parts += dots
    parts += _names_at_the_right(drawn, up, across, height)
    told = "; ".join(f"{kept.label} {_said(kept)}" for kept in drawn)
    return _svg("scatter", height, f"Retention by number of experts: {told}", parts)


def _values(kept: Kept) -> Points:
    return tuple((count, figure.value) for count, figure in kept.points if figure.value is not None)


def _said(kept: Kept) -> str:
    return ", ".join(f"{figure.text} {figure.bounds}".strip() + f" with {count:g}" for count, figure in kept.points)


def barred(panel: Retention) -> bool:
    """Few enough rules for intervals to stand beside each other."""
    return len(panel.rules) <= STYLES


def _dots(kept: Kept, up: Ticks, across: Ticks, height: float, style: str, aside: float | None) -> str:
    """A dot at each count; its interval ``aside``, where it is drawn."""
    made = []
    for count, figure in kept.points:
        if figure.value is None:
            continue
        x, y = 100 * _part(count, across), height * (1 - _part(figure.value, up))
        dot = f'<circle class="{style}" cx="0" cy="{y:.4g}" r="2.5"/>'
        bar = ""
        if aside is not None and figure.low is not None and figure.high is not None:
            top, bottom = (height * (1 - _part(end, up)) for end in (figure.high, figure.low))
            bar = f'<line class="{style} interval" x1="{aside:g}" y1="{top:.4g}" x2="{aside:g}" y2="{bottom:.4g}"/>'
        made.append(f'<svg x="{x:.4g}%" overflow="visible">{bar}{dot}</svg>')
    return "".join(made)


def _names_at_the_right(drawn: Sequence[Kept], up: Ticks, across: Ticks, height: float) -> list[str]:
    """Each name beside its line's end, moved until none covers another, with a lead to where it belongs."""
    ends = [_values(kept)[-1] for kept in drawn]
    wanted = [height * (1 - _part(y, up)) for _, y in ends]
    made = []
    for i, y in enumerate(spaced(wanted, height)):
        x, end = 100 * _part(ends[i][0], across), wanted[i]
        lead = f'<line class="lead" x1="{x:.4g}%" y1="{end:.4g}" x2="100%" y2="{end:.4g}"/>' if x < 100 else ""
        made.append(
            f'{lead}<svg x="100%" overflow="visible"><line class="lead" x1="0" y1="{end:.4g}" x2="14" y2="{y:.4g}"/>'
            f'<line class="line{i % STYLES + 1}" x1="14" y1="{y:.4g}" x2="26" y2="{y:.4g}"/>'
            f'<text class="name" x="30" y="{y + 4:.4g}">{escape(cut(drawn[i].label, LONGEST))}</text></svg>'
        )
    return made


def spaced(wanted: Sequence[float], height: float) -> list[float]:
    """Heights near those that are wanted, `LINE` apart, from 0 to ``height`` where there is room for all.

    >>> spaced([10.0, 12.0, 100.0], 100)
    [10.0, 26.0, 100.0]
    >>> spaced([99.0, 100.0], 100)
    [84.0, 100.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = list(wanted)
    for above, i in pairwise(order):
        found[i] = max(found[i], found[above] + LINE)
    ceiling = float(height)
    for i in reversed(order):
        found[i] = min(found[i], ceiling)
        ceiling = found[i] - LINE
    return found
