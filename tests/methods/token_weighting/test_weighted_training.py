"""Token weighting in the training loop: heads in optimizer, checkpoints and folders; figures; divisions of a step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.token_weighting.weighted_cases import objective_of
from tests.methods.token_weighting.weighted_worker import CASES, ROWS, train_case
from tests.training.helpers import config, examples, in_two_processes, largest_difference, run, same_bits, weights
from tests.zoo import tiny
from torch import nn
from transformers import AutoModelForCausalLM

from holdfast.core.errors import AdapterError, NumericsError
from holdfast.methods.token_weighting import gates
from holdfast.methods.token_weighting.objective import HEADS, base_of
from holdfast.models.heads import load_heads
from holdfast.training.constraint import Hold
from holdfast.training.loop import TrainResult, train

EXACT = 1e-6


def trained(out: Path, params: Any = "full", resume: bool = False, more: Any = None, **keys: Any) -> TrainResult:
    """A few steps with two further heads."""
    loaded = tiny("llama")
    wanted = {"horizon": 3, "heads": "medusa", "warmup": 0.5, "ramp": 0.25} | keys
    objective = objective_of(loaded, examples(ROWS), **wanted)
    settings = config(steps=4, batch_size=4, learning_rate=5e-3, params=params, **(more or {}))
    return train(loaded, examples(ROWS), settings, out=out, objective=objective, resume=resume)


def heads_in(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / HEADS / "heads.safetensors")


def test_equal_weights_and_no_heads_train_bit_for_bit_as_plain_fine_tuning(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", config(steps=3), n=ROWS)
    objective = objective_of(tiny("llama"), examples(ROWS), scorer="uniform", horizon=4, lambda_heads=0)
    found = run(tmp_path / "b", config(steps=3), n=ROWS, objective=objective)
    assert same_bits(weights(found), weights(plain))
    assert found.curves["loss"] == plain.curves["loss"]


def test_heads_learn_are_kept_beside_the_model_and_are_not_in_it(tmp_path: Path) -> None:
    result = trained(tmp_path, heads="parallel")
    assert not any("heads" in name or "beside" in name for name, _ in result.model.model.named_parameters())
    stock = AutoModelForCausalLM.from_pretrained(result.folder)
    assert stock.num_parameters() == tiny("llama").model.num_parameters()
    heads = load_heads(tmp_path / HEADS, result.model.model, base=base_of(result.folder))
    fresh = objective_of(tiny("llama"), examples(ROWS), horizon=3, heads="parallel").heads
    assert fresh is not None
    assert all(not torch.equal(p, q) for p, q in zip(heads.parameters(), fresh.parameters(), strict=True))
    with pytest.raises(AdapterError, match="not for this model"):
        load_heads(tmp_path / HEADS, result.model.model, base="another")
    names = set(result.curves)
    assert {"head_1", "head_2", "head_3", "head_3/loss", "weight/ess", "rho1/kept_share", "nan_weights"} <= names
    assert len(result.curves["weight/mean"]) == 4


@pytest.mark.parametrize("params", ["full", "lora"])
def test_a_run_with_heads_resumes_bit_for_bit(tmp_path: Path, params: Any) -> None:
    whole = trained(tmp_path / "a", params)
    out = tmp_path / "b"
    trained(out, params, more={"save_every": 3})
    again = trained(out, params, resume=True, more={"save_every": 3})
    assert same_bits(weights(again), weights(whole))
    mine, other = heads_in(out), heads_in(tmp_path / "a")
    assert all(torch.equal(mine[name], other[name]) for name in other)
    if params == "lora":
        kept = load_file(again.folder / "adapter_model.safetensors")
        assert all("lora_" in name for name in kept)


class Nothing:
    """No weight of the model may move."""

    def holds(self, model: nn.Module) -> Mapping[str, Hold | None]:
        return {name: None for name, _ in model.named_parameters()}


def test_heads_learn_under_a_constraint_that_leaves_the_model_no_freedom(tmp_path: Path) -> None:
    loaded = tiny("llama")
    objective = objective_of(loaded, examples(ROWS), horizon=2, heads="medusa")
    train(loaded, examples(ROWS), config(steps=2), out=tmp_path, objective=objective, constraint=Nothing())
    before = tiny("llama").model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert all(bool(value.any()) for value in heads_in(tmp_path).values())


def test_a_collapse_stops_before_the_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LEAST_SHARE", 0.9)
    loaded = tiny("llama")
    objective = objective_of(loaded, examples(ROWS))
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    with pytest.raises(NumericsError, match="Token weights have collapsed"):
        train(loaded, examples(ROWS), config(steps=2), out=tmp_path, objective=objective)
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_one_by_eight_equals_eight_by_one(case: str, tmp_path: Path) -> None:
    whole = train_case(case, tmp_path / "a", batch_size=8)
    parts = train_case(case, tmp_path / "b", batch_size=1, accumulate=8)
    assert largest_difference(weights(parts), weights(whole)) < EXACT
    if "horizon" in CASES[case]:
        assert largest_difference(heads_in(tmp_path / "b"), heads_in(tmp_path / "a")) < EXACT
    for name in set(whole.curves) - {"tokens_per_second"}:
        for (_, a), (_, b) in zip(parts.curves[name], whole.curves[name], strict=True):
            assert abs(a - b) < 10 * EXACT * max(1.0, abs(b)), name


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes("tests.methods.token_weighting.weighted_worker", tmp_path / "pair")
    for case in CASES:
        train_case(case, tmp_path / case, batch_size=8)
        for file in ("model/model.safetensors", "heads/heads.safetensors"):
            if (tmp_path / case / file).is_file():
                pair, single = (load_file(root / file) for root in (tmp_path / "pair" / case, tmp_path / case))
                assert largest_difference(pair, single) < EXACT, (case, file)
