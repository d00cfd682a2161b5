"""From a plan to an adapter: every rule on whole models, and what the merged model computes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.expert_plans import FEW, adapter, experts
from tests.training.helpers import examples
from tests.zoo import FAMILIES, tiny
from torch import Tensor

from holdfast.core.errors import AdapterError, ConfigError, NumericsError
from holdfast.layers.adapters import Adapter, LowRank, added, merge_into
from holdfast.layers.address import LayerMap
from holdfast.methods.merging import MERGING
from holdfast.methods.merging.apply import apply, merge
from holdfast.methods.merging.config import PAIRS, READ_BY_ALL, READS, WITH_ROWS, MergingConfig
from holdfast.methods.merging.plan import Expert, MergePlan, plan
from holdfast.methods.merging.rules import RULES

IDS = torch.arange(12).reshape(2, 6) * 7
SUMS = {"task_arithmetic", "cat"}
rules = pytest.mark.parametrize("rule", READS)
FORMS = ("full", "global", "block", "kfac", "diagonal", "gradient_variance", "topk")


def made(rule: str, given: Sequence[Expert] | None = None, **keys: Any) -> MergePlan:
    loaded = tiny("llama")
    given = experts(loaded) if given is None else given
    whole = {key: value for key, value in {"density": 1.0, "gamma": 0.0}.items() if key in READS[rule]}
    return plan(MergingConfig(**({"rule": rule, "layers": FEW} | whole | keys)), loaded, given)


def dense(adapter: Adapter) -> dict[str, Tensor]:
    return {name: delta.dense().double() for name, delta in adapter.deltas.items()}


def assert_same(found: Adapter, expected: Adapter, tolerance: str = "float32") -> None:
    assert found.deltas.keys() == expected.deltas.keys()
    for name, delta in dense(found).items():
        assert_close(delta, dense(expected)[name], tolerance)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


@rules
def test_one_adapter_is_the_identity(rule: str) -> None:
    given = experts(tiny("llama"))
    alone = 1 if rule == "alignguard" else 0  # of the first it takes what the second's rows forbid
    if rule in PAIRS:  # the other adapter changes nothing
        nothing = {name: LowRank(d.A, 0 * d.B) for name, d in given[1 - alone].adapter.deltas.items()}
        given[1 - alone] = replace(given[1 - alone], adapter=replace(given[1 - alone].adapter, deltas=nothing))
    else:
        given = given[:1]
    merged = merge(made(rule, given)).adapter
    for name, delta in merged.deltas.items():
        whole = given[alone].adapter.deltas[name].dense()
        if rule == "iso_c":
            U, s, Vh = torch.linalg.svd(whole, full_matrices=False)
            whole = s[:2].mean() * U[:, :2] @ Vh[:2]
        assert_close(delta.dense(), whole)


@rules
def test_the_order_of_adapters_does_not_matter_but_for_their_roles(rule: str) -> None:
    given = experts(tiny("llama"))
    keys: dict[str, Any] = {"point": "own"} if rule == "sst_projection" else {}
    if rule in RULES and RULES[rule].space == "dense":
        keys |= {"density": 0.6, "rank": 32}
    there = merge(made(rule, given, weights=(0.7, 1.6), **keys)).adapter
    back = merge(made(rule, given[::-1], weights=(1.6, 0.7), **keys)).adapter
    if rule in PAIRS:
        assert any((dense(there)[name] - delta).norm() > 0.01 for name, delta in dense(back).items())
    else:
        assert_same(back, there)


@rules
def test_an_adapter_of_weight_0_is_left_out(rule: str) -> None:
    given = experts(tiny("llama"))
    if rule not in PAIRS:
        keys: dict[str, Any] = {"density": 0.6} if "density" in READS[rule] else {}
        silenced = merge(made(rule, given[::-1], weights=(0.0, 1.0), **keys)).adapter
        assert_same(silenced, merge(made(rule, given[:1], weights=(1.0,), **keys)).adapter)
    merged = merge(made(rule, given, weights=(1.0, 0.0))).adapter
    if rule in PAIRS:
        assert_same(merged, replace(given[0].adapter, deltas={n: given[0].adapter.deltas[n] for n in merged.deltas}))
    else:
        alone = merge(made(rule, given[:1], weights=(1.0,))).adapter
        assert dense(merged).keys() == dense(alone).keys()
        assert_same(merged, alone)


@rules
def test_scaled_adapters_give_a_scaled_merge(rule: str) -> None:
    """Gradients are taken at the base, which does not move with the adapters."""
    keys: dict[str, Any] = {"point": "base"} if rule in WITH_ROWS else {}
    given = experts(tiny("llama"))
    larger = [
        replace(e, adapter=replace(e.adapter, deltas={n: LowRank(d.A, 2 * d.B) for n, d in e.adapter.deltas.items()}))
        for e in given
    ]
    once, twice = (dense(merge(made(rule, each, **keys)).adapter) for each in (given, larger))
    for name, delta in twice.items():
        assert_close(delta, 2 * once[name], "float32")


@pytest.mark.parametrize("fisher", FORMS)
def test_every_form_of_fisher_matrix_merges_whole_models(fisher: str) -> None:
    given = experts(tiny("llama"), (2, 3, 1))
    merged = merge(made("sst", given, fisher=fisher, weights=(1.0, 2.0, 0.5))).adapter
    for name, delta in dense(merged).items():
        assert delta.norm() > 0.01
        assert int(torch.linalg.matrix_rank(delta, rtol=1e-5)) <= 6
        inside = [each.adapter.deltas[name] for each in given]
        left, right = torch.cat([d.B for d in inside], 1).double(), torch.cat([d.A for d in inside]).double()
        projected = left @ torch.linalg.pinv(left) @ delta @ torch.linalg.pinv(right) @ right
        assert_close(projected, delta, "float32")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["sst", "ties", "task_arithmetic"])
def test_the_merged_model_computes_what_the_base_with_the_merged_deltas_does(rule: str, family: str) -> None:
    loaded = tiny(family)
    merged = apply(loaded, plan(MergingConfig(rule=rule), loaded, experts(loaded)))
    base = tiny(family)
    layers = LayerMap.of(base.model)
    for name, delta in dense(merged).items():
        layers.write(name, layers.read(name) + delta)
    assert (logits(base.model) - logits(loaded.model)).abs().max() > 0.01
    with added(loaded.model, merged):
        assert_close(logits(loaded.model), logits(base.model))
    merge_into(loaded.model, merged)
    assert_close(logits(loaded.model), logits(base.model))


def test_a_sum_of_deltas_is_the_sum_of_what_they_do_to_each_weight() -> None:
    given = experts(tiny("llama"))
    for rule in SUMS:
        merged = merge(made(rule, given, weights=(0.7, -0.4))).adapter
        for name, delta in dense(merged).items():
            assert_close(delta, 0.7 * given[0].adapter.delta(name) - 0.4 * given[1].adapter.delta(name))


@rules
def test_the_rank_that_was_asked_for_is_kept_to_and_its_cost_is_told(rule: str) -> None:
    whole = merge(made(rule, rank=32))
    assert max(whole.truncation.values()) < 1e-5
    cut = merge(made(rule, rank=1))
    for name, delta in cut.adapter.deltas.items():
        assert delta.rank == 1
        full = dense(whole.adapter)[name]
        lost = float((full - delta.dense()).norm() / full.norm())
        assert lost > 0.1
        if rule == "iso_c":  # flat: any direction is as good as another
            continue
        assert cut.truncation[name] == pytest.approx(lost, rel=1e-3)


def test_without_a_rank_nothing_is_cut_off_or_the_sum_of_the_ranks_is_kept() -> None:
    for rule in READS:
        merged = merge(made(rule))
        assert all(delta.rank <= 5 for delta in merged.adapter.deltas.values()), rule
        if rule == "svd":
            continue
        if rule in WITH_ROWS or RULES[rule].space == "core":
            assert max(merged.truncation.values()) == 0, rule
        else:
            assert {delta.rank for delta in merged.adapter.deltas.values()} == {5}, rule


def test_svd_without_a_rank_is_the_best_sum_of_the_largest_rank_of_the_inputs() -> None:
    whole, cut = merge(made("task_arithmetic", weights=(0.7, 1.6))), merge(made("svd", weights=(0.7, 1.6)))
    for name, D in dense(whole.adapter).items():
        U, s, Vh = torch.linalg.svd(D)
        assert cut.adapter.deltas[name].rank == 3
        assert_close(dense(cut.adapter)[name], U[:, :3] * s[:3] @ Vh[:3])
        assert cut.truncation[name] == pytest.approx(float(s[3:].norm() / s.norm()), rel=1e-3)
        assert cut.truncation[name] > 0.05


def test_the_record_beside_the_weights_says_how_it_was_made() -> None:
    found = apply(tiny("llama"), made("sst", weights=(1.0, 3.0), seed=4)).metadata
    assert found["method"] == "merging"
    assert found["config"] == {
        "rule": "sst",
        "weights": [1.0, 3.0],
        "seed": 4,
        "layers": list(FEW),
        "rank": None,
        "labels": "empirical",
        "point": "own",
        "samples": None,
        "damping": 0.01,
        "fisher": "full",
    }
    assert found["weights"] == [1.0, 3.0]
    assert found["origin"]["names"] == ("expert-0", "expert-1")
    assert found["origin"]["model"] == "tiny-llama-0"
    assert found["origin"]["n_rows"] == (4, 4)


@pytest.mark.parametrize("rule", READS)
def test_settings_that_were_left_out_are_recorded_as_they_were_used(rule: str) -> None:
    own: dict[str, Any] = {"density": None} if "density" in READS[rule] else {}
    found = merge(made(rule, **own)).adapter
    config = found.metadata["config"]
    assert config.keys() == (READ_BY_ALL | READS[rule]) - {"share"}
    assert config["weights"] == [1.0, 1.0]
    assert all(config[key] == RULES[rule].density for key in own)
    told = {key: value for key, value in config.items() if key not in {"rule", "layers"}}
    again = merge(made(rule, **told)).adapter
    assert again.metadata["config"] == config
    for name, delta in found.deltas.items():
        assert torch.equal(again.deltas[name].dense(), delta.dense())


def test_a_share_of_the_largest_squares_is_recorded_where_it_counts_and_taus_and_points_are() -> None:
    assert merge(made("sst", fisher="topk")).adapter.metadata["config"]["share"] == 0.3
    assert merge(made("safe_merge")).adapter.metadata["config"]["tau"] == 0.35
    assert merge(made("sst_projection")).adapter.metadata["config"]["point"] == "utility"


def test_weights_of_several_adapters_do_not_change_the_evidence() -> None:
    """So that a dial is tried without looking at the rows again."""
    one = made("sst", weights=(1.0, 1.0))
    turned = one.with_last(7.0)
    assert_same(merge(turned).adapter, merge(made("sst", weights=(1.0, 7.0))).adapter)


def test_a_plan_of_another_model_or_template_is_refused() -> None:
    found = made("sst")
    with pytest.raises(
        ConfigError, match=r"plan is of another model: got tiny-llama-1, expected tiny-llama-0\. Do: plan"
    ):
        apply(tiny("llama", seed=1), found)
    other = replace(found, origin=replace(found.origin, template="0123456789abcdef"))
    with pytest.raises(ConfigError, match="plan is of another chat template"):
        MERGING.apply(tiny("llama"), other)
    with pytest.raises(AdapterError, match="does not belong to this"):
        merge_into(tiny("gpt2").model, merge(found).adapter)


def test_a_plan_of_adapters_alone_fits_any_model_that_they_fit() -> None:
    assert apply(tiny("llama", seed=1), made("ties")).deltas


def test_a_merge_that_the_evidence_does_not_decide_names_its_layer() -> None:
    found = made("sst")
    silent = {
        name: tuple(
            replace(each, gradients=torch.zeros_like(each.gradients)) for each in seen if each.gradients is not None
        )
        for name, seen in found.evidence.items()
    }
    with pytest.raises(NumericsError, match=r"layers\.0\.q_proj do not decide the merge"):
        merge(replace(found, evidence=silent))


def test_two_experts_may_have_the_same_weights_and_other_rows() -> None:
    loaded = tiny("llama")
    one = adapter(loaded, 2, 1)
    given = [Expert("a", one, examples(4, seed=1)), Expert("b", one, examples(4, seed=2))]
    merged = merge(made("sst", given)).adapter
    assert_same(merged, replace(one, deltas={name: one.deltas[name] for name in merged.deltas}))
