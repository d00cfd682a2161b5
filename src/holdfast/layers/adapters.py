"""Low-rank changes of weights, by layer name, and the PEFT LoRA folders they are read from and written to.

A delta is ``B A`` with the scale folded in: what PEFT computes as ``scaling * lora_B @ lora_A``, where ``scaling`` is
``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``, and both can differ by module (``rank_pattern``,
``alpha_pattern``). Folding happens in float32 and goes into ``B``; a written folder has ``lora_alpha = r`` everywhere,
so its scaling is exactly 1 and reading it back gives the same bits.

PEFT wraps whole modules. A module that stores several layers (``qkv_proj`` of Phi-3, ``c_attn`` of GPT-2,
``query_key_value`` of GPT-NeoX) therefore stays one fused layer in an adapter: ``layers.0.qkv_proj``.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from holdfast.core.errors import AdapterError
from holdfast.core.files import folder_atomically
from holdfast.layers.address import LayerMap, layer_name, stored_transposed

CONFIG_FILE = "adapter_config.json"
METADATA_FILE = "holdfast.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_REFUSED_KEYS = {
    "use_dora": "DoRA also trains magnitudes",
    "modules_to_save": "whole modules were trained",
    "trainable_token_indices": "token embeddings were trained",
    "lora_bias": "biases were trained",
    "target_parameters": "bare parameters were adapted",
    "layer_replication": "layers were replicated",
    "use_qalora": "QA-LoRA pools the inputs",
    "use_bdlora": "BD-LoRA changes the product",
    "alora_invocation_tokens": "aLoRA acts on some tokens only",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "MonteCLoRA samples its factors",
    "megatron_config": "Megatron shards the layers",
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change ``W += B A`` of one weight, scale folded in.

    Attributes:
        A: ``(r, i)``.
        B: ``(o, r)``.
    Raises:
        AdapterError: The factors are not matrices, do not fit each other, or have rank 0.
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1] or self.A.shape[0] == 0:
            raise AdapterError(
                f"not a low-rank pair: got A {tuple(self.A.shape)} and B {tuple(self.B.shape)}, expected (r, i) and "
                "(o, r) with r >= 1."
            )

    @property
    def rank(self) -> int:
        """``r``, the number of columns of ``B``; the true rank of the product may be lower."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """``(o, i)`` of the weight that it changes."""
        return int(self.B.shape[0]), int(self.A.shape[1])

    def dense(self) -> Tensor:
        """``B A``, ``(o, i)``, in at least float32."""
        dtype = torch.promote_types(torch.promote_types(self.A.dtype, self.B.dtype), torch.float32)
        return self.B.to(dtype) @ self.A.to(dtype)


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank changes of some layers of a base model.

    Attributes:
        deltas: By layer name, fused names for fused modules.
        base: What the base model calls itself (hub name or folder), empty if unknown.
        paths: By layer name, the module path that PEFT files use.
        metadata: JSON values that travel beside the weights, in ``holdfast.json``.
    """

    deltas: Mapping[str, LowRank]
    base: str
    paths: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, layers: LayerMap, deltas: Mapping[str, LowRank], metadata: Mapping[str, Any] | None = None
    ) -> "Adapter":
        """An adapter from deltas that were computed for a model.

        Raises:
            AdapterError: A name is unknown or is part of a fused module, or a shape does not fit.
        """
        for name in deltas:
            if name in layers and layers[name].rows is not None:
                raise AdapterError(
                    f"cannot adapt {name}: got a part of the module {layers[name].path}, expected a whole module. "
                    "Give the delta of the fused layer."
                )
        paths = {name: layers[name].path for name in deltas if name in layers}
        base = str(getattr(layers.base, "name_or_path", "") or "")
        adapter = cls(dict(deltas), base, paths, dict(metadata or {}))
        check_fit(layers, adapter)
        return adapter

    def delta(self, name: str) -> Tensor:
        """The dense change of one layer, ``(o, i)``.

        Raises:
            AdapterError: The adapter does not change this layer.
        """
        if name not in self.deltas:
            raise AdapterError(f"no delta for {name!r}: got an adapter of {', '.join(self.deltas) or 'no layers'}.")
        return self.deltas[name].dense()


def merge_into(model: nn.Module, adapter: Adapter) -> None:
    """Add every delta to the model's weights, in place, computed in at least float32 and rounded once.

    All names and shapes are checked before the first write.

    Raises:
        AdapterError: The adapter belongs to another model.
    """
    layers = LayerMap.of(model)
    check_fit(layers, adapter)
    for name, change in adapter.deltas.items():
        weight = layers.read(name)
        delta = LowRank(change.A.to(weight.device), change.B.to(weight.device)).dense()
        layers.write(name, weight.to(delta.dtype) + delta)


@contextmanager
def added(model: nn.Module, adapter: Adapter, scale: float = 1.0) -> Iterator[None]:
    """Inside, the model's weights hold ``scale`` times every delta; afterwards each bit is as before.

    A copy of the changed weights is held meanwhile.

    Raises:
        AdapterError: The adapter belongs to another model.
    """
    layers = LayerMap.of(model)
    check_fit(layers, adapter)
    before = {name: layers.read(name) for name in adapter.deltas}
    try:
        for name, change in adapter.deltas.items():
            weight = before[name]
            delta = LowRank(change.A.to(weight.device), change.B.to(weight.device)).dense()
            layers.write(name, weight.to(delta.dtype) + scale * delta)
        yield
    finally:
        for name, weight in before.items():
            layers.write(name, weight)


def check_fit(layers: LayerMap, adapter: Adapter) -> None:
    """Every delta is of a whole module of the model, and has its shape.

    Raises:
        AdapterError: The adapter belongs to another model.
    """
    model = type(layers.base).__name__
    for name, change in adapter.deltas.items():
        if name not in layers or layers[name].path != adapter.paths[name]:
            raise AdapterError(
                f"adapter does not belong to this {model}: got a delta for {adapter.paths.get(name, name)}, expected "
                f"one of its {len(layers)} layers. Use the adapter's own base, {adapter.base or 'not named in it'}."
            )
        expected = (layers[name].out_features, layers[name].in_features)
        if change.shape != expected:
            raise AdapterError(
                f"adapter does not belong to this {model}: got {change.shape} for {name}, expected {expected}. "
                f"Use the adapter's own base, {adapter.base or 'not named in it'}."
            )


def read_peft(folder: Path) -> Adapter:
    """Read a PEFT LoRA folder as deltas by layer name, in float32.

    Raises:
        AdapterError: A file is missing or damaged; the adapter is not plain LoRA (DoRA, trained biases, saved modules,
            another PEFT method, an initialisation that changes the base); a weight is not finite or has rank 0.
    """
    config = _read_json(folder, CONFIG_FILE)
    _refuse_not_plain(folder, config)
    pairs = _pairs(folder, _read_tensors(folder))
    deltas: dict[str, LowRank] = {}
    paths: dict[str, str] = {}
    for path, (down, up) in pairs.items():
        name = layer_name(path)
        if name is None:
            raise AdapterError(
                f"cannot read {folder}: got an adapter of the module {path}, expected attention or MLP projections "
                "of a known decoder. Train it without this module."
            )
        deltas[name] = _folded(folder, path, down, up, config)
        paths[name] = path
    metadata = _read_json(folder, METADATA_FILE) if (folder / METADATA_FILE).is_file() else {}
    return Adapter(deltas, str(config.get("base_model_name_or_path") or ""), paths, metadata)


def _read_json(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    if not path.is_file():
        raise AdapterError(f"cannot read {folder}: got no {file}, expected a PEFT adapter folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"cannot read {path}: got damaged JSON ({error}). Copy the adapter again.") from error
    if not isinstance(content, dict):
        raise AdapterError(f"cannot read {path}: got {type(content).__name__}, expected a JSON object.")
    return content


def _refuse_not_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse whatever is not exactly ``W + scaling * B A`` on the unchanged base."""
    reasons = [f"{key}: {reason}" for key, reason in _REFUSED_KEYS.items() if config.get(key)]
    if config.get("peft_type") != "LORA":
        reasons.append(f"peft_type is {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        reasons.append(f"bias is {config['bias']!r}: biases were trained")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        reasons.append(f"init_lora_weights is {config['init_lora_weights']!r}: it changes the base weights")
    if reasons:
        raise AdapterError(
            f"cannot read {folder} as low-rank deltas: got {'; '.join(reasons)}; expected plain LoRA. "
            "Merge it into its base with PEFT, or train plain LoRA."
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    plain, pickled = folder / WEIGHTS_FILE, folder / PICKLED_FILE
    if not plain.is_file() and not pickled.is_file():
        raise AdapterError(
            f"cannot read {folder}: got no {WEIGHTS_FILE} and no {PICKLED_FILE}. Copy the adapter again."
        )
    try:
        if not plain.is_file():
            return dict(torch.load(pickled, map_location="cpu", weights_only=True))
        return safetensors.torch.load_file(plain)
    except (safetensors.SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise AdapterError(f"cannot read the weights in {folder}: {error}. Copy the adapter again.") from error


def _pairs(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The two factors by module path, in file order; every key must be one of them."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, dot, side = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not key.startswith(_PREFIX) or not dot or side not in ("A.weight", "B.weight"):
            raise AdapterError(
                f"cannot read {folder} as low-rank deltas: got the weight {key}, expected only lora_A and lora_B. "
                "Merge it into its base with PEFT, or train plain LoRA."
            )
        sides.setdefault(path, {})[side] = tensor
    for path, found in sides.items():
        if len(found) != 2:
            raise AdapterError(f"cannot read {folder}: got only lora_{next(iter(found))} of {path}, expected A and B.")
    if not sides:
        raise AdapterError(f"cannot read {folder}: got no weights at all, expected lora_A and lora_B.")
    return {path: (found["A.weight"], found["B.weight"]) for path, found in sides.items()}


def _folded(folder: Path, path: str, down: Tensor, up: Tensor, config: Mapping[str, Any]) -> LowRank:
    """One module's delta with PEFT's scaling in ``B``."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(ranks.keys(), path), config.get("r", 8))
    alpha = alphas.get(get_pattern_key(alphas.keys(), path), config.get("lora_alpha", 8))
    if rank == 0 or down.ndim != 2 or up.ndim != 2 or (rank, rank) != (down.shape[0], up.shape[1]):
        raise AdapterError(
            f"cannot read {folder}: got A {tuple(down.shape)} and B {tuple(up.shape)} for {path}, expected rank {rank} "
            f"as in {CONFIG_FILE}, at least 1."
        )
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"cannot read {folder}: got lora_alpha {alpha!r} for {path}, expected a number.")
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise AdapterError(f"cannot read {folder}: got NaN or infinity in {path}, expected numbers. Train it again.")
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LowRank(down.float(), up.float() * scaling)


def write_peft(adapter: Adapter, folder: Path) -> None:
    """Write a folder that stock PEFT loads. It appears whole or not at all, and replaces an adapter of that name.

    Factors keep their dtype; the scaling is 1 (``lora_alpha = r``).

    Raises:
        AdapterError: There is nothing to write, a weight is not finite, or the folder holds something else.
    """
    if not adapter.deltas:
        raise AdapterError("cannot write an adapter: got no deltas, expected at least one layer.")
    check_place(folder)
    tensors: dict[str, Tensor] = {}
    for name, change in adapter.deltas.items():
        if not (torch.isfinite(change.A).all() and torch.isfinite(change.B).all()):
            raise AdapterError(f"cannot write an adapter: got NaN or infinity in {name}, expected numbers.")
        key = f"{_PREFIX}{adapter.paths[name]}.lora_"
        tensors[f"{key}A.weight"] = change.A.detach().cpu().contiguous().clone()
        tensors[f"{key}B.weight"] = change.B.detach().cpu().contiguous().clone()
    with folder_atomically(folder) as fresh:
        safetensors.torch.save_file(tensors, fresh / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_json(fresh / CONFIG_FILE, _peft_config(adapter))
        if adapter.metadata:
            _write_json(fresh / METADATA_FILE, adapter.metadata)


def check_place(folder: Path) -> None:
    """An adapter may be written here: there is nothing, or another adapter.

    Raises:
        AdapterError: The folder holds something else.
    """
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise AdapterError(f"cannot write an adapter to {folder}: got something else there. Choose another folder.")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Sets are sorted: PEFT's own writer keeps their order, which differs from run to run."""
    path.write_text(json.dumps(dict(content), indent=2, sort_keys=True, default=sorted) + "\n", encoding="utf-8")


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    """The LoraConfig that reproduces the deltas: one rank for most modules, patterns for the rest, scaling 1."""
    from peft import LoraConfig

    ranks = {adapter.paths[name]: change.rank for name, change in adapter.deltas.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=list(ranks),
        fan_in_fan_out=all(stored_transposed(path) for path in ranks),
        base_model_name_or_path=adapter.base or None,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    return dict(config.to_dict())
