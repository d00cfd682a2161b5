from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.methods.planned import ELEMENT, held, in_frozen_space, largest, matrices, moved, planned
from tests.training.helpers import config, examples
from tests.zoo import FAMILIES, tiny
from torch import Tensor, nn

from holdfast.core.errors import LayerError
from holdfast.data.batches import collate
from holdfast.layers.address import LayerMap
from holdfast.methods.rotation.apply import apply
from holdfast.training.constraint import Shadows
from holdfast.training.loop import HELD, HELD_FILE, train

OPTIMIZERS = ("sgd", "adamw", "adafactor", "amsgrad", "muon")
ROUNDING = 2e-7
"""Half an ulp of float32 weights up to 2, the size of those of tiny models, summed over a direction."""


def coordinates(out: Path) -> dict[str, Tensor]:
    return {
        n.partition("/")[2]: t for n, t in load_file(out / HELD / HELD_FILE).items() if n.startswith("coordinates/")
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("keys", [{}, ELEMENT], ids=["column", "element"])
def test_what_is_frozen_does_not_move_and_what_is_free_does(
    tmp_path: Path, optimizer: str, keys: dict[str, Any]
) -> None:
    loaded = tiny("llama")
    made = planned(loaded, rest="free", **keys)
    rate = 0.1 if optimizer == "sgd" else 0.01
    settings = {"optimizer": optimizer, "weight_decay": 0.1, "learning_rate": rate, "accumulate": 2, "clip": 0.1}
    result = held(tmp_path, loaded, made, **settings)
    changes = moved(tiny("llama").model, result)
    for name, change in changes.items():
        assert largest(change) > 2e-5, name
        if name in made.frozen:
            assert largest(in_frozen_space(made, name, change)) < ROUNDING, name
    if keys:
        layers, found = LayerMap.of(loaded.model), coordinates(tmp_path)
        for name, frozen in made.frozen.items():
            D = found[f"{layers[name].path}.weight"]
            assert not D[frozen].any(), name
            assert D[~frozen].any(), name


@pytest.mark.parametrize("params", ["full", "lora"])
def test_more_than_half_of_the_directions_may_be_frozen(tmp_path: Path, params: str) -> None:
    loaded = tiny("llama")
    made = planned(loaded, frozen_share=0.75)
    result = held(tmp_path, loaded, made, params=params, learning_rate=0.01, weight_decay=0.1)
    trained = result.model.model
    after = matrices(trained.merge_and_unload() if params == "lora" else trained)
    before = matrices(tiny("llama").model)
    for name in made.frozen:
        change = after[name] - before[name]
        assert largest(change) > 1e-4, name
        assert largest(in_frozen_space(made, name, change)) < ROUNDING, name


@pytest.mark.parametrize("params", ["full", "lora"])
def test_nothing_outside_the_plan_moves_unless_the_rest_is_free(tmp_path: Path, params: str) -> None:
    for rest in ("frozen", "free"):
        loaded = tiny("qwen2")
        made = planned(loaded, n=4, rest=rest)
        result = held(tmp_path / rest, loaded, made, params=params)
        trained = result.model.model
        after = dict((trained.merge_and_unload() if params == "lora" else trained).named_parameters())
        layers = LayerMap.of(tiny("qwen2").model)
        planned_names = {f"{layers[name].path}.weight" for name in made.frozen}
        moved_names = {n for n, p in tiny("qwen2").model.named_parameters() if not torch.equal(p, after[n])}
        assert (moved_names == planned_names) == (rest == "frozen")
        assert planned_names <= moved_names


@pytest.mark.parametrize("keys", [{}, ELEMENT], ids=["column", "element"])
def test_a_hold_of_nothing_is_plain_training(tmp_path: Path, keys: dict[str, Any]) -> None:
    loaded = tiny("llama")
    made = planned(loaded, choose="nothing", rest="free", **keys)
    assert not any(frozen.any() for frozen in made.frozen.values())
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "steps": 10}
    nothing = matrices(held(tmp_path / "held", loaded, made, **settings).model.model)
    plain = tiny("llama")
    train(plain, examples(24), config(batch_size=4, **settings), out=tmp_path / "plain")
    start = matrices(tiny("llama").model)
    for name, weight in matrices(plain.model).items():
        assert largest(weight - start[name]) > 1e-3, name
        assert largest(weight - nothing[name]) < 1e-6, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_held(tmp_path: Path, family: str) -> None:
    layers = ("q_proj", "v_proj", "down_proj")
    for number, keys in enumerate(({}, ELEMENT)):
        loaded = tiny(family)
        made = planned(loaded, n=4, layers=layers, rest="free", **keys)
        changes = moved(tiny(family).model, held(tmp_path / str(number), loaded, made, steps=1))
        for name, change in changes.items():
            assert largest(change) > 1e-5, name
            if name in made.frozen:
                assert largest(in_frozen_space(made, name, change)) < ROUNDING, name


def rotated_oracle(made: Any, rows: list[Any], rate: float, steps: int) -> dict[str, Tensor]:
    """Plain SGD on the rotated parameters ``W U`` themselves, gradients masked, in float64, by layer name."""
    loaded = tiny("llama")
    loaded.model.double()
    layers = LayerMap.of(loaded.model)
    names = {id(layers.parameter(layer.name)): layer.name for layer in layers}
    batch = collate(rows, loaded.chat.pad_id)
    for _ in range(steps):
        loaded.model.zero_grad()
        _loss(loaded.model, batch).backward()
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                G, name = parameter.grad, names.get(id(parameter))
                if name not in made.frozen:
                    parameter.sub_(rate * G)
                    continue
                U, _ = torch.linalg.qr(made.basis.vectors[made.basis.groups[name]].double())
                U *= (U * made.basis.vectors[made.basis.groups[name]]).sum(0).sign()
                frozen = made.frozen[name]
                rotated = G @ U
                rotated = rotated.masked_fill(frozen if frozen.ndim == 2 else frozen[None, :], 0.0)
                parameter.copy_((parameter @ U - rate * rotated) @ U.T)
    return matrices(loaded.model)


def _loss(model: Any, batch: Any) -> Tensor:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


@pytest.mark.parametrize("keys", [{}, ELEMENT], ids=["column", "element"])
def test_a_hold_equals_training_the_rotated_parameter_itself(keys: dict[str, Any]) -> None:
    rate, steps, loaded = 0.01, 20, tiny("llama")
    made = planned(loaded, rest="free", **keys)
    rows = [loaded.chat.training(row) for row in examples(4)]
    shadows = Shadows(loaded.model.requires_grad_(True), apply(loaded, made))
    optimizer = torch.optim.SGD(shadows.parameters(loaded.model).values(), lr=rate)
    batch = collate(rows, loaded.chat.pad_id)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(loaded.model, batch).backward()
        shadows.pull()
        optimizer.step()
        shadows.push()
    expected, first = rotated_oracle(made, rows, rate, steps), matrices(tiny("llama").model)
    for name, found in matrices(loaded.model).items():
        assert largest(found - expected[name]) < 1e-6, name
        assert largest(found - first[name]) > 1e-3, name


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_an_adapter_does_not_read_the_frozen_directions_and_loads_in_stock_peft(tmp_path: Path, family: str) -> None:
    loaded = tiny(family)
    made = planned(loaded, n=4, layers=("q_proj", "k_proj", "v_proj", "down_proj"), rest="free")
    result = held(tmp_path, loaded, made, params="lora", optimizer="adamw", weight_decay=0.1, learning_rate=1e-2)
    tuned = PeftModel.from_pretrained(tiny(family).model, str(result.folder)).merge_and_unload()
    first = matrices(tiny(family).model)
    for name, weight in matrices(tuned).items():
        assert largest(weight - first[name]) > 1e-4, name
        if name in made.frozen:
            assert largest(in_frozen_space(made, name, weight - first[name])) < ROUNDING, name


def test_elements_cannot_be_held_under_an_adapter(tmp_path: Path) -> None:
    loaded = tiny("llama")
    with pytest.raises(LayerError, match="expected unit: column with one mask for its parts"):
        held(tmp_path, loaded, planned(loaded, **ELEMENT), params="lora")


def test_training_zero_steps_leaves_every_bit() -> None:
    loaded = tiny("llama")
    model: nn.Module = loaded.model.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for keys in ({}, ELEMENT):
        Shadows(model, apply(loaded, planned(loaded, **keys))).push()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
