"""The ``holdfast`` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from holdfast import __version__
from holdfast.cli import attack, doctor, export, generate, listing, measure, merge, repair, run
from holdfast.cli.data import data
from holdfast.cli.verify import verify
from holdfast.core.errors import HoldfastError
from holdfast.recipes.processes import say_last

app = typer.Typer(
    name="holdfast",
    help="Fine-tune, merge and harden language models, and show afterwards that they still refuse what they refused.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    run.run,
    run.check,
    measure.evaluate,
    attack.attack,
    generate.generate,
    measure.report,
    measure.compare,
    merge.merge,
    repair.repair,
    export.export,
    listing.list_,
    listing.show,
    doctor.doctor,
):
    app.command(name={"evaluate": "eval", "list_": "list"}.get(command.__name__))(command)
app.add_typer(verify, name="verify")
app.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a problem.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command; `main` acts on ``--debug``."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a problem is one sentence on stderr and exit code 2; ``--debug``, anywhere, shows the traceback.

    Of several processes, the first that stops says the sentence, and all exit with 2.
    """
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    try:
        app(args=[word for word in words if word != "--debug"] or ["--help"], prog_name="holdfast")
    except HoldfastError as problem:
        if debug:
            raise
        _fail(str(problem))
    except OSError as problem:
        if debug:
            raise
        _fail(_file_sentence(problem))
    except SystemExit as stop:
        if isinstance(getattr(stop.__context__, "__cause__", None), KeyboardInterrupt):
            typer.echo("holdfast: stopped with Ctrl-C.", err=True)
        raise


def _file_sentence(problem: OSError) -> str:
    said = f"Cannot read or write {problem.filename or 'a file'}: {problem.strerror or problem}."
    if problem.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return said
    return f"{said} What was saved before is intact. Do: make room on the disk, then go on with --resume."


def _fail(sentence: str) -> None:
    say_last(lambda: typer.echo(f"holdfast: {sentence}", err=True))
    sys.exit(2)


if __name__ == "__main__":
    main()
