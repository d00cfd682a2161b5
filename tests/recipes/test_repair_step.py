"""The step ``do: repair``: its keys, a tiny run of it on an adapter and on a full fine-tuning, and what it leaves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.expert_plans import adapter
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.errors import AdapterError, ConfigError
from holdfast.core.results import RunRecord
from holdfast.layers.adapters import LowRank, read_peft, write_peft
from holdfast.models.build import new_model
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model
from holdfast.recipes.estimate import LOG_BYTES, RUNTIME_BYTES, estimate
from holdfast.recipes.repair_step import RepairStep
from holdfast.recipes.run import run_recipe
from holdfast.recipes.schema import parse_recipe

USE: list[dict[str, Any]] = [{"source": "lab/arithmetic", "rows": 4, "seed": 5}]
HARM: list[dict[str, Any]] = [
    {"source": "lab/requests/harmful", "rows": 3},
    {"source": "lab/requests/benign", "rows": 2},
]
SELECT: dict[str, Any] = {
    "safety": [{"name": "lab/harmful", "max_new_tokens": 4}, {"name": "lab/benign", "max_new_tokens": 4}],
    "utility": [{"name": "lab/arithmetic", "max_new_tokens": 4}],
    "rows": 3,
}
REPAIR: dict[str, Any] = {"do": "repair", "adapter": "org/adapter", "utility": USE, "safety": HARM}
SCALE: dict[str, Any] = {"do": "repair", "method": "scale", "adapter": "org/adapter"}


@pytest.fixture(scope="module", autouse=True)
def any_answer_can_be_judged() -> Iterator[None]:
    """The tiny model babbles, and where no answer can be judged no value of the dial can be taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.evaluation.judges.refusal.incoherent", lambda output: "")
        yield


def parsed(step: dict[str, Any]) -> RepairStep:
    found = parse_recipe({"name": "r", "model": "lab", "steps": {"mended": step}}, "r.yaml").steps["mended"]
    assert isinstance(found, RepairStep)
    return found


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({**REPAIR, "tuned": "lab"}, "give one of 'adapter' and 'tuned'"),
        ({key: REPAIR[key] for key in ("do", "utility", "safety")}, "give one of 'adapter' and 'tuned'"),
        ({**REPAIR, "delta_rank": 8}, "delta_rank has no effect without 'tuned'; take it out"),
        ({**REPAIR, "safety": []}, "method repair needs 'safety'"),
        ({**REPAIR, "unaligned": "lab"}, "'unaligned' has no effect with method: repair; take it out"),
        ({**SCALE, "safety": HARM}, "'safety' has no effect with method: scale; take it out"),
        ({**SCALE, "method": "safe_lora"}, "method safe_lora needs 'unaligned'"),
        ({**SCALE, "method": "scael"}, "'scale'"),
        ({**SCALE, "mu": 1}, "mu has no effect with method: scale; take it out"),
        ({**SCALE, "batch_size": 4}, "batch_size has no effect without select; take it out"),
        ({**SCALE, "factor": 0.3, "select": SELECT}, "factor is chosen by select; take one of them out"),
        ({**SCALE, "select": {**SELECT, "values": [0.5, 1.5]}}, "less than or equal to 1"),
        ({**SCALE, "select": {**SELECT, "utility": ["gsm8k"]}}, "task 'gsm8k' needs 'data': validation rows"),
        ({**SCALE, "adapter": "nowhere"}, "no step 'nowhere'"),
    ],
)
def test_keys_that_do_not_fit_are_a_sentence(step: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(step)
    assert line in str(caught.value)


def test_values_of_the_dial_are_the_methods_own_where_none_are_named() -> None:
    assert parsed({**SCALE, "select": SELECT}).tries() == (0.9, 0.7, 0.5, 0.3, 0.1)
    assert parsed({**SCALE, "select": {**SELECT, "values": [0.2]}}).tries() == (0.2,)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tiny base, an adapter of it, and the base with another change written in, as a model of its own."""
    home = tmp_path_factory.mktemp("models")
    base, tuned, lora = home / "base", home / "tuned", home / "lora"
    tokenizer = byte_tokenizer()
    new_model(CONFIGS["llama"] | {"max_position_embeddings": 1024}, tokenizer, seed=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    loaded = load_model(ModelConfig(source=str(base)))
    made = adapter(loaded, 2, seed=1)
    write_peft(made, lora)
    with torch.no_grad():
        for name, delta in made.deltas.items():
            loaded.model.get_submodule(made.paths[name]).weight += delta.dense()
    loaded.model.save_pretrained(tuned)
    tokenizer.save_pretrained(tuned)
    return base, lora, tuned


def run(out: Path, base: Path, **steps: dict[str, Any]) -> RunRecord:
    document = {"name": "tiny", "model": str(base), "steps": steps}
    return run_recipe(parse_recipe(document, "tiny.yaml"), out)


@pytest.fixture(scope="module")
def repaired(folders: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    base, lora, _ = folders
    out = tmp_path_factory.mktemp("runs") / "tiny"
    mended = {**REPAIR, "adapter": str(lora), "select": {**SELECT, "values": [0.0, 2.0]}}
    measured = {"do": "evaluate", "model": "mended", "tasks": SELECT["utility"], "limit": 2}
    return run(out, base, mended=mended, after=measured), out


def test_the_record_has_the_dial_figures_before_and_after_and_the_verdict_on_halves(
    repaired: tuple[RunRecord, Path],
) -> None:
    step = repaired[0].steps[0]
    found = {metric.name: metric.value for metric in step.metrics if not metric.group}
    assert found["repair/dial"] in {0.0, 2.0}
    for when in ("before", "after"):
        values = [
            found[f"repair/{when}/safety/lab/{name}"]
            for name in ("harmful/attack_success_rate", "benign/over_refusal_rate")
        ]
        assert found[f"repair/{when}/safety"] == pytest.approx(1 - sum(v for v in values if v is not None) / 2)
        assert found[f"repair/{when}/utility"] == found[f"repair/{when}/utility/lab/arithmetic/exact"]
    assert [verdict.name for verdict in step.verdicts] == ["repair/split_half"]
    assert len(step.curves["tried/safety"]) == 2
    assert any("most safety with utility at most 0.02 below" in note for note in step.notes)


def test_the_folder_is_the_repaired_adapter_and_says_how_it_was_made(
    repaired: tuple[RunRecord, Path], folders: tuple[Path, Path, Path]
) -> None:
    record, out = repaired
    folder = out / "mended" / "adapter"
    assert [artifact.path for artifact in record.steps[0].artifacts] == ["mended/adapter"]
    assert read_peft(folder).deltas.keys() == read_peft(folders[1]).deltas.keys()
    said = json.loads((folder / "merge.json").read_text())
    assert (said["method"], said["config"]["method"]) == ("repair", "repair")
    assert said["dial"] == {"mu": said["selection"]["taken"]["value"]}
    assert said["origin"]["n_rows"] == [4, 5]


def test_a_later_step_measures_the_repaired_model(repaired: tuple[RunRecord, Path]) -> None:
    step = repaired[0].steps[1]
    assert (step.status, step.model_name) == ("done", "mended")


def test_a_full_fine_tuning_is_repaired_as_an_adapter_and_its_loss_is_told(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, lora, tuned = folders
    mended = {"do": "repair", "method": "scale", "factor": 0.25, "tuned": {"source": str(tuned)}, "delta_rank": 2}
    record = run(tmp_path / "run", base, mended=mended)
    found, given = read_peft(tmp_path / "run" / "mended" / "adapter"), read_peft(lora)
    for name, delta in given.deltas.items():
        assert_close(found.delta(name), LowRank(delta.A, 0.25 * delta.B).dense(), "float32")
    cut = next(metric for metric in record.steps[0].metrics if metric.name == "repair/delta_cut")
    assert cut.value is not None
    assert cut.value < 1e-3
    assert any("was cut to rank 2; the mean relative norm" in note for note in record.steps[0].notes)


def test_an_adapter_of_another_base_is_refused(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, lora, _ = folders
    write_peft(read_peft(lora), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/other"
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    document = {"name": "t", "model": str(base), "steps": {"mended": {**SCALE, "adapter": str(tmp_path / "lora")}}}
    with pytest.raises(AdapterError, match="was made for org/other"):
        run_recipe(parse_recipe(document, "t.yaml"), tmp_path / "run")


def test_check_says_what_a_repair_needs(repaired: tuple[RunRecord, Path], folders: tuple[Path, Path, Path]) -> None:
    base, lora, tuned = folders
    steps = {
        "mended": {**REPAIR, "adapter": str(lora), "select": {**SELECT, "values": [0.0, 2.0]}},
        "whole": {**SCALE, "tuned": str(tuned), "delta_rank": 4},
        "again": {"do": "merge", "rule": "svd", "adapters": ["whole"]},
        "aligned": {**SCALE, "method": "lox", "adapter": str(lora), "unaligned": str(tuned)},
    }
    del steps["whole"]["adapter"]
    document = {"name": "r", "model": str(base), "steps": steps}
    needs = {step.id: step for step in estimate(parse_recipe(document, "r"), "r").steps}
    assert needs["mended"].rows == {
        "lab/arithmetic": 4,
        "lab/requests/harmful": 3,
        "lab/requests/benign": 2,
        "lab/harmful (validation)": 3,
        "lab/benign (validation)": 3,
        "lab/arithmetic (validation)": 3,
    }
    made = (repaired[1] / "mended" / "adapter" / "adapter_model.safetensors").stat().st_size
    log = 3 * 9 * LOG_BYTES
    assert needs["mended"].disk_bytes - log <= made <= 1.2 * (needs["mended"].disk_bytes - log) + 4000
    assert needs["again"].disk_bytes == needs["whole"].disk_bytes
    assert min(step.memory_bytes for step in needs.values()) > RUNTIME_BYTES
    assert all(step.parameters == needs["mended"].parameters for step in needs.values())


def test_check_finds_every_problem_of_a_repair_at_once(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, lora, _ = folders
    wide = tmp_path / "wide"
    new_model(CONFIGS["llama"] | {"intermediate_size": 48}, byte_tokenizer(), seed=0).save_pretrained(wide)
    byte_tokenizer().save_pretrained(wide)
    one = [{"source": "lab/arithmetic", "rows": 1}]
    here = {**REPAIR, "adapter": str(lora)}
    steps = {
        "gone": {**REPAIR, "adapter": "/nowhere/adapter", "utility": ["/nowhere/u.jsonl"]},
        "same": {**here, "safety": USE},
        "few": {**here, "safety": one},
        "layers": {**here, "layers": ["qproj"]},
        "tuned": {"do": "repair", "method": "scale", "tuned": "/nowhere/model"},
        "unlike": {"do": "repair", "method": "scale", "tuned": str(wide)},
    }
    with pytest.raises(ConfigError) as caught:
        estimate(parse_recipe({"name": "r", "model": str(base), "steps": steps}, "r"), "r")
    found = [line.strip() for line in str(caught.value).splitlines()]
    for name, words in [
        ("gone", "/nowhere/adapter"),
        ("gone", "/nowhere/u.jsonl"),
        ("same", "'utility' and 'safety' are the same rows"),
        ("few", "got 1 safety rows, expected at least 2"),
        ("layers", "no layer matches 'qproj' in the adapters. Did you mean 'q_proj'"),
        ("tuned", "/nowhere/model"),
        ("unlike", "is not of the base's kind: got another shape of"),
    ]:
        assert any(line.startswith(f"steps.{name}: ") and words in line for line in found), (name, words, found)
