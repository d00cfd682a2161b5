"""Heads on disk: a folder beside the model, refused on any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.core.errors import AdapterError, ConfigError, LayerError
from holdfast.core.files import folder_atomically
from holdfast.models.heads.kinds import Heads
from holdfast.models.heads.trunk import bare_of, output_head

WEIGHTS, ABOUT = "heads.safetensors", "heads.json"


def save_heads(heads: Heads, model: nn.Module, folder: Path, *, base: str) -> None:
    """Write ``heads`` into ``folder``, whole or not at all.

    Args:
        heads: The heads.
        model: The model they were trained on.
        folder: Replaced where it exists.
        base: What the model is, as `load_heads` will be told it: e.g. `holdfast.models.load.weights_of` its folder.
    """
    about = {"kind": heads.kind, "horizon": heads.horizon, "own_output": heads.own_output, "base": base}
    with folder_atomically(folder) as fresh:
        save_file({name: t.detach().cpu().contiguous() for name, t in heads.state_dict().items()}, fresh / WEIGHTS)
        (fresh / ABOUT).write_text(json.dumps(about | shape_of(model), indent=1) + "\n", encoding="utf-8")


def load_heads(folder: Path, model: nn.Module, *, base: str) -> Heads:
    """The heads in ``folder``, on ``model``, in evaluation mode.

    Args:
        folder: What `save_heads` wrote.
        model: The model they are for.
        base: What ``model`` is; must be what `save_heads` was told.
    Raises:
        AdapterError: unreadable, or made for another model.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
        kind, horizon, own_output = about["kind"], about["horizon"], about["own_output"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        raise AdapterError(
            f"Cannot read the heads in {folder}: {type(problem).__name__}: {problem}. Do: give a folder with "
            f"{ABOUT} and {WEIGHTS} in it, as training wrote it."
        ) from problem
    for name, wanted in {**shape_of(model), "base": base}.items():
        if about.get(name) != wanted:
            raise AdapterError(
                f"The heads in {folder} are not for this model: they were trained on {name} {about.get(name)!r}, "
                f"got {wanted!r}. Do: give the model they were trained with."
            )
    try:
        heads = Heads(model, kind, horizon, own_output=own_output)
        heads.load_state_dict(weights)
    except (RuntimeError, ConfigError, LayerError) as problem:
        raise AdapterError(f"The heads in {folder} do not fit this model: {problem}") from problem
    return heads.eval()


def shape_of(model: nn.Module) -> dict[str, Any]:
    """What must be the same for heads to fit at all."""
    vocabulary, width = cast(Tensor, output_head(model).weight).shape
    model_type = str(bare_of(model).config.model_type)
    return {"model_type": model_type, "hidden_size": int(width), "vocab_size": int(vocabulary)}
