"""What a plan on disk is for every method: one JSON, tensors in safetensors, and one sentence where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from holdfast.core.config import Config, problems_of
from holdfast.core.errors import DataError

HEADER = "plan.json"
"""Everything but tensors."""
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)
"""What reading raises where a file is absent, cut off, or of another shape than it was written with."""


@contextmanager
def reading(folder: Path, what: str, kind: type[Config], advice: str = "plan again") -> Iterator[None]:
    """Within it, what is wrong with files is one sentence about ``folder``; errors of Holdfast's own pass.

    Args:
        what: Is read, e.g. ``a causal plan``.
        kind: Its settings, which say what is wrong with those that are stored.
        advice: What makes it anew.
    Raises:
        DataError: the folder holds no such thing, or a damaged one.
    """
    try:
        yield
    except ValidationError as problem:
        raise _unreadable(folder, what, "; ".join(problems_of(problem, kind)), advice) from problem
    except KeyError as problem:
        raise _unreadable(folder, what, f"it has no {problem}", advice) from problem
    except DAMAGED as problem:
        raise _unreadable(folder, what, problem, advice) from problem


def _unreadable(folder: Path, what: str, problem: object, advice: str) -> DataError:
    return DataError(f"Cannot read {what} in {folder}: {problem}. Do: {advice}.")


def read_header(folder: Path, name: str = HEADER) -> dict[str, Any]:
    """The JSON of a folder; to be called within `reading`."""
    header: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return header


def write_header(folder: Path, header: Mapping[str, Any], name: str = HEADER) -> None:
    """Write the JSON of a folder."""
    (folder / name).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file; tensors may share their storage, of which each gets its own there."""
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    save_file(own, path)
