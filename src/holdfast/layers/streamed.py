"""A base with an adapter in its weights, from files to files: never more than one shard of them in memory.

Tensors are read from the base's safetensors one by one. Those that the adapter changes get ``W + B A``, computed in at
least float32 and rounded once to the type they are stored in, which is what `merge_into` does to a loaded model; all
others are copied. So tied weights stay as the base stores them, and the ``(i, o)`` of GPT-2 stays ``(i, o)``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast.core.errors import AdapterError, DataError, NumericsError
from holdfast.core.files import folder_atomically
from holdfast.layers.adapters import Adapter, LowRank
from holdfast.layers.address import stored_transposed
from holdfast.models.sources import first_line

SHARD_BYTES = 2_000_000_000
"""Of one file that is written; a tensor that is larger has a file of its own."""
INDEX = "model.safetensors.index.json"
_NAMES = "model{suffix}.safetensors"
_FLOATS = ("F64", "F32", "BF16", "F16")
"""Types, as safetensors calls them, of weights that a delta can be added to."""
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
"""What belongs to a model beside its weights: configuration, tokenizer, templates, code, terms."""
_TEMPLATES = "additional_chat_templates"
_APART = ("*.index.json", "adapter_*", "holdfast*", "trainer_state.json")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    file: Path
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, eq=False, slots=True)
class Streaming:
    """What will be written, known before anything is."""

    adapter: Adapter
    tensors: Mapping[str, Stored]
    changed: Mapping[str, str]
    """By tensor, the layer whose delta it gets."""
    shards: Mapping[str, tuple[str, ...]]
    """By file, its tensors."""
    beside: tuple[Path, ...]
    """Files that are copied."""

    @property
    def disk_bytes(self) -> int:
        """Of everything that is written."""
        return sum(each.bytes for each in self.tensors.values()) + sum(path.stat().st_size for path in self.beside)

    @property
    def memory_bytes(self) -> int:
        """The largest shard, the adapter, and the largest changed weight three times in float32: itself, its delta and
        their sum."""
        factors = sum(4 * (delta.A.numel() + delta.B.numel()) for delta in self.adapter.deltas.values())
        entries = max((delta.shape[0] * delta.shape[1] for delta in self.adapter.deltas.values()), default=0)
        shard = max(sum(self.tensors[name].bytes for name in names) for names in self.shards.values())
        return shard + factors + 3 * 4 * entries


def has_safetensors(folder: Path) -> bool:
    """Whether a model's weights are in files that can be read tensor by tensor."""
    return (folder / INDEX).is_file() or (folder / _NAMES.format(suffix="")).is_file()


def look(source: str, base: Path, adapter: Adapter, shard_bytes: int = SHARD_BYTES) -> Streaming:
    """Which tensors the adapter changes, and which file each will be in; only the headers of the base's files are read.

    Args:
        source: The base as the user named it, for messages.
        base: Its folder, with all its safetensors.
        adapter: Of that base.
        shard_bytes: Of one file, at most.
    Raises:
        AdapterError: the adapter belongs to another model, or its weights are stored quantized.
        DataError: a file of weights is damaged.
    """
    tensors = {name: stored for file in _files(base) for name, stored in _header(file).items()}
    changed = dict(_target(name, adapter, tensors, source) for name in adapter.deltas)
    split = split_state_dict_into_shards_factory(
        dict(tensors), get_storage_size=lambda each: each.bytes, filename_pattern=_NAMES, max_shard_size=shard_bytes
    )
    shards = {file: tuple(names) for file, names in split.filename_to_tensors.items()}
    return Streaming(adapter, tensors, changed, shards, _companions(base))


def write(streaming: Streaming, folder: Path, tick: Callable[[str, int, int], None]) -> None:
    """Write the model, one file after another; the folder appears whole or not at all.

    Args:
        streaming: What `look` found.
        folder: Replaced where it exists.
        tick: Told what is written, how many files are done and how many there are.
    Raises:
        NumericsError: a changed weight is not finite in its stored type.
    """
    with folder_atomically(folder) as fresh:
        for path in streaming.beside:
            to = fresh / path.name if path.parent.name != _TEMPLATES else fresh / _TEMPLATES / path.name
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, to)
        for done, (file, names) in enumerate(streaming.shards.items(), 1):
            save_file({name: _tensor(streaming, name) for name in names}, fresh / file, metadata={"format": "pt"})
            tick("files of weights", done, len(streaming.shards))
        if len(streaming.shards) > 1:
            index = {
                "metadata": {"total_size": sum(each.bytes for each in streaming.tensors.values())},
                "weight_map": {name: file for file, names in streaming.shards.items() for name in names},
            }
            (fresh / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _files(base: Path) -> list[Path]:
    whole = base / _NAMES.format(suffix="")
    if whole.is_file():  # Transformers reads it, whatever an index says
        return [whole]
    listed = json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return [base / name for name in sorted(set(listed.values()))]


def _header(file: Path) -> dict[str, Stored]:
    """The tensors of a file, from its first bytes: the length of a JSON text, and the text."""
    try:
        with safe_open(file, "pt") as opened:  # checks that the file is whole
            names = list(opened.keys())
        with file.open("rb") as raw:
            head = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    except (SafetensorError, OSError, ValueError) as problem:
        raise DataError(
            f"Cannot read {file}: {first_line(problem)} Do: fetch or save the model again; the file is damaged."
        ) from problem
    found = {name: head[name] for name in names}
    return {
        name: Stored(file, each["dtype"], tuple(each["shape"]), each["data_offsets"][1] - each["data_offsets"][0])
        for name, each in found.items()
    }


def _target(name: str, adapter: Adapter, tensors: Mapping[str, Stored], source: str) -> tuple[str, str]:
    """The tensor that holds a layer; files of a model without a head leave the first part of its path out."""
    path, delta = adapter.paths[name], adapter.deltas[name]
    named = f"{path}.weight"
    key = named if named in tensors else named.partition(".")[2]
    if key not in tensors:
        raise AdapterError(
            f"The adapter does not belong to {source}: got a delta for {path}, and no tensor {named} in its files. Do: "
            "give the model it was trained on as --base."
        )
    stored, expected = tensors[key], delta.shape[::-1] if stored_transposed(path) else delta.shape
    if stored.dtype not in _FLOATS:
        raise AdapterError(
            f"Cannot merge into {source}: {key} is stored quantized ({stored.dtype}), expected floating-point numbers. "
            "Do: give the model in 16 or 32 bits as --base."
        )
    if stored.shape != expected:
        raise AdapterError(
            f"The adapter does not belong to {source}: got {expected} for {key}, which is {stored.shape}. Do: give the "
            "model it was trained on as --base."
        )
    return key, name


def _companions(base: Path) -> tuple[Path, ...]:
    """Files that a model is used with, beside its weights; none of an adapter's, which would be loaded on top."""
    found = {path for pattern in _BESIDE for path in base.glob(pattern) if path.is_file()}
    apart = {path for pattern in _APART for path in base.glob(pattern)}
    return (*sorted(found - apart), *sorted((base / _TEMPLATES).glob("*.jinja")))


@torch.no_grad()
def _tensor(streaming: Streaming, name: str) -> Tensor:
    """One tensor as it will be stored; its file is open only meanwhile."""
    with safe_open(streaming.tensors[name].file, "pt") as opened:
        weight: Tensor = opened.get_tensor(name)
    layer = streaming.changed.get(name)
    if layer is None:
        return weight
    return _changed(weight, streaming.adapter.deltas[layer], streaming.adapter.paths[layer])


def _changed(weight: Tensor, delta: LowRank, path: str) -> Tensor:
    """``W + B A``, as the weight is stored: ``(o, i)``, or its transpose."""
    dense = delta.dense().T if stored_transposed(path) else delta.dense()
    made = (weight.to(torch.promote_types(weight.dtype, dense.dtype)) + dense).to(weight.dtype).contiguous()
    bad = made.numel() - int(torch.isfinite(made).sum())
    if bad:
        raise NumericsError(
            f"cannot merge into {path}: got {bad} entries that are not finite in {made.dtype}, expected 0. Do: merge "
            "with smaller weights, or give the base in a wider type."
        )
    return made
