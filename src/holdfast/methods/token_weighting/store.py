"""A plan on disk: tensors in one safetensors file, everything else in one JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from holdfast.core.files import folder_atomically
from holdfast.methods.stored import read_header, reading, write_header, write_tensors
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.plan import Origin, TokenWeightingPlan

TENSORS = "plan.safetensors"
_KEY = 16


def save_plan(made: TokenWeightingPlan, folder: Path) -> None:
    """Write a whole plan."""
    header = {
        "config": made.config.model_dump(mode="json", exclude_unset=True),
        "origin": asdict(made.origin),
        "statistics": dict(made.statistics),
    }
    with folder_atomically(folder) as fresh:
        write_tensors(fresh / TENSORS, _tensors(made))
        write_header(fresh, header)


def _tensors(made: TokenWeightingPlan) -> dict[str, Tensor]:
    keys = torch.frombuffer(bytearray(b"".join(made.keys)), dtype=torch.uint8).reshape(-1, _KEY)
    return {"values": made.values_n, "ends": made.ends, "keys": keys}


def load_plan(folder: Path) -> TokenWeightingPlan:
    """Read a whole plan, onto the CPU.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    with reading(folder, "a token_weighting plan", TokenWeightingConfig):
        return _plan(read_header(folder), load_file(folder / TENSORS))


def _plan(header: Mapping[str, Any], found: Mapping[str, Tensor]) -> TokenWeightingPlan:
    return TokenWeightingPlan(
        values_n=found["values"],
        ends=found["ends"],
        keys=tuple(bytes(key) for key in found["keys"].numpy()),
        statistics=header["statistics"],
        config=TokenWeightingConfig(**header["config"]),
        origin=Origin(**header["origin"]),
    )
