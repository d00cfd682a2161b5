"""What a repair takes is told from shapes, and grows with what is read and held."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.cost import Base, Shape, cost
from holdfast.methods.merging.repair_config import RepairConfig
from holdfast.methods.merging.repair_cost import repair_cost, repaired_rank

SHAPES = {"layers.0.q_proj": (64, 32, 4), "layers.0.up_proj": (128, 32, 4)}
BASE = Base(parameters=10_000, weight_bytes=40_000, pass_bytes=90_000)


def takes(
    rows: tuple[int, int] = (0, 0), names: tuple[str, ...] = tuple(SHAPES), models: int = 0, **settings: Any
) -> Any:
    return repair_cost(RepairConfig(**settings), SHAPES, names, rows, BASE, models=models)


def test_repair_takes_what_the_merge_with_a_zero_adapter_takes() -> None:
    pairs = {name: Shape(o, i, (rank, 0)) for name, (o, i, rank) in SHAPES.items()}
    assert takes((8, 8)) == cost(MergingConfig(rule="sst"), pairs, (8, 8), BASE)


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({}, 4),
        ({"method": "scale"}, 4),
        ({"method": "lox", "directions": 3}, 7),
        ({"method": "csulora"}, 8),
        ({"method": "prune"}, 32),
        ({"method": "prune", "rank": 5}, 5),
    ],
)
def test_disk_is_that_of_the_factors_and_layers_left_out_keep_their_rank(settings: dict[str, Any], rank: int) -> None:
    assert repaired_rank(RepairConfig(**settings), 64, 32, 4) == rank
    assert takes((2, 2), ("layers.0.q_proj",), **settings).disk_bytes == 4 * (rank * (64 + 32) + 4 * (128 + 32))


def test_rows_dense_matrices_and_other_models_take_memory() -> None:
    assert takes((500, 500)).memory_bytes > takes((8, 8)).memory_bytes
    assert takes((500, 500), samples=8) == takes((8, 8))
    scaled, aligned, pruned = (takes((8, 8), method=m).memory_bytes for m in ("scale", "safe_lora", "prune"))
    entries = 64 * 32 + 128 * 32
    assert aligned - scaled >= 4 * entries
    assert pruned - aligned >= 4 * entries + BASE.pass_bytes - BASE.weight_bytes
    assert takes(method="irr", models=1).memory_bytes - takes(method="irr").memory_bytes == BASE.weight_bytes
