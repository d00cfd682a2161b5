"""Rotation as recipe steps on a tiny model: planned, held, certified, measured; and what is refused before that."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.test_rotation_certificate import flip_a_bit
from tests.recipes.test_launched import ends, recipe_file, start
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.errors import ConfigError
from holdfast.core.files import sha256_of
from holdfast.core.results import RunRecord
from holdfast.methods.rotation.certificate import verify
from holdfast.models.build import new_model
from holdfast.recipes.estimate import estimate
from holdfast.recipes.run import Choice, run_recipe
from holdfast.recipes.schema import parse_recipe

PHASES = ("basis", "importance", "mask")
TUNE = {"do": "train", "data": ["task"], "steps": 2, "batch_size": 2, "max_length": 256, "learning_rate": 1e-2}
SGD = {"optimizer": "sgd", "weight_decay": 0.0}
WHOLE: dict[str, Any] = {
    "name": "held",
    "model": "tiny",
    "steps": {
        "basis": {"do": "basis", "data": ["safety"], "layers": ["q_proj", "k_proj", "layers.1.down_proj"]},
        "importance": {"do": "importance", "of": "basis", "importance": "abs", "task": ["task"]},
        "mask": {"do": "mask", "of": "importance", "unit": "element", "frozen_share": 0.25, "spare": "task"},
        "columns": {"do": "mask", "of": "importance", "frozen_share": 0.25},
        "tuned": {**TUNE, "constraint": "mask"},
        "adapted": {**TUNE, "constraint": "columns", "params": "lora", "lora": {"rank": 2}},
        "again": {**TUNE, "constraint": "mask", "seed": 5},
        "drawn": {**TUNE, "constraint": "columns", "baseline": "random_mask"},
        "flat": {**TUNE, **SGD, "constraint": "mask", "baseline": "rho0"},
        "plain": {**TUNE, **SGD, "baseline": "plain"},
        "replayed": {**TUNE, "baseline": {"name": "replay", "share": 0.5}, "safety": ["safety"]},
        "after": {
            "do": "evaluate",
            "model": "tuned",
            "tasks": [{"name": "lab/arithmetic", "max_new_tokens": 2}],
            "limit": 2,
        },
    },
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Llama whose context holds lab prompts, and two files of short rows."""
    folder = tmp_path_factory.mktemp("places")
    tokenizer = byte_tokenizer()
    new_model(CONFIGS["llama"] | {"max_position_embeddings": 1024}, tokenizer, seed=0).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    for name, answer in (("safety", "No, {}."), ("task", "{0} and {0}.")):
        rows = ({"prompt": f"{name} {i * 37}?", "answer": answer.format(i * 11)} for i in range(8))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"tiny": str(folder / "tiny"), **{name: str(folder / f"{name}.jsonl") for name in ("safety", "task")}}


def document(places: dict[str, str], *only: str, **changes: Any) -> dict[str, Any]:
    """The recipe with its files, whole or with some steps alone, and with changed steps (``None`` takes a key out)."""
    made = copy.deepcopy(WHOLE)
    made["model"] = places["tiny"]
    for step_id, step in made["steps"].items():
        step.update(changes.get(step_id, {}))
        for key in ("data", "safety", "task"):
            if step.get(key):
                step[key] = [places[name] for name in step[key]]
        made["steps"][step_id] = {key: value for key, value in step.items() if value is not None}
    if only:
        made["steps"] = {name: made["steps"][name] for name in only}
    return made


def recipe(places: dict[str, str], *only: str, **changes: Any) -> Any:
    return parse_recipe(document(places, *only, **changes), "held")


@pytest.fixture(scope="module")
def run(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    out = tmp_path_factory.mktemp("held") / "run"
    return run_recipe(recipe(places), out), out


def test_a_hold_is_planned_trained_certified_and_measured(run: tuple[RunRecord, Path]) -> None:
    record, out = run
    by_id = {step.id: step for step in record.steps}
    assert [step.status for step in record.steps] == ["done"] * len(WHOLE["steps"])
    assert any(name.startswith("spectrum/") for name in by_id["basis"].curves)
    assert "safety rows; 3 groups of layers that share an input." in by_id["basis"].notes[0]
    shares = [m.value for m in by_id["columns"].metrics if m.name == "rotation/frozen_share"]
    assert shares == [0.25] * 5
    for name in ("tuned", "adapted", "again"):
        (verdict,) = by_id[name].verdicts
        assert verdict.holds
        assert ("frozen coordinates moved by 0;" in verdict.reason) == (name != "adapted")
        for figure in ("drift", "leak", "moved_share"):
            assert len([m for m in by_id[name].metrics if m.name == f"rotation/{figure}"]) == 5
        proofs, problems = verify(out / name)
        assert problems == []
        assert all(proof.change > 1e-4 for proof in proofs)
    assert by_id["after"].metrics[0].n == 2


def test_one_plan_serves_two_trainings_that_end_apart(run: tuple[RunRecord, Path]) -> None:
    _, out = run
    files = [json.loads((out / name / "certificate.json").read_text())["files"] for name in ("tuned", "again")]
    assert files[0]["plan"] == files[1]["plan"]
    assert files[0]["base"] == files[1]["base"]
    assert files[0]["result"]["sha256"] != files[1]["result"]["sha256"]


def test_a_control_of_equal_size_is_held_and_certified(run: tuple[RunRecord, Path]) -> None:
    record, out = run
    real, drawn, none = (
        load_file(out / folder / "mask.safetensors") for folder in ("columns/plan", "drawn/plan", "flat/plan")
    )
    assert {name: int(mask.sum()) for name, mask in drawn.items()} == {n: int(m.sum()) for n, m in real.items()}
    assert any(not torch.equal(drawn[name], real[name]) for name in real)
    assert not any(mask.any() for mask in none.values())
    for step in record.steps:
        if step.id in ("drawn", "flat"):
            assert step.verdicts[0].holds
            assert verify(out / step.id)[1] == []
            files = json.loads((out / step.id / "certificate.json").read_text())["files"]
            assert files["plan"]["path"] == "plan"
    weights = [load_file(out / name / "model" / "model.safetensors") for name in ("flat", "plain")]
    start = load_file(Path(record.recipe["model"]["source"]) / "model.safetensors")
    assert all(torch.allclose(weights[0][name], weights[1][name], rtol=0, atol=1e-6) for name in weights[1])
    assert all((weights[1][name] - start[name]).abs().max() > 1e-5 for name in start if "embed" not in name)


def test_a_plan_of_another_run_is_used_again_and_one_of_another_model_refused(
    run: tuple[RunRecord, Path], places: dict[str, str], tmp_path: Path
) -> None:
    plan = str(run[1] / "mask" / "plan")
    changes: dict[str, Any] = {"tuned": {"constraint": plan}}
    run_recipe(recipe(places, "tuned", **changes), tmp_path / "run")
    for file in ("model/model.safetensors", "held/coordinates.safetensors"):
        assert sha256_of(tmp_path / "run" / "tuned" / file) == sha256_of(run[1] / "tuned" / file)
    assert verify(tmp_path / "run" / "tuned")[1] == []
    written = document(places, "tuned", **changes)
    other = byte_tokenizer()
    new_model(CONFIGS["llama"] | {"max_position_embeddings": 1024}, other, seed=1).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="The plan is of another model"):
        run_recipe(parse_recipe(written | {"model": str(tmp_path / "other")}, "held"), tmp_path / "again")
    for folder, line in (
        (str(run[1] / "basis" / "plan"), "is no plan: got no mask.safetensors there, expected the folder 'plan'"),
        (str(tmp_path / "none"), "is no plan: got no plan.json there"),
    ):
        with pytest.raises(ConfigError) as caught:
            recipe(places, "tuned", tuned={"constraint": folder})
        assert f"steps.tuned.constraint: {folder} {line}" in str(caught.value)
    with pytest.raises(ConfigError, match="an adapter cannot hold elements: the plan "):
        recipe(places, "tuned", tuned={"constraint": plan, "params": "lora"})


@pytest.mark.parametrize("header", ["{", "[]", '{"config": {"unit": "column"}}'])
def test_a_broken_plan_is_told_as_broken_before_anything_loads(
    places: dict[str, str], tmp_path: Path, header: str
) -> None:
    (tmp_path / "plan.json").write_text(header)
    (tmp_path / "mask.safetensors").touch()
    with pytest.raises(ConfigError) as caught:
        recipe(places, "tuned", tuned={"constraint": str(tmp_path), "baseline": "unrotated"})
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip().startswith(f"steps.tuned.constraint: cannot read the plan in {tmp_path}: got ")


def test_choosing_anew_tells_which_certificates_it_breaks(
    run: tuple[RunRecord, Path], places: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(run[1], tmp_path / "run")
    said: list[str] = []
    run_recipe(recipe(places), tmp_path / "run", Choice(only="columns"), say=said.append)
    assert not any("certifies" in line for line in said)
    changed = recipe(places, columns={"frozen_share": 0.5})
    record = run_recipe(changed, tmp_path / "run", Choice(only="columns"), say=said.append)
    told = "This plan is not the one that adapted trained under: what certifies them no longer verifies."
    assert any(told in line for line in said)
    (columns,) = (step for step in record.steps if step.id == "columns")
    assert columns.notes[0].startswith(told)


def test_a_training_whose_files_contradict_the_hold_says_so_in_its_verdict(
    run: tuple[RunRecord, Path], places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.methods.rotation.apply.HeldElements.settle", lambda held, D_oi: D_oi.fill_(1.0))
    shutil.copytree(run[1], tmp_path / "run")
    record = run_recipe(recipe(places, again={"seed": 6}), tmp_path / "run", Choice(only="again"))
    (again,) = (step for step in record.steps if step.id == "again")
    assert again.verdicts[0].holds is False
    assert (
        "frozen coordinates of layers.0.k_proj: got a largest one of 1, expected exactly 0" in again.verdicts[0].reason
    )
    assert not (tmp_path / "run" / "again" / "certificate.json").exists()


def test_a_baseline_leaves_no_certificate(run: tuple[RunRecord, Path]) -> None:
    record, out = run
    step = next(step for step in record.steps if step.id == "replayed")
    assert step.verdicts == ()
    assert not (out / "replayed" / "certificate.json").exists()
    weights, base = (
        load_file(path)
        for path in (
            out / "replayed/model/model.safetensors",
            Path(record.recipe["model"]["source"]) / "model.safetensors",
        )
    )
    assert not torch.equal(weights["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_phases_run_apart_leave_the_bits_of_one_go(
    run: tuple[RunRecord, Path], places: dict[str, str], tmp_path: Path
) -> None:
    steps, out = (*PHASES, "tuned"), tmp_path / "apart"
    parsed = recipe(places, *steps)
    with pytest.raises(ConfigError, match="step 'basis', which comes before it, is not in the output folder"):
        run_recipe(parsed, out, Choice(only="mask"))
    for name in PHASES[:2]:
        record = run_recipe(parsed, out, Choice(only=name))
        assert record.steps[-1].id == name
    record = run_recipe(parsed, out, Choice(start_from="mask"))
    assert [step.id for step in record.steps] == list(steps)
    for name in (*(f"{phase}/plan" for phase in PHASES), "tuned/model"):
        assert sha256_of(out / name) == sha256_of(run[1] / name), name


def test_another_share_is_chosen_without_the_model(
    run: tuple[RunRecord, Path], places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run[1], tmp_path / "run")
    monkeypatch.setattr("holdfast.models.load.load_model", None)
    record = run_recipe(recipe(places, columns={"frozen_share": 0.5}), tmp_path / "run", Choice(only="columns"))
    (columns,) = (step for step in record.steps if step.id == "columns")
    assert {m.value for m in columns.metrics if m.name == "rotation/frozen_share"} == {0.5}


@pytest.mark.parametrize(
    "start", ["cast", "adapted", "new"], ids=["in another type", "with an adapter merged in", "of random weights"]
)
def test_a_start_that_no_folder_holds_is_certified_against_its_copy(
    start: str, places: dict[str, str], tmp_path: Path
) -> None:
    made = document(places, *PHASES, "tuned")
    if start == "adapted":
        first = {**TUNE, "data": [places["task"]], "params": "lora", "lora": {"rank": 2}}
        made["steps"] = {"first": first, **made["steps"]}
        made["steps"]["basis"]["model"] = made["steps"]["tuned"]["model"] = "first"
    elif start == "cast":
        made["model"] = {"source": places["tiny"], "dtype": "bfloat16"}
    else:
        made["model"] = {"source": "new", "config": CONFIGS["llama"], "tokenizer": places["tiny"]}
    run_recipe(parse_recipe(made, "held"), tmp_path / "run")
    assert verify(tmp_path / "run" / "tuned")[1] == []
    flip_a_bit(tmp_path / "run" / "tuned" / "base" / "model.safetensors")
    assert verify(tmp_path / "run" / "tuned")[1][0].what.startswith("base (")


def test_a_share_too_small_for_a_layer_is_found_before_anything_loads(places: dict[str, str]) -> None:
    steps = (*PHASES, "tuned")
    for share, n in ((0.001, 32), (0.4, 32)):
        parsed = recipe(places, *steps, mask={"frozen_share": share, "unit": "column", "spare": None})
        if share == 0.4:
            estimate(parsed, "held.yaml")
            continue
        with pytest.raises(ConfigError) as caught:
            estimate(parsed, "held.yaml")
        assert (
            f"steps.mask: frozen_share 0.001 freezes 0 of {n} coordinates of layers.0.q_proj (and of 4 more layers): "
            "expected some and not all. Do: set it between 0.031 and 0.96875." in str(caught.value)
        )


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"drawn": {"constraint": None}},
        "steps.drawn: baseline random_mask is the control of a constraint; give 'constraint' too",
    ),
    (
        {"drawn": {"baseline": "unrotated"}},
        "steps.drawn.baseline: baseline unrotated needs scores in other coordinates, and gradients (importance: abs) ",
    ),
    ({"mask": {"frozen_share": 0}}, "steps.mask.frozen_share: should be greater than 0 (got 0)"),
    ({"mask": {"frozen_share": 1}}, "steps.mask.frozen_share: should be less than 1 (got 1)"),
    ({"basis": {"data": None}}, "steps.basis.data: missing"),
    ({"basis": {"samples": 0}}, "steps.basis.samples: should be greater than or equal to 1 (got 0)"),
    (
        {"importance": {"importance": "energy"}},
        "steps.mask.unit: importance: energy scores directions; unit: element needs abs, square or taylor. "
        "Change it, or the importance of step 'importance'",
    ),
    (
        {"importance": {"task": None}},
        "steps.mask.spare: task needs rows of the task. Give step 'importance' 'task', or take it out",
    ),
    (
        {"tuned": {"params": "lora"}},
        "steps.tuned.constraint: an adapter cannot hold elements: step 'mask' has unit: element. "
        "Set unit: column there, or params: full here",
    ),
    (
        {"adapted": {"model": "org/other"}},
        "steps.adapted.constraint: step 'columns' plans for another model: its basis, step 'basis', has model.source ",
    ),
    (
        {"tuned": {"baseline": {"name": "replay"}, "safety": ["safety"]}},
        "steps.tuned: baseline and constraint exclude each other; take one of them out",
    ),
    ({"replayed": {"safety": None}}, "steps.replayed: baseline replay needs safety rows: got none."),
    ({"replayed": {"baseline": None}}, "steps.replayed: 'safety' and 'unaligned' have no effect without 'baseline'"),
    ({"tuned": {"constraint": "importance"}}, "steps.tuned.constraint: step 'importance' is "),
    ({"mask": {"of": "basis"}}, "steps.mask.of: step 'basis' is "),
]


@pytest.mark.parametrize(("changes", "line"), REFUSED)
def test_what_does_not_fit_is_found_before_anything_runs(
    changes: dict[str, Any], line: str, places: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(places, **changes)
    assert f"  {line}" in str(caught.value)


def test_a_model_may_be_held_in_memory_otherwise_than_it_was_planned(places: dict[str, str]) -> None:
    recipe(places, tuned={"model": {"source": places["tiny"], "attention": "eager", "device": "cpu"}})


@pytest.mark.slow
def test_two_processes_leave_the_weights_of_one_and_a_certificate(places: dict[str, str], tmp_path: Path) -> None:
    """Optimizers whose first step is a sign turn on the last bit, so SGD."""
    sgd = {"optimizer": "sgd", "steps": 6}
    steps = (*PHASES, "columns", "tuned", "adapted")
    for folder, size in (("two", 2), ("one", 4)):
        changes = {name: {**sgd, "batch_size": size} for name in ("tuned", "adapted")}
        written = document(places, *steps, **changes)
        (tmp_path / folder).mkdir()
        out = tmp_path / folder / "run"
        if folder == "one":
            run_recipe(parse_recipe(written, "held"), out)
            continue
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "holdfast"]
        code, _, errors = ends(start([*launcher, "run", recipe_file(tmp_path / folder, written), "-o", str(out)]))
        assert code == 0, errors[-4000:]
    for name, file in (("tuned", "model/model.safetensors"), ("adapted", "adapter/adapter_model.safetensors")):
        two, one = (tmp_path / folder / "run" / name for folder in ("two", "one"))
        assert verify(two)[1] == []
        a, b = load_file(two / file), load_file(one / file)
        assert all(torch.allclose(a[key], b[key], rtol=0, atol=1e-6) for key in b)
    found = load_file(tmp_path / "two" / "run" / "tuned" / "held" / "coordinates.safetensors")
    masks = load_file(tmp_path / "two" / "run" / "mask" / "plan" / "mask.safetensors")
    for name, frozen in masks.items():
        layer = name.replace("layers.", "model.layers.").replace("q_proj", "self_attn.q_proj")
        layer = layer.replace("k_proj", "self_attn.k_proj").replace("down_proj", "mlp.down_proj")
        D = found[f"coordinates/{layer}.weight"]
        assert not D[frozen].any(), name
        assert D[~frozen].any(), name
