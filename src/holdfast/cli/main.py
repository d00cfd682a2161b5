"""The ``holdfast`` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.core.errors import HoldfastError

app = typer.Typer(
    name="holdfast",
    help="Fine-tune, merge and harden language models, and show afterwards that they still refuse what they refused.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run. Default: runs/<name>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep unchanged finished steps; continue a stopped one.")
    ] = False,
    only: Annotated[str, typer.Option("--only", metavar="STEP", help="Run this step alone.")] = "",
    start_from: Annotated[str, typer.Option("--from", metavar="STEP", help="Run from this step on.")] = "",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rows and steps, to see it work. Labelled in the report.")
    ] = False,
) -> None:
    """Run a recipe: train, evaluate, compare, report."""
    from holdfast.recipes.run import Choice, run_recipe
    from holdfast.recipes.schema import load_recipe

    chosen = load_recipe(Path(recipe), overrides or (), quick=quick)
    folder = out or Path("runs") / chosen.name
    record = run_recipe(
        chosen, folder, Choice(resume, only, start_from), quick=quick, say=lambda line: typer.echo(line, err=True)
    )
    typer.echo(record.summary or f"Done. The run is in {folder}.")


@app.command()
def check() -> None:
    """Validate a recipe."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a problem becomes one sentence on stderr and exit code 2."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=words, prog_name="holdfast", standalone_mode=True)
    except HoldfastError as problem:
        if "--debug" in words:
            raise
        typer.echo(f"holdfast: {problem}", err=True)
        sys.exit(2)
