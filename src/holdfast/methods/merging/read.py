"""Adapters from disk, each known to stand on the base that it is merged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from holdfast.core.files import sha256_of
from holdfast.data.examples import Example
from holdfast.layers.adapters import read_peft
from holdfast.methods.merging.plan import Expert
from holdfast.models.adapter import Base, check_base, recorded_weights


def read_expert(
    folder: Path, name: str, rows: Sequence[Example] = (), on: Base | None = None, *, any_base: bool = False
) -> Expert:
    """An adapter and rows of what it was trained for.

    Args:
        folder: A PEFT folder.
        name: What to call it in messages and records.
        on: The base, where there is one; an adapter of another is refused.
        any_base: Take it whatever it was made for, as one of ``on`` where there is one; a note of the expert says so.
    Raises:
        AdapterError: it cannot be read, is no plain LoRA, or was made for another base.
    """
    adapter = read_peft(folder)
    known = recorded_weights(folder)
    if on is not None:
        notes = check_base(folder, on, any_base=any_base)
    elif any_base:
        made_for = f"{adapter.base or 'an unnamed base'}{f' (weights {known[:12]})' if known else ''}"
        notes = (f"Adapter {name} was made for {made_for}; it was asked to take any base.",)
    else:
        notes = ()
    if on is not None and any_base:
        adapter = replace(adapter, base=str(on.folder or on.source))
    return Expert(name, adapter, rows, notes, sha256_of(folder), known, any_base)
