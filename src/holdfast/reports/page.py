"""The view as one self-contained HTML file: inline CSS and SVG, no network, no script."""

from __future__ import annotations

import re
from pathlib import Path

from holdfast.reports import (
    causal_figures,
    causal_text,
    causal_verify_figures,
    causal_verify_text,
    figures,
    literature,
    merging_figures,
    merging_text,
    rotation_figures,
    rotation_text,
    table_figures,
    table_text,
    token_weighting_figures,
    token_weighting_text,
)
from holdfast.reports.text import COMPOSITES, QUICK, TRAININGS
from holdfast.reports.view import View

LEGEND = (
    (
        "Interval",
        "Brackets and whiskers are 95 % intervals. Were the run repeated on fresh prompts of the same kind, "
        "about 19 of 20 such intervals would hold the true figure. The table of all figures says how each was made.",
    ),
    (
        "n, invalid",
        "n: the answers that a figure is over. Invalid: answers that cannot be judged (empty, looping, incoherent). "
        "Safety and injection figures leave them out of n; in scores of utility they count as wrong.",
    ),
    ("↑ ↓", "Which direction is good: ↑ higher is better, ↓ lower is better."),
    (
        "✓ better, ✗ worse",
        "The change is larger than chance explains, by the paired test where a compare step made one, otherwise "
        "because the two intervals do not touch. ≈ no clear change: the data do not tell, which proves nothing.",
    ),
    ("pp", "Percentage points, after minus before, on the same prompts."),
    ("–", "A value that is missing. The reason stands beside it."),
    ("Before, after", "Before is blue and hollow, after is orange and filled, on the whole page."),
)
"""What every sign on the page means."""

TEMPLATES = Path(__file__).parent / "templates"
MODULES = (
    figures,
    causal_figures,
    causal_text,
    causal_verify_figures,
    causal_verify_text,
    literature,
    merging_figures,
    merging_text,
    rotation_figures,
    rotation_text,
    table_figures,
    table_text,
    token_weighting_figures,
    token_weighting_text,
)
"""What templates call, by its own name."""


def to_html(view: View) -> str:
    """Render the page. The same view gives the same bytes; everything from the record is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {module.__name__.rpartition(".")[2]: module for module in MODULES}
    environment.filters["unbroken"] = unbroken
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    texts = {"quick_warning": QUICK, "composites_note": COMPOSITES, "legend": LEGEND, "trainings_shown": TRAININGS}
    return environment.get_template("page.html.j2").render(view=view, style=style, **texts)


def unbroken(text: str) -> str:
    """Keep intervals and percent signs on one line, by no-break spaces.

    >>> unbroken("35 % [28, 43]") == "35\\xa0% [28,\\xa043]"
    True
    """
    return re.sub(r"\[(\S+), (\S+)\]", "[\\1,\u00a0\\2]", text.replace(" %", "\u00a0%"))
