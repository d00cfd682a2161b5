"""What the literature reports of defences against prompt injection, beside what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def sources_of(rows: Iterable[Sequence[str]]) -> dict[str, str]:
    """The sources, by mark, that are about one of the rows of a table of baselines."""
    labels = {label for label, *_ in rows}
    return {mark: source for mark, source in SOURCES.items() if labels & set(MARKED[mark])}
