from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.close import assert_close
from tests.curvature.oracles import stored_inputs
from tests.methods.causal.made_cases import case, cases, planned
from tests.training.helpers import config
from tests.zoo import tiny

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.layers.address import LayerMap
from holdfast.methods.causal.capacity import capacity
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.plan import plan
from holdfast.methods.causal.store import load_plan, save_plan


def test_nulls_are_those_of_rows_taken_one_at_a_time() -> None:
    loaded, made = tiny("llama"), planned()
    layers = LayerMap.of(loaded.model).select(["layers.1.up_proj"])
    found = []
    for each in cases(8):
        row = loaded.chat.training(each.benign())
        a_ti = stored_inputs(loaded, row, layers)["layers.1.up_proj"].double()
        first = row.response.index(True)
        found.append((a_ti[first - 1], a_ti[first:].mean(0)))
    for kind, R in zip(("prompt", "response"), zip(*found, strict=True), strict=True):
        null = made.nulls[f"layers.1.mlp_input/{kind}"]
        assert_close(null.scale_d, torch.stack(R).std(0))
        assert null.draws_n.shape == (8,)


def test_partners_are_other_cases_and_depend_on_seed_and_id_alone() -> None:
    made = planned(partners=3)
    assert made.partners.shape == (10, 3)
    assert all(len({number, *each.tolist()}) == 4 for number, each in enumerate(made.partners))
    assert torch.equal(planned(partners=3).partners, made.partners)
    assert not torch.equal(planned(partners=3, seed=1).partners, made.partners)


def test_a_case_with_the_same_prompt_is_no_partner() -> None:
    same = [replace(case(0), id=f"same-{n}", payload=f"Say {n}.", payload_answer=str(n)) for n in range(8)]
    with pytest.raises(DataError, match=r"'same-0/benign' has too few partners: got 0 of 8"):
        plan(CausalConfig(samples=8), tiny("llama"), same)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"answer": " "}, "no answer to learn"),
        (
            {"attacked_answer": "No."},
            r"wants another answer under attack: its 'attacked_answer' is 'No.', as in 1 of 4",
        ),
        ({"attacked_data": "The spring tide"}, "is not attacked"),
        ({"payload_answer": ""}, "no answer to its payload"),
        ({"id": "case-train-0"}, "Two cases have the id 'case-train-0'"),
        ({"data": "long " * 60}, "does not fit the model"),
    ],
)
def test_a_case_that_cannot_be_trained_on_is_named(wrong: dict[str, str], match: str) -> None:
    bad = case(3, data="The spring tide")
    with pytest.raises(DataError, match=match):
        plan(CausalConfig(samples=8), tiny("llama"), [*cases(3), replace(bad, **wrong)])


def test_a_missing_twin_is_refused_only_where_twins_are_asked_for() -> None:
    without = [replace(each, twin_data="") for each in cases(8)]
    assert "twin" not in plan(CausalConfig(samples=8), tiny("llama"), without).cases.views
    with pytest.raises(DataError, match="has no twin"):
        plan(CausalConfig(samples=8, twin=True), tiny("llama"), without)


def test_one_case_is_too_few() -> None:
    with pytest.raises(DataError, match="got 1 cases, expected at least 2"):
        plan(CausalConfig(samples=8), tiny("llama"), cases(1))


def test_a_representation_that_is_the_same_for_all_cases_is_refused() -> None:
    """Before the first attention, the last token of every prompt is the same."""
    with pytest.raises(NumericsError, match=r"layers.0.attention_input/prompt are the same for all 8 cases"):
        planned(layers=("layers.0.q_proj",))


def test_representations_that_are_not_finite_are_refused() -> None:
    loaded = tiny("llama")
    loaded.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(NumericsError, match=r"layers.1.mlp_input/\w+ are not finite.*'case-train"):
        planned(loaded)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read a causal plan"):
        load_plan(tmp_path)
    save_plan(planned(), tmp_path / "plan")
    (tmp_path / "plan" / "plan.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="Cannot read a causal plan"):
        load_plan(tmp_path / "plan")


def test_capacity_counts_rows_tokens_and_steps() -> None:
    loaded = tiny("llama")
    made = planned(loaded, lambda_preference=0.5)
    found = capacity(made, loaded, config(steps=None, epochs=3, batch_size=2, accumulate=2, params="lora"))
    rows = {view: [made.cases.views[view][n] for n in range(10)] for view in ("benign", "attacked", "payload")}
    assert found.attacks == {"ignore": 5, "naive": 5}
    assert found.positions == {"after": 10}
    assert found.steps == 9  # 10 cases in steps of 4, 3 times
    assert found.tokens == sum(len(row) for each in rows.values() for row in each)
    assert found.learnt_tokens == 2 * sum(sum(row.response) for row in rows["benign"])
    assert found.longest == max(len(row) for each in rows.values() for row in each)
    weights = sum(p.numel() * 4 for p in loaded.model.parameters())
    assert weights < found.memory_bytes < weights + 40_000_000


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"lambda_task": 0, "lambda_causal": 0, "lambda_spurious": 0}, "every lambda is 0"),
        ({"lambda_spurious": 0, "temperature": 0.1}, "temperature has no effect"),
        ({"lambda_spurious": 0, "twin": True}, "twin has no effect"),
        ({"beta": 0.2}, "beta has no effect"),
        ({"lambda_spurious": 0, "lambda_causal": 0, "gradient": "both"}, "gradient has no effect"),
    ],
)
def test_a_key_without_effect_is_refused(keys: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CausalConfig(**keys)


def test_a_term_of_weight_0_is_left_out() -> None:
    from holdfast.methods.causal.apply import apply

    loaded = tiny("llama")
    made = planned(loaded, lambda_causal=0, lambda_spurious=0)
    batch_terms = apply(loaded, made)._lambdas
    assert batch_terms == {"task": 1.0}
    with pytest.raises(ConfigError, match="another model"):
        apply(tiny("gpt2"), made)
