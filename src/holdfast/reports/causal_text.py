"""The panel of counterfactual training and attacks as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.reports.causal_panel import Attacked, CausalPanel
    from holdfast.reports.view import Figure, Row

Escape = Callable[[str], str]
Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
REPORTED = {
    "before": "98 at worst [1]",
    "struq": "about 0 to 2, searched 45 [1]",
    "secalign": "searched 8 [1]",
}
"""Attack success that the literature reports, by the label of a row, in per cent; never measured here."""
SOURCES = {
    "[1]": "Llama-3-8B-Instruct. Chen et al., SecAlign: Defending Against Prompt Injection with Preference "
    "Optimization (CCS 2025), arXiv 2410.05451. Searched: the worst of the attacks that optimise their text.",
    "[2]": "Of defences trained like StruQ and SecAlign, arXiv 2601.07185 reports that rejecting a harmless last "
    "sentence rises from less than 10 % to 90 %, and that one trigger word adds 50 % of false refusals.",
}
MARKED = {"[1]": ("before", "struq", "secalign"), "[2]": ("struq", "secalign")}
"""The rows that each source is about."""
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


def blocks(panel: CausalPanel, text: Escape, table: Table) -> Iterable[str]:
    """Markdown: baselines, attacks, curves.

    Args:
        text: Makes text safe in Markdown.
        table: Writes a table; makes its cells safe itself.
    """
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


def sources_of(rows: Iterable[Sequence[str]]) -> dict[str, str]:
    """The sources, by mark, that are about one of the rows of a table of baselines."""
    labels = {label for label, *_ in rows}
    return {mark: source for mark, source in SOURCES.items() if labels & set(MARKED[mark])}


def sides(one: Attacked) -> tuple[str, ...]:
    """Heads of the columns of figures."""
    return ("Undefended", "Attacked here") if one.before else ("Value",)


def told(one: Attacked, rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """The rows of a chart as text."""
    return [(row.label, *([written(row.before)] if one.before else []), written(row.after)) for row in rows]


def written(figure: Figure | None) -> str:
    """A figure with its interval and n; a missing one with its reason."""
    if figure is None or figure.value is None:
        return f"– ({figure.reason})" if figure is not None and figure.reason else "–"
    return " ".join(filter(None, (figure.text, figure.bounds, f"(n = {figure.n})")))


def lines(panel: CausalPanel) -> Iterable[str]:
    """Terminal: attack success of the attacks that are told at once, before and after."""
    for one in panel.attacked[:SHOWN]:
        label, *values = one.figures[0]
        yield f"{one.id}: {label.lower()} of {one.model} {', undefended '.join(reversed(values))}"
    if len(panel.attacked) > SHOWN:
        yield f"{len(panel.attacked) - SHOWN} more attacks are in the report."
