"""What is frozen stays, bit for bit, whatever the training does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.planned import ELEMENT, FEW, planned
from tests.training.helpers import config, examples
from tests.zoo import tiny
from torch import Tensor

from holdfast.layers.address import LayerMap
from holdfast.methods.rotation.apply import apply
from holdfast.training.loop import HELD, HELD_FILE, train

OPTIMIZERS = ("sgd", "adamw", "adafactor", "amsgrad", "muon")
OWN = {"space": "unrotated"}
"""In the weight's own coordinates a frozen coordinate is an entry of the weight."""
HARD = {"weight_decay": 0.1, "clip": 0.1, "accumulate": 4, "batch_size": 2, "precision": "bf16"}
SHORT, LONG = 6, 200


def entries(model: Any) -> dict[str, Tensor]:
    """Stored weights by layer name, bits as they are."""
    layers = LayerMap.of(model)
    return {layer.name: layers.read(layer.name).detach().clone() for layer in layers.select(FEW)}


def interrupted(out: Path, plan_keys: dict[str, Any], optimizer: str, steps: int) -> tuple[Any, Any, dict[str, Tensor]]:
    """Train, and once more from a checkpoint in the middle: the plan, the model and its coordinates."""
    rate = 0.1 if optimizer == "sgd" else 0.01
    settings = config(optimizer=optimizer, learning_rate=rate, steps=steps, save_every=2 * steps // 3, **HARD)
    ends = []
    for resume in (False, True):
        loaded = tiny("llama")
        made = planned(loaded, n=4, **plan_keys)
        result = train(loaded, examples(24), settings, out=out, constraint=apply(loaded, made), resume=resume)
        ends.append({name: p.detach().clone() for name, p in result.model.model.named_parameters()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]), "a resumed run ends elsewhere"
    found = load_file(out / HELD / HELD_FILE)
    return made, result.model.model, {name.partition("/")[2]: t for name, t in found.items()}


@pytest.mark.parametrize("steps", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("keys", [{"importance": "column"}, ELEMENT], ids=["column", "element"])
def test_frozen_weights_are_bit_equal_under_decay_clipping_accumulation_autocast_and_resume(
    tmp_path: Path, keys: dict[str, Any], optimizer: str, steps: int
) -> None:
    made, tuned, _ = interrupted(tmp_path, OWN | keys, optimizer, steps)
    before, after = entries(tiny("llama").model), entries(tuned)
    for name, frozen in made.frozen.items():
        frozen_oi = frozen.expand_as(before[name])
        assert frozen_oi.any(), name
        assert torch.equal(after[name][frozen_oi], before[name][frozen_oi]), name
        assert (after[name] != before[name])[~frozen_oi].float().mean() > 0.9, name


@pytest.mark.parametrize("steps", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_rotated_coordinates_are_exactly_zero_under_all_of_it(
    tmp_path: Path, optimizer: str, steps: int
) -> None:
    made, tuned, found = interrupted(tmp_path, ELEMENT, optimizer, steps)
    layers = LayerMap.of(tuned)
    for name, frozen in made.frozen.items():
        D = found[f"{layers[name].path}.weight"]
        assert not D[frozen].any(), name
        assert D[~frozen].any(), name
