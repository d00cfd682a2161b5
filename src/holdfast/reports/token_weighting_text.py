"""The panel of token weights as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.reports.token_weighting_panel import Together, TokenWeightingPanel, Weighed
    from holdfast.reports.view import Figure

Escape = Callable[[str], str]
Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
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


def blocks(panel: TokenWeightingPanel, text: Escape, table: Table) -> Iterable[str]:
    """Markdown: spread, synergy, gates.

    Args:
        text: Makes text safe in Markdown.
        table: Writes a table; makes its cells safe itself.
    """
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
            yield table(GAIN_HEAD, [(label, written(figure)) for label, figure in board.gains])
    if panel.gates:
        yield "### Gates"
        yield table(GATE_HEAD, panel.gates)
        yield GATED


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


def written(figure: Figure) -> str:
    """A figure with its interval; a missing one with its reason."""
    if figure.value is None:
        return f"– ({figure.reason})"
    reason = "" if figure.bounds or not figure.reason else f"({figure.reason})"
    return " ".join(filter(None, (figure.text, figure.bounds, reason)))


def parts(plan: Weighed) -> list[str]:
    """A plan in a few words."""
    ess, auroc = plan.value("weights/ess"), plan.value("noise/auroc")
    told = [] if auroc is None else [f"AUROC {auroc:.3f}"]
    return told if ess is None else [*told, f"effective share {100 * ess:.1f} %"]


def lines(panel: TokenWeightingPanel) -> Iterable[str]:
    """Terminal: the synergy."""
    for one in panel.together:
        for board in one.boards:
            yield f"{one.id}: synergy {written(board.gains[-1][1])}, {board.title}"
