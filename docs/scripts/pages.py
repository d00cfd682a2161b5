"""What the scripts that write a page have in common."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from holdfast.core.errors import DataError, HoldfastError
from holdfast.core.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
CHECK = "--check"


def put(page: Path, text: str) -> int:
    """Write ``text`` to ``page``. With ``--check`` nothing is written: 1 where the page is out of date, else 0."""
    if CHECK in sys.argv[1:]:
        return 0 if page.is_file() and page.read_text(encoding="utf-8") == text else 1
    write_atomically(page, text)
    return 0


def from_runs(page: Path, text: Path, parts: Callable[[Sequence[Path]], Mapping[str, str]]) -> int:
    """Write a page of the runs whose folders the command line names; 2, after a sentence, where that cannot be done.

    Args:
        page: To be written.
        text: Its template, in which ``{name}`` stands for a part.
        parts: Makes the parts of some run folders.
    """
    folders = [Path(word) for word in sys.argv[1:] if word != CHECK]
    try:
        if not folders:
            raise DataError(f"Cannot write {page.name}: got no run. Do: give the folders of its runs.")
        return put(page, filled(text.read_text(encoding="utf-8"), parts(folders)))
    except HoldfastError as problem:
        print(problem, file=sys.stderr)  # noqa: T201
        return 2


def only(folders: Sequence[Path]) -> Path:
    """The folder of a page of one run.

    Raises:
        DataError: there are several.
    """
    if len(folders) != 1:
        raise DataError(f"Cannot write a page of one run: got {len(folders)} folders, expected 1. Do: give one.")
    return folders[0]


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The template with its parts; a section whose part is empty is left out.

    >>> filled("Top {a}\\n\\n## One\\n\\n{b}\\n\\n## Two\\n\\n{c}\\n", {"a": "1", "b": "", "c": "3"})
    'Top 1\\n\\n## Two\\n\\n3\\n'
    """
    head, *sections = text.split("\n## ")
    kept = [s for s in sections if all(part for name, part in parts.items() if f"{{{name}}}" in s)]
    text = "\n## ".join((head, *kept))
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
