"""What planning is said to take, against what it writes and holds."""

from pathlib import Path
from typing import Any

import pytest
from tests.training.helpers import examples
from tests.zoo import tiny

from holdfast.core.sizes import ROW_TOKENS
from holdfast.layers.address import LayerMap
from holdfast.methods.rotation import plan
from holdfast.methods.rotation.config import RotationConfig
from holdfast.methods.rotation.store import find_basis, save_importance, save_plan
from holdfast.recipes import planning

HEADERS = 40_000
"""Bytes of JSON and of the headers of tensor files."""


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink == 1)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"space": "random"},
        {"unit": "element", "importance": "abs"},
        {"layers": ("q_proj", "layers.1.down_proj"), "importance": "column"},
    ],
)
def test_each_phase_writes_as_much_as_is_said(tmp_path: Path, keys: dict[str, Any]) -> None:
    config, loaded, rows = RotationConfig(frozen_share=0.25, **keys), tiny("llama"), examples(4, seed=7)
    layers = LayerMap.of(loaded.model).select(config.layers or None).layers
    found = find_basis(config, loaded, rows, 0, tmp_path / "basis")
    expected = planning.basis_disk(layers, config.space != "rotated")
    assert 0 <= size(tmp_path / "basis") - expected < HEADERS
    scored = plan.importance(config, loaded, rows, found)
    save_importance(scored, tmp_path / "importance")
    expected = planning.HALVES * planning.scores_bytes(layers, config)
    assert 0 <= size(tmp_path / "importance") - expected < HEADERS
    save_plan(plan.mask(config, scored), tmp_path / "mask", tmp_path / "basis")
    assert 0 <= size(tmp_path / "mask") - planning.mask_disk(layers, config) < HEADERS


def test_the_memory_of_a_basis_is_that_of_the_widest_block() -> None:
    layers = LayerMap.of(tiny("llama").model)
    narrow, wide = 4 * 32**2, 4 * 64**2
    assert planning.moments_bytes(layers.layers) == 2 * (3 * narrow + wide) + 9 * wide
    assert planning.moments_bytes(layers.select("layers.1.q_proj").layers, halves=1) == 10 * narrow
    assert planning.hidden_bytes([3, None, 5], 32, 4) == 8 * ROW_TOKENS * 32 * 4
