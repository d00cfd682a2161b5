"""Gradients that memory does not hold: the same merge from a temporary file that is gone with the plan."""

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.merging.expert_plans import experts, planned
from tests.zoo import tiny

from holdfast.core.errors import DataError
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging.apply import merge
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.cost import cost, shapes_of
from holdfast.methods.merging.evidence import Evidence, Lazily
from holdfast.methods.merging.plan import MergePlan
from holdfast.methods.merging.scratch import Scratch
from holdfast.methods.merging.spectrum import spectra
from holdfast.methods.merging.store import load_plan, save_plan

GRADIENTS: list[dict[str, Any]] = [
    *({"fisher": form} for form in ("full", "global", "block", "diagonal", "gradient_variance", "topk")),
    {"rule": "fisher"},
    {"rule": "sst_projection"},
]
LIMIT = "holdfast.methods.merging.evidence.HELD_BYTES"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def files_of(folder: Path) -> int:
    """How many files of this process lie there, also those whose names are gone."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())


def assert_same_bits(found: MergePlan, wanted: MergePlan) -> None:
    there = merge(wanted).adapter.deltas
    for name, delta in merge(found).adapter.deltas.items():
        assert torch.equal(delta.A, there[name].A)
        assert torch.equal(delta.B, there[name].B)
    assert spectra(found) == spectra(wanted)


@pytest.mark.parametrize("keys", GRADIENTS, ids=str)
def test_gradients_on_disk_give_the_bits_of_gradients_in_memory(
    keys: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = planned(tiny("llama"), **keys)
    monkeypatch.setattr(LIMIT, 0)
    kept = planned(tiny("llama"), **keys)
    assert_same_bits(kept, held)
    save_plan(kept, tmp_path / "plan")
    assert_same_bits(load_plan(tmp_path / "plan"), held)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_the_file_has_no_name_and_is_gone_with_the_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIMIT, 0)
    made = planned(tiny("llama"))
    assert not list(folder.iterdir())
    assert files_of(folder) == 1
    merge(made)
    gc.collect()
    assert files_of(folder) == 1, "what was looked at is let go"
    del made
    gc.collect()
    assert files_of(folder) == 0


def test_the_limit_is_the_size_of_the_gradients_which_the_cost_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, config = tiny("llama"), MergingConfig()
    given = shapes_of([expert.adapter for expert in experts(loaded)])
    size = 4 * 8 * sum(shape.coordinates for shape in given.values())
    for limit, kept in ((size, False), (size - 1, True)):
        for module in ("evidence", "cost"):
            monkeypatch.setattr(f"holdfast.methods.merging.{module}.HELD_BYTES", limit)
        told = cost(config, given, [4, 4], None)
        assert told.scratch_bytes == (size if kept else 0)
        made = planned(loaded, layers=())
        d = sum(space.left_op.shape[1] * space.right_iq.shape[1] for space in map(CoreSpace.of, made.deltas.values()))
        assert 4 * 8 * d == size
        assert all(isinstance(seen, Lazily) == kept for seen in made.evidence.values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_is_told_in_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(DataError, match=r"Cannot keep gradients in .*scratch: No space left.*Do: let TMPDIR name"):
            Scratch().write(("x", 0), 3, [1], torch.ones(1, 5))


def test_rows_come_back_where_they_were_put() -> None:
    scratch, draw = Scratch(), torch.Generator().manual_seed(0)
    wanted = {
        (name, t): torch.randn(5, 3 + t, generator=draw, dtype=dtype)
        for name, dtype in (("a", torch.float32), ("b", torch.float64))
        for t in range(2)
    }
    for numbers in ([4, 0], [2], [1, 3]):
        for key, G_nd in wanted.items():
            scratch.write(key, 5, numbers, G_nd[numbers])
    for key, G_nd in wanted.items():
        assert torch.equal(scratch.read(key), G_nd)
        assert scratch.read(key).dtype == G_nd.dtype


def test_lazy_evidence_is_a_sequence() -> None:
    made: list[int] = []

    def maker(t: int) -> Evidence:
        made.append(t)
        return Evidence(gradients=torch.full((1, 1), float(t)))

    seen = Lazily([lambda t=t: maker(t) for t in range(3)])  # type: ignore[misc]
    both = Lazily.of(seen[1:], (Evidence(),))
    assert made == []
    assert (len(seen), len(both)) == (3, 3)
    assert [float(each.gradients) for each in both[:2] if each.gradients is not None] == [1, 2]
    assert both[2].gradients is None
    assert made == [1, 2]
