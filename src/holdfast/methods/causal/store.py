"""A plan on disk: tokens and tensors in one safetensors file, everything else in one JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from holdfast.core.files import folder_atomically
from holdfast.data.batches import Encoded, Rows
from holdfast.methods.causal.cases import Cases
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.plan import CausalPlan, Null, Origin
from holdfast.methods.stored import read_header, reading, write_header, write_tensors

TENSORS = "plan.safetensors"
_OF_NULL = ("scale_d", "draws_n")


def save_plan(made: CausalPlan, folder: Path) -> None:
    """Write a whole plan."""
    cases = made.cases
    header = {
        "config": made.config.model_dump(mode="json", exclude_unset=True),
        "origin": asdict(made.origin),
        "groups": dict(made.groups),
        "window": made.window,
        "attacks": cases.attacks,
        "positions": cases.positions,
        "ids": {view: [rows[n].id for n in range(len(rows))] for view, rows in cases.views.items()},
        "nulls": {
            name: {"stability": null.stability, "separation": null.separation, "rank": null.rank}
            for name, null in made.nulls.items()
        },
    }
    with folder_atomically(folder) as fresh:
        write_tensors(fresh / TENSORS, _tensors(made))
        write_header(fresh, header)


def _tensors(made: CausalPlan) -> dict[str, Tensor]:
    found = {f"null/{kind}/{name}": getattr(null, kind) for name, null in made.nulls.items() for kind in _OF_NULL}
    for view, rows in made.cases.views.items():
        every = [rows[n] for n in range(len(rows))]
        found[f"tokens/{view}"] = torch.tensor(list(chain.from_iterable(row.ids for row in every)), dtype=torch.int32)
        found[f"learnt/{view}"] = torch.tensor(list(chain.from_iterable(row.response for row in every)))
        found[f"lengths/{view}"] = torch.tensor(rows.lengths)
    return found | {"partners": made.partners} | ({} if made.start is None else {"start": made.start})


def load_plan(folder: Path) -> CausalPlan:
    """Read a whole plan, onto the CPU.

    Raises:
        DataError: the folder holds no plan, or a damaged one.
    """
    with reading(folder, "a causal plan", CausalConfig):
        return _plan(read_header(folder), load_file(folder / TENSORS))


def _plan(header: Mapping[str, Any], found: Mapping[str, Tensor]) -> CausalPlan:
    origin = Origin(**header["origin"])
    views = {view: _rows(ids, found, view) for view, ids in header["ids"].items()}
    nulls = {
        name: Null(scale_d=found[f"null/scale_d/{name}"], draws_n=found[f"null/draws_n/{name}"], **figures)
        for name, figures in header["nulls"].items()
    }
    return CausalPlan(
        cases=Cases(views, tuple(header["attacks"]), tuple(header["positions"]), origin.n_cases),
        partners=found["partners"],
        nulls=nulls,
        groups=header["groups"],
        start=found.get("start"),
        window=header["window"],
        config=CausalConfig(**header["config"]),
        origin=origin,
    )


def _rows(ids: list[str], found: Mapping[str, Tensor], view: str) -> Rows:
    lengths = found[f"lengths/{view}"].tolist()
    tokens, learnt = (torch.split(found[f"{kind}/{view}"], lengths) for kind in ("tokens", "learnt"))
    return Rows(
        Encoded(name, tuple(each.tolist()), tuple(marks.tolist()))
        for name, each, marks in zip(ids, tokens, learnt, strict=True)
    )
