"""The panel of token weights as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from holdfast.reports.cells import reasoned
from holdfast.reports.markdown import table, text
from holdfast.reports.names import DASH

if TYPE_CHECKING:
    from holdfast.reports.token_weighting_panel import Plans, Together, TokenWeightingPanel, Weighed

PLANNED = (
    "Tokens with weight: their share of the learnt tokens looked at. Effective share: effective sample size over the "
    "number of tokens, 100 % where all weigh the same. Where weights follow the model, both are those before training."
)
NOISE = (
    "Noise found: the probability that a token without planted noise has the higher score (of controls and of planned "
    "weights the higher weight), 0.5 by chance. Weight of noise: the mean weight of tokens that are noise; all tokens "
    "have 1."
)
CRITIC = "Pairs told apart: of two held-out answers to a question the better one has the higher value."
PLAN_HEAD = ("Step", "Scorer", "Tokens ahead", "Tokens with weight", "Effective share")
NOISE_HEAD, CRITIC_HEAD = ("Noise found", "Weight of noise"), ("Pairs told apart",)
SPREAD_HEAD = ("Plan", "Mean", "Middle half", "95th percentile", "Clipped", "Mean of noisy tokens")
GATE_HEAD = ("Training", "Gates", "Steps", "Least effective share", "Most clipped", "No numbers", "Most above 5")
GAIN_HEAD = ("", "Difference, with its 95 % interval")
SPREAD = (
    "Of the first plan of each kind of weights; all tokens have a mean of 1. Where weights follow the model, "
    "these are those before training."
)
FOUND = "AUROC: noise found, as in the table."
GATED = (
    "In training: before the model changes, a step is stopped where a token weight is no number, or where the "
    "effective share of its tokens falls below 5 %. Shown are the worst of all steps."
)
SHOWN = 3
"""Trainings that are drawn at once; the others are folded away."""
TERMINAL_STEPS = 4
"""Plans told in the terminal."""


def blocks(panel: TokenWeightingPanel) -> Iterable[str]:
    """Markdown: plans, spread, synergy, gates."""
    yield "## Token weights"
    yield table(plan_head(panel.plans), panel.plans.rows)
    yield from map(text, plan_notes(panel.plans))
    if panel.kinds:
        yield "### How weights are spread"
        yield table(SPREAD_HEAD, panel.rows)
        yield spread_note(panel)
    for one in panel.together:
        yield f"### {text(titled(one))}"
        yield text(explained(one))
        for board in one.boards:
            yield f"**{text(board.title)}**"
            yield table(board.head, board.cells)
            yield table(GAIN_HEAD, [(label, reasoned(figure)) for label, figure in board.gains])
    if panel.gates:
        yield "### Gates"
        yield table(GATE_HEAD, panel.gates)
        yield GATED


def plan_head(plans: Plans) -> tuple[str, ...]:
    """Of the table of plans."""
    return (*PLAN_HEAD, *(NOISE_HEAD if plans.noise else ()), *(CRITIC_HEAD if plans.critic else ()))


def plan_notes(plans: Plans) -> tuple[str, ...]:
    """What its columns are."""
    return (PLANNED, *((NOISE,) if plans.noise else ()), *((CRITIC,) if plans.critic else ()))


def spread_note(panel: TokenWeightingPanel) -> str:
    """How a spread is read."""
    return f"{SPREAD} {FOUND}" if panel.noisy else SPREAD


def titled(one: Together) -> str:
    """E.g. ``Synergy of mtp and rho1``."""
    return f"Synergy of {' and '.join(one.parts)}"


def explained(one: Together) -> str:
    """What the synergy is."""
    return (
        f"Synergy: what {one.whole} changes over {one.reference} beyond the sum of what {' and '.join(one.parts)} "
        "change alone, on the same prompts and seeds."
    )


def parts(plan: Weighed) -> list[str]:
    """A plan in a few words."""
    ess, auroc = plan.value("weights/ess"), plan.value("noise/auroc")
    told = [] if auroc is None else [f"AUROC {auroc:.3f}"]
    return told if ess is None else [*told, f"effective share {100 * ess:.1f} %"]


def lines(panel: TokenWeightingPanel) -> Iterable[str]:
    """Terminal: a line a plan, the first of them, then the synergy."""
    head, rows = plan_head(panel.plans), panel.plans.rows
    for row in rows[:TERMINAL_STEPS]:
        told = [f"{what[:1].lower()}{what[1:]} {cell}" for what, cell in zip(head, row, strict=True)]
        yield f"{row[0]}: {row[1]}, {', '.join(each for each in told[3:] if not each.endswith(DASH))}"
    if len(rows) > TERMINAL_STEPS:
        yield f"{len(rows) - TERMINAL_STEPS} more plans of token weights are in the report."
    for one in panel.together:
        for board in one.boards:
            yield f"{one.id}: synergy {reasoned(board.gains[-1][1])}, {board.title}"
