"""The panel of counterfactual training and attacks as Markdown blocks and as terminal lines."""

from __future__ import annotations

REPORTED = {
    "before": "98 at worst [1]",
    "struq": "about 0 to 2, searched 45 [1]",
    "secalign": "searched 8 [1]",
}
"""Attack success that the literature reports, by the label of a row, in per cent; never measured here."""
SOURCES = {
    "[1]": "Llama-3-8B-Instruct. Chen et al., SecAlign: Defending Against Prompt Injection with Preference "
    "Optimization (CCS 2025), arXiv 2410.05451. Searched: the worst of the attacks that optimise their text.",
    "[2]": "Of defences trained like these two, arXiv 2601.07185 reports that rejecting a harmless last sentence rises "
    "from less than 10 % to 90 %, and that one trigger word adds 50 % of false refusals.",
}
