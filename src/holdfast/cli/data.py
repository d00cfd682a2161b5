"""``holdfast data``: look at a set before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from holdfast.data.audit import Audit

data = typer.Typer(help="Look at a set before it is trained on.", no_args_is_help=True, rich_markup_mode=None)

MARKS = {True: "ok", False: "REFUSED", None: "not tested"}


@data.callback()
def _group() -> None:
    """Keeps ``audit`` a command of its own while it is the only one."""


@data.command()
def audit(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="lab, a file or folder of cases, or a set on the hub."),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="counterfactual, injection_pairs, sep, bipia, alpaca or dolly. Default: what the columns say.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Exit with 0 although the set is refused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what makes an injection set prove nothing: faults, copies, leaks, words that tell; exit 1 if refused."""
    from holdfast.data.audit import audit as ask
    from holdfast.data.counterfactual import named, read_unchecked
    from holdfast.data.sources import SourceConfig

    found = ask(read_unchecked(SourceConfig(source=named(file), format=format_)), file)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)
    if found.refused and not force:
        raise typer.Exit(1)


def _print(found: Audit) -> None:
    counts = ", ".join(f"{count} {split or 'without split'}" for split, count in found.splits.items())
    typer.echo(f"{found.source}: {found.cases} cases ({counts})\n")
    print_table(("check", "", "found"), [(check.name, MARKS[check.holds], check.said) for check in found.checks])
    typer.echo()
    if found.attacks:
        names = list(found.attacks[0])
        print_table(names, [[str(row[name]) for name in names] for row in found.attacks])
    typer.echo()
    for check in found.refused:
        typer.echo(f"{check.name}. Do: {check.remedy}")
    typer.echo(f"{found.source} {found.verdict}")
