from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.close import assert_close
from tests.curvature.oracles import assert_same_state, gradient_oracle, moment_oracle, state_of
from tests.methods.planned import ELEMENT, FEW, largest, planned
from tests.training.helpers import examples
from tests.zoo import FAMILIES, tiny

from holdfast.core.errors import ConfigError, DataError, LayerError, NumericsError
from holdfast.core.files import sha256_of
from holdfast.curvature.moments import moments_by_block
from holdfast.curvature.samples import sample_gradients
from holdfast.layers.address import LayerMap
from holdfast.methods import METHODS
from holdfast.methods.rotation import plan as phases
from holdfast.methods.rotation.config import ImportanceConfig, MaskConfig, RotationConfig
from holdfast.methods.rotation.store import (
    find_basis,
    load_basis,
    load_importance,
    load_plan,
    save_basis,
    save_importance,
    save_plan,
)


def same(a: phases.RotationPlan, b: phases.RotationPlan) -> None:
    """Bit for bit."""
    kinds = [(getattr(a.basis, kind), getattr(b.basis, kind)) for kind in ("vectors", "energies", "moments")]
    for mine, other in ((a.frozen, b.frozen), *kinds):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert (a.stability, a.stability_by_chance, dict(a.config)) == (b.stability, b.stability_by_chance, dict(b.config))
    assert (dict(a.basis.groups), a.basis.origin) == (dict(b.basis.groups), b.basis.origin)


def importance(score: str, rows: list[Any]) -> phases.Importance:
    loaded = tiny("llama")
    config = RotationConfig(importance=score, unit="element" if score in ("abs", "square", "taylor") else "column")
    return phases.importance(config, loaded, rows, phases.basis(config, loaded, rows))


@pytest.mark.parametrize("tokens", ["all", "prompt", "response"])
def test_energies_are_the_second_moment_along_each_direction(tokens: str) -> None:
    loaded = tiny("llama")
    made = planned(loaded, tokens=tokens)
    rows = [loaded.chat.training(row) for row in examples(8, seed=7)]
    chosen = {
        "all": lambda row, t: True,
        "prompt": lambda row, t: not row.response[t],
        "response": lambda row, t: row.response[t],
    }
    for half in (0, 1):
        oracle = moment_oracle(loaded, rows[half::2], LayerMap.of(loaded.model), chosen[tokens])
        for name, group in made.basis.groups.items():
            U = made.basis.vectors[group].double()
            assert_close(made.basis.energies[group][half], (U.T @ oracle[name] @ U).diagonal())
    for group, U in made.basis.vectors.items():
        assert_close(U.T @ U, torch.eye(len(U)))
        energy = made.basis.energies[group].sum(0)
        assert bool((energy[:-1] >= energy[1:] - 1e-5 * energy[0]).all())


def test_energy_freezes_the_first_directions_of_the_basis() -> None:
    made = planned(tiny("llama"))
    for name, frozen in made.frozen.items():
        count = round(0.25 * len(frozen))
        assert frozen.tolist() == [True] * count + [False] * (len(frozen) - count), name
    assert all(row["energy"] > row["share"] == 0.25 for row in made.table())


@pytest.mark.parametrize("score", ["abs", "square", "taylor", "column"])
def test_importance_is_the_sum_over_rows_of_the_rotated_gradients_score(score: str) -> None:
    rows = examples(5, seed=7)
    scored = importance(score, rows)
    loaded = tiny("llama")
    layers = LayerMap.of(loaded.model)
    expected = dict.fromkeys(scored.scores, 0.0)
    for row in rows:
        for name, G in gradient_oracle(loaded, loaded.chat.training(row), layers).items():
            U = scored.basis.vectors[scored.basis.groups[name]]
            rotated, weight = G @ U, layers.read(name) @ U
            by = {
                "abs": rotated.abs(),
                "square": rotated**2,
                "taylor": (rotated * weight).abs(),
                "column": rotated.norm(dim=0),
            }
            expected[name] = expected[name] + by[score]
    for name, found in scored.scores.items():
        assert_close(found / found.max(), expected[name] / found.max())


@pytest.mark.parametrize("score", ["abs", "square", "taylor", "column", "energy"])
def test_importance_depends_neither_on_batch_size_nor_padding_nor_order(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one basis. One row a batch has no padding; in larger ones, rows of unequal length have."""
    rows, loaded = examples(6, seed=7), tiny("llama")
    first = importance(score, rows)

    def again(given: list[Any]) -> dict[str, Any]:
        found = phases.basis(RotationConfig(), loaded, given) if score == "energy" else first.basis
        return phases.importance(first.config, loaded, given, found).scores

    backwards = again(rows[::-1])
    monkeypatch.setattr(phases, "sample_gradients", partial(sample_gradients, batch_size=1))
    monkeypatch.setattr(phases, "moments_by_block", partial(moments_by_block, batch_size=1))
    single = again(rows)
    for name, found in first.scores.items():
        assert_close(single[name] / found.max(), found / found.max())
        assert_close(backwards[name] / found.max(), found / found.max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_basis_is_orthonormal_to_a_millionth(family: str) -> None:
    for space in ("rotated", "random"):
        made = planned(tiny(family), n=4, layers=(), space=space)
        for group, U in made.basis.vectors.items():
            assert largest(U.double().T @ U.double() - torch.eye(len(U))) < 1e-6, (space, group)


@pytest.mark.parametrize("keys", [{}, ELEMENT])
def test_planning_leaves_the_model_as_it_was_and_gives_the_same_bits_again(keys: dict[str, Any]) -> None:
    loaded = tiny("llama")
    before = state_of(loaded.model)
    made = planned(loaded, **keys)
    assert_same_state(loaded.model, before)
    same(made, planned(tiny("llama"), **keys))


def test_random_masks_and_rotations_belong_to_their_seed() -> None:
    keys = {"choose": "random", "space": "random"}
    same(planned(tiny("llama"), seed=1, **keys), planned(tiny("llama"), seed=1, **keys))
    a, b = planned(tiny("llama"), seed=1, **keys), planned(tiny("llama"), seed=2, **keys)
    assert any(not torch.equal(a.frozen[name], b.frozen[name]) for name in a.frozen)
    assert all(not torch.equal(a.basis.vectors[group], b.basis.vectors[group]) for group in a.basis.vectors)
    assert a.stability is None


def test_the_unrotated_control_plans_in_the_weights_own_coordinates() -> None:
    made = planned(tiny("llama"), space="unrotated", importance="column")
    assert all(torch.equal(U, torch.eye(len(U))) for U in made.basis.vectors.values())


def test_samples_limits_the_rows_of_every_phase() -> None:
    few = planned(tiny("llama"), n=8, samples=4, **ELEMENT)
    cut = planned(tiny("llama"), n=4, samples=4, **ELEMENT)
    same(few, cut)
    assert few.basis.origin.n_rows == 4


def test_a_plan_survives_disk_bit_for_bit_and_so_does_every_phase(tmp_path: Path) -> None:
    made = planned(tiny("llama"), **ELEMENT, layers=("q_proj", "layers.1.*"))
    save_plan(made, tmp_path / "plan")
    same(load_plan(tmp_path / "plan"), made)
    save_basis(made.basis, tmp_path / "basis")
    found = load_basis(tmp_path / "basis")
    scored = phases.importance(ImportanceConfig(importance="abs"), tiny("llama"), examples(8, seed=7), found)
    save_importance(scored, tmp_path / "importance")
    again = phases.mask(MaskConfig(unit="element", frozen_share=0.25), load_importance(tmp_path / "importance", found))
    assert all(torch.equal(again.frozen[name], made.frozen[name]) for name in made.frozen)
    assert again.stability == made.stability


@pytest.mark.parametrize("space", ["rotated", "random"])
def test_a_basis_straight_to_disk_is_the_one_in_memory(tmp_path: Path, space: str) -> None:
    config = RotationConfig(space=space, layers=FEW)
    rows = examples(8, seed=7)
    found = find_basis(config, tiny("llama"), rows, 5, tmp_path / "basis")
    inside = phases.basis(config, tiny("llama"), rows, 5)
    for again in (found, load_basis(tmp_path / "basis")):
        assert (again.groups, again.origin, again.tokens) == (inside.groups, inside.origin, inside.tokens)
        for kind in ("vectors", "energies", "moments"):
            mine, other = getattr(again, kind), getattr(inside, kind)
            assert list(mine) == list(other)
            assert all(torch.equal(mine[group], other[group]) for group in mine)


def test_a_failure_leaves_the_basis_that_was_there(tmp_path: Path) -> None:
    loaded, rows = tiny("llama"), examples(8, seed=7)
    find_basis(RotationConfig(layers=FEW), loaded, rows, 0, tmp_path / "basis")
    before = sha256_of(tmp_path / "basis")
    with torch.no_grad():
        loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight")[0] = float("nan")
    with pytest.raises(NumericsError, match=r"in the input of layers\.1\.q_proj, .* on row"):
        find_basis(RotationConfig(layers=FEW), loaded, rows, 0, tmp_path / "basis")
    assert sha256_of(tmp_path / "basis") == before
    assert [path.name for path in tmp_path.iterdir()] == ["basis"]


def test_masks_share_the_files_of_their_basis_and_each_stands_alone(tmp_path: Path) -> None:
    made = planned(tiny("llama"))
    save_basis(made.basis, tmp_path / "basis")
    for name in ("one", "two"):
        save_plan(made, tmp_path / name, tmp_path / "basis")
    save_plan(made, tmp_path / "copied")
    for file in (tmp_path / "basis" / "basis").iterdir():
        assert all((tmp_path / name / "basis" / file.name).samefile(file) for name in ("one", "two"))
    assert len({sha256_of(tmp_path / name) for name in ("one", "two", "copied")}) == 1
    save_basis(planned(tiny("llama", seed=1)).basis, tmp_path / "basis")
    same(load_plan(tmp_path / "one"), made)


def test_a_disk_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("not supported")

    made = planned(tiny("llama"))
    save_basis(made.basis, tmp_path / "basis")
    monkeypatch.setattr("os.link", refuse)
    save_plan(made, tmp_path / "plan", tmp_path / "basis")
    same(load_plan(tmp_path / "plan"), made)


@pytest.mark.parametrize("space", ["rotated", "unrotated", "random"])
def test_the_second_moment_is_there_in_every_space(space: str) -> None:
    loaded = tiny("llama")
    made = planned(loaded, space=space)
    rows = [loaded.chat.training(row) for row in examples(8, seed=7)]
    oracle = moment_oracle(loaded, rows, LayerMap.of(loaded.model), lambda row, t: True)
    for name, group in made.basis.groups.items():
        found = made.basis.second_moment(group)
        assert found.dtype == torch.float64
        assert_close(found / oracle[name].abs().max(), oracle[name] / oracle[name].abs().max())


def test_a_damaged_plan_is_one_sentence(tmp_path: Path) -> None:
    save_plan(planned(tiny("llama")), tmp_path / "plan")
    (tmp_path / "plan" / "mask.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="Cannot read a rotation plan"):
        load_plan(tmp_path / "plan")
    scored = importance("energy", examples(4))
    save_importance(scored, tmp_path / "importance")
    with pytest.raises(DataError, match=r"has no 'groups': it is another phase's folder. Do: run its step again"):
        load_basis(tmp_path / "importance")


def test_a_plan_of_another_model_is_refused() -> None:
    made = planned(tiny("llama"))
    METHODS["rotation"].apply(tiny("llama"), made)
    with pytest.raises(ConfigError, match="The plan is of another model"):
        METHODS["rotation"].apply(tiny("mistral"), made)
    with pytest.raises(ConfigError, match="The plan is of another model"):
        phases.importance(ImportanceConfig(), tiny("mistral"), examples(4), made.basis)


def test_the_registered_method_plans_what_the_phases_do() -> None:
    made = METHODS["rotation"].plan(RotationConfig(frozen_share=0.25, layers=FEW), tiny("llama"), examples(8, seed=7))
    same(made, planned(tiny("llama")))


def test_scores_of_directions_are_refused_for_elements() -> None:
    for score in ("energy", "column"):
        with pytest.raises(ValidationError, match="scores directions; unit: element needs abs, square or taylor"):
            RotationConfig(unit="element", importance=score)
        scored = importance(score, examples(4))
        with pytest.raises(ConfigError, match="Cannot make a mask: importance: "):
            phases.mask(MaskConfig(unit="element"), scored)


def test_too_few_rows_and_unknown_layers_are_refused() -> None:
    for keys in ({"n": 1}, {"samples": 1}):
        with pytest.raises(DataError, match="got 1 safety rows, expected at least 2"):
            planned(tiny("llama"), **keys)
    with pytest.raises(LayerError, match="Did you mean 'q_proj'"):
        planned(tiny("llama"), layers=("qproj",))


def test_global_energy_compares_shares_so_that_a_loud_layer_is_not_frozen_whole() -> None:
    made = planned(tiny("llama"), scope="global", frozen_share=0.4)
    counts = {name: int(mask.sum()) for name, mask in made.frozen.items()}
    assert len(set(counts.values())) > 1
    shares = {
        name: made.basis.energies[group].sum(0).double() / made.basis.energies[group].sum().double()
        for name, group in made.basis.groups.items()
    }
    kept = torch.cat([shares[name][mask] for name, mask in made.frozen.items()])
    free = torch.cat([shares[name][~mask] for name, mask in made.frozen.items()])
    assert kept.min() >= free.max()
    assert sum(counts.values()) == round(0.4 * (len(kept) + len(free)))
    scored = phases.importance(ImportanceConfig(), tiny("llama"), examples(8, seed=7), made.basis)
    loud = made.basis.groups["layers.1.down_proj"]
    halves = tuple(
        {name: s * 1e4 if made.basis.groups[name] == loud else s for name, s in half.items()} for half in scored.halves
    )
    louder = phases.mask(MaskConfig(scope="global", frozen_share=0.4), replace(scored, halves=halves))
    assert all(torch.equal(louder.frozen[name], made.frozen[name]) for name in made.frozen)


def test_the_registered_method_takes_rows_of_the_task() -> None:
    config = RotationConfig(frozen_share=0.25, layers=FEW, spare="task")
    made = METHODS["rotation"].plan(config, tiny("llama"), examples(8, seed=7), examples(6, seed=8))
    assert made.config["spare"] == "task"
    assert any(int(mask.sum()) < round(0.25 * len(mask)) for mask in made.frozen.values())


def test_energy_is_refused_for_other_rows_than_the_basis_and_gradients_say_which_rows_they_saw(tmp_path: Path) -> None:
    loaded, rows, others = tiny("llama"), examples(6, seed=7), examples(6, seed=8)
    found = phases.basis(RotationConfig(), loaded, rows)
    with pytest.raises(ConfigError, match="energy is that of the basis' own safety rows: got others"):
        phases.importance(ImportanceConfig(), loaded, others, found)
    scored = phases.importance(ImportanceConfig(importance="column"), loaded, others, found, rows)
    assert scored.rows != found.origin.rows == scored.task_rows
    save_importance(scored, tmp_path / "importance")
    again = load_importance(tmp_path / "importance", found)
    assert (again.rows, again.task_rows) == (scored.rows, scored.task_rows)
    made = phases.mask(MaskConfig(), again)
    assert (made.config["importance_rows"], made.config["task_rows"]) == (scored.rows, scored.task_rows)


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [{"unit": "element", "importance": "taylor"}, {"importance": "energy"}])
def test_phases_read_from_disk_meet_a_model_on_a_gpu(tmp_path: Path, keys: dict[str, Any]) -> None:
    loaded, rows, task = tiny("llama"), examples(8, seed=7), examples(6, seed=8)
    config = RotationConfig(layers=FEW, frozen_share=0.25, spare="task", **keys)
    there = phases.plan(config, loaded, rows, task)
    loaded.model.to("cuda")
    find_basis(config, loaded, rows, 0, tmp_path / "basis")
    scored = phases.importance(config, loaded, rows, load_basis(tmp_path / "basis"), task)
    made = phases.mask(config, scored)
    tensors = [*made.basis.vectors.values(), *scored.scores.values(), *made.frozen.values()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    for group, energies in there.basis.energies.items():
        assert_close(made.basis.energies[group] / energies.max(), energies / energies.max())
