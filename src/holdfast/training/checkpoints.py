"""Checkpoints, whole or absent: ``step-00000100/`` appears by one rename, and only then are older ones removed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.files import folder_atomically

STATE = "state.pt"
BEST = "best"


def rng_state() -> dict[str, Any]:
    """The state of every random generator that training draws from."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    state["numpy"] = (kind, [int(key) for key in keys], *rest)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """Yield a fresh folder that replaces ``path`` once it is complete; until then, what was there stays.

    Raises:
        DataError: the disk is full or not writable.
    """
    try:
        with folder_atomically(path) as fresh:
            yield fresh
    except (OSError, RuntimeError, SafetensorError) as problem:
        first = str(problem).splitlines()[0]
        raise DataError(
            f"Cannot save {path}: {first}. What was saved before is intact. Do: make room on the disk, then resume."
        ) from problem


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step``, then remove older ones. A failure in between leaves the older ones."""
    path = folder / f"step-{step:08d}"
    with saving(path) as fresh:
        torch.save(state, fresh / STATE)
    for old in folder.glob("step-*"):
        if old.name < path.name:
            shutil.rmtree(old)
    return path


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return max(folder.glob("step-*"), default=None, key=lambda path: path.name)


def load(path: Path, fingerprint: str, world: int) -> dict[str, Any]:
    """Read a checkpoint that must belong to the same configuration, rows and number of processes.

    Raises:
        DataError: the file cannot be read.
        ConfigError: it belongs to another run.
    """
    state = _read(path, "remove the folder and resume again")
    if state["fingerprint"] != fingerprint:
        raise ConfigError(
            f"Cannot resume from {path}: its configuration, rows or model differ. Do: start without resume."
        )
    if len(state["rng"]) != world:
        raise ConfigError(
            f"Cannot resume from {path}: got {world} processes, expected {len(state['rng'])}, as it was saved."
        )
    return state


def load_best(folder: Path) -> dict[str, Any]:
    """The trained ``weights`` and the ``held`` coordinates of the best evaluation.

    Raises:
        DataError: the file cannot be read.
    """
    return _read(folder / BEST, "train again without resume: no other file holds these weights")


def _read(path: Path, advice: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as problem:
        first = str(problem).splitlines()[0]
        raise DataError(f"Cannot read checkpoint {path}: {first}. Do: {advice}.") from problem
    return state
