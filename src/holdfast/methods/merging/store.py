"""A plan on disk: a safetensors file for each layer, everything else in one JSON.

Layers are written one after another, so that no second copy of all gradients is in memory; read, they are mapped from
disk and come into memory when they are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from holdfast.core.files import folder_atomically
from holdfast.layers.adapters import LowRank
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.evidence import Evidence
from holdfast.methods.merging.plan import MergePlan, Origin
from holdfast.methods.stored import read_header, reading, write_header, write_tensors

LAYERS = "layers"
KINDS = tuple(field.name for field in fields(Evidence))
"""What evidence is made of."""
BASES = tuple(field.name for field in fields(CoreSpace))


def save_plan(made: MergePlan, folder: Path) -> None:
    """Write a whole plan; an adapter that does not touch a layer has its zero delta there too."""
    header = {
        "config": made.config.model_dump(mode="json", exclude_unset=True) | {"rule": made.config.rule},
        "origin": asdict(made.origin),
        "paths": dict(made.paths),
    }
    with folder_atomically(folder) as fresh:
        (fresh / LAYERS).mkdir()
        for name in made.deltas:
            write_tensors(_of_layer(fresh, name), _tensors(made, name))
        write_header(fresh, header)


def _tensors(made: MergePlan, name: str) -> dict[str, Tensor]:
    """Of one layer, by the number of the adapter and what it is; and the bases that evidence is in."""
    found = {f"{t}/{side}": getattr(delta, side) for t, delta in enumerate(made.deltas[name]) for side in "AB"}
    if name in made.spaces:
        found |= {base: getattr(made.spaces[name], base) for base in BASES}
    for t, seen in enumerate(made.evidence.get(name, ())):
        found |= {f"{t}/{kind}": tensor for kind in KINDS if (tensor := getattr(seen, kind)) is not None}
    return found


def load_plan(folder: Path) -> MergePlan:
    """Read a whole plan, onto the CPU.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    with reading(folder, "a merge plan", MergingConfig):
        header = read_header(folder)
        return _plan(header, {name: load_file(_of_layer(folder, name)) for name in header["paths"]})


def _plan(header: Mapping[str, Any], layers: Mapping[str, Mapping[str, Tensor]]) -> MergePlan:
    origin = Origin(**{key: _frozen(value) for key, value in header["origin"].items()})
    count = range(len(origin.names))
    deltas = {name: tuple(LowRank(found[f"{t}/A"], found[f"{t}/B"]) for t in count) for name, found in layers.items()}
    seen = layers if origin.rows else {}
    evidence = {name: tuple(_evidence(found, t) for t in count) for name, found in seen.items()}
    spaces = {name: CoreSpace(*(found[base] for base in BASES)) for name, found in seen.items()}
    return MergePlan(deltas, evidence, spaces, header["paths"], MergingConfig(**header["config"]), origin)


def _evidence(found: Mapping[str, Tensor], t: int) -> Evidence:
    return Evidence(**{kind: found.get(f"{t}/{kind}") for kind in KINDS})


def _frozen(value: Any) -> Any:
    """JSON has lists where an origin has tuples."""
    return tuple(value) if isinstance(value, list) else value


def _of_layer(folder: Path, name: str) -> Path:
    return folder / LAYERS / f"{name}.safetensors"
