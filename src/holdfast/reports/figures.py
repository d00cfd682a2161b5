"""Charts as SVG text, made by pure functions. Positions are percentages, so a chart is as wide as its column.

Colour is never alone: *before* is hollow, *after* is filled, and every chart has a title that says its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from holdfast.reports.view import Curve, Figure, Row, Training

TICKS = (0, 25, 50, 75, 100)
LANE_BEFORE, LANE_AFTER, ROW_HEIGHT = 11, 27, 38
"""Pixels from the top of a row's chart."""
CAP, RADIUS, BAR = 4, 5, 10
PLOT_HEIGHT = 240
Ends = tuple[float, float]
"""Exponents of the powers of ten at both ends of an axis."""


def drawable(row: Row) -> bool:
    """Some side has a value on the common axis from 0 to 1."""
    return any(_on_axis(figure) for _, figure in _sides(row))


def dumbbell(row: Row) -> str:
    """Before and after as points with whiskers, joined by a line."""
    parts = [_grid(ROW_HEIGHT)]
    before, after = row.before, row.after
    lanes = [(LANE_BEFORE + LANE_AFTER) / 2] if before is None else [LANE_BEFORE, LANE_AFTER]
    if before is not None and _on_axis(before) and _on_axis(after):
        ends = f'x1="{_at(before.value)}" y1="{lanes[0]}" x2="{_at(after.value)}" y2="{lanes[-1]}"'
        parts.append(f'<line class="join" {ends}/>')
    for (side, figure), lane in zip(_sides(row), lanes, strict=True):
        if _on_axis(figure):
            parts.append(_whisker(figure, lane, side))
            parts.append(f'<circle class="{side}" cx="{_at(figure.value)}" cy="{lane:g}" r="{RADIUS}"/>')
    return _svg(parts, ROW_HEIGHT, _said(row), "track")


def bars(row: Row) -> str:
    """Before and after as bars from 0, with whiskers."""
    sides = _sides(row)
    height = len(sides) * (BAR + 6) + 4
    parts = [_grid(height)]
    for position, (side, figure) in enumerate(sides):
        top = 4 + position * (BAR + 6)
        if _on_axis(figure):
            parts.append(f'<rect class="{side}" x="0" y="{top}" width="{_at(figure.value)}" height="{BAR}"/>')
            parts.append(_whisker(figure, top + BAR / 2, f"{side} over"))
    return _svg(parts, height, _said(row), "track")


def axis() -> str:
    """The labels under a column of charts. Decoration: every chart says its numbers."""
    texts = [f'<text x="{tick}%" y="12" class="middle">{tick} %</text>' for tick in TICKS]
    return f'<svg class="axis" height="16" width="100%" aria-hidden="true" focusable="false">{"".join(texts)}</svg>'


def key(side: str) -> str:
    """The mark of one side, for a legend."""
    line = f'<line class="whisker {side}" x1="1" y1="7" x2="27" y2="7"/>'
    return (
        '<svg class="key" width="28" height="14" aria-hidden="true" focusable="false">'
        f'{line}<circle class="{side}" cx="14" cy="7" r="{RADIUS}"/></svg>'
    )


def loss_curve(training: Training) -> str:
    """Training and validation loss over optimizer steps; the labels stand in the margin that the style leaves."""
    points = [*training.loss, *training.validation]
    finite = [y for _, y in points if math.isfinite(y)]
    last = max((x for x, _ in points), default=1.0) or 1.0
    ticks = nice_ticks(min(finite, default=0.0), max(finite, default=1.0))
    steps = [tick for tick in nice_ticks(0.0, last) if tick <= last]
    parts = [_horizontal(tick, ticks) for tick in ticks] + [_vertical(tick, last) for tick in steps]
    inner = [
        _polyline(curve, last, ticks, side)
        for side, curve in (("training", training.loss), ("validation", training.validation))
    ]
    plot = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{PLOT_HEIGHT}">{"".join(inner)}'
    parts.append(plot + "</svg>")
    return _svg(parts, PLOT_HEIGHT, f"Loss of step {training.id}: {training.sentence}", "plot")


def nice_ticks(low: float, high: float, wanted: int = 5) -> tuple[float, ...]:
    """Round numbers from at or below ``low`` to at or above ``high``, about ``wanted`` of them.

    >>> nice_ticks(0.4, 7.38)
    (0.0, 2.0, 4.0, 6.0, 8.0)
    >>> nice_ticks(1.0, 1.0)
    (1.0, 2.0)
    """
    if high <= low:
        return (low, low + 1)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return tuple(round(position * step, 10) for position in range(first, last + 1))


def decades(values: Iterable[float]) -> Ends:
    """Exponents of the powers of ten around the positive values.

    >>> decades([0.002, 0.03, 0.0]), decades([0.01])
    ((-3.0, -1.0), (-2.0, -1.0))
    """
    logs = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return float(low), float(max(high, low + 1))


def _sides(row: Row) -> list[tuple[str, Figure]]:
    return [("after", row.after)] if row.before is None else [("before", row.before), ("after", row.after)]


def _on_axis(figure: Figure) -> bool:
    return figure.value is not None and 0 <= figure.value <= 1


def _at(value: float | None) -> str:
    assert value is not None
    return f"{100 * value:.4g}%"


def _whisker(figure: Figure, lane: float, side: str) -> str:
    if figure.low is None or figure.high is None:
        return ""
    low, high = _at(max(0.0, figure.low)), _at(min(1.0, figure.high))
    lines = [(low, lane, high, lane), *((x, lane - CAP, x, lane + CAP) for x in (low, high))]
    return "".join(
        f'<line class="whisker {side}" x1="{x1}" y1="{y1:g}" x2="{x2}" y2="{y2:g}"/>' for x1, y1, x2, y2 in lines
    )


def _grid(height: float) -> str:
    lines = (f'<line x1="{tick}%" y1="0" x2="{tick}%" y2="{height:g}"/>' for tick in TICKS)
    return f'<g class="grid">{"".join(lines)}</g>'


def _said(row: Row) -> str:
    told = [f"{side} {figure.text} {figure.bounds}".strip() for side, figure in _sides(row)]
    if row.before is None:
        told = [told[0].removeprefix("after ")]
    return f"{row.label}{f' on {row.task}' if row.task else ''}: {', '.join(told)}"


def _svg(parts: Sequence[str], height: float, title: str, kind: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" width="100%" height="{height:g}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _level(value: float, ticks: Sequence[float]) -> float:
    return 100 * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))


def _horizontal(tick: float, ticks: Sequence[float]) -> str:
    y = PLOT_HEIGHT * _level(tick, ticks) / 100
    line = f'<line class="rule" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>'
    return f'{line}<text class="left" x="-8" y="{y + 4:.4g}">{tick:g}</text>'


def _vertical(tick: float, last: float) -> str:
    x = 100 * tick / last
    return f'<text class="middle" x="{x:.4g}%" y="{PLOT_HEIGHT + 18}">{tick:,g}</text>'


def _polyline(curve: Curve, last: float, ticks: Sequence[float], side: str) -> str:
    points = " ".join(f"{100 * x / last:.4g},{_level(y, ticks):.4g}" for x, y in curve if math.isfinite(y))
    return f'<polyline class="{side}" points="{points}"/>' if points else ""
