"""Safety against utility as SVG: a point an arm, error bars both ways, labels that do not overlap at any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from holdfast.core.wording import cut
from holdfast.reports.figures import nice_ticks
from holdfast.reports.table_panel import Axes, Point
from holdfast.reports.view import Figure

WIDTHS = tuple(range(270, 751, 40))
"""Pixels that the plot may be wide: labels are placed so that they are apart at each of these."""
LETTER, LINE, OFFSET, RADIUS, CAP = 6.7, 15, 11, 5, 4
"""Pixels: a letter's width, a line's height (12 px text), a point's centre to its label, a mark, a bar's end."""
ROOM = 16
"""Pixels right of the plot that a label may take."""
NEAR = 45
"""Pixels that a label may be away from its point to stay off error bars."""
LONGEST = 18
"""Letters of a label: the rest is in the table."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Label:
    """Where a point's name stands, from the point's centre."""

    text: str
    right: bool
    down: float

    def box(self, x: float, y: float) -> Box:
        """Left, top, right, bottom around a point at ``x, y``."""
        left = x + OFFSET if self.right else x - OFFSET - LETTER * len(self.text)
        return left, y + self.down - LINE / 2, left + LETTER * len(self.text), y + self.down + LINE / 2


def scatter(axes: Axes, front: Sequence[str] = ()) -> str:
    """The chart; positions across are percentages, so that it is as wide as its column.

    Args:
        front: Labels of rows that are ringed and joined by stairs, by rising y; both axes are then better upwards.
    """
    height = max(300, 26 * len(axes.points))
    x_ticks, y_ticks = (_ticks([getattr(point, side) for point in axes.points]) for side in "xy")
    parts = [_across(tick, y_ticks, height) for tick in y_ticks] + [_down(tick, x_ticks, height) for tick in x_ticks]
    places = [(_share(p.x.value, x_ticks), height * (1 - _share(p.y.value, y_ticks))) for p in axes.points]
    ahead = [places[[p.label for p in axes.points].index(label)] for label in front]
    parts += [*_stairs(ahead, height), *(_ring(at) for at in ahead)]
    parts += [_bars(p, x_ticks, y_ticks, height) for p in axes.points]
    spreads = [_spread(p, x_ticks, y_ticks, height) for p in axes.points]
    labels = place(axes.points, places, height, [box for boxes in spreads for box in boxes])
    marks = sorted(zip(axes.points, places, labels, strict=True), key=lambda mark: mark[0].role != "arm")
    parts += [_mark(*mark) for mark in marks]
    told = "; ".join(f"{p.label} {_said(p.x)}, {_said(p.y)}" for p in axes.points)
    told += f". Pareto set: {', '.join(front)}" if front else ""
    title = f"{axes.x.label} on {axes.x.task} across, {axes.y.label.lower()} on {axes.y.task} upwards: {told}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="scatter" width="100%" height="{height}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def key(role: str) -> str:
    """The mark of a role, for a legend; ``ring`` is that of the front."""
    return (
        f'<svg class="key" width="16" height="14" aria-hidden="true" focusable="false">'
        f'<svg x="8" y="7" overflow="visible">{_shape(role)}</svg></svg>'
    )


def place(
    points: Sequence[Point], places: Sequence[tuple[float, float]], height: float, spreads: Sequence[Box] = ()
) -> list[Label]:
    """A label for each point, near it and clear of other labels and of all points at every one of `WIDTHS`.

    Args:
        places: Across as a share of the width, down in pixels.
        spreads: Error bars in the same units; labels stay off them where there is room nearby.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].role == "arm", places[i][1], places[i][0], i))
    chosen: dict[int, Label] = {}
    for i in order:
        candidates = list(_candidates(cut(points[i].label, LONGEST), places[i], height))
        clear = [c for c in candidates if _clear(i, c, chosen, places, marks=True)]
        free = (c for c in clear if abs(c.down) <= NEAR and _off(places[i], c, spreads))
        apart = (c for c in candidates if _clear(i, c, chosen, places, marks=False))
        chosen[i] = next(free, None) or next(iter(clear), None) or next(apart, None) or candidates[0]
    return [chosen[i] for i in range(len(points))]


def _candidates(text: str, at: tuple[float, float], height: float) -> Iterator[Label]:
    """Nearest first; inside the plot, but for a side on which the text has no room at the narrowest."""
    steps = sorted(range(-int(height), int(height), 5), key=abs)
    yield Label(text, at[0] < 0.5, 0)
    for down in steps:
        for right in (True, False):
            label = Label(text, right, down)
            left, top, end, bottom = label.box(at[0] * WIDTHS[0], at[1])
            if left >= -4 and end <= WIDTHS[0] + ROOM and top >= -2 and bottom <= height + 2:
                yield label


def _clear(i: int, label: Label, chosen: dict[int, Label], places: Sequence[tuple[float, float]], marks: bool) -> bool:
    for width in WIDTHS:
        own = label.box(places[i][0] * width, places[i][1])
        others = [known.box(places[j][0] * width, places[j][1]) for j, known in chosen.items()]
        if marks:
            around = RADIUS + 2
            others += [(x * width - around, y - around, x * width + around, y + around) for x, y in places]
        if any(overlap(own, other) for other in others):
            return False
    return True


def _off(at: tuple[float, float], label: Label, spreads: Sequence[Box]) -> bool:
    """No error bar runs through the label, at any width."""
    return not any(
        overlap(label.box(at[0] * width, at[1]), (left * width - 1, top - 1, right * width + 1, bottom + 1))
        for width in WIDTHS
        for left, top, right, bottom in spreads
    )


def overlap(one: Box, other: Box) -> bool:
    """Two boxes share an area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ticks(figures: Sequence[Figure]) -> tuple[float, ...]:
    """Round numbers around all values and intervals, in [0, 1]."""
    ends = [end for f in figures for end in (f.value, f.low, f.high) if end is not None]
    return tuple(tick for tick in nice_ticks(max(0.0, min(ends)), min(1.0, max(ends))) if -1e-9 <= tick <= 1 + 1e-9)


def _share(value: float | None, ticks: Sequence[float]) -> float:
    assert value is not None
    return min(1.0, max(0.0, (value - ticks[0]) / (ticks[-1] - ticks[0])))


def _across(tick: float, ticks: Sequence[float], height: float) -> str:
    y = height * (1 - _share(tick, ticks))
    line = f'<line class="rule" x1="0" y1="{y:.4g}" x2="100%" y2="{y:.4g}"/>'
    return f'{line}<text class="left" x="-8" y="{y + 4:.4g}">{100 * tick:g} %</text>'


def _down(tick: float, ticks: Sequence[float], height: float) -> str:
    x = f"{100 * _share(tick, ticks):.4g}%"
    line = f'<line class="rule" x1="{x}" y1="0" x2="{x}" y2="{height}"/>'
    return f'{line}<text class="middle" x="{x}" y="{height + 18}">{100 * tick:g} %</text>'


def _spread(point: Point, x_ticks: Sequence[float], y_ticks: Sequence[float], height: float) -> list[Box]:
    """Where a point's error bars run: across as shares of the width, down in pixels."""
    x, y = _share(point.x.value, x_ticks), height * (1 - _share(point.y.value, y_ticks))
    made = []
    if point.x.low is not None and point.x.high is not None:
        made.append((_share(point.x.low, x_ticks), y, _share(point.x.high, x_ticks), y))
    if point.y.low is not None and point.y.high is not None:
        top, bottom = (height * (1 - _share(end, y_ticks)) for end in (point.y.high, point.y.low))
        made.append((x, top, x, bottom))
    return made


def _bars(point: Point, x_ticks: Sequence[float], y_ticks: Sequence[float], height: float) -> str:
    """Error bars both ways, where there is an interval."""
    x, y = f"{100 * _share(point.x.value, x_ticks):.4g}%", height * (1 - _share(point.y.value, y_ticks))
    lines = []
    if point.x.low is not None and point.x.high is not None:
        low, high = (f"{100 * _share(end, x_ticks):.4g}%" for end in (point.x.low, point.x.high))
        lines += [(low, y, high, y), *((end, y - CAP, end, y + CAP) for end in (low, high))]
    drawn = [f'<line x1="{a}" y1="{b:.4g}" x2="{c}" y2="{d:.4g}"/>' for a, b, c, d in lines]
    if point.y.low is not None and point.y.high is not None:
        top, bottom = (height * (1 - _share(end, y_ticks)) for end in (point.y.high, point.y.low))
        drawn.append(f'<line x1="{x}" y1="{top:.4g}" x2="{x}" y2="{bottom:.4g}"/>')
        ends = "".join(f'<line x1="{-CAP}" y1="{end:.4g}" x2="{CAP}" y2="{end:.4g}"/>' for end in (top, bottom))
        drawn.append(f'<svg x="{x}" overflow="visible">{ends}</svg>')
    return f'<g class="spread {point.role}">{"".join(drawn)}</g>'


def _mark(point: Point, at: tuple[float, float], label: Label) -> str:
    edge = OFFSET - 3 if label.right else 3 - OFFSET
    lead = f'<line class="lead" x1="0" y1="0" x2="{edge}" y2="{label.down:g}"/>' if abs(label.down) > LINE / 2 else ""
    anchor, x = ("start", OFFSET) if label.right else ("end", -OFFSET)
    text = f'<text class="name" text-anchor="{anchor}" x="{x}" y="{label.down + 4:g}">{escape(label.text)}</text>'
    inner = f"{lead}{_shape(point.role)}{text}"
    return f'<svg class="{point.role}" x="{100 * at[0]:.4g}%" y="{at[1]:.4g}" overflow="visible">{inner}</svg>'


def _stairs(ahead: Sequence[tuple[float, float]], height: float) -> list[str]:
    """From the left to the highest point, down and across from point to point, and down."""
    lines, left = [], 0.0
    for i, (x, y) in enumerate(reversed(ahead)):
        bottom = ahead[-2 - i][1] if i + 1 < len(ahead) else height
        lines += [(left, y, x, y), (x, y, x, bottom)]
        left = x
    return [
        f'<line class="stair" x1="{100 * a:.4g}%" y1="{b:.4g}" x2="{100 * c:.4g}%" y2="{d:.4g}"/>'
        for a, b, c, d in lines
    ]


def _ring(at: tuple[float, float]) -> str:
    return f'<circle class="ring" cx="{100 * at[0]:.4g}%" cy="{at[1]:.4g}" r="{RADIUS + 4}"/>'


def _shape(role: str) -> str:
    """Before: a hollow circle; the reference: a diamond; an arm: a filled circle; the front: a ring around one."""
    if role == "ring":
        return f'<circle class="ring" r="{RADIUS + 1}"/><circle class="arm" r="{RADIUS - 2}"/>'
    if role == "reference":
        return '<rect class="reference" x="-5" y="-5" width="10" height="10" transform="rotate(45)"/>'
    return f'<circle class="{role}" r="{RADIUS}"/>'


def _said(figure: Figure) -> str:
    return f"{figure.text} {figure.bounds}".strip()
