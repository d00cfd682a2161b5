"""The view as one self-contained HTML file: inline CSS and SVG, no network, no script."""

from __future__ import annotations

from pathlib import Path

from holdfast.reports import figures
from holdfast.reports.text import QUICK
from holdfast.reports.view import View

TEMPLATES = Path(__file__).parent / "templates"


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
    environment.globals["figures"] = figures
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(view=view, style=style, quick_warning=QUICK)
