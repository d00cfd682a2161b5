"""A plan on disk: tensors in safetensors, everything else in one JSON; each phase keeps its own folder.

A basis has one file a group, written as soon as the group is found and mapped into memory where it is read. A plan's
folder stands alone: its basis is the files of phase 1 again, as hard links where the disk has them, or else as copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.core.files import folder_atomically
from holdfast.data.examples import Example
from holdfast.methods.rotation import plan
from holdfast.methods.rotation.config import BasisConfig, ImportanceConfig, RotationConfig
from holdfast.methods.rotation.plan import Basis, Found, Importance, Origin, RotationPlan
from holdfast.methods.stored import HEADER, read_header, reading, write_header, write_tensors
from holdfast.models.load import LoadedModel

BASIS_FOLDER, IMPORTANCE_FILE, MASK_FILE = "basis", "importance.safetensors", "mask.safetensors"
KINDS = ("vectors", "energies", "moments")


def find_basis(config: BasisConfig, loaded: LoadedModel, safety: Sequence[Example], seed: int, folder: Path) -> Basis:
    """Phase 1 straight to disk, so that no two blocks of the model are in memory; what it returns is mapped from there.

    Raises:
        HoldfastError: What `plan.basis` refuses; ``folder`` is as it was before.
    """
    with folder_atomically(folder) as fresh:
        (fresh / BASIS_FOLDER).mkdir()
        found = plan.basis(config, loaded, safety, seed, keep=partial(_on_disk, fresh / BASIS_FOLDER))
        write_header(fresh, _basis_header(found))
    return found


def save_basis(found: Basis, folder: Path) -> None:
    """Write phase 1."""
    with folder_atomically(folder) as fresh:
        _write_basis(found, fresh)
        write_header(fresh, _basis_header(found))


def load_basis(folder: Path) -> Basis:
    """Read phase 1; matrices come into memory when they are looked at.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    with _reading(folder):
        header = _of_phase(folder, "groups")
        groups = {
            group: load_file(_of_group(folder / BASIS_FOLDER, group))
            for group in dict.fromkeys(header["groups"].values())
        }
        kinds = {kind: {group: found[kind] for group, found in groups.items() if kind in found} for kind in KINDS}
        return Basis(**kinds, groups=header["groups"], origin=Origin(**header["origin"]), tokens=header["tokens"])


def _basis_header(found: Basis) -> dict[str, Any]:
    return {"origin": asdict(found.origin), "groups": dict(found.groups), "tokens": found.tokens}


def _write_basis(found: Basis, folder: Path) -> None:
    (folder / BASIS_FOLDER).mkdir()
    for group in found.vectors:
        kinds = {kind: getattr(found, kind) for kind in KINDS}
        _on_disk(folder / BASIS_FOLDER, group, {kind: each[group] for kind, each in kinds.items() if group in each})


def _on_disk(folder: Path, group: str, found: Found) -> Found:
    """Write what was found for one group, and read it back."""
    path = _of_group(folder, group)
    save_file({kind: tensor.cpu().contiguous() for kind, tensor in found.items()}, path)
    return load_file(path)


def _of_group(folder: Path, group: str) -> Path:
    return folder / f"{group}.safetensors"


def save_importance(scored: Importance, folder: Path) -> None:
    """Write phase 2; the basis stays where phase 1 left it."""
    kinds = {"even": scored.halves[0], "odd": scored.halves[1], "task": scored.task or {}}
    with folder_atomically(folder) as fresh:
        write_tensors(
            fresh / IMPORTANCE_FILE, {f"{kind}/{name}": t for kind, each in kinds.items() for name, t in each.items()}
        )
        rows = {"rows": scored.rows, "task_rows": scored.task_rows}
        write_header(fresh, {"importance": scored.config.model_dump(mode="json")} | rows)


def load_importance(folder: Path, found: Basis) -> Importance:
    """Read phase 2.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    with _reading(folder):
        header, tensors = _of_phase(folder, "importance"), load_file(folder / IMPORTANCE_FILE)
        even, odd, task = (_under(tensors, kind) for kind in ("even", "odd", "task"))
        rows = {"rows": header["rows"], "task_rows": header["task_rows"]}
        return Importance((even, odd), ImportanceConfig(**header["importance"]), found, task or None, **rows)


def save_plan(made: RotationPlan, folder: Path, basis_in: Path | None = None) -> None:
    """Write a whole plan, its basis included, so that the folder stands alone.

    Args:
        basis_in: Where phase 1 left the plan's basis; its files are then linked, which takes no room on the disk.
    """
    header = _basis_header(made.basis) | {
        "config": dict(made.config),
        "stability": made.stability,
        "stability_by_chance": made.stability_by_chance,
        "layers": made.table(),
    }
    with folder_atomically(folder) as fresh:
        if basis_in is None:
            _write_basis(made.basis, fresh)
        else:
            shutil.copytree(basis_in / BASIS_FOLDER, fresh / BASIS_FOLDER, copy_function=_link)
        write_tensors(fresh / MASK_FILE, made.frozen)
        write_header(fresh, header)


def _link(source: str, target: str) -> str:
    """A second name of a file, or a copy where the disk has no such thing. No file is ever written in place."""
    try:
        os.link(source, target)
    except OSError:
        return shutil.copy2(source, target)
    return target


def load_plan(folder: Path) -> RotationPlan:
    """Read a whole plan.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    with _reading(folder):
        header, frozen = _of_phase(folder, "stability"), load_file(folder / MASK_FILE)
        found = load_basis(folder)
        return RotationPlan(frozen, header["stability"], header["stability_by_chance"], header["config"], found)


def _under(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{kind}/")}


def _reading(folder: Path) -> AbstractContextManager[None]:
    return reading(folder, "a rotation plan", RotationConfig, "run its step again")


def _of_phase(folder: Path, wanted: str) -> dict[str, Any]:
    """The JSON of a phase, which has the key ``wanted``."""
    header = read_header(folder)
    if wanted not in header:
        raise ValueError(f"{HEADER} has no {wanted!r}: it is another phase's folder")
    return header
