"""Charts of token weights as SVG text. Positions across are percentages, so a chart is as wide as its column."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from holdfast.reports.figures import nice_ticks
from holdfast.reports.names import number
from holdfast.reports.token_weighting_panel import SPREAD, Board, Weighed, ends_of
from holdfast.reports.view import Figure

LANE, BAR, CAP, RADIUS = 26, 12, 5, 5
"""Pixels: a row's height, a box's, half a whisker's end, a mark."""
Ticks = tuple[float, ...]


def weight_ticks(plans: Sequence[Weighed]) -> Ticks:
    """Round numbers from 0 to the largest weight that is drawn."""
    values = [value for plan in plans for name in SPREAD if (value := plan.value(name)) is not None]
    return nice_ticks(0.0, max([1.0, *values]), 4)


def spread(plan: Weighed, ticks: Ticks) -> str:
    """A box over the middle half of the tokens, a bar at the 95th percentile, a dot at the mean of noisy tokens."""
    parts = [_grid(ticks)]
    mean, low, high, most, noise = (plan.value(name) for name in SPREAD)
    if low is not None and high is not None:
        left, right = _share(low, ticks), _share(high, ticks)
        size = f'width="{right - left:.4g}%" height="{BAR}"'
        parts.append(f'<rect class="middle-half" x="{left:.4g}%" y="{(LANE - BAR) / 2:g}" {size}/>')
    parts += [_upright(most, ticks, "zero")] if most is not None else []
    parts += [_upright(mean, ticks, "mark")] if mean is not None else []
    parts += [_dot(noise, ticks)] if noise is not None else []
    said = [f"{word} {number(value, rate=False)}" for word, value in _words(plan) if value is not None]
    return _svg(parts, f"Weights of {plan.id}: {', '.join(said)}")


def _words(plan: Weighed) -> list[tuple[str, float | None]]:
    names = ("mean", "25th percentile", "75th percentile", "95th percentile", "mean of noisy tokens")
    return list(zip(names, map(plan.value, SPREAD), strict=True))


def gain_ticks(board: Board) -> Ticks:
    """Round numbers around 0 and all gains with their intervals."""
    ends = [0.0, *ends_of(figure for _, figure in board.gains)]
    return nice_ticks(min(ends), max(ends), 4)


def gain(label: str, figure: Figure, ticks: Ticks) -> str:
    """A dot with its interval, beside the line of no gain."""
    parts = [_grid(ticks), _upright(0.0, ticks, "zero")]
    if figure.low is not None and figure.high is not None:
        left, right = (f"{_share(end, ticks):.4g}%" for end in (figure.low, figure.high))
        y = LANE / 2
        lines = [(left, y, right, y), *((end, y - CAP, end, y + CAP) for end in (left, right))]
        parts += [f'<line class="whisker over" x1="{a}" y1="{b:g}" x2="{c}" y2="{d:g}"/>' for a, b, c, d in lines]
    parts += [_dot(figure.value, ticks)] if figure.value is not None else []
    return _svg(parts, f"{label}: {figure.text} {figure.bounds}".strip())


def axis(ticks: Ticks, *, percent: bool = False) -> str:
    """The numbers under the rows. Decoration: every row says its own."""
    scale = 100 if percent else 1
    texts = [
        f'<text x="{_share(tick, ticks):.4g}%" y="12" class="middle">{f"{scale * tick:g}".replace("-", "−")}</text>'
        for tick in ticks
    ]
    return f'<svg class="axis" height="16" width="100%" aria-hidden="true" focusable="false">{"".join(texts)}</svg>'


def key(kind: str) -> str:
    """The mark of ``box``, ``most``, ``mean`` or ``noise``, for a legend."""
    shapes = {
        "box": f'<rect class="middle-half" x="2" y="1" width="24" height="{BAR}"/>',
        "most": '<line class="zero" x1="14" y1="0" x2="14" y2="14"/>',
        "mean": '<line class="mark" x1="14" y1="0" x2="14" y2="14"/>',
        "noise": f'<circle class="arm" cx="14" cy="7" r="{RADIUS}"/>',
    }
    return f'<svg class="key" width="28" height="14" aria-hidden="true" focusable="false">{shapes[kind]}</svg>'


def _share(value: float, ticks: Ticks) -> float:
    """Percent of the width."""
    return 100 * (value - ticks[0]) / (ticks[-1] - ticks[0])


def _grid(ticks: Ticks) -> str:
    stops = "".join(
        f'<line x1="{x:.4g}%" y1="0" x2="{x:.4g}%" y2="{LANE}"/>' for x in (_share(t, ticks) for t in ticks)
    )
    return f'<g class="grid">{stops}</g>'


def _upright(value: float, ticks: Ticks, kind: str) -> str:
    x = f"{_share(value, ticks):.4g}%"
    return f'<line class="{kind}" x1="{x}" y1="1" x2="{x}" y2="{LANE - 1}"/>'


def _dot(value: float, ticks: Ticks) -> str:
    return f'<circle class="arm" cx="{_share(value, ticks):.4g}%" cy="{LANE / 2:g}" r="{RADIUS}"/>'


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="track" width="100%" height="{LANE}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
