"""Stable names for the weight matrices of a decoder. The only file that knows architectures.

A layer is named by block and kind, the same in every family: ``layers.3.q_proj``. Two families store several layers in
one matrix; there the parts (``q_proj``) are rows of the fused layer (``qkv_proj``), and both names are addressable:

====================  =================================  ==========================================================
family                modules                            storage
====================  =================================  ==========================================================
Llama and its kin     q, k, v, o, gate, up, down         ``nn.Linear``, ``(o, i)``
Phi-3                 qkv_proj, o, gate_up_proj, down    parts are consecutive rows
GPT-2                 c_attn, c_proj, c_fc, c_proj       ``Conv1D``: the transpose, ``(i, o)``; c_attn is fused
GPT-NeoX              query_key_value, dense, h_to_4h    fused; each head holds its q, k, v rows one after the other
====================  =================================  ==========================================================
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from holdfast.core.errors import LayerError, NumericsError, did_you_mean
from holdfast.layers.quantised import dequantised, is_quantised


@dataclass(frozen=True)
class Rows:
    """The rows of a fused matrix that belong to one part: ``count`` runs of ``width`` rows, ``step`` apart."""

    first: int
    width: int
    step: int = 0
    count: int = 1

    def index(self, device: torch.device | None = None) -> Tensor:
        """The row numbers in order, ``(width * count,)``, int64.

        >>> Rows(first=2, width=2, step=6, count=2).index().tolist()
        [2, 3, 8, 9]
        """
        starts = self.first + self.step * torch.arange(self.count, device=device)
        return (starts[:, None] + torch.arange(self.width, device=device)).reshape(-1)


@dataclass(frozen=True)
class Layer:
    """One addressable weight matrix ``W (o, i)`` of the map ``y = W h``.

    Attributes:
        name: Architecture-neutral and stable: ``layers.<block>.<kind>``.
        path: The module inside the unwrapped model; also the module's name in a PEFT adapter.
        kind: ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``, ``gate_proj``, ``up_proj``, ``down_proj``, or a
            fused kind.
        block: The decoder block, from 0.
        in_features: ``i``.
        out_features: ``o``.
        group: Layers with the same group read the same input tensor.
        rows: Which rows of the stored matrix these are; ``None`` is all of them.
    """

    name: str
    path: str
    kind: str
    block: int
    in_features: int
    out_features: int
    group: str
    rows: Rows | None = None


Parts = Mapping[str, Rows]
Split = Callable[[Any, Mapping[str, tuple[int, int]]], Parts]


@dataclass(frozen=True)
class _Family:
    """Where an architecture keeps its layers: the block list, modules below a block, and how fused ones split."""

    blocks: str
    modules: Mapping[str, str]
    splits: Mapping[str, Split]
    transposed: bool = False


def _runs(widths: Mapping[str, int]) -> Parts:
    firsts = [sum(list(widths.values())[:n]) for n in range(len(widths))]
    return {kind: Rows(first, width) for first, (kind, width) in zip(firsts, widths.items(), strict=True)}


def _phi3_qkv(config: Any, shapes: Mapping[str, tuple[int, int]]) -> Parts:
    queries = shapes["o_proj"][1]
    keys = (shapes["qkv_proj"][0] - queries) // 2
    return _runs({"q_proj": queries, "k_proj": keys, "v_proj": keys})


def _halves(config: Any, shapes: Mapping[str, tuple[int, int]]) -> Parts:
    half = shapes["gate_up_proj"][0] // 2
    return _runs({"gate_proj": half, "up_proj": half})


def _thirds(config: Any, shapes: Mapping[str, tuple[int, int]]) -> Parts:
    third = shapes["qkv_proj"][0] // 3
    return _runs({"q_proj": third, "k_proj": third, "v_proj": third})


def _by_head(config: Any, shapes: Mapping[str, tuple[int, int]]) -> Parts:
    heads = config.num_attention_heads
    width = shapes["qkv_proj"][0] // (3 * heads)
    kinds = ("q_proj", "k_proj", "v_proj")
    return {kind: Rows(n * width, width, step=3 * width, count=heads) for n, kind in enumerate(kinds)}


_ATTENTION = {f"self_attn.{kind}": kind for kind in ("q_proj", "k_proj", "v_proj", "o_proj")}
_LLAMA = _Family("model.layers", _ATTENTION | {f"mlp.{k}": k for k in ("gate_proj", "up_proj", "down_proj")}, {})
_PHI3 = _Family(
    "model.layers",
    {
        "self_attn.qkv_proj": "qkv_proj",
        "self_attn.o_proj": "o_proj",
        "mlp.gate_up_proj": "gate_up_proj",
        "mlp.down_proj": "down_proj",
    },
    {"qkv_proj": _phi3_qkv, "gate_up_proj": _halves},
)
_GPT2 = _Family(
    "transformer.h",
    {"attn.c_attn": "qkv_proj", "attn.c_proj": "o_proj", "mlp.c_fc": "up_proj", "mlp.c_proj": "down_proj"},
    {"qkv_proj": _thirds},
    transposed=True,
)
_NEOX = _Family(
    "gpt_neox.layers",
    {
        "attention.query_key_value": "qkv_proj",
        "attention.dense": "o_proj",
        "mlp.dense_h_to_4h": "up_proj",
        "mlp.dense_4h_to_h": "down_proj",
    },
    {"qkv_proj": _by_head},
)
_LLAMA_KIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "granite")
_FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(_LLAMA_KIN, _LLAMA),
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
_FUSED = ("qkv_proj", "gate_up_proj")
_GROUPS = {
    **dict.fromkeys(("qkv_proj", "q_proj", "k_proj", "v_proj"), "attention_input"),
    "o_proj": "attention_output",
    **dict.fromkeys(("gate_up_proj", "gate_proj", "up_proj"), "mlp_input"),
    "down_proj": "mlp_output",
}


def layer_name(path: str) -> str | None:
    """The layer name of a module path in any known family, ``None`` when no family has such a module.

    >>> layer_name("model.layers.3.self_attn.q_proj"), layer_name("transformer.h.0.attn.c_attn"), layer_name("lm_head")
    ('layers.3.q_proj', 'layers.0.qkv_proj', None)
    """
    for family in (_LLAMA, _PHI3, _GPT2, _NEOX):
        found = re.fullmatch(rf"{re.escape(family.blocks)}\.(\d+)\.(.+)", path)
        if found and found[2] in family.modules:
            return f"layers.{found[1]}.{family.modules[found[2]]}"
    return None


def stored_transposed(path: str) -> bool:
    """Whether a module path belongs to a family that stores ``(i, o)`` (PEFT calls it ``fan_in_fan_out``)."""
    return any(path.startswith(f"{family.blocks}.") for family in (_GPT2,))


def _shape(module: nn.Module) -> tuple[int, int]:
    """``(o, i)`` of a linear-like module, from its attributes because quantised storage has another shape."""
    if isinstance(module, Conv1D):
        return int(module.nf), int(module.nx)
    return int(cast(Any, module).out_features), int(cast(Any, module).in_features)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT model, or the model itself."""
    return cast(nn.Module, cast(Any, model).get_base_model()) if hasattr(model, "get_base_model") else model


def _stored(base: nn.Module, path: str) -> nn.Module:
    """The module that owns the weight: below any adapter that wraps it."""
    module = base.get_submodule(path)
    while hasattr(module, "base_layer"):
        module = cast(nn.Module, module.base_layer)
    return module


def _family_of(base: nn.Module) -> _Family:
    model_type = str(getattr(getattr(base, "config", None), "model_type", None))
    if model_type not in _FAMILIES:
        raise LayerError(
            f"cannot name the layers of {type(base).__name__}: got model_type {model_type!r}, expected a known one. "
            + did_you_mean(model_type, _FAMILIES)
        )
    return _FAMILIES[model_type]


def _block_layers(base: nn.Module, family: _Family, block: int) -> tuple[list[Layer], list[Layer]]:
    """The layers of one block in reading order, and its fused ones."""
    plain: list[Layer] = []
    fused: list[Layer] = []
    paths = {kind: f"{family.blocks}.{block}.{module}" for module, kind in family.modules.items()}
    shapes = {kind: _shape(_stored(base, path)) for kind, path in paths.items()}

    def layer(kind: str, stored_kind: str, rows: Rows | None) -> Layer:
        o, i = shapes[stored_kind]
        o = o if rows is None else rows.width * rows.count
        group = f"layers.{block}.{_GROUPS[kind]}"
        return Layer(f"layers.{block}.{kind}", paths[stored_kind], kind, block, i, o, group, rows)

    for kind in paths:
        if kind not in family.splits:
            plain.append(layer(kind, kind, None))
            continue
        fused.append(layer(kind, kind, None))
        plain += [layer(part, kind, rows) for part, rows in family.splits[kind](cast(Any, base).config, shapes).items()]
    return plain, fused


class LayerMap:
    """The named weight matrices of one model. Iterating gives the selected layers in order, block by block.

    Any addressable name can be read and written, selected or not. Modules are looked up at each use, so a map stays
    right when PEFT wraps the model later.
    """

    def __init__(self, base: nn.Module, layers: Iterable[Layer], addressable: Mapping[str, Layer]) -> None:
        self.base = base
        self.layers = tuple(layers)
        self._addressable = dict(addressable)

    @classmethod
    def of(cls, model: nn.Module) -> "LayerMap":
        """Map a causal language model, wrapped by PEFT or not.

        Raises:
            LayerError: The architecture is unknown.
        """
        base = _unwrapped(model)
        family = _family_of(base)
        plain: list[Layer] = []
        fused: list[Layer] = []
        for block in range(len(cast(nn.ModuleList, base.get_submodule(family.blocks)))):
            block_plain, block_fused = _block_layers(base, family, block)
            plain += block_plain
            fused += block_fused
        return cls(base, plain, {layer.name: layer for layer in [*plain, *fused]})

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, name: object) -> bool:
        return name in self._addressable

    def __getitem__(self, name: str) -> Layer:
        if name not in self._addressable:
            raise self._no_match(name)
        return self._addressable[name]

    def select(self, patterns: str | Sequence[str] | None = None) -> "LayerMap":
        """A map of the model's layers that match any pattern, in model order; ``None`` keeps the selection.

        A pattern is a kind (``q_proj``), a name (``layers.3.q_proj``) or a glob over names (``layers.[0-3].*``). Fused
        layers answer only to their own kind or name, never to a glob, because a glob already takes their parts.

        Raises:
            LayerError: A pattern matches nothing, or a fused layer is selected together with one of its parts.
        """
        if patterns is None:
            return LayerMap(self.base, self.layers, self._addressable)
        chosen: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = {layer.name for layer in self._addressable.values() if self._matches(layer, pattern)}
            if not matched:
                raise self._no_match(pattern)
            chosen |= matched
        layers = [layer for name, layer in self._addressable.items() if name in chosen]
        self._refuse_overlap(layers)
        return LayerMap(self.base, sorted(layers, key=lambda layer: layer.block), self._addressable)

    def groups(self) -> dict[str, tuple[Layer, ...]]:
        """The selected layers by the input they share, in order."""
        groups: dict[str, tuple[Layer, ...]] = {}
        for layer in self.layers:
            groups[layer.group] = (*groups.get(layer.group, ()), layer)
        return groups

    def blocks(self) -> tuple[nn.Module, ...]:
        """All decoder blocks, in the order in which the model runs them; `Layer.block` counts them."""
        return tuple(cast(nn.ModuleList, self.base.get_submodule(_family_of(self.base).blocks)))

    def module(self, name: str) -> nn.Module:
        """The module that owns the layer's weight, below any PEFT wrapper; a fused module serves all its parts."""
        return _stored(self.base, self[name].path)

    def parameter(self, name: str) -> nn.Parameter:
        """The stored parameter itself: the whole matrix of a fused module, ``(i, o)`` in GPT-2."""
        weight = getattr(self.module(name), "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise LayerError(
                f"cannot reach the weight of {name}: got {type(self.module(name)).__name__} without a weight, expected "
                "a linear layer. Load the model without this quantization."
            )
        return weight

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """A copy of the weight, ``(o, i)``, in the storage dtype; bitsandbytes weights are dequantised.

        Raises:
            LayerError: The name is unknown, or the weight is quantised in another way.
        """
        layer, parameter = self[name], self.parameter(name)
        stored = dequantised(name, self.module(name)) if is_quantised(parameter) else parameter.detach()
        matrix = stored.T if isinstance(self.module(name), Conv1D) else stored
        if layer.rows is not None:
            return matrix.index_select(0, layer.rows.index(matrix.device))
        return matrix.clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def write(self, name: str, weight: Tensor) -> None:
        """Overwrite the weight in place, rounded to the storage dtype. Touches nothing but this layer's entries.

        Raises:
            LayerError: The shape is wrong, the weight is quantised, or PEFT has merged an adapter into it.
            NumericsError: The weight is not finite in the storage dtype.
        """
        layer, parameter = self[name], self.parameter(name)
        if tuple(weight.shape) != (layer.out_features, layer.in_features):
            expected = (layer.out_features, layer.in_features)
            raise LayerError(f"cannot write {name}: got shape {tuple(weight.shape)}, expected {expected}.")
        self._refuse_unwritable(name, parameter)
        rounded = weight.to(device=parameter.device, dtype=parameter.dtype)
        bad = rounded.numel() - int(torch.isfinite(rounded).sum())
        if bad:
            raise NumericsError(
                f"cannot write {name}: got {bad} entries that are not finite in {parameter.dtype}, expected 0. "
                "Look for an overflow in the step before, or load the model in a wider dtype."
            )
        matrix = parameter.T if isinstance(self.module(name), Conv1D) else parameter
        if layer.rows is None:
            matrix.copy_(rounded)
        else:
            matrix.index_copy_(0, layer.rows.index(matrix.device), rounded)

    def _refuse_unwritable(self, name: str, parameter: nn.Parameter) -> None:
        if is_quantised(parameter):
            raise LayerError(
                f"cannot write {name}: got a quantised weight ({type(parameter).__name__}), expected a floating-point "
                "one. Load the model without quantization."
            )
        wrapper = self.base.get_submodule(self[name].path)
        if getattr(wrapper, "merged_adapters", None):
            raise LayerError(
                f"cannot write {name}: got a weight with {wrapper.merged_adapters} merged into it, expected the base "
                "weight. Call unmerge_adapter() first."
            )

    @staticmethod
    def _matches(layer: Layer, pattern: str) -> bool:
        if pattern in (layer.kind, layer.name):
            return True
        return layer.kind not in _FUSED and fnmatchcase(layer.name, pattern)

    def _refuse_overlap(self, layers: Sequence[Layer]) -> None:
        whole = {layer.path: layer.name for layer in layers if layer.rows is None}
        for layer in layers:
            if layer.rows is not None and layer.path in whole:
                raise LayerError(
                    f"selection overlaps: got {whole[layer.path]} and its part {layer.name}, expected one of them. "
                    "Remove a pattern."
                )

    def _no_match(self, pattern: str) -> LayerError:
        kinds = list(dict.fromkeys(layer.kind for layer in self._addressable.values()))
        near = get_close_matches(pattern, kinds, n=1) or get_close_matches(pattern, self._addressable, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return LayerError(
            f"no layer matches {pattern!r} in {type(self.base).__name__}. {hint}Known: {', '.join(kinds)}."
        )
