"""Repair against a float64 solve of its formula, its laws, its rivals behind the same door, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.expert_plans import FEW, adapter
from tests.training.helpers import examples
from tests.zoo import tiny
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, LayerError
from holdfast.curvature.fisher import core_gradients
from holdfast.layers.adapters import Adapter, LowRank, added, read_peft
from holdfast.layers.address import LayerMap
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging import output, spectrum
from holdfast.methods.merging.evidence import Evidence
from holdfast.methods.merging.plan import Expert
from holdfast.methods.merging.repair import RepairPlan, delta_of, repair, repair_plan
from holdfast.methods.merging.repair_config import DIALS, READS, WITH_ROWS, WITH_UNALIGNED, RepairConfig
from holdfast.models.load import LoadedModel

NAME = "layers.0.q_proj"
IDENTITY = {"repair": 0.0, "scale": 1.0, "safe_lora": -1.0, "lox": 0.0, "csulora": 0.0, "irr": 0.0, "prune": 0.0}
"""Where each method's dial changes nothing."""


def expert(loaded: LoadedModel, rank: int = 2, n: int = 4) -> Expert:
    return Expert("tuned", adapter(loaded, rank, seed=1), examples(n, seed=20))


def planned(loaded: LoadedModel, rank: int = 2, n: int = 4, **keys: Any) -> RepairPlan:
    """A plan of few layers."""
    config = RepairConfig(**({"layers": FEW} | keys))
    unaligned = tiny("llama", seed=5) if config.method in WITH_UNALIGNED else None
    return repair_plan(config, loaded, expert(loaded, rank, n), examples(n + 1, seed=30), unaligned)


def dense(found: Adapter) -> dict[str, Tensor]:
    return {name: delta.dense() for name, delta in found.deltas.items()}


def solved(plan: RepairPlan, name: str, form: str, mu: float, damping: float) -> Tensor:
    """``(F_u + mu F_s)^-1 F_u phi``, lifted, with dense float64 matrices made of the plan's gradients."""
    delta = plan.adapter.deltas[name]
    space = CoreSpace.of([delta])
    M_pq = space.core(delta).double()
    p, q = M_pq.shape
    curved = []
    for seen in plan.pair.evidence[name]:
        assert seen.gradients is not None
        G_nd = seen.gradients.double()
        F_dd = G_nd.T @ G_nd / len(G_nd)
        block_dd = torch.kron(torch.eye(p), torch.ones(q, q)) if form == "block" else torch.eye(p * q)
        F_dd = F_dd if form == "full" else F_dd * block_dd
        curved.append(F_dd + damping * F_dd.diagonal().mean() * torch.eye(p * q))
    phi_d = torch.linalg.solve(curved[0] + mu * curved[1], curved[0] @ M_pq.flatten())
    lifted: Tensor = space.left_op.double() @ phi_d.reshape(p, q) @ space.right_iq.double().T
    return lifted


@pytest.mark.parametrize(("rank", "n"), [(2, 4), (2, 2), (3, 9)], ids=["more rows", "fewer rows", "rank 3"])
@pytest.mark.parametrize("form", ["full", "block", "diagonal"])
def test_repair_is_the_solution_of_its_formula(form: str, rank: int, n: int) -> None:
    plan = planned(tiny("llama"), rank, n, fisher=form, mu=0.7, damping=0.05)
    found = dense(repair(plan).adapter)
    for name in plan.pair.deltas:
        assert_close(found[name], solved(plan, name, form, 0.7, 0.05), "float32")


def test_gradients_are_those_at_the_full_adapter_and_at_the_share_that_point_names() -> None:
    loaded = tiny("llama")
    use, harm = ([loaded.chat.training(row) for row in examples(n, seed=seed)] for n, seed in ((4, 20), (5, 30)))
    for point in (0.0, 0.5, 1.0):
        plan = planned(loaded, point=point)
        spaces = {name: CoreSpace.of(pair) for name, pair in plan.pair.deltas.items()}
        for place, (rows, share) in enumerate(((use, 1.0), (harm, point))):
            with added(loaded.model, plan.adapter, share):
                wanted = core_gradients(loaded, rows, spaces)
            for name, seen in plan.pair.evidence.items():
                assert seen[place].gradients is not None
                assert_close(seen[place].gradients, wanted[name])


def test_safety_rows_that_are_utility_rows_too_are_counted() -> None:
    loaded = tiny("llama")
    both = [*examples(3, seed=20), *examples(2, seed=30)]
    made = repair_plan(RepairConfig(layers=FEW), loaded, expert(loaded), both)
    assert made.notes()[1:] == ("3 of the safety rows are utility rows too: they speak for both.",)
    assert len(planned(loaded).notes()) == 1


def test_half_way_is_the_point_that_is_meant_where_none_is_named() -> None:
    plan, half = planned(tiny("llama")), planned(tiny("llama"), point=0.5)
    harm = [p.pair.evidence[NAME][1].gradients for p in (plan, half)]
    assert harm[0] is not None
    assert harm[1] is not None
    assert_close(harm[0], harm[1], "exact")


def test_sampled_labels_are_drawn_for_utility_rows_alone() -> None:
    own, drawn = (planned(tiny("llama"), labels=labels).pair.evidence[NAME] for labels in ("empirical", "sampled"))
    assert not torch.equal(own[0].gradients, drawn[0].gradients)  # type: ignore[arg-type]
    assert torch.equal(own[1].gradients, drawn[1].gradients)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", IDENTITY)
def test_where_the_dial_says_nothing_the_adapter_is_as_before(method: str) -> None:
    plan = planned(tiny("llama"), method=method).at(IDENTITY[method])
    found, before = dense(repair(plan).adapter), dense(plan.adapter)
    assert found.keys() == before.keys()
    for name in before:
        assert_close(found[name], before[name])


@pytest.mark.parametrize("method", IDENTITY)
def test_every_other_value_of_a_dial_changes_the_chosen_layers_and_leaves_the_others_bit_for_bit(method: str) -> None:
    plan = planned(tiny("llama"), method=method, layers=(NAME,))
    for value in DIALS[plan.config.method].values[-1:]:
        found = repair(plan.at(value)).adapter.deltas
        for name, delta in plan.adapter.deltas.items():
            same = found[name].shape == delta.shape and torch.equal(found[name].dense(), delta.dense())
            assert same == (name != NAME)


def curved(G_und: Tensor, G_snd: Tensor, **keys: Any) -> RepairPlan:
    """A plan whose evidence on one layer is made up."""
    plan = planned(tiny("llama"), layers=(NAME,), **keys)
    evidence = {NAME: (Evidence(gradients=G_und), Evidence(gradients=G_snd))}
    return replace(plan, pair=replace(plan.pair, evidence=evidence))


def core(plan: RepairPlan, found: Adapter) -> Tensor:
    return CoreSpace.of([plan.adapter.deltas[NAME]]).core(found.deltas[NAME]).flatten()


def test_a_large_mu_removes_what_safety_rows_see_and_leaves_what_they_never_use() -> None:
    seen_by_safety = torch.zeros(3, 4)
    seen_by_safety[:, 0] = torch.tensor([1.0, -2.0, 0.5])
    plan = curved(torch.eye(4) * 2, seen_by_safety, damping=1e-12)
    before, found = core(plan, plan.adapter), core(plan, repair(plan.at(1e5)).adapter)
    assert abs(float(found[0])) < 1e-4 * abs(float(before[0]))
    assert_close(found[1:], before[1:], "float32")


def test_more_mu_is_less_of_the_adapter_in_the_safety_metric() -> None:
    plan = planned(tiny("llama"), n=12)
    for name in plan.pair.deltas:
        left = []
        for mu in (0.0, 0.1, 1.0, 10.0, 1e3):
            space = CoreSpace.of([plan.adapter.deltas[name]])
            phi_d = space.core(repair(plan.at(mu)).adapter.deltas[name]).flatten()
            gradients = plan.pair.evidence[name][1].gradients
            assert gradients is not None
            left.append(float((gradients @ phi_d).square().mean()))
        assert left == sorted(left, reverse=True)
        assert left[-1] < 0.05 * left[0]


def test_factors_of_the_same_adapter_give_the_same_repair() -> None:
    loaded = tiny("llama")
    R = torch.tensor([[2.0, 0.5], [-1.0, 3.0]])
    plain = expert(loaded)
    turned = {n: LowRank(R @ d.A, d.B @ torch.linalg.inv(R)) for n, d in plain.adapter.deltas.items()}
    config, harm = RepairConfig(layers=FEW), examples(5, seed=30)
    found, other = (
        dense(repair(repair_plan(config, loaded, replace(plain, adapter=given), harm)).adapter)
        for given in (plain.adapter, replace(plain.adapter, deltas=turned))
    )
    for name in found:
        assert_close(found[name], other[name], "float32")


def test_planning_leaves_the_model_as_it_was() -> None:
    loaded = tiny("llama")
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    for method in IDENTITY:
        planned(loaded, method=method)
    assert all(torch.equal(parameter, before[name]) for name, parameter in loaded.model.named_parameters())


@pytest.mark.parametrize("method", ["repair", "irr", "lox"])
def test_rank_cuts_the_result_and_says_what_that_loses(method: str) -> None:
    plan = planned(tiny("llama"), rank=3, method=method)
    whole = repair(plan)
    cut = repair(replace(plan, config=plan.config.model_copy(update={"rank": 1})))
    for name in plan.pair.deltas:
        s_k = torch.linalg.svdvals(whole.adapter.deltas[name].dense().double())
        assert cut.adapter.deltas[name].rank == 1
        assert cut.truncation[name] == pytest.approx(float(s_k[1:].norm() / s_k.norm()), rel=1e-4)
    assert whole.truncation == dict.fromkeys(plan.pair.deltas, 0.0)


@pytest.mark.parametrize("method", ["repair", "prune", "csulora"])
def test_what_is_saved_does_in_peft_what_was_repaired(method: str, tmp_path: Path) -> None:
    loaded = tiny("llama")
    plan = planned(loaded, method=method)
    made, folder = repair(plan), tmp_path / "adapter"
    output.save(made, folder, loaded, spectrum.spectra(plan.pair))
    assert output.same_answers(loaded, made.adapter, folder) < 1e-3
    assert read_peft(folder).deltas.keys() == plan.adapter.deltas.keys()
    assert f'"{DIALS[plan.config.method].key}": {plan.config.strength}' in (folder / output.FILE).read_text()


@pytest.mark.parametrize("method", READS)
def test_the_record_has_every_setting_that_the_method_reads_and_the_hash_of_the_adapter(method: str) -> None:
    loaded = tiny("llama")
    unaligned = tiny("llama", seed=5) if method in WITH_UNALIGNED else None
    given = replace(expert(loaded), sha256="0a1b", base_weights="2c3d")
    config = RepairConfig(method=method, layers=FEW)  # type: ignore[arg-type]
    found = repair(repair_plan(config, loaded, given, examples(5, seed=30), unaligned)).adapter.metadata
    assert found["config"].keys() == READS[config.method] | {"method", "layers", "rank"}
    assert RepairConfig(**found["config"]) == config
    assert (found["origin"]["adapters"], found["origin"]["bases"]) == (("0a1b", ""), ("2c3d", ""))


def test_split_half_stability_is_that_of_utility_and_safety_rows() -> None:
    plan = planned(tiny("llama"), n=12)
    assert {found.layer for found in spectrum.spectra(plan.pair)} == set(plan.pair.deltas)
    assert spectrum.spectra(planned(tiny("llama"), method="scale").pair) == []


def tuned(family: str, change: Sequence[tuple[str, int]]) -> LoadedModel:
    """A tiny model with changes of these ranks written into these modules."""
    loaded = tiny(family)
    layers = LayerMap.of(loaded.model)
    for number, (name, rank) in enumerate(change):
        draw = torch.Generator().manual_seed(number)
        weight = layers.read(name)
        B, A = torch.randn(weight.shape[0], rank, generator=draw), torch.randn(rank, weight.shape[1], generator=draw)
        layers.write(name, weight + B @ A / 50)
    return loaded


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("layers.0.q_proj", "layers.1.down_proj")),
        ("phi3", ("layers.0.qkv_proj",)),
        ("gpt2", ("layers.0.qkv_proj", "layers.1.down_proj")),
    ],
)
def test_a_full_fine_tuning_of_low_rank_is_its_delta_exactly(family: str, names: tuple[str, ...]) -> None:
    base = tiny(family)
    known = LayerMap.of(base.model)
    names = tuple(name for name in names if name in known)
    assert names
    after = tuned(family, [(name, 3) for name in names])
    found = delta_of(base, after, 4)
    assert set(found.deltas) == set(names)
    for name in names:
        assert_close(found.delta(name), LayerMap.of(after.model).read(name) - known.read(name), "float32")
        assert found.metadata["truncation"][name] < 1e-4


def test_what_a_full_fine_tuning_loses_by_becoming_an_adapter_is_told() -> None:
    base, after = tiny("llama"), tuned("llama", [(NAME, 8)])
    with torch.no_grad():
        after.model.model.norm.weight += 0.1
    found = delta_of(base, after, 3)
    s_k = torch.linalg.svdvals(LayerMap.of(after.model).read(NAME) - LayerMap.of(base.model).read(NAME))
    best = float(s_k[3:].norm() / s_k.norm())
    assert best - 1e-5 <= found.metadata["truncation"][NAME] < 1.05 * best
    assert found.metadata["dropped"] == ["model.norm.weight"]


def test_models_that_are_no_fine_tuning_of_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="have the same linear layers: nothing to repair"):
        delta_of(tiny("llama"), tiny("llama"), 2)
    with pytest.raises(ConfigError, match="tiny-gpt2 is no fine-tuning of tiny-llama: got shape"):
        delta_of(tiny("llama"), tiny("gpt2"), 2)


def test_bad_evidence_is_a_sentence() -> None:
    loaded = tiny("llama")
    good = expert(loaded)
    with pytest.raises(DataError, match="got 1 safety rows, expected at least 2"):
        repair_plan(RepairConfig(), loaded, good, examples(1))
    with pytest.raises(DataError, match="Cannot repair tuned: got 0 utility rows"):
        repair_plan(RepairConfig(), loaded, replace(good, rows=()), examples(3))
    with pytest.raises(DataError, match="utility and safety rows are the same"):
        repair_plan(RepairConfig(), loaded, good, list(reversed(good.rows)))
    renamed = [replace(row, id=f"other-{row.id}") for row in good.rows]
    with pytest.raises(DataError, match="utility and safety rows are the same"):
        repair_plan(RepairConfig(), loaded, good, renamed)
    with pytest.raises(LayerError, match=r"no layer matches 'qproj'.*q_proj"):
        repair_plan(RepairConfig(layers=("qproj",)), loaded, good, examples(3))


@pytest.mark.parametrize("method", WITH_UNALIGNED)
def test_a_method_that_goes_by_the_alignment_needs_the_unaligned_model(method: str) -> None:
    loaded = tiny("llama")
    config = RepairConfig(method=method, layers=FEW)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"method {method} goes by what aligned the base: got no unaligned model"):
        repair_plan(config, loaded, expert(loaded), examples(3))
    with pytest.raises(ConfigError, match="is not tiny-llama before its alignment: got shape"):
        repair_plan(config, loaded, expert(loaded), examples(3), tiny("gpt2"))


def test_a_key_that_a_method_does_not_read_is_refused() -> None:
    for method, dial in DIALS.items():
        others = {"mu", "factor", "threshold", "alpha", "penalty", "share"} - {dial.key}
        for key in others:
            with pytest.raises(ValueError, match=f"{key} has no effect with method: {method}; take it out"):
                RepairConfig(method=method, **{key: 0.5})  # type: ignore[arg-type]
        assert (method in WITH_ROWS) == _takes(method, "samples")
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RepairConfig().at(-1.0)


def _takes(method: str, key: str) -> bool:
    try:
        RepairConfig(method=method, **{key: 3})  # type: ignore[arg-type]
    except ValueError:
        return False
    return True
