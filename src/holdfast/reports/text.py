"""The view as Markdown and as a terminal table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from holdfast.reports import (
    causal_text,
    causal_verify_text,
    merging_text,
    rotation_text,
    table_text,
    token_weighting_text,
)
from holdfast.reports.cells import reasoned, written
from holdfast.reports.markdown import code, longest_run, table, text
from holdfast.reports.names import DASH
from holdfast.reports.view import Breakdown, Exchange, Figure, Panel, Row, View

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

QUICK = "Quick run: figures are not for citing. Rows and steps were reduced by --quick."
TRAININGS = 6
"""Trainings that are told at once; the others are folded away."""
LEGEND = (
    "Brackets are 95 % intervals. n: the answers a figure is over; invalid: answers that cannot be judged, left out "
    "of n in safety and injection, wrong in scores of utility. "
    "↑ higher is better, ↓ lower is better. pp: percentage points, after minus before. – is a missing value."
)

COMPOSITES = (
    "Safety is the share of harmful requests refused. Alignment drift: the share of it that was lost, "
    "(before − after) / before; below 0 it was gained. Safety tax: utility lost per safety gained, both as shares of "
    "before; below 0 both were gained."
)


def to_markdown(view: View) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    blocks = [f"# {text(view.title)}"]
    blocks += [f"> **{QUICK}**"] if view.quick else []
    blocks += [f"> **{text(problem)}**" for problem in view.problems]
    blocks += [text(view.summary)] if view.summary else []
    blocks += [text(view.description)] if view.description else []
    for one in view.tables:
        blocks += table_text.blocks(one)
    if view.hardened:
        blocks += causal_text.blocks(view.hardened)
    blocks += causal_verify_text.blocks(view.verified)
    if view.merging:
        blocks += merging_text.blocks(view.merging)
    for panel in view.panels:
        blocks += _panel(panel)
    if view.rotation:
        blocks += rotation_text.blocks(view.rotation)
    if view.tokens:
        blocks += token_weighting_text.blocks(view.tokens)
    blocks += [f"## Training {text(training.id)}\n\n{text(training.sentence)}." for training in view.trainings]
    blocks += _record(view)
    return "\n\n".join(blocks) + "\n"


def _panel(panel: Panel) -> Iterable[str]:
    yield f"## {text(_title(panel))}"
    yield _rows(panel.main, panel.paired)
    yield LEGEND
    if panel.more:
        yield "### Also measured"
        yield _rows(panel.more, panel.paired)
    if panel.composites:
        yield "### Made of both"
        yield _rows(panel.composites, paired=False)
        yield COMPOSITES
    for breakdown in panel.breakdowns:
        yield f"### {text(breakdown.title)}"
        yield _breakdown(breakdown, panel.paired)
    if panel.talks:
        yield "### Sample answers"
        yield from (_exchange(talk.exchanges[0]) for talk in panel.talks)


def _title(panel: Panel) -> str:
    return f"{panel.before} → {panel.after}" if panel.paired else panel.after


def _rows(rows: Iterable[Row], paired: bool) -> str:
    sides = ("Before", "After", "Change", "Verdict") if paired else ("Value",)
    cells = [(_name(row), row.arrow, *_cells(row, paired), row.judge or DASH) for row in rows]
    return table(("Figure", "", *sides, "Judge"), cells)


def _breakdown(breakdown: Breakdown, paired: bool) -> str:
    sides = ("Before", "After", "Change", "Verdict") if paired else ("Value",)
    cells = [(row.label, *_cells(row, paired), row.judge or DASH) for row in breakdown.rows]
    return table(("", *sides, "Judge"), cells)


def _name(row: Row) -> str:
    return f"{row.label}, {row.task}" if row.task else row.label


def _cells(row: Row, paired: bool) -> tuple[str, ...]:
    if not paired:
        return (written(row.after),)
    change = reasoned(row.change) if row.change and row.change.value is not None else DASH
    verdict = f"{row.verdict} ({row.test})" if row.test else row.verdict
    before = DASH if row.before is None else written(row.before)
    return before, written(row.after), change, verdict


def _exchange(exchange: Exchange) -> str:
    about = f"{exchange.task}, {exchange.group}" if exchange.group else exchange.task
    answers = [f"- {a.side or 'answer'}: {code(a.output)} **{text(a.outcome)}**" for a in exchange.answers]
    shortened = " (shortened)" if exchange.shortened else ""
    return "\n".join([f"{text(about)}{shortened}: {code(exchange.prompt)}", "", *answers])


def _record(view: View) -> Iterable[str]:
    yield "## Steps"
    heads = ("Step", "Does", "Status", "Model", "Time", "Peak memory", "Seed")
    yield table(heads, [(s.id, s.do, s.status, s.model, s.seconds, s.memory, str(s.seed)) for s in view.steps])
    notes = [f"- {step.id}: {text(note)}" for step in view.steps for note in step.notes]
    if notes:
        yield "### Notes"
        yield "\n".join(notes)
    artifacts = [(path, digest) for step in view.steps for path, digest in step.artifacts]
    if artifacts:
        yield "### Artifacts"
        yield table(("Path", "SHA-256"), artifacts)
    yield "## Versions"
    yield table(("What", "Which"), [*view.facts, *view.packages])
    if view.recipe:
        yield "## Recipe"
        fence = "`" * max(3, longest_run(view.recipe) + 1)
        yield f"{fence}yaml\n{view.recipe}{fence}"


def print_view(view: View, console: Console | None = None) -> None:
    """Print the main tables of a run.

    Args:
        console: Where to print; standard output by default.
    """
    from rich.console import Console as Terminal
    from rich.text import Text

    out = console or Terminal()
    for line in (*((QUICK,) if view.quick else ()), *view.problems):
        out.print(Text(line, style="bold"))
    for one in view.tables:
        table_text.print_table(one, out)
    for panel in view.panels:
        out.print(_terminal_table(panel))
        for row in panel.composites:
            out.print(Text(f"{row.arrow} {_name(row)}: {written(row.after)}"))
        for reason in _reasons(panel):
            out.print(Text(reason))
    for line in _trained(view):
        out.print(Text(line))
    if view.panels:
        out.print(Text(LEGEND, style="dim"))


def _trained(view: View) -> Iterable[str]:
    """What was merged and held, and what each training did."""
    if view.hardened:
        yield from causal_text.lines(view.hardened)
    yield from causal_verify_text.lines(view.verified)
    if view.merging:
        yield from merging_text.lines(view.merging)
    if view.rotation:
        yield from rotation_text.lines(view.rotation)
    if view.tokens:
        yield from token_weighting_text.lines(view.tokens)
    yield from (f"{training.id}: {training.sentence}" for training in view.trainings[:TRAININGS])
    if len(view.trainings) > TRAININGS:
        yield f"{len(view.trainings) - TRAININGS} more trainings are in the report."


def _terminal_table(panel: Panel) -> Table:
    """Fits 80 columns: a figure takes two lines, its interval stands under it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_title(panel)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Figure", no_wrap=True)
    for head in ("Before", "After") if panel.paired else ("Value",):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("Change" if panel.paired else "n", justify="left" if panel.paired else "right")
    for row in panel.main:
        sides = (row.before, row.after) if panel.paired else (row.after,)
        cells = [f"{row.arrow} {row.label}\n  {row.task}", *(_stacked(side, "") for side in sides)]
        last = _stacked(row.change, row.verdict) if panel.paired else str(row.after.n)
        table.add_row(*(Text(cell) for cell in (*cells, last)))
    return table


def _stacked(figure: Figure | None, word: str) -> str:
    value, bounds = (DASH, "") if figure is None else (figure.text, figure.bounds)
    return f"{value} {word}".strip() + (f"\n{bounds}" if bounds else "")


def _reasons(panel: Panel) -> Iterable[str]:
    """Why an en dash stands in the table."""
    for row in panel.main:
        for side, figure in (("before", row.before), ("after", row.after)):
            if figure is not None and figure.value is None:
                yield f"{DASH} {_name(row)}{f', {side}' if panel.paired else ''}: {figure.reason}"
