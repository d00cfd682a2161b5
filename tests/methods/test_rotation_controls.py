"""Controls of equal size, from a plan alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tests.close import assert_close
from tests.methods.planned import ELEMENT, held, largest, matrices, planned
from tests.training.helpers import config, examples
from tests.zoo import tiny

from holdfast.core.errors import ConfigError
from holdfast.methods.rotation.apply import apply
from holdfast.methods.rotation.baselines.config import BaselineConfig, Replay
from holdfast.methods.rotation.baselines.dispatch import run
from holdfast.methods.rotation.baselines.setup import Job
from holdfast.methods.rotation.controls import control
from holdfast.methods.rotation.plan import RotationPlan
from holdfast.methods.rotation.store import load_plan, save_plan
from holdfast.training.loop import train


def sizes(made: RotationPlan) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in made.frozen.items()}


@pytest.mark.parametrize("name", ["random_mask", "random_subspace", "unrotated"])
def test_a_control_freezes_as_many_of_every_layer_and_others(name: Any) -> None:
    made = planned(tiny("llama"), scope="global", frozen_share=0.4)
    other = control(made, name, seed=3)
    assert sizes(other) == sizes(made)
    assert len(set(sizes(made).values())) > 1
    assert (other.config["control"], other.config["seed"], other.config["rest"]) == (name, 3, "frozen")
    assert other.stability is None
    for layer, frozen in other.frozen.items():
        group = made.basis.groups[layer]
        turned = not torch.equal(other.basis.vectors[group], made.basis.vectors[group])
        assert turned == (name != "random_mask"), layer
        assert turned or not torch.equal(frozen, made.frozen[layer]), layer


@pytest.mark.parametrize("keys", [ELEMENT, {"importance": "column"}], ids=["element", "column"])
def test_a_random_mask_needs_no_energies(keys: dict[str, Any]) -> None:
    made = planned(tiny("llama"), **keys)
    other = control(made, "random_mask", seed=0)
    assert sizes(other) == sizes(made)
    assert all(mask.shape == made.frozen[layer].shape for layer, mask in other.frozen.items())
    for name, space in (("unrotated", "unrotated"), ("random_subspace", "random")):
        with pytest.raises(ConfigError, match=rf"Cannot make a control: .*a basis step with space: {space}, and take"):
            control(made, name, seed=0)  # type: ignore[arg-type]


def test_what_is_random_belongs_to_its_seed_and_layers_of_one_input_share_it() -> None:
    made = planned(tiny("llama"))
    for name in ("random_mask", "random_subspace"):
        first, again, other = (control(made, name, seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
        for layer, mask in first.frozen.items():
            assert torch.equal(mask, again.frozen[layer]), layer
        assert any(not torch.equal(mask, other.frozen[layer]) for layer, mask in first.frozen.items())
        for block in (0, 1):
            assert torch.equal(first.frozen[f"layers.{block}.q_proj"], first.frozen[f"layers.{block}.k_proj"])
        group = made.basis.groups["layers.1.down_proj"]
        assert torch.equal(first.basis.vectors[group], again.basis.vectors[group])


def test_the_unrotated_control_is_the_plan_of_an_unrotated_basis() -> None:
    made = control(planned(tiny("llama")), "unrotated", seed=0)
    planned_so = planned(tiny("llama"), space="unrotated")
    for layer, frozen in planned_so.frozen.items():
        assert torch.equal(made.frozen[layer], frozen), layer
    for group, U in planned_so.basis.vectors.items():
        assert torch.equal(made.basis.vectors[group], U)
        energies = planned_so.basis.energies[group].sum(0)
        assert_close(made.basis.energies[group].sum(0) / energies.max(), energies / energies.max())
        C = planned_so.basis.second_moment(group)
        assert_close(made.basis.second_moment(group) / C.abs().max(), C / C.abs().max())


def test_a_random_subspace_is_a_rotation_with_the_energies_along_it() -> None:
    plan = planned(tiny("llama"))
    made = control(plan, "random_subspace", seed=0)
    for group, U in made.basis.vectors.items():
        assert largest(U.double().T @ U.double() - torch.eye(len(U))) < 1e-6
        C = plan.basis.second_moment(group)
        along = (U.double().T @ C @ U.double()).diagonal()
        assert_close(made.basis.energies[group].sum(0) / along.max(), along / along.max())


@pytest.mark.parametrize("keys", [{}, ELEMENT], ids=["column", "element"])
def test_rho0_is_plain_training(tmp_path: Path, keys: dict[str, Any]) -> None:
    loaded = tiny("llama")
    made = control(planned(loaded, **keys), "rho0", seed=0)
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "steps": 10}
    nothing = matrices(held(tmp_path / "held", loaded, made, **settings).model.model)
    plain = tiny("llama")
    train(plain, examples(24), config(batch_size=4, **settings), out=tmp_path / "plain")
    for name, weight in matrices(plain.model).items():
        assert largest(weight - nothing[name]) < 1e-6, name


@pytest.mark.parametrize("name", ["random_mask", "random_subspace", "unrotated", "rho0"])
def test_a_control_survives_disk_and_holds_adapters_of_fused_modules(name: Any, tmp_path: Path) -> None:
    loaded = tiny("gpt2")
    made = control(planned(loaded, n=4, layers=("q_proj", "k_proj", "v_proj")), name, seed=0)
    save_plan(made, tmp_path / "plan")
    again = load_plan(tmp_path / "plan")
    for layer, mask in made.frozen.items():
        assert torch.equal(again.frozen[layer], mask)
    assert dict(again.config) == dict(made.config)
    settings = config(steps=1, params="lora")
    train(loaded, examples(8), settings, out=tmp_path / "run", constraint=apply(loaded, again))


def test_baselines_go_by_their_name_alone_and_a_control_needs_its_plan(tmp_path: Path) -> None:
    kinds: TypeAdapter[Any] = TypeAdapter(BaselineConfig)
    assert kinds.validate_python("replay") == Replay(name="replay")
    job = Job(tiny("llama"), examples(8), [], config(steps=1))
    with pytest.raises(
        ConfigError, match=r"baseline random_mask is a control of a plan: .*control\(plan, 'random_mask'"
    ):
        run(kinds.validate_python("random_mask"), job, tmp_path, validation=None, watch=None, resume=False)
    plain = run(kinds.validate_python("plain"), job, tmp_path / "a", validation=None, watch=None, resume=False)
    other = tiny("llama")
    train(other, examples(8), config(steps=1), out=tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(plain.model.model.parameters(), other.model.parameters(), strict=True))
