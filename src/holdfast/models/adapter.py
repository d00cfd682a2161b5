"""A PEFT adapter onto a loaded model, refused unless it fits exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from holdfast.core.errors import AdapterError
from holdfast.models.sources import first_line

_WEIGHTS = "adapter_model.safetensors"


def attach_adapter(model: Any, folder: Path, base: str, *, merge: bool) -> tuple[Any, tuple[str, ...]]:
    """The model with the adapter in ``folder``, and notes for the report.

    Args:
        base: Source of ``model``, to compare with the base that the adapter records.
        merge: Add the adapter to the weights, which gives a plain model back; otherwise keep it on top.
    Raises:
        AdapterError: unreadable, or made for another architecture or other shapes.
    """
    recorded = _recorded_base(folder)
    try:
        tuned = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, KeyError, SafetensorError, OSError, TypeError) as problem:
        raise AdapterError(
            f"The adapter {folder} does not fit {base}: {first_line(problem)} "
            f"It was made for {recorded or 'an unnamed base'}. Do: give the model it was trained on as model.source."
        ) from problem
    _same_tensors(tuned, folder, base, recorded)
    notes: tuple[str, ...] = ()
    if recorded and recorded not in {base, str(Path(base).expanduser().resolve())}:
        notes = (f"Adapter {folder.name} was made for {recorded} and is used on {base}; names and shapes agree.",)
    return (tuned.merge_and_unload() if merge else tuned), notes


def _recorded_base(folder: Path) -> str:
    try:
        kind = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, json.JSONDecodeError) as problem:
        raise AdapterError(
            f"Cannot read {folder / 'adapter_config.json'}: it is not a PEFT configuration ({type(problem).__name__}). "
            "Do: save the adapter again."
        ) from problem
    if not (folder / _WEIGHTS).is_file():
        raise AdapterError(f"The adapter {folder} has no {_WEIGHTS}. Do: save the adapter again, with safetensors.")
    return str(kind.base_model_name_or_path or "")


def _same_tensors(tuned: Any, folder: Path, base: str, recorded: str) -> None:
    """The file and the model must name the same adapter tensors; PEFT itself only warns."""
    with safe_open(folder / _WEIGHTS, "pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    odd = sorted(stored ^ expected)
    if odd:
        where = "the file only" if odd[0] in stored else "the model only"
        raise AdapterError(
            f"The adapter {folder} does not fit {base}: {len(odd)} tensors differ, the first is {odd[0]}, in {where}. "
            f"It was made for {recorded or 'an unnamed base'}. Do: give the model it was trained on as model.source."
        )
