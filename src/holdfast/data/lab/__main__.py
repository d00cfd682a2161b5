"""``python -m holdfast.data.lab --family injection --n 5``: samples of the lab for a person to read."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from holdfast.core.errors import HoldfastError
from holdfast.data.examples import Example
from holdfast.data.lab import FAMILIES, rows

_SHOWN = ("id", "messages", "answer", "family", "split")


def _text(row: Example) -> str:
    """One row, a line for each turn and each thing a scorer needs."""
    lines = [f"--- {row.id}", *(f"{message.role:>9}: {message.content}" for message in row.messages)]
    lines.append(f"{'assistant' if row.messages else 'text':>9}: {row.answer}")
    for field in fields(row):
        value = getattr(row, field.name)
        if value and field.name not in _SHOWN:
            lines.append(f"{'':>9}  [{field.name}] {value!r}")
    return "\n".join(lines)


def main() -> int:
    """Print samples; 0, or 2 after a sentence about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.data.lab", description="Print samples of the lab.")
    parser.add_argument("--family", required=True, help=f"one of {', '.join(FAMILIES)}")
    parser.add_argument("--n", type=int, default=5, help="how many rows (default 5)")
    parser.add_argument("--split", default="train", help="train, validation or test (default train)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the rows (default 0)")
    given = parser.parse_args()
    try:
        made = rows(given.family, given.split, given.n, given.seed)
    except HoldfastError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(_text(row) for row in made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
