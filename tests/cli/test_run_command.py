"""``holdfast run`` and ``holdfast check``: from recipe to report, what stops a run, and how it is gone on with."""

import json
import shlex

import pytest
import torch

from holdfast.core.results import RunRecord


def test_a_disk_that_fills_up_under_a_run_leaves_its_record(command, monkeypatch, recipe, tmp_path):
    out, written = tmp_path / "r", []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdfast.core.files.os.fsync", full)
    code, _, err = command("run", str(recipe), "-o", str(out))
    assert code == 2
    assert "run.json: No space left on device. What was saved before is intact." in err
    assert "Traceback" not in err
    assert RunRecord.load(out).steps


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "ran out of memory: CUDA out of"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "ran out of memory: "),
        (MemoryError(), "ran out of memory. Do: lower batch_size"),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:4"), "lost another process of this run"),
    ],
)
def test_a_machine_that_cannot_go_on_is_one_sentence_that_names_the_step(
    command, monkeypatch, recipe, tmp_path, problem, sentence
):
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr("holdfast.evaluation.suite.evaluate", fail)
    code, _, err = command("run", str(recipe), "-o", str(tmp_path / "r"))
    assert code == 2
    assert f"holdfast: Step before (evaluate) {sentence}" in err
    assert "Traceback" not in err
    assert sentence in RunRecord.load(tmp_path / "r").steps[0].notes[0]


def test_ctrl_c_in_a_run_says_how_to_go_on(command, monkeypatch, recipe, tmp_path):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.recipes.run.run_recipe", stop)
    code, _, err = command("run", str(recipe), "-o", str(tmp_path / "r"))
    assert code == 130
    assert err.strip().endswith(f"Go on with: holdfast run {recipe} -o {tmp_path / 'r'} --resume")
    options = ["--quick", "--set", "steps.tuned.steps=2", "--set", "description=two words"]
    _, _, err = command("run", str(recipe), "-o", str(tmp_path / "r"), *options, "--only", "tuned")
    again = shlex.split(err.strip().rpartition("Go on with: ")[2])
    assert again == ["holdfast", "run", str(recipe), "-o", str(tmp_path / "r"), *options, "--only", "tuned", "--resume"]


def test_the_hint_after_ctrl_c_keeps_the_steps_that_from_has_run(command, monkeypatch, recipe, tmp_path):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = ["run", str(recipe), "-o", str(tmp_path / "r")]
    assert command(*words)[0] == 0
    monkeypatch.setattr("holdfast.evaluation.suite.evaluate", stop)
    code, _, err = command(*words, "--from", "tuned")
    assert code == 130
    assert err.strip().endswith(f"-o {tmp_path / 'r'} --from after --resume")


def test_an_interrupted_evaluation_step_goes_on_after_its_finished_tasks(command, monkeypatch, recipe, tmp_path):
    def stop_at_the_second(task: str, done: int, of: int) -> None:
        asked.append(task)
        if len(set(asked)) == 2:
            raise KeyboardInterrupt

    asked: list[str] = []
    recipe.write_text(recipe.read_text().replace("max_new_tokens: 3}]", "max_new_tokens: 3}, {name: lab/choice}]", 1))
    words = ["run", str(recipe), "-o", str(tmp_path / "r"), "--only", "before"]
    monkeypatch.setattr("holdfast.cli.run.Ticker", lambda: stop_at_the_second)
    code, _, err = command(*words)
    assert (code, asked[0], asked[-1]) == (130, "lab/harmful", "lab/choice")
    asked.clear()
    code, _, _ = command(*shlex.split(err.rpartition("Go on with: ")[2])[1:])
    assert (code, set(asked)) == (0, {"lab/choice"})
    assert {m.name.split("/")[2] for m in RunRecord.load(tmp_path / "r").steps[0].metrics} == {"harmful", "choice"}


def test_the_whole_path_from_recipe_to_report(command, recipe, tmp_path):
    out = tmp_path / "run"
    code, text, err = command("run", str(recipe), "-o", str(out))
    assert code == 0, err
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"Report: {out / 'report.html'}. ")
    assert (out / "report.html").read_text().lower().startswith("<!doctype html>")
    assert (out / "report.md").is_file()
    assert RunRecord.load(out).summary in last

    code, text, _ = command("compare", str(out / "before"), str(out / "after"), "--json")
    assert code == 0
    assert json.loads(text)["metrics"]
    code, text, _ = command("eval", "--rescore", str(out / "before" / "log.jsonl"), "--json")
    assert code == 0
    assert json.loads(text) == [m.model_dump(mode="json") for m in RunRecord.load(out).steps[0].metrics]
    (out / "report.html").unlink()
    code, text, _ = command("report", str(out))
    assert code == 0
    assert (out / "report.html").is_file()
    code, _, err = command("compare", str(out), str(out))
    assert code == 2
    assert "holds 2 evaluations, expected one" in err

    before = (out / "run.json").read_bytes()
    code, _, err = command("run", str(recipe), "-o", str(out))
    assert code == 2
    assert "Do: add --resume to run the steps that are missing, or give another folder with -o, or remove it." in err
    assert (out / "run.json").read_bytes() == before


def test_check_prints_parameters_memory_disk_and_rows_before_anything_loads(command, recipe, model):
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(b"no weights")
    try:
        code, text, err = command("check", str(recipe))
        as_json = json.loads(command("check", str(recipe), "--json")[1])
    finally:
        (model / "model.safetensors").write_bytes(weights)
    assert code == 0, err
    assert "small.yaml: valid, 4 steps" in text
    assert "lab/textops 4" in text
    assert "0.0 M" not in text
    assert "of memory and" in text
    assert as_json["steps"][1]["parameters"] == as_json["steps"][1]["trained"] > 0
    assert as_json["disk_bytes"] > 12 * as_json["steps"][1]["parameters"]


def test_check_reports_every_missing_thing_at_once(command, recipe, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    code, out, err = command(
        "check",
        str(recipe),
        "--set",
        f"steps.before.model={tmp_path / 'no-model'}",
        "--set",
        "steps.tuned.data.0.source=lab/textop",
        "--set",
        f"steps.after.tasks.0.data.source={tmp_path / 'empty.jsonl'}",
    )
    assert (code, out) == (2, "")
    assert "small.yaml: 3 problems" in err
    assert "steps.before: Cannot load a model" in err
    assert "Did you mean 'textops'" in err


def test_a_dry_run_prints_a_table_and_says_by_its_exit_code_whether_all_passed(command, monkeypatch, recipe, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, _ = command("run", str(recipe), "--dry-run", "--set", "steps.tuned.learning_rate=1e-2")
    assert code == 0
    assert out.splitlines()[0].split("  ")[0] == "training"
    assert "bit-equal" in out
    code, out, _ = command("run", str(recipe), "--dry-run", "--set", "steps.tuned.learning_rate=1e-30")
    assert code == 1
    assert "DOES NOT FALL" in out
    assert sorted(tmp_path.iterdir()) == before
    code, _, err = command("run", "no-such-recipe", "--dry-run", "--resume")  # refused before the recipe is looked for
    assert code == 2
    assert "--dry-run keeps nothing" in err
