from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.training.columns import Columns
from tests.training.helpers import config, examples, largest_difference, run, same_bits, weights
from tests.zoo import tiny
from torch import Tensor, nn

from holdfast.core.errors import LayerError
from holdfast.training.constraint import Shadows
from holdfast.training.loop import train

OPTIMIZERS = ("adamw", "muon", "amsgrad", "sgd", "adafactor")


def start() -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in tiny("llama").model.named_parameters()}


def keys(optimizer: str) -> dict[str, Any]:
    return {"optimizer": optimizer, "weight_decay": 0.1, "learning_rate": 1e-2, "steps": 8}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_entries_stay_bit_equal_under_weight_decay(tmp_path: Path, optimizer: str) -> None:
    before, held = start(), Columns()
    after = weights(run(tmp_path, config(**keys(optimizer), clip=0.1, precision="bf16", accumulate=2), constraint=held))
    moved = 0
    for name, weight in after.items():
        if held.pattern in name:
            frozen = held.frozen(weight.shape[1])
            assert torch.equal(weight[:, :frozen], before[name][:, :frozen])
            moved += int((weight[:, frozen:] != before[name][:, frozen:]).sum())
    assert moved > 1000


def test_masking_the_gradient_instead_would_move_them() -> None:
    """The control: the same columns with masked gradients drift under AdamW's weight decay."""
    weight = nn.Parameter(torch.ones(2, 4))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        weight.grad = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
        optimizer.step()
    assert not torch.equal(weight[:, :2], torch.ones(2, 2))


def test_holding_nothing_equals_plain_training_without_decay(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", config(weight_decay=0.0))
    held = run(tmp_path / "b", config(weight_decay=0.0), constraint=Columns(share=0.0))
    assert largest_difference(weights(plain), weights(held)) < 1e-5


def test_weight_decay_pulls_the_change_to_zero_and_not_the_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    held = Shadows(model, Columns(pattern="weight"))
    first = model[0].weight.detach().clone()
    (coordinates,) = held.coordinates.values()
    optimizer = torch.optim.SGD([coordinates], lr=0.1, weight_decay=1.0)
    with torch.no_grad():
        coordinates.fill_(1.0)
    for _ in range(200):
        coordinates.grad = torch.zeros_like(coordinates)
        optimizer.step()
        held.push()
    assert_close(model[0].weight.detach(), first)


def test_gradient_of_the_coordinates_is_the_adjoint_of_expand() -> None:
    """Autograd through ``W0 + expand(D)`` gives the same gradient as `pull`."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    held = Shadows(model, Columns(pattern="weight"))
    (name,) = held.coordinates
    hold = Columns(pattern="weight").holds(model)[name]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    held.pull()
    assert model[0].weight.grad is None
    coordinates = torch.zeros(hold.shape(model[0].weight), requires_grad=True)
    (x @ (model[0].weight.detach() + hold.expand(coordinates)).T).square().sum().backward()
    assert_close(held.coordinates[name].grad, coordinates.grad)


def test_resume_in_the_middle_keeps_the_hold_bit_for_bit(tmp_path: Path) -> None:
    settings = config(**keys("adamw"), save_every=3)
    whole = run(tmp_path / "a", settings, constraint=Columns())
    run(tmp_path / "b", settings, constraint=Columns())
    resumed = run(tmp_path / "b", settings, constraint=Columns(), resume=True)
    assert same_bits(weights(whole), weights(resumed))


def test_a_hold_on_lora_a_keeps_the_adapter_out_of_the_held_columns(tmp_path: Path) -> None:
    held = Columns(pattern="lora_A")
    result = run(tmp_path, config(**keys("adamw"), params="lora"), constraint=held)
    base = tiny("llama").model
    for name, module in result.model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            inner = base.get_submodule(name.removeprefix("base_model.model."))
            frozen = held.frozen(inner.weight.shape[1])
            start_delta = module.lora_B["default"].weight @ module.lora_A["default"].weight[:, :frozen]
            assert_close(module.get_delta_weight("default")[:, :frozen], 2 * start_delta)
            assert module.get_delta_weight("default").any()


def test_an_unknown_or_untrained_weight_cannot_be_held(tmp_path: Path) -> None:
    class Wrong:
        def __init__(self, name: str) -> None:
            self.name = name

        def holds(self, model: nn.Module) -> dict[str, Any]:
            return {self.name: next(iter(Columns(pattern="lora_A").holds(model).values()))}

    loaded = tiny("llama")
    with pytest.raises(LayerError, match="Cannot hold 'nonsense': no such parameter"):
        train(loaded, examples(8), config(params="lora"), out=tmp_path, constraint=Wrong("nonsense"))
    name = "base_model.model.model.embed_tokens.weight"
    with pytest.raises(LayerError, match="it is not trained"):
        train(tiny("llama"), examples(8), config(params="lora"), out=tmp_path, constraint=Wrong(name))
