"""How commands print: JSON for programs, tables for people, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.core.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""
LINE_EVERY = 10.0
"""Seconds between lines of progress where standard error is not a terminal."""


def say(line: str) -> None:
    """A line for the person who waits, on standard error."""
    typer.echo(line, err=True)


def print_json(value: Any) -> None:
    """``value`` as JSON, alone on standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns padded to their widest cell; the last column is left as long as it is."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        typer.echo("  ".join([*padded, line[-1]]).rstrip())


def refuse_existing(out: Path) -> None:
    """Refuse a folder to write to that has something in it.

    Raises:
        ConfigError: it has.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"Output folder {out} exists already. Do: give another with -o, or remove it.")


def size(count: float) -> str:
    """Bytes as people read them.

    >>> size(12_300_000)
    '12.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Ticker:
    """Progress of a step: a line that is rewritten on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        """Called with what is done, how many are done and how many there are."""
        text = f"{what} {done}/{of}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}" + ("\r\x1b[K" if done == of else ""))
            sys.stderr.flush()
        elif done == of or time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            say(text)
