"""The panel of counterfactual training and attacks as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from holdfast.reports.cells import written
from holdfast.reports.literature import sources_of
from holdfast.reports.markdown import table, text
from holdfast.reports.names import DASH

if TYPE_CHECKING:
    from holdfast.reports.causal_panel import Attacked, CausalPanel
    from holdfast.reports.view import Row

CURVE_HEAD = ("Curve", "First", "Lowest", "Highest", "Last")
BASELINE_HEAD = ("Row", "Measured", "Reported elsewhere, %")
CURVED = (
    "Each term as it adds to the loss, over optimizer steps. Gates watch the attacked views of the last cases at every "
    "representation, and stop a run that collapses: effective rank, variance beside the undefended model's, and how "
    "near a contrastive term is to its floor."
)
ATTACKED = (
    "Attack success: the share of answers that follow the injection; lower is better. Whiskers are 95 % intervals. "
    "Position bias and effects are differences in percentage points."
)
COMPARED = (
    "Measured is this run. What is reported elsewhere is of another model and other attacks: it stands beside, and "
    "nothing is compared with it."
)
SHOWN = 3
"""Trainings and attacks that are told at once; the others are folded away."""


def blocks(panel: CausalPanel) -> Iterable[str]:
    """Markdown: baselines, attacks, curves."""
    yield "## Attacks and hardening"
    for title, rows in panel.baselines:
        yield f"### {text(title)}: measured and reported"
        yield table(BASELINE_HEAD, rows)
        yield COMPARED
        if cited := sources_of(rows):
            yield "\n".join(f"- {text(mark)} {text(source)}" for mark, source in cited.items())
    for one in panel.attacked:
        yield f"### Attack: {text(one.model)} ({text(one.id)})"
        yield from (table((what, *sides(one)), told(one, rows)) for what, rows in one.parts)
        yield table(("Figure", *sides(one)), one.figures)
    if panel.attacked:
        yield ATTACKED
    for trained in panel.trained:
        yield f"### Terms of {text(trained.id)}"
        yield table(CURVE_HEAD, trained.rows)
    if panel.trained:
        yield CURVED


def sides(one: Attacked) -> tuple[str, ...]:
    """Heads of the columns of figures."""
    return ("Undefended", "Attacked here") if one.before else ("Value",)


def told(one: Attacked, rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """The rows of a chart as text."""
    return [
        (row.label, *([written(row.before) if row.before else DASH] if one.before else []), written(row.after))
        for row in rows
    ]


def lines(panel: CausalPanel) -> Iterable[str]:
    """Terminal: attack success of the attacks that are told at once, before and after."""
    for one in panel.attacked[:SHOWN]:
        label, *values = one.figures[0]
        yield f"{one.id}: {label.lower()} of {one.model} {', undefended '.join(reversed(values))}"
    if len(panel.attacked) > SHOWN:
        yield f"{len(panel.attacked) - SHOWN} more attacks are in the report."
