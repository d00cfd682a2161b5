"""Write the report of a run: one HTML file and its Markdown twin, both pure functions of the record."""

from __future__ import annotations

from pathlib import Path

from holdfast.core.files import write_atomically
from holdfast.core.results import RunRecord
from holdfast.reports.page import to_html
from holdfast.reports.reading import read_run
from holdfast.reports.text import print_view, to_markdown


def build_report(run: RunRecord, folder: Path) -> Path:
    """Write ``report.html`` and ``report.md`` into ``folder``.

    Args:
        run: Finished, failed, interrupted or empty: whatever ``run.json`` holds.
        folder: Made where it does not exist.
    Returns:
        The HTML file.
    """
    view = read_run(run)
    page = folder / "report.html"
    write_atomically(page, to_html(view))
    write_atomically(folder / "report.md", to_markdown(view))
    return page


def print_report(run: RunRecord) -> None:
    """Print the tables of a run to the terminal, or as plain text where standard output is not one."""
    print_view(read_run(run))
