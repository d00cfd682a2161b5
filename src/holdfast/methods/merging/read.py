"""Adapters from disk, each known to stand on the base that it is merged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.data.examples import Example
from holdfast.layers.adapters import read_peft
from holdfast.methods.merging.plan import Expert
from holdfast.models.adapter import Base, check_base


def read_expert(
    folder: Path, name: str, rows: Sequence[Example] = (), on: Base | None = None, *, any_base: bool = False
) -> Expert:
    """An adapter and rows of what it was trained for.

    Args:
        folder: A PEFT folder.
        name: What to call it in messages and records.
        on: The base, where there is one; an adapter of another is refused unless ``any_base``.
    Raises:
        AdapterError: it cannot be read, is no plain LoRA, or was made for another base.
    """
    adapter = read_peft(folder)
    if on is not None:
        check_base(folder, on, any_base=any_base)
    return Expert(name, adapter, rows)
