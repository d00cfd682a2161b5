"""Input that cannot be planned or held is refused in one sentence that says what to do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.methods.planned import ELEMENT, FEW, in_frozen_space, planned
from tests.training.helpers import config, examples
from tests.zoo import tiny
from torch import nn

from holdfast.core.errors import ConfigError, DataError, LayerError, NumericsError
from holdfast.data.examples import Example, Message
from holdfast.layers.address import LayerMap
from holdfast.methods.rotation.apply import apply
from holdfast.methods.rotation.config import RotationConfig
from holdfast.methods.rotation.maths import frozen_by_share
from holdfast.methods.rotation.plan import importance, plan
from holdfast.models.chat import ChatFormat
from holdfast.training.parameters import make_trainable


@pytest.mark.parametrize(("share", "bound"), [(0, "greater than 0"), (1, "less than 1"), (-0.1, "greater than 0")])
def test_a_share_of_none_or_all_is_no_setting(share: float, bound: str) -> None:
    with pytest.raises(ValidationError, match=f"frozen_share\n.*should be {bound}"):
        RotationConfig(frozen_share=share)


@pytest.mark.parametrize("keys", [{}, {"scope": "global"}, ELEMENT])
def test_a_share_that_freezes_nothing_is_refused_with_the_range_that_does_not(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"frozen_share 1e-05 freezes 0 of .*Do: set it between"):
        planned(tiny("llama"), frozen_share=1e-5, **keys)


def test_no_safety_rows_are_refused() -> None:
    with pytest.raises(DataError, match="Cannot plan: got 0 safety rows, expected at least 2"):
        planned(tiny("llama"), n=0)


def test_fewer_tokens_than_directions_are_noted_and_the_unseen_ones_stay_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (planned(tiny("llama"), n=n, tokens="response", layers=("layers.1.down_proj",)) for n in (2, 40))
    tokens, group = few.basis.origin.n_tokens, "layers.1.mlp_output"
    assert tokens < 64 <= many.basis.origin.n_tokens
    _, note = few.basis.notes()
    assert note.startswith(f"{group}: rank ")
    assert f" of 64 (only {tokens} tokens)" in note
    assert note.endswith("Give more rows to tell them apart.")
    monkeypatch.setattr("holdfast.methods.rotation.plan.NAMED", 2)
    *_, others = planned(tiny("llama"), n=2, layers=(), tokens="response").basis.notes()
    assert (others.count(" (rank "), others[-9:]) == (1, ", 1 more.")
    assert len(many.basis.notes()) == 1
    energy = few.basis.energies[group].sum(0)
    unseen = energy < 1e-6 * energy.max()
    assert int(unseen.sum()) >= 64 - tokens
    assert not (few.frozen["layers.1.down_proj"] & unseen).any()


def test_rows_that_say_the_same_are_noted_however_many_their_tokens_are() -> None:
    """The same two rows again and again."""
    rows = [replace(row, id=f"{row.id}-{n}") for n in range(40) for row in examples(2, seed=7)]
    made = plan(RotationConfig(layers=("layers.1.down_proj",), tokens="response"), tiny("llama"), rows)
    _, note = made.basis.notes()
    assert made.basis.origin.n_tokens > 64
    assert "layers.1.mlp_output: rank " in note
    assert f"(all {made.basis.origin.n_tokens} tokens lie in a subspace, up to rounding)" in note
    assert plan(RotationConfig(space="random"), tiny("llama"), rows).basis.notes()[1:] == ()


def test_layers_that_read_the_same_input_share_one_basis_and_one_hold() -> None:
    loaded = tiny("llama")
    made = planned(loaded)
    groups = made.basis.groups
    for block in (0, 1):
        assert groups[f"layers.{block}.q_proj"] == groups[f"layers.{block}.k_proj"]
    assert len(made.basis.vectors) == 3 < len(groups) == 5
    holds = apply(loaded, made).holds(loaded.model.requires_grad_(True))
    first, second = (holds[f"model.layers.0.self_attn.{kind}.weight"].parts[0][1] for kind in ("q_proj", "k_proj"))
    assert first is second


class Params4bit(nn.Parameter):
    """A stand-in with the class name of bitsandbytes' packed weight."""


def test_quantised_weights_are_refused_in_full_and_held_under_an_adapter() -> None:
    loaded = tiny("llama")
    made = planned(loaded)
    for layer in LayerMap.of(loaded.model).select(FEW):
        module = loaded.model.get_submodule(layer.path)
        module.weight = Params4bit(module.weight.data, requires_grad=False)
    hold = apply(loaded, made)
    with pytest.raises(LayerError, match=r"its weight is quantised, .*Do: set params: qlora"):
        hold.holds(loaded.model)
    adapted = make_trainable(loaded.model, config(params="lora"))
    factors = dict(adapted.named_parameters())
    held = {name: hold for name, hold in hold.holds(adapted).items() if hold is not None}
    assert len(held) == 5
    for name in held:
        layer = name.partition("model.model.")[2].partition(".lora_A")[0].replace("self_attn.", "").replace("mlp.", "")
        assert in_frozen_space(made, layer.removeprefix("model."), factors[name].double()).abs().max() < 1e-6


def test_a_plan_of_another_chat_template_is_refused() -> None:
    loaded = tiny("llama")
    made = planned(loaded)
    other = replace(loaded, chat=ChatFormat(loaded.tokenizer, "plain"))
    with pytest.raises(ConfigError, match="The plan is of another chat template"):
        apply(other, made)


ODD = Example("odd", (Message("user", "zzz"),), "zz")


def spoilt(parameter: str) -> Any:
    """A tiny model with one damaged number that only the letter z meets."""
    loaded = tiny("llama")
    letter = loaded.tokenizer("z", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        loaded.model.get_parameter(parameter)[letter] = float("nan")
    return loaded


def test_an_activation_that_is_not_finite_names_layers_and_row() -> None:
    settings = RotationConfig(layers=FEW)
    plan(settings, spoilt("model.embed_tokens.weight"), examples(6, seed=7))
    with pytest.raises(NumericsError, match=r"in the input of layers\.0\.q_proj, layers\.0\.k_proj on row 'odd'"):
        plan(settings, spoilt("model.embed_tokens.weight"), [*examples(6, seed=7), ODD])


def test_a_gradient_that_is_not_finite_names_the_row() -> None:
    """The head is no planned layer: activations are fine, and the loss is not."""
    settings, sound = RotationConfig(layers=FEW, **ELEMENT), tiny("llama")
    rows = [*examples(6, seed=7), ODD]
    found = plan(settings, sound, rows).basis
    with torch.no_grad():
        sound.model.get_parameter("lm_head.weight")[0] = float("nan")
    with pytest.raises(NumericsError, match=r"loss of row '.*' is not finite"):
        importance(settings, sound, rows, found)


@pytest.mark.parametrize("score", ["energy", "column"])
def test_sparing_the_task_needs_its_rows_and_frees_what_the_task_needs(score: str) -> None:
    settings = RotationConfig(layers=FEW, frozen_share=0.25, spare="task", importance=score)
    safety, task = examples(6, seed=7), examples(6, seed=8)
    with pytest.raises(ConfigError, match=r"spare: task got no task scores, expected some. Do: give importance rows"):
        plan(settings, tiny("llama"), safety)
    made = plan(settings, tiny("llama"), safety, task)
    whole = plan(settings.model_copy(update={"spare": "nothing"}), tiny("llama"), safety)
    scored = importance(settings, tiny("llama"), safety, whole.basis, task)
    assert scored.task is not None
    needed = frozen_by_share(scored.task, 0.25, "layer")
    for name, frozen in made.frozen.items():
        assert torch.equal(frozen, whole.frozen[name] & ~needed[name]), name
    with pytest.raises(ConfigError, match="spare: task leaves nothing frozen: the task needs all that safety needs"):
        plan(settings, tiny("llama"), safety, safety)


@pytest.mark.parametrize("keys", [{}, {"scope": "global"}, ELEMENT], ids=["layer", "global", "element"])
def test_a_random_mask_is_as_large_as_the_mask_that_spares_the_task(keys: dict[str, Any]) -> None:
    settings = RotationConfig(layers=FEW, frozen_share=0.25, spare="task", **keys)
    safety, task = examples(6, seed=7), examples(6, seed=8)
    real = plan(settings, tiny("llama"), safety, task)
    drawn = plan(settings.model_copy(update={"choose": "random"}), tiny("llama"), safety, task)
    assert any(not torch.equal(real.frozen[name], drawn.frozen[name]) for name in real.frozen)
    sizes = [{name: int(mask.sum()) for name, mask in made.frozen.items()} for made in (real, drawn)]
    assert sizes[0] == sizes[1]
    coordinates = sum(mask.numel() for mask in real.frozen.values())
    share = sum(sizes[0].values()) / coordinates
    assert share < 0.15
    assert real.stability_by_chance < 0.25 / 1.75 * 0.8


def test_sparing_a_task_without_rows_is_refused_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.methods.rotation.plan.basis", None)
    with pytest.raises(ConfigError, match="spare: task got no task scores"):
        plan(RotationConfig(layers=FEW, spare="task"), tiny("llama"), examples(6, seed=7))
