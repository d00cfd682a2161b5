"""The panel of a verification as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.core.wording import cut
from holdfast.reports.causal_verify_panel import VARIABLES, Layer, Power, Verified, cells
from holdfast.reports.markdown import table, text

CLAIM_HEAD = ("Claim", "Says", "p", "n", "Found")
BOUND_HEAD = ("What", "At most", "n", "Says")
EDGE_HEAD = ("Edge", "Share of resamples", "On all rows", "Expected")
POWER_HEAD = ("Test", "Planted: found")
GRAPHED = (
    "PC on crossed rows: every case with several tasks and injections. "
    + ", ".join(f"{name} {what}" for name, what in VARIABLES.items())
    + ". Share: how many resamples of the scenarios have exactly this edge."
)
POWERED = (
    "How often dependence is found that was planted in the same rows; at 0 nothing is planted, and the rate is the "
    "size of the test, wanted at 5 %. A claim holds only where the power is at least 80 %. "
    "Where the real dependence is strong it drowns what is planted, and the test rejects all the same."
)
LAYERED = (
    "Cosines: stability of clean and attacked, separation 1 less that of attacked and obeyed; cosines of a model are "
    "high between any two cases, so the value of random pairs stands beside. Moved: the distance that another "
    "injection makes, over that between two cases."
)
BOUNDED = (
    "What the test cases show of new ones, with 95 % confidence; families are those that no training case has. "
    "Vacuous: a bound of at least 1 says nothing."
)
TERMINAL_REASON = 160


def blocks(panel: Sequence[Verified]) -> Iterable[str]:
    """Markdown: claims, figures, graphs, power, bounds, representations."""
    for one in panel:
        yield f"## Verification: {text(one.model)} ({text(one.id)})"
        yield one.counted
        yield table(CLAIM_HEAD, claims(one))
        yield table(head(one), rows(one, one.figures))
        for graph in one.graphs:
            yield f"### {text(graph.title)}"
            yield text(graph.told)
            yield GRAPHED
            yield table(EDGE_HEAD, graph.rows)
        if one.power:
            yield "### Power"
            yield POWERED
            yield table(POWER_HEAD, [(power.name, planted(power)) for power in one.power])
        if one.bounds:
            yield "### Bounds"
            yield BOUNDED
            yield table(BOUND_HEAD, one.bounds)
        if one.layers:
            yield "### Representations"
            yield LAYERED
            yield table(head(one), rows(one, one.layers))


def claims(one: Verified) -> list[tuple[str, ...]]:
    """A row a claim."""
    return [(claim.name, claim.says, claim.p_value, str(claim.n), claim.reason) for claim in one.claims]


def head(one: Verified) -> tuple[str, ...]:
    """Of the tables of figures."""
    return ("Figure", "Undefended", "Verified") if one.beside else ("Figure", "Value")


def rows(one: Verified, layers: Iterable[Layer]) -> list[tuple[str, ...]]:
    """A row a figure."""
    return [
        (f"{layer.measure}, {layer.name}" if layer.measure else layer.name, *cells(layer, beside=one.beside))
        for layer in layers
    ]


def planted(power: Power) -> str:
    """The points of a curve in words."""
    return power.told.partition(": ")[2]


def lines(panel: Iterable[Verified]) -> Iterable[str]:
    """Terminal: how many claims hold, and each that fails."""
    for one in panel:
        yield f"{one.id}: {one.counted}"
        yield from (
            f"  fails: {claim.name}: {cut(claim.reason, TERMINAL_REASON)}"
            for claim in one.claims
            if claim.holds is False
        )
