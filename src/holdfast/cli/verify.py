"""``holdfast verify``: check what a run claims, from its files, and what a model does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.output import AsJson, print_json
from holdfast.cli.verify_causal import causal
from holdfast.core.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.methods.rotation.proof import LayerProof, Problem

verify = typer.Typer(help="Check what a run or a model claims.", no_args_is_help=True, rich_markup_mode=None)


verify.command()(causal)


@verify.command()
def certificate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, or the folder of one held training.")],
    as_json: AsJson = False,
) -> None:
    """Rebuild held weights from base, plan and coordinates, and measure every layer; exit 1 if one bit is off."""
    from holdfast.methods.rotation.certificate import verify as check

    found = {folder.name: check(folder) for folder in _certified(run)}
    if as_json:
        print_json({name: _as_json(*result) for name, result in found.items()})
    else:
        for name, (proofs, problems) in found.items():
            for line in _lines(name, proofs, problems):
                typer.echo(line)
    if any(problems for _, problems in found.values()):
        raise typer.Exit(1)


def _certified(run: Path) -> list[Path]:
    """The folders with a certificate: ``run`` itself, or its steps.

    Raises:
        ConfigError: there is none.
    """
    from holdfast.methods.rotation.certificate import FILE

    folders = [run] if (run / FILE).is_file() else sorted(path.parent for path in run.glob(f"*/{FILE}"))
    if not folders:
        raise ConfigError(
            f"{run} holds no {FILE}, expected the folder of a run or of a held training. Do: train with 'constraint'."
        )
    return folders


def _lines(name: str, proofs: list[LayerProof], problems: list[Problem]) -> list[str]:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return [f"{name}: NOT verified, {count}", *(f"  {problem}" for problem in problems)]
    from holdfast.methods.rotation.certificate import statement

    return [f"{name}: verified. {len(proofs)} layers are rebuilt bit for bit; {statement(proofs)}."]


def _as_json(proofs: list[LayerProof], problems: list[Problem]) -> dict[str, object]:
    return {
        "verified": not problems,
        "problems": [str(problem) for problem in problems],
        "layers": [asdict(proof) for proof in proofs],
    }
