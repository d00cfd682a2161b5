"""Plans of merges on disk, beyond what every method's plan is held to (`tests/methods/test_contract.py`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.expert_plans import adapter, planned
from tests.training.helpers import examples
from tests.zoo import tiny

from holdfast.core.errors import AdapterError, DataError
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging.apply import merge
from holdfast.methods.merging.config import READS, WITH_ROWS, MergingConfig
from holdfast.methods.merging.plan import Expert, plan
from holdfast.methods.merging.store import LAYERS, load_plan, save_plan
from holdfast.methods.stored import HEADER


@pytest.mark.parametrize("rule", READS)
def test_a_plan_from_disk_gives_the_bits_of_the_plan_that_was_saved(rule: str, tmp_path: Path) -> None:
    made = planned(tiny("llama"), rule=rule, weights=(0.5, 2.0), seed=7)
    save_plan(made, tmp_path / "plan")
    back = load_plan(tmp_path / "plan")
    assert bool(back.evidence) == (rule in WITH_ROWS)
    assert back.config.model_fields_set == made.config.model_fields_set | {"rule"}
    expected, found = merge(made), merge(back)
    assert found.truncation == expected.truncation
    assert found.adapter.metadata == expected.adapter.metadata
    for name, delta in expected.adapter.deltas.items():
        assert torch.equal(found.adapter.deltas[name].A, delta.A)
        assert torch.equal(found.adapter.deltas[name].B, delta.B)


def _flipped(decompose: Any) -> Any:
    """The same decomposition with signs that another library may give: here every second vector is turned over."""

    def other(X: torch.Tensor, *args: Any, **keys: Any) -> Any:
        first, *rest = decompose(X, *args, **keys)
        if len(rest) == 1:
            return first, rest[0] * _signs(rest[0].shape[1])
        return first * _signs(first.shape[1]), rest[0], rest[1] * _signs(len(rest[1]))[:, None]

    return other


def _signs(count: int) -> torch.Tensor:
    return (-1.0) ** torch.arange(count)


@pytest.mark.parametrize("rule", WITH_ROWS)
def test_a_plan_means_the_same_to_another_linear_algebra_library(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tiny("llama"), n=8, rule=rule, weights=(0.5, 2.0))
    save_plan(made, tmp_path / "plan")
    expected = merge(made).adapter
    for name in ("eigh", "svd"):
        monkeypatch.setattr(torch.linalg, name, _flipped(getattr(torch.linalg, name)))
    layer = "layers.0.q_proj"
    cosines = (CoreSpace.of(made.deltas[layer]).left_op * made.spaces[layer].left_op).sum(0)
    assert sorted(set(cosines.round().tolist())) == [-1, 1], "some axes are turned over, some are not"
    for name, delta in merge(load_plan(tmp_path / "plan")).adapter.deltas.items():
        assert_close(delta.dense(), expected.deltas[name].dense())


def test_another_weight_is_tried_from_disk_without_the_model(tmp_path: Path) -> None:
    made = planned(tiny("llama"))
    save_plan(made, tmp_path / "plan")
    expected = merge(made.with_last(3.0)).adapter
    for name, delta in merge(load_plan(tmp_path / "plan").with_last(3.0)).adapter.deltas.items():
        assert torch.equal(delta.dense(), expected.deltas[name].dense())


def test_one_adapter_may_stand_twice_in_a_plan(tmp_path: Path) -> None:
    loaded = tiny("llama")
    one = adapter(loaded, 2, 1)
    given = [Expert(name, one, examples(4, seed=number)) for number, name in enumerate("ab")]
    save_plan(plan(MergingConfig(), loaded, given), tmp_path / "plan")
    assert load_plan(tmp_path / "plan").origin.names == ("a", "b")


def _without(folder: Path, key: str) -> None:
    header = json.loads((folder / HEADER).read_text())
    header.pop(key)
    (folder / HEADER).write_text(json.dumps(header))


def _another_rule(folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps(header | {"config": {"rule": "tie"}}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / HEADER).unlink(),
        lambda folder: (folder / HEADER).write_text("{"),
        lambda folder: _without(folder, "origin"),
        lambda folder: _without(folder, "paths"),
        _another_rule,
        lambda folder: (folder / LAYERS / "layers.1.q_proj.safetensors").unlink(),
        lambda folder: (folder / LAYERS / "layers.1.q_proj.safetensors").write_bytes(b"\x10"),
        lambda folder: (folder / LAYERS / "layers.1.q_proj.safetensors").write_bytes(
            (folder / LAYERS / "layers.1.q_proj.safetensors").read_bytes()[:-40]
        ),
    ],
)
def test_a_damaged_plan_is_refused_in_a_sentence(spoil: Any, tmp_path: Path) -> None:
    save_plan(planned(tiny("llama")), tmp_path / "plan")
    spoil(tmp_path / "plan")
    with pytest.raises(DataError, match=r"Cannot read a merge plan in .*plan: .* Do: plan again"):
        load_plan(tmp_path / "plan")


def test_a_failed_write_leaves_the_plan_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_plan(planned(tiny("llama")), tmp_path / "plan")
    before = {path: path.read_bytes() for path in (tmp_path / "plan").rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise AdapterError("no room")

    monkeypatch.setattr("holdfast.methods.merging.store.write_tensors", full)
    with pytest.raises(AdapterError, match="no room"):
        save_plan(planned(tiny("llama"), weights=(1.0, 2.0)), tmp_path / "plan")
    assert {path: path.read_bytes() for path in (tmp_path / "plan").rglob("*") if path.is_file()} == before
