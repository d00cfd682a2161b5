"""The same claims about every entry of METHODS. A later method adds a record to `cases.py`; nothing here changes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.curvature.oracles import assert_same_state, state_of
from tests.methods.cases import CASES, Case
from tests.zoo import FAMILIES, tiny

from holdfast.core.errors import DataError, LayerError
from holdfast.layers.address import LayerMap
from holdfast.methods import METHODS
from holdfast.methods.stored import HEADER

LAYERS = ("q_proj", "layers.1.down_proj")
KINDS = [(name, variant) for name in METHODS for variant in CASES[name].variants]
each_kind = pytest.mark.parametrize(("name", "variant"), KINDS)
each_method = pytest.mark.parametrize("name", list(METHODS))
each_layered = pytest.mark.parametrize("name", [name for name in METHODS if CASES[name].layered])


def made(name: str, variant: str | None = None, family: str = "llama", layers: tuple[str, ...] = LAYERS) -> Any:
    case, loaded = CASES[name], tiny(family)
    keys = case.variants[variant or next(iter(case.variants))]
    settings = case.settings(layers=layers, **keys)
    return METHODS[name].plan(settings, loaded, case.rows(loaded), **case.sources(settings, loaded))


def assert_same_content(case: Case, a: Any, b: Any) -> None:
    """Bit for bit, in every tensor and every value."""
    mine, other = case.content(a), case.content(b)
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


def weights(model: Any) -> Mapping[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_method_has_its_record() -> None:
    assert CASES.keys() == set(METHODS)
    assert all(METHODS[name].name == name for name in METHODS)


@each_kind
def test_the_same_seed_gives_the_same_plan_and_leaves_the_model_alone(name: str, variant: str) -> None:
    case, loaded = CASES[name], tiny("llama")
    before = state_of(loaded.model)
    settings = case.settings(layers=LAYERS, **case.variants[variant])
    first = METHODS[name].plan(settings, loaded, case.rows(loaded), **case.sources(settings, loaded))
    assert_same_state(loaded.model, before)
    torch.manual_seed(99)  # what was drawn elsewhere must not matter
    assert_same_content(case, first, made(name, variant))
    assert any(isinstance(value, torch.Tensor) for value in case.content(first).values())


@each_kind
def test_a_plan_survives_disk(name: str, variant: str, tmp_path: Path) -> None:
    case, plan = CASES[name], made(name, variant)
    case.save(plan, tmp_path / "plan")
    assert_same_content(case, case.load(tmp_path / "plan"), plan)
    assert case.load(tmp_path / "plan").notes() == plan.notes() != ()


def spoilt(plan: Path) -> list[tuple[Path, bytes]]:
    """Files of a plan as they should not be: the JSON without each key, or with a number there, and cut-off files."""
    header = json.loads((plan / HEADER).read_text())
    others: list[Any] = [{key: value for key, value in header.items() if key != absent} for absent in header]
    others += [header | {key: 3} for key in header]
    tensors = sorted(plan.rglob("*.safetensors"))[0]
    said = [(plan / HEADER, json.dumps(other).encode()) for other in [*others, []]]
    return [*said, (plan / HEADER, b""), (tensors, tensors.read_bytes()[:-8]), (tensors, b"")]


def refusal(case: Case, plan: Path) -> str:
    """What is said of a damaged plan; nothing where what is damaged is not read."""
    try:
        case.load(plan)
    except DataError as problem:
        return str(problem)
    return ""


@each_method
def test_a_damaged_plan_is_refused_in_a_sentence_whatever_is_wrong_with_it(name: str, tmp_path: Path) -> None:
    case, plan = CASES[name], tmp_path / "plan"
    case.save(made(name), plan)
    keys = list(json.loads((plan / HEADER).read_text()))
    told = []
    for path, content in spoilt(plan):
        before = path.read_bytes()
        path.write_bytes(content)
        told.append(refusal(case, plan))
        path.write_bytes(before)
    assert all(said.startswith("Cannot read a ") and said.endswith(" again.") for said in told if said)
    unread = [key for key, said in zip(keys, told, strict=False) if not said]
    assert unread == (["layers"] if name == "rotation" else [])  # a table for people, made anew from the rest
    assert all(told[2 * len(keys) :])
    assert_same_content(case, case.load(plan), made(name))


@each_kind
def test_applied_and_trained_for_no_step_every_bit_is_the_same(name: str, variant: str) -> None:
    loaded = tiny("llama")
    before = weights(loaded.model)
    CASES[name].begin(loaded.model, METHODS[name].apply(loaded, made(name, variant)))
    assert all(torch.equal(weight, before[key]) for key, weight in weights(loaded.model).items())


@each_kind
def test_nothing_outside_the_selection_moves_and_all_of_it_does(name: str, variant: str, tmp_path: Path) -> None:
    loaded = tiny("llama")
    before = weights(loaded.model)
    after = weights(CASES[name].work(loaded, METHODS[name].apply(loaded, made(name, variant)), tmp_path))
    chosen = {f"{layer.path}.weight" for layer in LayerMap.of(tiny("llama").model).select(LAYERS)}
    assert {key for key in before if not torch.equal(before[key], after[key])} == chosen


@each_method
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_planned_and_held_by_the_names_of_its_layers(name: str, family: str) -> None:
    case, loaded = CASES[name], tiny(family)
    layers = case.layers(loaded, LAYERS)
    plan = made(name, family=family, layers=layers)
    assert_same_content(case, plan, made(name, family=family, layers=layers))
    before = weights(loaded.model)
    case.begin(loaded.model, METHODS[name].apply(loaded, plan))
    assert all(torch.equal(weight, before[key]) for key, weight in weights(loaded.model).items())
    named = {word for key in case.content(plan) for word in key.split("/")}
    assert set(layers) <= named or not case.layered


@each_layered
def test_an_unknown_layer_names_the_known_ones(name: str) -> None:
    with pytest.raises(LayerError, match=r"no layer matches 'qproj'.*Did you mean 'q_proj'\?.*Known: .*down_proj"):
        made(name, layers=("qproj",))
