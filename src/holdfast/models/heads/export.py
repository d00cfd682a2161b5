"""Heads in the layouts of others. Without heads there is nothing to export: the model's folder is a plain one.

The layouts were read from FasterDecoding/Medusa (``train_legacy.py``, ``medusa_model.py``) and its loader in
TensorRT-LLM, which take the first as it is, and from vLLM's ``deepseek_mtp.py``, which takes the second for models of
DeepSeek's own architecture. vLLM has other names for medusa heads (``blocks.{i}.layers.0``, ``lm_heads.{i}``, and
``medusa_fc_bias`` in the configuration): it needs the tensors renamed.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, LayerError
from holdfast.core.files import folder_atomically
from holdfast.models.heads.kinds import Heads
from holdfast.models.heads.store import shape_of
from holdfast.models.heads.trunk import bare_of, decoder_of, unembedding

MEDUSA_WEIGHTS, MTP_WEIGHTS = "medusa_lm_head.safetensors", "model-mtp.safetensors"


def export_medusa(heads: Heads, model: nn.Module, folder: Path, *, base: str) -> None:
    """Write medusa heads as FasterDecoding/Medusa does: ``{i}.0.linear.*`` and ``{i}.1.weight``, and ``config.json``.

    Head ``i`` (from 0) predicts horizon ``i + 2``. The layout has a vocabulary for each head; heads that share the
    model's are given copies of it. Weights are in the model's type.

    Args:
        heads: Of kind medusa.
        model: The model they belong to.
        folder: Replaced where it exists.
        base: Name or folder of the model, for servers to find it.
    Raises:
        ConfigError: another kind of heads.
        LayerError: the output head has a bias, for which the layout has no place.
    """
    if heads.kind != "medusa":
        raise ConfigError(
            f"Cannot export heads of kind {heads.kind!r} in Medusa's layout. Do: train heads of kind medusa."
        )
    outputs = heads.unembeddings(model)[1:]
    if any(output.bias_v is not None for output in outputs):
        raise LayerError(
            f"Cannot export medusa heads of {type(bare_of(model)).__name__}: its output head has a bias, for which the "
            "layout has no place. Do: build the heads with own_output."
        )
    tensors: dict[str, Tensor] = {}
    for i, (head, output) in enumerate(zip(heads.heads, outputs, strict=True)):
        tensors |= {f"{i}.0.{name}": tensor for name, tensor in head.state_dict().items()}
        tensors[f"{i}.1.weight"] = output.weight_vd
    shape = shape_of(model)
    about = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "medusa_num_heads": heads.horizon - 1,
        "medusa_num_layers": 1,
        "base_model_name_or_path": base,
        "hidden_size": shape["hidden_size"],
        "vocab_size": shape["vocab_size"],
    }
    _write(folder, MEDUSA_WEIGHTS, tensors, about, model)


def export_deepseek(heads: Heads, model: nn.Module, folder: Path) -> None:
    """Write sequential heads with the keys of DeepSeek-V3's checkpoints, and the model's ``config.json`` that says so.

    Head ``k`` (from 0) is layer ``L + k`` behind the model's ``L``: ``enorm``, ``hnorm``, ``eh_proj``, the block's own
    names, ``shared_head.norm``; embeddings and vocabulary are copies of the model's. Weights are in the model's type.

    Args:
        heads: Of kind sequential.
        model: The model they belong to.
        folder: Replaced where it exists; the model's own weights are not in it.
    Raises:
        ConfigError: another kind of heads.
        LayerError: the model does not name its blocks as Llama and DeepSeek do.
    """
    if heads.kind != "sequential":
        raise ConfigError(
            f"Cannot export heads of kind {heads.kind!r} in DeepSeek's layout. Do: train heads of kind sequential."
        )
    bare = bare_of(model)
    blocks = decoder_of(model).blocks
    if getattr(bare.base_model, "layers", None) is not blocks or bare.base_model_prefix != "model":
        raise LayerError(
            f"Cannot export heads of {type(bare).__name__} in DeepSeek's layout: its blocks are not model.layers. "
            "Do: use a model of the Llama family."
        )
    tensors: dict[str, Tensor] = {}
    for k, head in enumerate(heads.heads):
        layer = f"model.layers.{len(blocks) + k}"
        own = {name.removeprefix("block."): tensor for name, tensor in head.state_dict().items()}
        own["shared_head.norm.weight"] = own.pop("norm.weight")
        own["shared_head.head.weight"] = unembedding(model).weight_vd
        own["embed_tokens.weight"] = bare.get_input_embeddings().weight
        tensors |= {f"{layer}.{name}": tensor for name, tensor in own.items()}
    about = bare.config.to_dict() | {"num_nextn_predict_layers": heads.horizon - 1}
    about.pop("_name_or_path", None)  # a place on this machine
    _write(folder, MTP_WEIGHTS, tensors, about, model)


def _write(folder: Path, name: str, tensors: dict[str, Tensor], about: dict[str, object], model: nn.Module) -> None:
    dtype = unembedding(model).weight_vd.dtype
    with folder_atomically(folder) as fresh:
        save_file(
            {key: t.detach().to("cpu", dtype, copy=True).contiguous() for key, t in tensors.items()}, fresh / name
        )
        (fresh / "config.json").write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")
