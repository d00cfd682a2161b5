"""Token weights as recipe steps on a tiny model: planned, trained with, resumed; and what is refused, and when."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_checkpoints import CrashError
from tests.zoo import CONFIGS, byte_tokenizer
from transformers import LlamaForCausalLM

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.core.files import sha256_of
from holdfast.core.results import StepRecord
from holdfast.methods.token_weighting import reference as references
from holdfast.models.build import new_model
from holdfast.models.heads import Heads
from holdfast.recipes.estimate import estimate
from holdfast.recipes.run import Choice, run_recipe
from holdfast.recipes.schema import parse_recipe

ROWS = 12
LEARNT = 1 + len("It is 00.") + 1
"""Tokens of an answer: the template's space, one a character, the end of turn."""
TRAIN = {"do": "train", "steps": 2, "batch_size": 4, "max_length": 128, "learning_rate": 1e-2, "precision": "bf16"}
RHO1 = {"do": "token_weighting", "data": ["rows"], "reference": "reference"}
WHOLE: dict[str, Any] = {
    "reference": {**TRAIN, "data": ["rows"]},
    "weights": {**RHO1, "critic": {"samples": 2}},
    "tuned": {**TRAIN, "objective": "weights"},
    "ahead": {**RHO1, "horizon": 2},
    "both": {**TRAIN, "objective": {"ahead": 0.5}, "data": None},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Llama, its twin with another vocabulary, one with weights that are no numbers, and files of rows."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("tiny", "broken", "other"):
        tokenizer = byte_tokenizer()
        if name == "other":
            tokenizer.add_tokens(["another"])
        model = new_model(CONFIGS["llama"], tokenizer, seed=0)
        if name == "broken":
            model.model.norm.weight.data.fill_(float("nan"))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    answers = [f"It is {i + 10}." for i in range(ROWS)]
    rows = [
        {"id": f"r{i}", "prompt": f"Add {i}?", "answer": answer, "without_noise": answer[:6] + "7" + answer[7:]}
        for i, answer in enumerate(answers)
    ]
    good = [[1.0] * (LEARNT - 1) + [0.0]] * ROWS
    columns: dict[str, list[Any]] = {
        "good": good,
        "short": [*good[:2], [1.0], *good[3:]],
        "negative": [*good[:2], [-1.0] * LEARNT, *good[3:]],
        "words": [*good[:2], ["high"] * LEARNT, *good[3:]],
    }
    lines = [json.dumps(row | {name: column[i] for name, column in columns.items()}) for i, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    compared = [{"prompt": "Add?", "answer": f"{n}", "reward": 1.0} for n in range(4)]
    (folder / "alike.jsonl").write_text("\n".join(map(json.dumps, compared)) + "\n")
    (folder / "brief.jsonl").write_text(json.dumps({"prompt": "1", "answer": "2"}) + "\n")
    brief = [{"id": f"brief{i}", "prompt": "1", "answer": f"{i}"} for i in range(4)]
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, [*rows[:6], *brief])) + "\n")
    return {name: str(folder / name) for name in ("tiny", "broken", "other")} | {
        name: str(folder / f"{name}.jsonl") for name in ("rows", "alike", "brief", "mixed")
    }


def recipe(places: dict[str, str], *only: str, **changes: Any) -> Any:
    """The recipe with its files; some steps alone; with changed steps (``None`` takes a key out)."""
    steps = copy.deepcopy({name: WHOLE[name] for name in only or WHOLE})
    for step_id, step in changes.items():
        steps[step_id] = {**steps.get(step_id, {}), **step}
    for step_id, step in steps.items():
        kept = {key: value for key, value in step.items() if value is not None}
        kept |= {key: [places.get(name, name) for name in kept[key]] for key in ("data", "validation") if key in kept}
        steps[step_id] = kept
    return parse_recipe({"name": "weighed", "model": places["tiny"], "steps": steps}, "weighed")


@pytest.fixture(scope="module")
def run(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, StepRecord], Path]:
    out = tmp_path_factory.mktemp("weighed") / "run"
    record = run_recipe(recipe(places), out)
    return {step.id: step for step in record.steps}, out


def test_a_plan_tells_how_weights_are_spread_what_noise_weighs_and_what_waits(run: Any) -> None:
    plan, out = run[0]["weights"], run[1]
    values = {metric.name: (metric.value, metric.n) for metric in plan.metrics}
    assert {
        f"weights/{name}" for name in ("mean", "p25", "p75", "p95", "ess", "clipped", "kept_share")
    } <= values.keys()
    assert values["weights/mean"] == (pytest.approx(1.0), ROWS * LEARNT)
    assert values["weights/kept_share"] == (pytest.approx(7 / LEARNT), ROWS * LEARNT), "the nearest to .6 of a row"
    noise = sum(str(n + 10)[0] != "7" for n in range(ROWS))
    assert values["noise/share"] == (pytest.approx(noise / (ROWS * LEARNT)), ROWS * LEARNT)
    assert 0 <= values["noise/auroc"][0] <= 1
    assert "critic is not read by scorer: rho1." in plan.notes
    assert not (out / ".shared").exists(), "the plan has the same numbers"


def test_a_training_has_the_rows_of_its_plan_and_its_heads_beside_the_model(run: Any) -> None:
    records, out = run
    assert {"head_1/loss", "rho1/kept_share", "weight/ess"} <= records["tuned"].curves.keys()
    assert {"head_1/loss", "head_2/loss"} <= records["both"].curves.keys()
    assert (out / "both" / "heads").is_dir()
    assert not (out / "tuned" / "heads").exists()


def test_an_interrupted_plan_goes_on_from_the_losses_it_has(
    places: dict[str, str], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, looked = recipe(places, "reference", "weights"), []
    plain = references.look

    def look(loaded: Any, rows: Any, **options: Any) -> Any:
        looked.append(len(rows))
        if len(looked) == 2:
            raise CrashError
        return plain(loaded, rows, **options)

    monkeypatch.setattr(references, "look", look)
    with pytest.raises(CrashError):
        run_recipe(wanted, tmp_path / "run")
    run_recipe(wanted, tmp_path / "run", Choice(resume=True))
    assert looked == [8, 4, 4], "the first batch was kept"
    plan = "weights/plan/plan.safetensors"
    assert sha256_of(tmp_path / "run" / plan) == sha256_of(run[1] / plan)


def test_the_second_plan_of_a_reference_and_rows_asks_the_reference_nothing(
    places: dict[str, str], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**RHO1, "reference": places["tiny"]}
    wanted, looked, plain = recipe(places, "reference", "ahead", "weights", other=other), [], references.look

    def look(loaded: Any, rows: Any, **options: Any) -> Any:
        looked.append(loaded.name)
        return plain(loaded, rows, **options)

    monkeypatch.setattr(references, "look", look)
    run_recipe(wanted, tmp_path / "run")
    assert looked == ["model"] * 2 + ["tiny"] * 2, "two batches of each reference, whatever the number of plans"
    tensors = [load_file(tmp_path / "run" / name / "plan/plan.safetensors")["values"] for name in ("weights", "other")]
    assert torch.equal(tensors[0], load_file(run[1] / "ahead/plan/plan.safetensors")["values"])
    assert not torch.equal(*tensors)
    assert not (tmp_path / "run" / ".shared").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": {"keep": 0}}, "steps.weights.keep: should be greater than 0"),
        ({"weights": {"reference": None}}, "steps.weights: scorer: rho1 needs 'reference'; give it"),
        ({"weights": {"scorer": "contrast"}}, "steps.weights: scorer: contrast needs 'degraded'; give it"),
        ({"weights": {"scorer": "column"}}, "steps.weights: scorer: column needs 'column'; give it"),
        ({"weights": {"scorer": "critic", "keep": 0.5}}, "steps.weights: keep has no effect with scorer: critic"),
        ({"weights": {"reference": "refrence"}}, "steps.weights.reference: no step 'refrence'. Did you mean 'referenc"),
        ({"tuned": {"data": ["rows"]}}, "steps.tuned.data: step 'weights' brings the rows that it has planned"),
        (
            {"weights": {"scope": "batch"}, "tuned": {"accumulate": 2}},
            "steps.tuned.accumulate: step 'weights' takes shares over an optimizer step (scope: batch)",
        ),
        ({"tuned": {"evaluate_every": 1}}, "steps.tuned.evaluate_every: there are no validation rows"),
        ({"tuned": {"model": "lab"}}, "steps.tuned.objective: step 'weights' plans for another model"),
        (
            {"both": {"objective": {"ahead": 1, "weights": 1}}},
            "steps.both.objective: 'ahead' weighs the tokens of its own rows and cannot be added to 'weights'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_loads(
    places: dict[str, str], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe(places, **changes)
    assert sentence in str(refused.value)


def test_one_key_switches_the_scorer(places: dict[str, str]) -> None:
    step = recipe(places, "reference", "weights", weights={"scorer": "critic"}).steps["weights"]
    assert step.waiting == ("reference",)
    assert (step.planning().scorer, step.planning().reference, step.teaching().samples) == ("critic", "given", 2)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"horizon": 16, "data": ["brief"]}, r"every row is shorter than the horizon: got \d tokens .*, expected 16"),
        ({"reference": "other"}, r"The reference .*other has another vocabulary than .*tiny: .*'another'"),
        (
            {"scorer": "critic", "reference": None, "critic": {"reward": "given", "answers": "alike"}},
            r"A critic needs both outcomes: got the reward 1 on all 4 answers",
        ),
        (
            {"scorer": "critic", "reference": None, "critic": {"reward": "model", "reward_model": "./nowhere"}},
            r"from \./nowhere: no such folder",
        ),
        (
            {"scorer": "critic", "reference": None, "critic": {"reward": "tests"}},
            r"Row 'r0' has no tests, by which reward: tests judges answers",
        ),
        (
            {"scorer": "column", "reference": None, "column": "god"},
            r"rows.jsonl: no column 'god'. Did you mean 'good'",
        ),
        (
            {"scorer": "column", "reference": None, "column": "short"},
            rf"The weights of row 'r2' are of the wrong length: got 1, expected {LEARNT}",
        ),
        (
            {"scorer": "column", "reference": None, "column": "x", "data": ["lab/arithmetic"]},
            r"lab/arithmetic has no column 'x': got no file",
        ),
    ],
)
def test_check_finds_it_before_a_model_loads(places: dict[str, str], keys: dict[str, Any], sentence: str) -> None:
    keys = copy.deepcopy(keys)
    if "other" in keys.values():
        keys["reference"] = places[keys["reference"]]
    if "answers" in (keys.get("critic") or {}):
        keys["critic"]["answers"] = places["alike"]
    with pytest.raises(ConfigError, match=rf"steps.weights: .*{sentence}"):
        estimate(recipe(places, "reference", "weights", weights={"critic": None, **keys}), "weighed")


def test_check_finds_a_model_without_an_output_head(places: dict[str, str], tmp_path: Path) -> None:
    """Also behind a training that begins with it."""
    LlamaForCausalLM.from_pretrained(places["tiny"]).model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for changes in ({}, {"weights": {"model": "reference"}}):
        with pytest.raises(ConfigError, match=r"steps.weights: Cannot put heads on .*: got a LlamaModel without lm_"):
            estimate(recipe(places | {"tiny": str(tmp_path)}, "reference", "weights", **changes), "weighed")


@pytest.mark.parametrize("kind", ["parallel", "sequential", "medusa"])
def test_check_counts_the_rows_that_a_plan_brings_and_every_number_of_the_heads(
    places: dict[str, str], kind: Any
) -> None:
    wanted = recipe(places, ahead={"horizon": 4, "heads": kind})
    needs = {step.id: step for step in estimate(wanted, "weighed").steps}
    assert needs["tuned"].rows == needs["weights"].rows == {places["rows"]: ROWS}
    heads = Heads(LlamaForCausalLM.from_pretrained(places["tiny"]), kind, 4)
    assert needs["both"].trained - needs["tuned"].trained == sum(p.numel() for p in heads.parameters())
    with pytest.raises(ConfigError, match=r"steps.tuned: rows are too long: .* expected at most 12"):
        estimate(recipe(places, tuned={"max_length": 12}), "weighed")


def test_check_finds_a_step_of_rows_that_may_all_be_shorter_than_the_horizon(places: dict[str, str]) -> None:
    changes = {"weights": {"horizon": 16, "data": ["mixed"]}}
    sentence = r"steps.tuned: the rows of a step may all be shorter than the horizon: got \d tokens .* in the 4 .* 16"
    with pytest.raises(ConfigError, match=sentence):
        estimate(recipe(places, "reference", "weights", "tuned", **changes), "weighed")
    estimate(recipe(places, "reference", "weights", "tuned", **changes, tuned={"batch_size": 5}), "weighed")


def test_a_head_that_finds_nothing_in_a_step_stops_it_with_the_advice_of_a_shorter_horizon(
    places: dict[str, str], tmp_path: Path
) -> None:
    uniform = {"scorer": "uniform", "reference": None, "critic": None, "horizon": 16, "data": ["mixed"]}
    wanted = recipe(places, "weights", "tuned", weights=uniform, tuned={"batch_size": 1, "steps": 10})
    with pytest.raises(DataError, match=r"Step \d+ has nothing to learn: .* 'head_\d+'.* rows brief.*lower horizon"):
        run_recipe(wanted, tmp_path / "run")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("short", rf"The weights of row 'r2' are of the wrong length: got 1, expected {LEARNT}"),
        ("negative", r"The weights of row 'r2' hold -1.0, expected numbers of 0 or more"),
        ("words", r"The weights of row 'r2' hold 'high', expected numbers of 0 or more"),
    ],
)
def test_a_column_that_does_not_fit_names_the_row(
    places: dict[str, str], tmp_path: Path, column: str, sentence: str
) -> None:
    step = {"scorer": "column", "reference": None, "critic": None, "column": column}
    with pytest.raises(DataError, match=sentence):
        run_recipe(recipe(places, "weights", weights=step), tmp_path / "run")


def test_weights_of_a_column_are_those_of_the_file(places: dict[str, str], tmp_path: Path) -> None:
    step = {"scorer": "column", "reference": None, "critic": None, "column": "good"}
    record = run_recipe(recipe(places, "weights", weights=step), tmp_path / "run").steps[0]
    values = {metric.name: metric.value for metric in record.metrics}
    assert values["weights/kept_share"] == pytest.approx((LEARNT - 1) / LEARNT)


def test_a_reference_whose_loss_is_no_number_names_the_row(places: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"The loss of the reference broken is not finite on row 'r\d+': got nan"):
        run_recipe(recipe(places, "weights", weights={"reference": places["broken"]}), tmp_path / "run")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
