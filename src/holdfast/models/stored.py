"""What a model's stored weights are called, read without the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from holdfast.core.errors import DataError, LayerError
from holdfast.models.heads.trunk import output_head
from holdfast.models.sources import first_line, shards

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of the tensors in a model's safetensors files; none where its weights are pickled.

    Raises:
        ConfigError: the index is damaged.
        DataError: the file is damaged.
    """
    if (folder / INDEX).is_file():
        return frozenset(shards(folder / INDEX))
    if not (folder / WHOLE).is_file():
        return frozenset()
    try:
        with safe_open(folder / WHOLE, "pt") as stored:
            return frozenset(stored.keys())
    except SafetensorError as problem:
        raise DataError(
            f"Cannot read {folder / WHOLE}: {first_line(problem)} Do: fetch or save the model again."
        ) from problem


def check_output_head(skeleton: Any, folder: Path) -> None:
    """The stored weights of a causal model hold its output head, or its embeddings, where these are the head.

    Headless is what was saved as another class and has no tensor of the head's name: one of the two alone may be a
    matter of naming, which Transformers translates as it loads.

    Args:
        skeleton: The model as a causal language model, with or without numbers.
        folder: Where its weights are.
    Raises:
        LayerError: there is no head.
        ConfigError, DataError: as `tensor_names`.
    """
    weight = output_head(skeleton).weight
    if weight is skeleton.get_input_embeddings().weight:
        return
    kind, stored = type(skeleton).__name__, tensor_names(folder)
    saved_as = getattr(skeleton.config, "architectures", None) or [kind]
    own = next(name for name, parameter in skeleton.named_parameters() if parameter is weight)
    if stored and kind not in saved_as and not any(f".{name}".endswith(f".{own}") for name in stored):
        raise LayerError(
            f"Cannot put heads on {folder}: got a {' and '.join(saved_as)} without {own}, expected a model with an "
            f"output head. Do: give the folder of a causal language model ({kind})."
        )
