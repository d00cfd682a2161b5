"""The step ``do: merge`` on a tiny model: two adapters are trained, merged and measured; and what is refused before."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.test_apply import logits
from tests.recipes.test_rotation import places  # noqa: F401 - a fixture

from holdfast.core.errors import AdapterError, ConfigError, DataError
from holdfast.core.files import sha256_of
from holdfast.core.results import RunRecord
from holdfast.layers.adapters import added, read_peft, write_peft
from holdfast.methods.merging.output import FILE
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model
from holdfast.recipes.estimate import estimate
from holdfast.recipes.fingerprint import step_fingerprint
from holdfast.recipes.run import Choice, run_recipe
from holdfast.recipes.schema import parse_recipe

LORA = {"do": "train", "steps": 2, "batch_size": 2, "max_length": 256, "learning_rate": 1e-2, "params": "lora"}
TASKS = {"safety": [{"name": "lab/harmful", "max_new_tokens": 2}], "utility": ["lab/choice"]}
SELECT = {**TASKS, "weights": [0.0, 2.0], "rows": 3, "drop": 0.1}
WITH_ROWS = [{"adapter": "utility", "data": ["task"]}, {"adapter": "safety", "data": ["safety"]}]
WHOLE: dict[str, Any] = {
    "name": "merged",
    "model": "tiny",
    "steps": {
        "utility": {**LORA, "data": ["task"], "lora": {"rank": 2}},
        "safety": {**LORA, "data": ["safety"], "lora": {"rank": 3, "targets": ["q_proj", "down_proj"]}},
        "sum": {"do": "merge", "rule": "task_arithmetic", "adapters": ["utility", "safety"], "weights": [1, 0.5]},
        "sst": {"do": "merge", "adapters": WITH_ROWS, "select": SELECT, "batch_size": 2, "rank": 4},
        "again": {"do": "merge", "rule": "svd", "adapters": ["sum", "sst"]},
        "after": {"do": "evaluate", "model": "sst", "tasks": ["lab/choice"], "limit": 2},
    },
}


@pytest.fixture(scope="module", autouse=True)
def any_answer_can_be_judged() -> Iterator[None]:
    """The tiny model babbles, and where no answer can be judged no value of the dial can be taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.evaluation.judges.refusal.incoherent", lambda output: "")
        yield


def document(places: dict[str, str], *only: str, **changes: Any) -> dict[str, Any]:  # noqa: F811
    """The recipe with its files, whole or with some steps alone, and with changed steps (``None`` takes a key out)."""
    made = copy.deepcopy(WHOLE)
    made["model"] = places["tiny"]
    for step_id, step in made["steps"].items():
        step.update(copy.deepcopy(changes.get(step_id, {})))
        for holder in (step, *(item for item in step.get("adapters", ()) if isinstance(item, dict))):
            if holder.get("data"):
                holder["data"] = [places.get(name, name) if isinstance(name, str) else name for name in holder["data"]]
        made["steps"][step_id] = {key: value for key, value in step.items() if value is not None}
    if only:
        made["steps"] = {name: made["steps"][name] for name in only}
    return made


def recipe(places: dict[str, str], *only: str, **changes: Any) -> Any:  # noqa: F811
    return parse_recipe(document(places, *only, **changes), "merged")


@pytest.fixture(scope="module")
def run(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:  # noqa: F811
    out = tmp_path_factory.mktemp("merged") / "run"
    return run_recipe(recipe(places), out), out


def test_two_adapters_are_trained_merged_and_measured(run: tuple[RunRecord, Path]) -> None:
    record, out = run
    by_id = {step.id: step for step in record.steps}
    assert [step.status for step in record.steps] == ["done"] * len(WHOLE["steps"])
    assert by_id["after"].model_name == "sst"
    assert by_id["after"].metrics[0].n == 2
    for name in ("sum", "sst", "again"):
        (artifact,) = by_id[name].artifacts
        assert artifact.path == f"{name}/adapter"
        assert artifact.sha256 == sha256_of(out / name / "adapter")
        assert by_id[name].peak_bytes
    assert by_id["sum"].notes[-2:] == (
        "2 adapters, 14 layers, ranks 2 to 3.",
        "The change of safety is 0 in 10 of them.",
    )


def test_the_merged_adapter_does_to_the_base_what_the_weighted_adapters_do(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
) -> None:
    _, out = run
    loaded = load_model(ModelConfig(source=places["tiny"]))
    utility, safety = (read_peft(out / name / "adapter") for name in ("utility", "safety"))
    with added(loaded.model, utility), added(loaded.model, safety, 0.5):
        expected = logits(loaded.model)
    stacked = load_model(ModelConfig(source=places["tiny"], adapter=str(out / "sum" / "adapter")))
    assert (expected - logits(loaded.model)).abs().max() > 1e-3
    assert_close(logits(stacked.model), expected)


def test_the_dial_is_chosen_on_validation_rows_by_the_rule_and_all_of_it_is_kept(run: tuple[RunRecord, Path]) -> None:
    record, out = run
    step = next(step for step in record.steps if step.id == "sst")
    figures = {metric.name: metric for metric in step.metrics if not metric.group}
    assert set(figures) == {
        "merging/seconds",
        "merging/truncation",
        "merging/weight",
        "merging/validation/safety",
        "merging/validation/utility",
    }
    assert [x for x, _ in step.curves["tried/safety"]] == SELECT["weights"]
    told = json.loads((out / "sst" / "adapter" / FILE).read_text())
    assert told["selection"]["taken"]["value"] == figures["merging/weight"].value
    assert told["weights"] == [1.0, figures["merging/weight"].value]
    assert told["selection"]["drop"] == 0.1
    for name, rows in (("first", 3), ("0", 6), ("2", 6)):
        answers = [json.loads(line) for line in (out / "sst" / "tried" / f"{name}.jsonl").read_text().splitlines()]
        asked = [row["id"] for row in answers if "output" in row]
        assert len(asked) == rows, name
        assert all("/validation/" in row or "validation" in row for row in asked), asked
    assert any("most safety with utility at most 0.1 below" in note for note in step.notes)


def projected(run: Path, places: dict[str, str], **keys: Any) -> Any:  # noqa: F811
    """A recipe of one projection of adapters on disk."""
    items = [
        {"adapter": str(run / name / "adapter"), "data": [rows]}
        for name, rows in (("utility", "task"), ("safety", "safety"))
    ]
    return recipe(places, "sst", sst={"adapters": items, "rule": "sst_projection", **keys})


def outputs(log: Path) -> list[str]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["output"] for row in rows if "output" in row]


def test_settings_of_the_rule_are_chosen_with_the_weight_and_named_everywhere(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    select = {**SELECT, "weights": [0.5, 2.0], "k": [1, 3], "damping": [0.5]}
    (step,) = run_recipe(projected(run[1], places, select=select), tmp_path / "run").steps
    folder = tmp_path / "run" / "sst"
    told = json.loads((folder / "adapter" / FILE).read_text())
    tried = [(each["value"], each["settings"]["k"], each["settings"]["damping"]) for each in told["selection"]["tried"]]
    assert sorted(tried) == [(w, k, d) for w in (0.5, 2.0) for k in (1, 3) for d in (0.5,)]
    weight, settings = told["selection"]["taken"]["value"], told["selection"]["taken"]["settings"]
    assert told["config"].items() >= settings.items()
    figures = {metric.name: metric.value for metric in step.metrics}
    assert {key: figures[f"merging/{key}"] for key in ("weight", "k", "damping")} == {"weight": weight, **settings}
    words = f"with k {settings['k']:g} and damping {settings['damping']:g}, by the rule"
    assert any(words in note for note in step.notes)
    assert [x for x, _ in step.curves["tried/utility"]] == [0.5, 2.0], "as set where it was taken"
    alone = projected(run[1], places, select={**SELECT, "weights": [weight]}, **settings)
    run_recipe(alone, tmp_path / "alone")
    one, other = (read_peft(tmp_path / name / "sst" / "adapter") for name in ("run", "alone"))
    assert all(torch.equal(one.delta(name), other.delta(name)) for name in one.deltas)
    log = folder / "tried" / f"{weight:g},k={settings['k']:g},damping={settings['damping']:g}.jsonl"
    assert outputs(log) == outputs(tmp_path / "alone" / "sst" / "tried" / f"{weight:g}.jsonl")


def test_a_larger_k_than_the_rows_tell_is_refused_before_any_merge_is_measured(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    select = {**SELECT, "weights": [2.0], "k": [1, 500]}
    with pytest.raises(ConfigError, match="k is larger than the evidence: got 500"):
        run_recipe(projected(run[1], places, select=select), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*.jsonl")] == ["first.jsonl"]


def test_the_check_refuses_a_larger_k_than_the_rows_or_a_layer_could_tell(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
) -> None:
    for keys in ({"k": 500}, {"select": {**SELECT, "weights": [2.0], "k": [1, 500]}}):
        with pytest.raises(ConfigError, match=r"steps\.sst.*k is larger than the evidence: got 500"):
            estimate(projected(run[1], places, **keys), "merged")
    assert estimate(projected(run[1], places, k=2), "merged").steps


def test_a_curve_of_several_settings_is_refused_by_name(places: dict[str, str]) -> None:  # noqa: F811
    made = document(places)
    more = {**SELECT, "damping": [0.1, 1.0]}
    made["steps"]["other"] = {**made["steps"]["sst"], "select": more}
    made["steps"]["front"] = {"do": "front", "rows": {"a": "sst", "b": "other"}, "reference": "a"}
    with pytest.raises(ConfigError, match=r"steps\.front\.rows: step 'other' also tries damping, and a curve is over"):
        parse_recipe(made, "merged")


def test_a_weight_whose_figure_cannot_be_computed_is_not_taken_and_where_none_can_the_step_fails(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from holdfast.recipes import merging

    folders = [str(run[1] / name / "adapter") for name in ("utility", "safety")]
    items = [{"adapter": f, "data": [rows]} for f, rows in zip(folders, ("task", "safety"), strict=True)]
    figures = merging.mean_figure
    calls: list[float | None] = []

    def no_safety_at_the_second_weight(found: Any, tasks: Any) -> float | None:
        calls.append(figures(found, tasks))
        return None if len(calls) == 4 else calls[-1]  # utility alone, safety and utility of each weight

    monkeypatch.setattr(merging, "mean_figure", no_safety_at_the_second_weight)
    record = run_recipe(recipe(places, "sst", sst={"adapters": items}), tmp_path / "run")
    figure = {metric.name: metric.value for metric in record.steps[0].metrics}
    assert figure["merging/weight"] == 0.0
    assert any("Value 2 of the dial could not be taken" in note for note in record.steps[0].notes)
    assert [x for x, _ in record.steps[0].curves["tried/safety"]] == [0.0]
    monkeypatch.setattr(merging, "mean_figure", figures)
    monkeypatch.setattr("holdfast.evaluation.judges.refusal.incoherent", lambda output: "babble")
    with pytest.raises(
        DataError, match=r"got all figures for none of 2 values.*attack_success_rate \(no valid row of 3"
    ):
        run_recipe(recipe(places, "sst", sst={"adapters": items}), tmp_path / "again")


def test_rows_leave_a_spectrum_for_each_layer_and_a_verdict_on_their_halves(run: tuple[RunRecord, Path]) -> None:
    record, _ = run
    step = next(step for step in record.steps if step.id == "sst")
    spectra = [name for name in step.curves if name.startswith("spectrum/")]
    assert len(spectra) == 14
    for name in spectra:
        values = [value for _, value in step.curves[name]]
        assert values == sorted(values, reverse=True)
    assert [verdict.name for verdict in step.verdicts] == ["merging/split_half"]
    assert "by chance" in step.verdicts[0].reason
    assert not next(step for step in record.steps if step.id == "sum").verdicts


def test_resume_keeps_a_merge_and_makes_a_changed_one_again_with_what_stands_on_it(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    import shutil

    shutil.copytree(run[1], tmp_path / "run")
    lines: list[str] = []
    run_recipe(recipe(places), tmp_path / "run", Choice(resume=True), say=lines.append)
    assert all(line.endswith("kept, unchanged") for line in lines)
    lines.clear()
    run_recipe(recipe(places, sum={"weights": [1, 2]}), tmp_path / "run", Choice(resume=True), say=lines.append)
    anew = [line.split("] ")[1].split(" ")[0] for line in lines if "done in" in line]
    assert anew == ["sum", "again"]


def test_bytes_of_an_adapter_on_disk_count_for_the_fingerprint(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = tmp_path / "given"
    write_peft(read_peft(run[1] / "utility" / "adapter"), folder)
    found = recipe(places, "sum", sum={"adapters": [str(folder), str(run[1] / "safety" / "adapter")]})
    before = step_fingerprint(found, "sum", {})
    assert step_fingerprint(found, "sum", {}) == before
    (folder / "README.md").write_text("changed")
    assert step_fingerprint(found, "sum", {}) != before


def test_adapters_on_disk_are_merged_as_those_of_steps_are(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    folders = [str(run[1] / name / "adapter") for name in ("utility", "safety")]
    given = recipe(places, "sum", sum={"adapters": folders})
    run_recipe(given, tmp_path / "run")
    mine, theirs = (read_peft(out / "sum" / "adapter") for out in (tmp_path / "run", run[1]))
    for name, delta in mine.deltas.items():
        assert torch.equal(delta.dense(), theirs.deltas[name].dense())


def lines_of(problem: ConfigError) -> list[str]:
    return [line.strip() for line in str(problem).splitlines()[1:]]


FULL = {"params": "full", "lora": None}
UNREAD: list[tuple[dict[str, Any], str]] = [
    (
        {"sum": {"adapters": ["utility", "safty"]}},
        "steps.sum.adapters.1.adapter: no step 'safty'. Did you mean 'safety'",
    ),
    ({"sum": {"adapters": ["utility", "after"]}}, "steps.sum.adapters.1.adapter: step 'after' does not run before"),
    ({"sum": {"adapters": []}}, "steps.sum.adapters: "),
    ({"utility": FULL}, "steps.sum.adapters.0.adapter: step 'utility' trains all weights, expected an adapter"),
    (
        {"safety": {"model": "org/other"}},
        "steps.sum.adapters.1.adapter: step 'safety' stands on another model: it has model.source 'org/other', and",
    ),
    ({"sum": {"rule": "tie"}}, "steps.sum.rule: unknown 'tie'"),
    ({"sum": {"weights": [1, 2, 3]}}, "steps.sum: got 3 weights for 2 adapters, expected one for each"),
    ({"sum": {"density": 0.5}}, "steps.sum: density has no effect with rule: task_arithmetic"),
    ({"sum": {"rule": "sst"}}, "steps.sum: rule sst reads rows of every adapter: give 'utility' 'data'"),
    ({"sum": {"batch_size": 2}}, "steps.sum: batch_size has no effect without select"),
    ({"sst": {"rule": "svd", "select": None, "batch_size": None}}, "steps.sst: 'data' of adapters has no effect with"),
    (
        {"sum": {"rule": "safe_merge", "adapters": ["utility", "safety", "utility"], "weights": None}},
        "steps.sum: rule safe_merge takes two adapters, utility and then safety (got 3)",
    ),
    (
        {"sst": {"adapters": WITH_ROWS[:1]}},
        "steps.sst: select weighs the last adapter against the others: there is 1",
    ),
    (
        {"sst": {"select": {**SELECT, "utility": ["gsm8k"]}}},
        "steps.sst.select: task 'gsm8k' needs 'data': validation rows, not those it is measured on",
    ),
    ({"sst": {"select": {**SELECT, "safety": []}}}, "steps.sst.select.safety: "),
    ({"sst": {"select": {**SELECT, "weights": [1.0, -1.0]}}}, "steps.sst: rule sst weighs losses, so no weight may be"),
    ({"sst": {"select": {**SELECT, "k": [2]}}}, "steps.sst: select: k has no effect with rule: sst; take it out"),
    (
        {"sst": {"damping": 0.1, "select": {**SELECT, "damping": [0.1, 1.0]}}},
        "steps.sst: damping is chosen by select; take one of them out",
    ),
    ({"sst": {"select": {**SELECT, "damping": [0.0]}}}, "steps.sst: select: damping Input should be greater than 0"),
    (
        {"sst": {"rule": "sst_projection", "select": {**SELECT, "k": [2], "tau": [0.1]}}},
        "steps.sst: select: tau weighs all directions, k and directions choose some; take one of them out",
    ),
]


@pytest.mark.parametrize(("changes", "line"), UNREAD)
def test_what_does_not_fit_is_found_before_anything_runs(
    changes: dict[str, Any],
    line: str,
    places: dict[str, str],  # noqa: F811
) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(places, **changes)
    assert any(found.startswith(line) for found in lines_of(caught.value)), str(caught.value)


def dora(folder: Path, source: Path) -> Path:
    write_peft(read_peft(source), folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    return folder


def test_check_says_what_a_merge_needs(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
) -> None:
    needs = {step.id: step for step in estimate(recipe(places), "merged").steps}
    assert needs["sst"].rows == {
        places["task"]: 8,
        places["safety"]: 8,
        "lab/harmful (validation)": 3,
        "lab/choice (validation)": 3,
    }
    assert needs["sst"].parameters == needs["utility"].parameters
    made = (run[1] / "sum" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert needs["sum"].disk_bytes <= made <= 1.2 * needs["sum"].disk_bytes + 4000
    assert needs["again"].disk_bytes >= needs["sst"].disk_bytes - 1e5
    assert needs["sst"].memory_bytes > needs["sum"].memory_bytes
    twice = recipe(places, sst={"select": {**SELECT, "damping": [0.1, 1.0]}})
    assert {step.id: step for step in estimate(twice, "x").steps}["sst"].disk_bytes > needs["sst"].disk_bytes
    more = {item["adapter"]: {**item, "data": [{"source": "lab/textops", "rows": 300}]} for item in WITH_ROWS}
    wide = recipe(places, sst={"adapters": [WITH_ROWS[0], more["safety"]]})
    assert {step.id: step for step in estimate(wide, "x").steps}["sst"].memory_bytes > needs["sst"].memory_bytes


def test_check_finds_every_problem_of_the_adapters_at_once(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    utility = run[1] / "utility" / "adapter"
    (tmp_path / "empty").mkdir()
    (tmp_path / "few.jsonl").write_text('{"prompt": "Why?", "answer": ""}\n')
    steps = {
        "gone": {"adapters": [str(utility), str(tmp_path / "nowhere")]},
        "empty": {"adapters": [str(utility), str(tmp_path / "empty")]},
        "dora": {"adapters": [str(dora(tmp_path / "d", utility)), str(utility)]},
        "layers": {"adapters": [str(utility)], "layers": ["qproj"]},
        "tool": {"rule": "magnitude_prune", "semantics": "mergekit", "adapters": [str(utility)]},
        "same": {"rule": "sst", "adapters": [{"adapter": str(utility), "data": [places["task"]]}] * 2},
        "silent": {"rule": "sst", "adapters": [{"adapter": str(utility), "data": [str(tmp_path / "few.jsonl")]}]},
    }
    plain = {"do": "merge", "rule": "svd"}
    made = {"name": "r", "model": places["tiny"], "steps": {name: {**plain, **step} for name, step in steps.items()}}
    with pytest.raises(ConfigError) as caught:
        estimate(parse_recipe(made, "r"), "r")
    found = lines_of(caught.value)
    for name, words in {
        "gone": "no such folder",
        "empty": "got a folder without adapter_config.json",
        "dora": "use_dora: DoRA also trains magnitudes",
        "layers": "no layer matches 'qproj' in the adapters. Did you mean 'q_proj'",
        "tool": "rule magnitude_prune does not exist in mergekit",
        "same": "has the same 'data' as one before it",
        "silent": "no answer to learn in 1 of 1 rows",
    }.items():
        assert any(line.startswith(f"steps.{name}: ") and words in line for line in found), (name, found)
    assert len(found) == len(steps)


def test_an_adapter_of_another_base_is_refused_in_the_run_too(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    import shutil

    shutil.copytree(run[1] / "utility" / "adapter", tmp_path / "given")
    known = tmp_path / "given" / "holdfast_base.json"
    known.write_text(json.dumps(json.loads(known.read_text()) | {"weights_sha256": "another"}))
    given = recipe(places, "sum", sum={"adapters": [str(tmp_path / "given"), str(run[1] / "safety" / "adapter")]})
    with pytest.raises(AdapterError, match="the SHA-256 of the weights differs"):
        run_recipe(given, tmp_path / "run")
    assert RunRecord.load(tmp_path / "run").steps[0].status == "failed"


def test_the_same_rows_under_two_names_are_refused_in_the_run(
    run: tuple[RunRecord, Path],
    places: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    copied = tmp_path / "copied.jsonl"
    copied.write_text(Path(places["task"]).read_text())
    items = [
        {"adapter": str(run[1] / name / "adapter"), "data": [rows]}
        for name, rows in (("utility", places["task"]), ("safety", str(copied)))
    ]
    with pytest.raises(DataError, match="have the same rows, expected different ones"):
        run_recipe(recipe(places, "sst", sst={"adapters": items}), tmp_path / "run")
