"""Adapters from disk, each known to stand on the base that it is merged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
        on: The base, where there is one; an adapter of another is refused.
        any_base: Take it for one of ``on``, whatever it was made for; a note of the expert says so.
    Raises:
        AdapterError: it cannot be read, is no plain LoRA, or was made for another base.
    """
    adapter = read_peft(folder)
    notes = () if on is None else check_base(folder, on, any_base=any_base)
    if on is not None and any_base:
        adapter = replace(adapter, base=str(on.folder or on.source))
    return Expert(name, adapter, rows, notes)
