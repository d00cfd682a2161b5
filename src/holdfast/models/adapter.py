"""A PEFT adapter onto a loaded model, refused unless it fits exactly and was made for that model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from holdfast.core.errors import AdapterError
from holdfast.models.sources import first_line

BASE_FILE = "holdfast_base.json"
"""Beside an adapter that Holdfast saved: which weights it was trained on."""
_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_UNREADABLE = (RuntimeError, ValueError, KeyError, SafetensorError, OSError, TypeError, EOFError, UnpicklingError)


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter is to be put on."""

    source: str
    """As the user named it."""
    folder: Path | None
    """Where its files are."""
    weights: str
    """SHA-256 of its weights, as `LoadedModel.weights`."""


def record_base(folder: Path, source: str, weights: str) -> None:
    """Write into an adapter's folder on which weights it was trained, so that others are refused."""
    known = {"base": source, "weights_sha256": weights}
    (folder / BASE_FILE).write_text(json.dumps(known) + "\n", encoding="utf-8")


def attach_adapter(
    model: Any, folder: Path, on: Base, *, merge: bool, any_base: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """The model with the adapter in ``folder``, and notes for the report.

    An adapter that Holdfast saved is known by the hash of its base's weights, wherever the base lies now. Of any other
    there is only the name of its base, of which the last part (a hub name's or folder's own) must agree.

    Args:
        on: What ``model`` is.
        merge: Add the adapter to the weights, which gives a plain model back; otherwise keep it on top.
        any_base: Take an adapter of another base too, where names and shapes of its tensors fit; a note says so.
    Raises:
        AdapterError: unreadable, or made for another model, another architecture or other shapes.
    """
    base, recorded = on.source, _recorded_base(folder)
    notes = _base_notes(folder, recorded, on, any_base)
    try:
        tuned = PeftModel.from_pretrained(model, str(folder))
    except _UNREADABLE as problem:
        raise AdapterError(
            f"The adapter {folder} does not fit {base}: {first_line(problem)} "
            f"It was made for {recorded or 'an unnamed base'}. Do: give the model it was trained on as model.source."
        ) from problem
    _same_tensors(tuned, folder, base, recorded)
    return (tuned.merge_and_unload() if merge else tuned), notes


def check_base(folder: Path, on: Base, *, any_base: bool = False) -> tuple[str, ...]:
    """Refuse an adapter of another base; a note where only the names say that it is the same one.

    Raises:
        AdapterError: unreadable, or made for another model.
    """
    return _base_notes(folder, _recorded_base(folder), on, any_base)


def _base_notes(folder: Path, recorded: str, on: Base, any_base: bool) -> tuple[str, ...]:
    """Refuse an adapter of another base; a note where only the names say that it is the same one."""
    weights = recorded_weights(folder)
    if weights and on.weights:
        why, same, sure = "the SHA-256 of the weights differs", weights == on.weights, True
    else:
        names = {own_name(name) for name in (on.source, str(on.folder or on.source))}
        why, same = "the names differ", not recorded or own_name(recorded) in names
        sure = not recorded or recorded in {on.source, str(Path(on.source).expanduser().resolve())}
    if not same and not any_base:
        raise AdapterError(
            f"The adapter {folder} was made for {recorded or 'another base'}, got {on.source} ({why}). Do: give the "
            "model it was trained on as model.source, or use it all the same with model.adapter_base: any (in a step "
            "that merges or repairs it any_base: true, of 'holdfast eval', 'merge' and 'repair' --any-base)."
        )
    if same and sure:
        return ()
    which = "its name agrees" if same else f"{why}; it was asked to take any base"
    return (f"Adapter {folder.name} was made for {recorded or 'another base'} and is used on {on.source}: {which}.",)


def own_name(name: str) -> str:
    """The last part of a hub name or of a folder, also of a folder in the hub's cache, in small letters.

    >>> own_name("meta-llama/Llama-3-8B"), own_name("/home/me/.cache/hub/models--org--Llama-3-8B/snapshots/0a1b")
    ('llama-3-8b', 'llama-3-8b')
    """
    parts = [part for part in Path(name).parts if part.startswith("models--")]
    return (parts[-1].rpartition("--")[2] if parts else Path(name).name).lower()


def recorded_weights(folder: Path) -> str:
    """The hash of its base's weights that Holdfast wrote beside an adapter, or empty.

    Raises:
        AdapterError: the file is damaged.
    """
    return _written(folder, "weights_sha256")


def base_named(folder: Path) -> str:
    """What the base of an adapter is called, as Holdfast wrote it beside it or else as PEFT did; empty if unknown.

    Raises:
        AdapterError: a file is damaged.
    """
    return _written(folder, "base") or _recorded_base(folder)


def _written(folder: Path, key: str) -> str:
    file = folder / BASE_FILE
    if not file.is_file():
        return ""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError) as problem:
        raise AdapterError(f"{file} is damaged: got no {key}. Do: copy the adapter again.") from problem


def _recorded_base(folder: Path) -> str:
    try:
        kind = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, json.JSONDecodeError) as problem:
        raise AdapterError(
            f"Cannot read {folder / 'adapter_config.json'}: it is not a PEFT configuration ({type(problem).__name__}). "
            "Do: save the adapter again."
        ) from problem
    if not (folder / _WEIGHTS).is_file() and not (folder / _PICKLED).is_file():
        raise AdapterError(f"The adapter {folder} has no {_WEIGHTS} and no {_PICKLED}. Do: save the adapter again.")
    return str(kind.base_model_name_or_path or "")


def _same_tensors(tuned: Any, folder: Path, base: str, recorded: str) -> None:
    """The file and the model must name the same adapter tensors; PEFT itself only warns."""
    stored = _stored(folder)
    expected = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    odd = sorted(stored ^ expected)
    if odd:
        where = "the file only" if odd[0] in stored else "the model only"
        raise AdapterError(
            f"The adapter {folder} does not fit {base}: {len(odd)} tensors differ, the first is {odd[0]}, in {where}. "
            f"It was made for {recorded or 'an unnamed base'}. Do: give the model it was trained on as model.source."
        )


def _stored(folder: Path) -> set[str]:
    """Names of the tensors in the file that PEFT reads: the safetensors file, or the pickle where there is none."""
    if not (folder / _WEIGHTS).is_file():
        return set(torch.load(folder / _PICKLED, map_location="cpu", weights_only=True))
    with safe_open(folder / _WEIGHTS, "pt") as file:
        return set(file.keys())
