"""Graphs and power curves of a verification as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from holdfast.reports.causal_verify_panel import Graph, Link, Power

WIDTH, HEIGHT = 300, 190
"""Units of a drawn graph; it is scaled to its column, up to its own size."""
PLACES = {"S": (50.0, 40.0), "U": (50.0, 150.0), "R": (160.0, 95.0), "O": (260.0, 95.0)}
NAMES = {"S": "S task", "U": "U injected", "R": "R", "O": "O outcome"}
RADIUS = 17.0
HEAD = 9.0
"""Length of an arrow's head."""
PLOT = 120
"""Pixels of a power curve."""
ASIDE = 40.0
"""How far a missing edge is bent away from one that was found between the same two."""
BEND = 34.0
"""How far an edge that would cross another variable is bent aside."""


def graph(one: Graph) -> str:
    """What was found, drawn with the share of resamples beside each edge; what is missing is dashed."""
    found = {frozenset((link.source, link.target)) for link in one.links if link.found}
    parts = [_edge(link, aside=not link.found and {link.source, link.target} in found) for link in one.links]
    parts += [_node(name) for name in PLACES]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="causal" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(one.title)}. {escape(one.told)}</title>{''.join(parts)}</svg>"
    )


def kind_of(link: Link) -> str:
    """``both``, ``extra`` (found, not expected) or ``missing`` (expected, not found)."""
    if link.found:
        return "both" if link.expected else "extra"
    return "missing"


def key(kind: str) -> str:
    """The stroke of a kind of edge, for a legend."""
    return (
        '<svg class="key" width="28" height="14" aria-hidden="true" focusable="false">'
        f'<line class="edge {kind}" x1="0" y1="7" x2="28" y2="7"/></svg>'
    )


def _node(name: str) -> str:
    x, y = PLACES[name]
    below = y + RADIUS + 14
    return (
        f'<circle class="node" cx="{x:g}" cy="{y:g}" r="{RADIUS:g}"/>'
        f'<text class="middle label" x="{x:g}" y="{y + 5:g}">{name}</text>'
        + (f'<text class="middle" x="{x:g}" y="{below:g}">{NAMES[name][2:]}</text>' if NAMES[name] != name else "")
    )


def _edge(link: Link, *, aside: bool) -> str:
    """A line with its share; ``aside`` of another one between the same two."""
    (x1, y1), (x2, y2) = PLACES[link.source], PLACES[link.target]
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    across = (-(y2 - y1) / length, (x2 - x1) / length)
    bend = _bend(link) + (ASIDE if aside else 0.0)
    mx, my = (x1 + x2) / 2 + bend * across[0], (y1 + y2) / 2 + bend * across[1]
    start, end = _towards((x1, y1), (mx, my)), _towards((x2, y2), (mx, my))
    kind = kind_of(link)
    line = (
        f'<path class="edge {kind}" d="M {start[0]:.1f} {start[1]:.1f} Q {mx:.1f} {my:.1f} {end[0]:.1f} {end[1]:.1f}"/>'
    )
    tip = _head(end, (mx, my), kind) if link.directed else ""
    tx, ty = (start[0] + 2 * mx + end[0]) / 4 + 15 * across[0], (start[1] + 2 * my + end[1]) / 4 + 13 * across[1]
    return f'{line}{tip}<text class="middle" x="{tx:.1f}" y="{ty + 4:.1f}">{100 * link.frequency:.0f} %</text>'


def _bend(link: Link) -> float:
    """S and U reach O around R; the others are straight."""
    ends = {link.source, link.target}
    if ends == {"S", "O"}:
        return -BEND if link.source == "S" else BEND
    if ends == {"U", "O"}:
        return BEND if link.source == "U" else -BEND
    return 0.0


def _towards(end: tuple[float, float], middle: tuple[float, float]) -> tuple[float, float]:
    """On the circle around ``end``, on the side of ``middle``."""
    dx, dy = middle[0] - end[0], middle[1] - end[1]
    length = (dx**2 + dy**2) ** 0.5
    return end[0] + (RADIUS + 2) * dx / length, end[1] + (RADIUS + 2) * dy / length


def _head(tip: tuple[float, float], middle: tuple[float, float], kind: str) -> str:
    dx, dy = tip[0] - middle[0], tip[1] - middle[1]
    length = (dx**2 + dy**2) ** 0.5
    ux, uy = dx / length, dy / length
    back = (tip[0] - HEAD * ux, tip[1] - HEAD * uy)
    left, right = ((back[0] + side * HEAD * uy / 2, back[1] - side * HEAD * ux / 2) for side in (1, -1))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (tip, left, right))
    return f'<polygon class="head {kind}" points="{points}"/>'


def power_curve(one: Power) -> str:
    """The share found over what was planted, points evenly spaced; dashed: the power that a claim needs."""
    last = max(len(one.points) - 1, 1)
    places = [(100 * i / last, PLOT * (1 - y)) for i, (_, y) in enumerate(one.points)]
    parts = [_rule(share) for share in (0.0, 0.5, 1.0)]
    parts.append(f'<line class="mark" x1="0" y1="{PLOT * 0.2:g}" x2="100%" y2="{PLOT * 0.2:g}"/>')
    for (planted, _), (x, _) in zip(one.points, places, strict=True):
        label = f"{100 * planted:g} %" if one.shares else f"{planted:g}"
        parts.append(f'<text class="middle" x="{x:.4g}%" y="{PLOT + 18}">{label}</text>')
    joined = " ".join(f"{x:.4g},{100 * y / PLOT:.4g}" for x, y in places)
    parts.append(
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{PLOT}">'
        f'<polyline class="line1" points="{joined}"/></svg>'
    )
    parts += [f'<circle class="line1" cx="{x:.4g}%" cy="{y:.4g}" r="2.5"/>' for x, y in places]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="100%" height="{PLOT}" role="img">'
        f"<title>{escape(one.told)}</title>{''.join(parts)}</svg>"
    )


def power_curves(many: Sequence[Power]) -> list[str]:
    """One SVG a test."""
    return [power_curve(one) for one in many]


def _rule(share: float) -> str:
    y = PLOT * (1 - share)
    line = f'<line class="rule" x1="0" y1="{y:g}" x2="100%" y2="{y:g}"/>'
    return f'{line}<text class="left" x="-6" y="{y + 4:g}">{100 * share:g} %</text>'
