"""A plan on disk: tensors in one safetensors file, everything else in one JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.core.config import problems_of
from holdfast.core.errors import DataError
from holdfast.core.files import folder_atomically
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.plan import Origin, TokenWeightingPlan

HEADER, TENSORS = "plan.json", "plan.safetensors"
_KEY = 16


def save_plan(made: TokenWeightingPlan, folder: Path) -> None:
    """Write a whole plan."""
    header = {
        "config": made.config.model_dump(mode="json", exclude_unset=True),
        "origin": asdict(made.origin),
        "statistics": dict(made.statistics),
    }
    keys = torch.frombuffer(bytearray(b"".join(made.keys)), dtype=torch.uint8).reshape(-1, _KEY)
    tensors = {"values": made.values_n, "ends": made.ends, "keys": keys}
    with folder_atomically(folder) as fresh:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, fresh / TENSORS)
        (fresh / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def load_plan(folder: Path) -> TokenWeightingPlan:
    """Read a whole plan, onto the CPU.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        return _plan(header, load_file(folder / TENSORS))
    except ValidationError as problem:
        raise _unreadable(folder, "; ".join(problems_of(problem, TokenWeightingConfig))) from problem
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        raise _unreadable(folder, problem) from problem


def _plan(header: Mapping[str, Any], found: Mapping[str, Tensor]) -> TokenWeightingPlan:
    return TokenWeightingPlan(
        values_n=found["values"],
        ends=found["ends"],
        keys=tuple(bytes(key) for key in found["keys"].numpy()),
        statistics=header["statistics"],
        config=TokenWeightingConfig(**header["config"]),
        origin=Origin(**header["origin"]),
    )


def _unreadable(folder: Path, problem: object) -> DataError:
    return DataError(f"Cannot read a token_weighting plan in {folder}: {problem}. Do: plan again.")
