"""A whole tiny run on the CPU: train a new model, measure, adapt, measure, compare; then what survives a crash."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from holdfast.cli.output import say
from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.core.files import sha256_of
from holdfast.core.results import RunRecord
from holdfast.models.adapter import BASE_FILE
from holdfast.models.load import weights_of
from holdfast.recipes.context import resolve_model
from holdfast.recipes.run import Choice, run_recipe
from holdfast.recipes.schema import parse_recipe, quickened
from holdfast.training import trackers
from holdfast.training.step import Stepper
from holdfast.training.trackers import Log

NEW = {
    "source": "new",
    "tokenizer": "trained",
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    },
}
BASE = {
    "do": "train",
    "model": NEW,
    "tokenizer": {"vocab_size": 400},
    "data": [{"source": "lab/textops", "rows": 24}],
    "validation": [{"source": "lab/textops", "split": "validation", "rows": 4}],
    "steps": 4,
    "evaluate_every": 2,
    "save_every": 2,
    "batch_size": 4,
    "max_length": 512,
}
TASKS = [{"name": "lab/harmful", "max_new_tokens": 4}, "lab/choice"]
MEASURE = {"do": "evaluate", "tasks": TASKS, "limit": 4}
LORA = {
    "do": "train",
    "params": "lora",
    "lora": {"rank": 2},
    "data": [{"source": "lab/textops", "rows": 8}],
    "steps": 2,
    "batch_size": 4,
    "max_length": 512,
}
WHOLE = {
    "name": "tiny",
    "seed": 3,
    "steps": {
        "base": BASE,
        "before": {**MEASURE, "model": "base"},
        "tuned": {**LORA, "model": "base"},
        "again": {**LORA, "model": "tuned", "steps": 1},
        "after": {**MEASURE, "model": "again"},
        "change": {"do": "compare", "before": "before", "after": "after"},
    },
}


def recipe(document=WHOLE, **steps):
    changed = copy.deepcopy(document)
    for step_id, keys in steps.items():
        changed["steps"][step_id] |= keys
    return parse_recipe(changed, "tiny.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[RunRecord, Path]:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return run_recipe(recipe(), out), out


def test_run_json_holds_every_step_whole(run):
    record, out = run
    assert RunRecord.load(out) == record
    assert [step.id for step in record.steps] == list(WHOLE["steps"])
    assert {step.status for step in record.steps} == {"done"}
    assert record.packages["torch"]
    assert record.recipe["steps"]["tuned"]["lora"]["rank"] == 2
    base = record.steps[0]
    assert [x for x, _ in base.curves["loss"]] == [1, 2, 3, 4]
    assert [x for x, _ in base.curves["validation/loss"]] == [2, 4]
    assert base.peak_bytes > 0
    assert base.metrics[0].name == "training/tokens_per_second"
    assert base.config["model"]["config"]["hidden_size"] == 32


def test_artifacts_are_there_with_their_hashes(run):
    record, out = run
    artifacts = [artifact for step in record.steps for artifact in step.artifacts]
    assert {artifact.path for artifact in artifacts} >= {"base/model", "before/log.jsonl", "tuned/adapter"}
    for artifact in artifacts:
        assert sha256_of(out / artifact.path) == artifact.sha256


def test_checkpoints_of_finished_steps_are_gone(run):
    assert not list(run[1].rglob("checkpoints"))


def test_an_evaluation_records_figures_and_shortened_harmful_prompts(run):
    before = run[0].steps[1]
    assert before.model_name == "base"
    assert {"safety/lab/harmful/attack_success_rate", "utility/lab/choice/accuracy"} <= {m.name for m in before.metrics}
    harmful = [sample for sample in before.samples if sample.task == "lab/harmful"]
    assert harmful
    assert all(len(sample.prompt) <= 60 for sample in harmful)


def test_an_adapter_on_an_adapter_is_measured_with_both(run):
    record, out = run
    assert (out / "again" / "base" / "config.json").is_file()
    assert not (out / "tuned" / "base").exists()
    made = {name: json.loads((out / name / "adapter" / BASE_FILE).read_text()) for name in ("tuned", "again")}
    assert made["tuned"]["weights_sha256"] == weights_of(out / "base" / "model")
    assert made["again"]["weights_sha256"] == weights_of(out / "again" / "base")
    assert record.steps[4].model_name == "again"


def test_a_trained_model_is_run_where_its_base_was_unless_the_step_says(tmp_path):
    pinned = {**BASE, "model": {**NEW, "device": "cpu"}}
    other = {**MEASURE, "model": {"source": "base", "device": "cuda"}}
    plan = parse_recipe(
        {"name": "x", "steps": {"base": pinned, "same": {**MEASURE, "model": "base"}, "other": other}}, "x"
    )
    found = {name: resolve_model(plan, name, tmp_path) for name in ("same", "other")}
    assert {name: config.device for name, config in found.items()} == {"same": "cpu", "other": "cuda"}
    assert {config.source for config in found.values()} == {str(tmp_path / "base" / "model")}


def test_a_comparison_is_paired_and_its_summary_is_a_sentence(run):
    record = run[0]
    assert record.steps[-1].verdicts
    assert record.summary.startswith("Fine-tuning (again) ")
    assert record.summary.endswith(".")


def test_a_tracker_that_fails_is_told_once_and_kept_in_the_record(tmp_path, monkeypatch, capsys):
    class Away:
        requires_logging_directory = False

        def __init__(self, project, **keywords):
            pass

        def start(self):
            raise ConnectionError("no answer")

    monkeypatch.setitem(trackers._FAILURES, "tensorboard", ("builtins", "ConnectionError"))
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"tensorboard": Away})
    step = {**BASE, "model": {**NEW, "dtype": "bfloat16"}, "steps": 1, "trackers": ["tensorboard"]}
    record = run_recipe(parse_recipe({"name": "tiny", "steps": {"base": step}}, "tiny"), tmp_path / "run", say=say)
    sentence = "Tracker 'tensorboard' is off from step 0 on: no answer."
    told = capsys.readouterr().err
    assert told.count(sentence) == 1
    cast, tracker = record.steps[0].notes
    assert tracker.startswith(sentence)
    assert told.count(cast) == 1, "what was not said at once is said when the step ends"


def times(record):
    return {step.id: step.seconds for step in record.steps}


def test_resume_keeps_everything_that_is_unchanged(run):
    record, out = run
    lines = []
    again = run_recipe(recipe(), out, Choice(resume=True), say=lines.append)
    assert times(again) == times(record)
    assert again.summary == record.summary
    assert len(lines) == 6
    assert all(line.endswith("kept, unchanged") for line in lines)


def test_resume_reruns_a_changed_step_and_what_depends_on_it(run, tmp_path):
    record, out = run
    copied = tmp_path / "copy"
    shutil.copytree(out, copied)
    changed = recipe(after={"limit": 3})
    lines = []
    again = run_recipe(changed, copied, Choice(resume=True), say=lines.append)
    kept = [line for line in lines if line.endswith("kept, unchanged")]
    assert [any(f" {step.id} " in f"{line} " for line in kept) for step in record.steps] == [True] * 4 + [False] * 2
    assert {metric.n for metric in again.steps[4].metrics if metric.name.endswith("accuracy") and not metric.group} == {
        3
    }


def test_a_step_does_not_begin_over_what_an_earlier_run_left_there(run, tmp_path):
    _, out = run
    copied = tmp_path / "copy"
    shutil.copytree(out, copied)
    (copied / "after").rename(tmp_path / "elsewhere")
    (copied / "after").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Cannot remove .*/after, which an earlier run has left"):
        run_recipe(recipe(after={"limit": 3}), copied, Choice(resume=True))


def test_only_and_from_use_what_is_there(run, tmp_path):
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(run[1], copied)
    before = times(RunRecord.load(copied))
    after = times(run_recipe(recipe(), copied, Choice(only="change")))
    assert {step_id for step_id in after if after[step_id] != before[step_id]} <= {"change"}
    assert list(after) == list(before)
    lines = []
    run_recipe(recipe(), copied, Choice(start_from="after"), say=lines.append)
    assert [line.split("] ")[1].split(" ")[0] for line in lines if "kept" in line] == [
        "base",
        "before",
        "tuned",
        "again",
    ]


@pytest.mark.parametrize("choice", [Choice(only="after"), Choice(start_from="after")])
def test_a_step_whose_inputs_are_missing_is_refused_with_what_to_run(tmp_path, choice):
    with pytest.raises(ConfigError, match=r"Cannot start at step 'after': step 'base', .* is not in the output folder"):
        run_recipe(recipe(), tmp_path / "none", choice)


def test_only_refuses_inputs_that_have_changed(run):
    with pytest.raises(ConfigError, match=r"step 'again', which comes before it, is changed since it ran"):
        run_recipe(recipe(again={"steps": 2}), run[1], Choice(only="after"))


def test_an_unknown_step_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"has no step 'chnge'\. Did you mean 'change'"):
        run_recipe(recipe(), tmp_path / "x", Choice(only="chnge"))


def test_a_folder_with_another_recipe_or_other_files_is_left_alone(run, tmp_path):
    _, out = run
    before = (out / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a run of 'tiny' with other settings, .*--resume to rerun only"):
        run_recipe(recipe(after={"limit": 3}), out)
    with pytest.raises(ConfigError, match=r"starting anew would wipe it\. Do: add --resume .*-o, or remove it"):
        run_recipe(recipe(), out)
    with pytest.raises(ConfigError, match=r"holds a run without --quick, .* Do: take out --quick, or give another"):
        run_recipe(recipe(), out, Choice(resume=True), quick=True)
    other = parse_recipe({**WHOLE, "name": "other"}, "x")
    with pytest.raises(ConfigError, match="holds a run of 'tiny', expected 'other'"):
        run_recipe(other, out, Choice(resume=True))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that are not a run"):
        run_recipe(recipe(), tmp_path)
    assert (out / "run.json").read_bytes() == before


def test_quick_is_in_the_record(tmp_path):
    document = {"name": "q", "steps": {"base": {**BASE, "quick": {"steps": 1, "evaluate_every": 1}}}}
    record = run_recipe(parse_recipe(quickened(document), "q"), tmp_path / "q", quick=True)
    assert record.quick
    assert RunRecord.load(tmp_path / "q").quick
    assert len(record.steps[0].curves["loss"]) == 1
    with pytest.raises(ConfigError, match=r"holds a run with --quick, .* Do: add --quick, or give another"):
        run_recipe(parse_recipe(document, "q"), tmp_path / "q", Choice(resume=True))


ONE = {"name": "one", "seed": 3, "steps": {"base": BASE, "more": {**LORA, "params": "full", "model": "base"}}}
ONE["steps"]["more"] = {key: value for key, value in ONE["steps"]["more"].items() if key != "lora"} | {
    "steps": 5,
    "save_every": 2,
}


class CrashError(Exception):
    """Nothing that the package knows."""


def test_a_crashed_run_is_readable_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = run_recipe(parse_recipe(ONE, "one"), tmp_path / "whole")
    write = Log.write

    def crash_at_step_4_of_the_second(log, step, values):
        if step == 4 and (tmp_path / "part" / "more").exists():
            raise CrashError("power")
        write(log, step, values)

    monkeypatch.setattr(Log, "write", crash_at_step_4_of_the_second)
    with pytest.raises(CrashError):
        run_recipe(parse_recipe(ONE, "one"), tmp_path / "part")
    broken = RunRecord.load(tmp_path / "part")
    assert [(step.id, step.status) for step in broken.steps] == [("base", "done"), ("more", "failed")]
    assert "CrashError: power" in broken.steps[1].notes[0]
    assert broken.summary.startswith("Step more failed")

    steps = []
    monkeypatch.setattr(Log, "write", lambda log, step, values: (steps.append(step), write(log, step, values)))
    resumed = run_recipe(parse_recipe(ONE, "one"), tmp_path / "part", Choice(resume=True))
    assert steps == [3, 4, 5]
    assert resumed.steps[0].seconds == broken.steps[0].seconds
    assert [x for x, _ in resumed.steps[1].curves["loss"]] == [1, 2, 3, 4, 5]
    weights = "more/model/model.safetensors"
    assert (tmp_path / "part" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert whole.steps[1].curves["loss"] == resumed.steps[1].curves["loss"]


def test_a_kill_while_the_best_weights_were_replaced_does_not_cost_them(tmp_path, monkeypatch):
    one = parse_recipe({"name": "r", "steps": {"base": {**BASE, "keep": "best", "evaluate_every": 1}}}, "r")
    write = Log.write

    def crash_after_the_checkpoint_of_step_2(log, step, values):
        if step == 3:
            best = tmp_path / "run" / "base" / "checkpoints" / "best"
            best.rename(best.with_name(".best.old"))
            raise CrashError("power")
        write(log, step, values)

    monkeypatch.setattr(Log, "write", crash_after_the_checkpoint_of_step_2)
    with pytest.raises(CrashError):
        run_recipe(one, tmp_path / "run")
    monkeypatch.setattr(Log, "write", write)
    monkeypatch.setattr(Stepper, "evaluate", lambda stepper, data: 1e9)  # nothing after the kill is better
    resumed = run_recipe(one, tmp_path / "run", Choice(resume=True))
    assert resumed.steps[0].status == "done"


def test_ctrl_c_and_a_kill_leave_an_interrupted_step(tmp_path, monkeypatch):
    seen = []

    def stop(log, step, values):
        seen.append(json.loads((tmp_path / "r" / "run.json").read_text())["steps"][-1]["status"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Log, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(parse_recipe({"name": "r", "steps": {"base": BASE}}, "r"), tmp_path / "r")
    assert seen == ["interrupted"], "what a kill would leave"
    record = RunRecord.load(tmp_path / "r")
    assert record.steps[0].status == "interrupted"
    assert "Ctrl-C" in record.steps[0].notes[0]


def test_a_failed_step_says_why_in_run_json(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    document = {"name": "r", "steps": {"base": {**BASE, "data": [str(rows)]}}}
    with pytest.raises(DataError) as caught:
        run_recipe(parse_recipe(document, "r"), tmp_path / "r")
    record = RunRecord.load(tmp_path / "r")
    assert record.steps[0].status == "failed"
    assert record.steps[0].notes == (str(caught.value),)
    assert isinstance(caught.value, HoldfastError)
