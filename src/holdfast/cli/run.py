"""``holdfast run`` and ``holdfast check``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.output import INTERRUPTED, Ticker, print_json, print_table, say, size
from holdfast.core.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.recipes.schema import Recipe as LoadedRecipe

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, e.g. steps.tuned.epochs=2. Repeatable."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer rows and steps; the report says so.")]


def run(  # noqa: PLR0913, PLR0917 - one parameter an option
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep unchanged steps, continue a stopped one.")] = False,
    only: Annotated[str, typer.Option("--only", metavar="STEP", help="Run this step alone.")] = "",
    start_from: Annotated[str, typer.Option("--from", metavar="STEP", help="Run from this step on.")] = "",
    overrides: Overrides = None,
    quick: Quick = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ten steps of every training, kept nowhere; exit 1 if one fails.")
    ] = False,
) -> None:
    """Run a recipe: train, evaluate, compare, report."""
    from holdfast.recipes import processes

    processes.on_main(lambda: _refuse(only, start_from, kept=dry_run and bool(out or resume or only or start_from)))
    from holdfast.recipes.run import Choice, run_recipe

    chosen = processes.on_main(lambda: _checked(recipe, overrides, quick))
    if dry_run:
        _tried(chosen)
        return
    folder = out or Path("runs") / chosen.name
    try:
        record = run_recipe(chosen, folder, Choice(resume, only, start_from), quick=quick, say=say, progress=Ticker())
    except KeyboardInterrupt:
        words = [recipe, "-o", str(folder), *(["--quick"] if quick else [])]
        words += [word for override in overrides or () for word in ("--set", override)]
        words += ["--only", only] if only else ["--from", _stopped_at(folder, start_from)] if start_from else []
        again = shlex.join(["holdfast", "run", *words, "--resume"])
        processes.say_last(lambda: say(f"holdfast: stopped with Ctrl-C. Go on with: {again}"))
        raise typer.Exit(INTERRUPTED) from None
    if processes.is_main():
        from holdfast.reports.build import build_report

        build_report(record, folder)
        typer.echo(f"Report: {folder / 'report.html'}. {record.summary}")


def _refuse(only: str, start_from: str, *, kept: bool) -> None:
    """Options that exclude each other, before anything is read; ``kept``: a dry run is to keep something."""
    if kept:
        raise ConfigError("--dry-run keeps nothing: got it with -o, --resume, --only or --from. Do: take that out.")
    if only and start_from:
        raise ConfigError(
            f"--only and --from exclude each other: got {only!r} and {start_from!r}. Do: give one of them."
        )


def _tried(recipe: LoadedRecipe) -> None:
    """What ten steps of every training show."""
    from holdfast.recipes.dry_run import dry_run, table

    tried = dry_run(recipe, say)
    print_table(("training", "peak memory", "loss on the same rows", "checkpoint reloads"), table(tried))
    if not all(each.passes for each in tried):
        raise typer.Exit(1)


def _stopped_at(folder: Path, start_from: str) -> str:
    """The step to go on from, so that those that ``--from`` has run already are kept."""
    from holdfast.core.results import RunRecord

    steps = RunRecord.load(folder).steps if (folder / "run.json").is_file() else ()
    return next((step.id for step in steps if step.status != "done"), start_from)


def _checked(recipe: str, overrides: list[str] | None, quick: bool) -> LoadedRecipe:
    """The recipe; every file that is missing or damaged is found now, before the first step, and not after hours."""
    from holdfast.recipes.catalogue import find_recipe
    from holdfast.recipes.estimate import estimate
    from holdfast.recipes.schema import load_recipe

    path = find_recipe(recipe)
    chosen = load_recipe(path, overrides or (), quick=quick)
    estimate(chosen, path.name)
    return chosen


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    quick: Quick = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Validate a recipe and print what it needs, before anything loads."""
    from holdfast.recipes.catalogue import find_recipe
    from holdfast.recipes.estimate import estimate
    from holdfast.recipes.schema import load_recipe

    path = find_recipe(recipe)
    needs = estimate(load_recipe(path, overrides or (), quick=quick), path.name)
    if as_json:
        print_json(needs.as_dict())
        return
    typer.echo(f"{path.name}: valid, {len(needs.steps)} steps")
    for step in needs.steps:
        typer.echo(f"  {step.id} ({step.do}): {step.sentence}")
    typer.echo(f"About {size(needs.memory_bytes)} of memory and {size(needs.disk_bytes)} of disk.")
