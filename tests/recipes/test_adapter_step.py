"""The step ``do: adapter``: an adapter from elsewhere stands in place of one that was trained here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.expert_plans import adapter
from tests.methods.merging.test_apply import logits
from tests.zoo import tiny_folder

from holdfast.core.errors import AdapterError, ConfigError
from holdfast.core.results import RunRecord
from holdfast.layers.adapters import added, read_peft, write_peft
from holdfast.models.adapter import BASE_FILE
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model
from holdfast.recipes.context import resolve_model
from holdfast.recipes.estimate import estimate
from holdfast.recipes.run import Choice, run_recipe
from holdfast.recipes.schema import parse_recipe

SUM = {"do": "merge", "rule": "task_arithmetic"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def given(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two PEFT folders of ranks 2 and 3, as another tool would leave them."""
    home = tmp_path_factory.mktemp("given")
    loaded = load_model(ModelConfig(source=str(base)))
    for seed, rank in ((1, 2), (2, 3)):
        write_peft(adapter(loaded, rank, seed=seed), home / f"a{seed}")
        named(home / f"a{seed}", str(base))
    return home / "a1", home / "a2"


def named(folder: Path, base: str) -> Path:
    """The adapter says that it was made for ``base``."""
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def other(given: Path, folder: Path) -> Path:
    """The same adapter, made for a model of another name."""
    write_peft(read_peft(given), folder)
    return named(folder, "org/other")


def recipe(base: Path, **steps: dict[str, Any]) -> Any:
    return parse_recipe({"name": "taken", "model": str(base), "steps": steps}, "taken.yaml")


def taken(folder: Path, **keys: Any) -> dict[str, Any]:
    return {"do": "adapter", "source": str(folder), **keys}


@pytest.fixture(scope="module")
def run(base: Path, given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    out = tmp_path_factory.mktemp("runs") / "run"
    steps = {"utility": taken(given[0]), "safety": taken(given[1])}
    whole = recipe(base, **steps, both={**SUM, "adapters": ["utility", "safety"], "weights": [1, 0.5]})
    assert [step.do for step in estimate(whole, "taken").steps] == ["adapter", "adapter", "merge"]
    return run_recipe(whole, out), out


def test_a_taken_adapter_is_merged_as_one_that_was_trained_here(
    run: tuple[RunRecord, Path], base: Path, given: tuple[Path, Path]
) -> None:
    record, out = run
    assert [step.status for step in record.steps] == ["done"] * 3
    assert record.steps[0].notes == (f"Taken from {given[0]}: 14 layers, ranks 2 to 2.",)
    loaded = load_model(ModelConfig(source=str(base)))
    with added(loaded.model, read_peft(given[0])), added(loaded.model, read_peft(given[1]), 0.5):
        expected = logits(loaded.model)
    merged = load_model(ModelConfig(source=str(base), adapter=str(out / "both" / "adapter")))
    assert_close(logits(merged.model), expected)


def test_the_copy_has_the_bytes_of_what_was_given(run: tuple[RunRecord, Path], given: tuple[Path, Path]) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (run[1] / "utility" / "adapter" / name).read_bytes() == (given[0] / name).read_bytes()


def test_it_is_taken_anew_when_its_bytes_change(base: Path, given: tuple[Path, Path], tmp_path: Path) -> None:
    write_peft(read_peft(given[0]), tmp_path / "own")
    folder = named(tmp_path / "own", str(base))
    wanted, lines = recipe(base, utility=taken(folder)), list[str]()
    run_recipe(wanted, tmp_path / "run")
    run_recipe(wanted, tmp_path / "run", Choice(resume=True), say=lines.append)
    assert lines == ["[1/1] utility (adapter): kept, unchanged"]
    (folder / "README.md").write_text("changed")
    run_recipe(wanted, tmp_path / "run", Choice(resume=True), say=lines.append)
    assert "done in" in lines[2]


def test_an_adapter_of_another_base_is_refused_unless_any_is_asked_for(
    base: Path, given: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = other(given[0], tmp_path / "other")
    with pytest.raises(AdapterError, match=r"was made for org/other, .*in a step that merges or repairs it any_base"):
        run_recipe(recipe(base, utility=taken(folder)), tmp_path / "refused")
    after = {"do": "evaluate", "model": "utility", "tasks": ["lab/choice"], "limit": 2}
    both = {**SUM, "adapters": ["utility", str(given[1])]}
    steps = {"utility": taken(folder, any_base=True), "after": after, "both": both}
    record = run_recipe(recipe(base, **steps), tmp_path / "run")
    assert any("was made for org/other and is used on" in note for note in record.steps[0].notes)
    assert [step.status for step in record.steps] == ["done"] * 3
    assert (tmp_path / "run" / "utility" / "adapter" / BASE_FILE).is_file()


@pytest.mark.parametrize("do", ["merge", "repair"])
def test_a_step_takes_an_adapter_of_another_base_where_any_base_says_so(
    do: str, base: Path, given: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = str(other(given[0], tmp_path / "other"))
    steps: dict[str, dict[str, Any]] = {
        "merge": {**SUM, "adapters": [folder, str(given[1])]},
        "repair": {"do": "repair", "method": "scale", "adapter": folder},
    }
    with pytest.raises(AdapterError, match="was made for org/other"):
        run_recipe(recipe(base, made=steps[do]), tmp_path / "refused")
    record = run_recipe(recipe(base, made={**steps[do], "any_base": True}), tmp_path / "run")
    said = [note for note in record.steps[0].notes if "made for org/other" in note]
    assert len(said) == 1
    assert "it was asked to take any base" in said[0]


def test_any_base_without_an_adapter_from_elsewhere_has_no_effect_and_is_refused(
    base: Path, given: tuple[Path, Path]
) -> None:
    made = {**SUM, "adapters": ["one", "two"], "any_base": True}
    with pytest.raises(ConfigError, match=r"steps.made.any_base: has no effect: no adapter of this step is from else"):
        recipe(base, one=taken(given[0]), two=taken(given[1]), made=made)


def test_what_stands_on_a_model_with_an_adapter_is_measured_with_both(
    base: Path, given: tuple[Path, Path], tmp_path: Path
) -> None:
    """The first adapter is part of the base of what is taken, merged or repaired on it, and stays."""
    on = {"model": {"source": str(base), "adapter": str(given[0])}}
    steps = {
        "safety": {**taken(given[1]), **on},
        "same": {**SUM, "adapters": [str(given[1])], **on},
        "whole": {"do": "repair", "method": "scale", "factor": 1.0, "adapter": str(given[1]), **on},
    }
    measured = {f"after-{name}": {"do": "evaluate", "model": name, "tasks": ["lab/choice"]} for name in steps}
    wanted = recipe(base, **steps, **measured)
    parts = parse_recipe({"name": "taken", "model": str(base), "steps": steps}, "taken.yaml")
    run_recipe(parts, tmp_path / "run")
    loaded = load_model(ModelConfig(source=str(base)))
    with added(loaded.model, read_peft(given[0])), added(loaded.model, read_peft(given[1])):
        expected = logits(loaded.model)
    for name in steps:
        found = load_model(resolve_model(wanted, f"after-{name}", tmp_path / "run"))
        assert_close(logits(found.model), expected), name


def test_check_finds_an_adapter_that_is_not_there_or_does_not_fit(
    base: Path, given: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    found = read_peft(given[0])
    for delta in found.deltas.values():
        object.__setattr__(delta, "B", torch.cat([delta.B, delta.B]))
    write_peft(found, wide)
    steps = {"gone": taken(tmp_path / "nowhere"), "wide": taken(wide)}
    with pytest.raises(ConfigError) as caught:
        estimate(recipe(base, **steps), "taken.yaml")
    lines = str(caught.value).splitlines()
    assert any("steps.gone: " in line and "no such folder" in line for line in lines), lines
    assert any("steps.wide: " in line for line in lines), lines
