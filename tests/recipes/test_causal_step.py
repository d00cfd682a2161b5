"""Counterfactual training as recipe steps on a tiny model: audited, planned, trained; and what is refused before."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.methods.causal.made_cases import case
from tests.training.test_checkpoints import CrashError, crash_after
from tests.zoo import CONFIGS, byte_tokenizer, tiny

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.core.files import sha256_of
from holdfast.core.results import RunRecord, StepRecord
from holdfast.models.build import new_model
from holdfast.recipes.best_by import ATTACK, BENIGN, BestBy, rule
from holdfast.recipes.estimate import estimate
from holdfast.recipes.run import Choice, run_recipe
from holdfast.recipes.schema import parse_recipe

CASES = 12
SPLITS = {"train": CASES, "validation": 4, "test": 4}
TRAIN = {"do": "train", "objective": "plan", "epochs": 1, "batch_size": 4, "max_length": 128, "learning_rate": 1e-2}
LORA = {"params": "lora", "lora": {"rank": 2}}
BEST = {"evaluate_every": 1, "save_every": 2, "keep": "best"}
PLAN = {"do": "causal", "cases": ["train"], "validation": ["validation"], "samples": 8, "force": True}
WHOLE: dict[str, Any] = {
    "plan": PLAN,
    "basis": {"do": "basis", "data": ["plain"], "layers": ["q_proj"]},
    "importance": {"do": "importance", "of": "basis", "importance": "energy"},
    "mask": {"do": "mask", "of": "importance", "frozen_share": 0.25},
    "tuned": {**TRAIN, **LORA, **BEST, "data": ["plain"], "constraint": "mask"},
    "chosen": {**TRAIN, **LORA, **BEST, "best_by": {"cases": ["validation"], "within": 0.1}},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny Llama, a file of cases by split, and one of plain rows."""
    folder = tmp_path_factory.mktemp("places")
    tokenizer = byte_tokenizer()
    new_model(CONFIGS["llama"], tokenizer, seed=0).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    first, lines = 0, []
    for split, count in SPLITS.items():
        lines += [json.dumps(case(first + n, split).as_dict()) for n in range(count)]
        first += count
    (folder / "cases.jsonl").write_text("\n".join(lines) + "\n")
    rows = [{"prompt": f"Add {i}?", "answer": f"It is {i * 11}."} for i in range(8)]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases = {split: {"source": str(folder / "cases.jsonl"), "split": split} for split in SPLITS}
    return {"tiny": str(folder / "tiny"), "plain": str(folder / "plain.jsonl"), **cases}


def document(places: dict[str, Any], *only: str, **changes: Any) -> dict[str, Any]:
    """The recipe with its files; some steps alone; with changed steps (``None`` takes a key out)."""
    steps = copy.deepcopy({name: WHOLE[name] for name in only or WHOLE})
    for step_id, step in changes.items():
        steps[step_id] = {k: v for k, v in {**steps.get(step_id, {}), **step}.items() if v is not None}
    for step in steps.values():
        for key in ("data", "cases", "validation"):
            if key in step:
                step[key] = [places.get(name, name) if isinstance(name, str) else name for name in step[key]]
        if best := step.get("best_by"):
            best["cases"] = [places.get(name, name) for name in best["cases"]]
    return {"name": "steady", "model": places["tiny"], "steps": steps}


def recipe(places: dict[str, Any], *only: str, **changes: Any) -> Any:
    return parse_recipe(document(places, *only, **changes), "steady")


@pytest.fixture(scope="module")
def run(places: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, StepRecord], Path]:
    out = tmp_path_factory.mktemp("steady") / "run"
    record = run_recipe(recipe(places), out)
    return {step.id: step for step in record.steps}, out


def test_a_plan_tells_what_was_found_in_the_set_and_in_the_undefended_model(run: Any) -> None:
    plan = run[0]["plan"]
    verdicts = {verdict.name: verdict for verdict in plan.verdicts}
    assert verdicts["audit/held-out families"].holds is False
    assert verdicts["audit/cases stand where they belong"].holds is True
    assert any(note.startswith("Force: the audit refuses") for note in plan.notes)
    assert any(note == f"Audit of {sum(SPLITS.values())} cases: {_verdict(plan)}." for note in plan.notes)
    undefended = [m for m in plan.metrics if m.name == "causal/undefended/stability"]
    assert len(undefended) == 2, "one layer, at the prompt and over the response"
    assert all(-1 <= (m.value or 0) <= 1 and m.n == 8 for m in undefended)
    by_attack = [(m.group, m.k, m.n) for m in plan.metrics if m.name == "causal/cases" and "attack" in m.group]
    assert by_attack == [("attack=ignore", 6, CASES), ("attack=naive", 6, CASES)]
    steps = {m.group: m.value for m in plan.metrics if m.name == "causal/needs/steps"}
    assert steps == {"step=tuned": 3.0, "step=chosen": 3.0}, "plain rows are not counted"


def _verdict(plan: StepRecord) -> str:
    refused = [v.name.removeprefix("audit/") for v in plan.verdicts if v.holds is False]
    return f"refused: {', '.join(refused)}"


def test_the_cases_are_trained_on_beside_the_plain_rows_under_a_hold(run: Any) -> None:
    tuned = run[0]["tuned"]
    assert [step for step, _ in tuned.curves["loss"]] == [1, 2, 3, 4, 5], "12 cases and 8 plain rows, 4 a step"
    for step, loss in tuned.curves["loss"]:
        parts = [dict(tuned.curves[name])[step] for name in ("task", "invariance", "separation")]
        assert loss == pytest.approx(sum(parts), rel=1e-6)
    assert len(tuned.curves["validation/loss"]) == 5
    (verdict,) = tuned.verdicts
    assert verdict.name == "rotation/certificate"
    assert verdict.holds
    gates = {name.split("/")[1] for name in tuned.curves if name.startswith("gate/")}
    assert gates == {"rank", "variance", "contrast"}


def test_the_best_checkpoint_is_told_with_what_was_before(run: Any) -> None:
    chosen = run[0]["chosen"]
    assert [step for step, _ in chosen.curves[ATTACK]] == [0, 1, 2, 3]
    assert "on 4 validation cases" in chosen.notes[-1]
    assert chosen.notes[-1].startswith("The result is step ")


def test_a_training_that_crashed_and_goes_on_ends_in_the_same_bytes(
    places: dict[str, Any], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(places, "plan", "chosen")
    with monkeypatch.context() as patch:
        crash_after(patch, 2)
        with pytest.raises(CrashError):
            run_recipe(wanted, tmp_path / "run")
    record = run_recipe(wanted, tmp_path / "run", Choice(resume=True))
    weights = "chosen/adapter/adapter_model.safetensors"
    assert sha256_of(tmp_path / "run" / weights) == sha256_of(run[1] / weights)
    assert record.steps[-1].curves["task"] == run[0]["chosen"].curves["task"]
    assert record.steps[-1].notes == run[0]["chosen"].notes


def test_a_refused_set_stops_the_recipe_before_a_model_loads(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("holdfast.models.load.load_model", loaded)
    with pytest.raises(DataError, match=r"prove nothing: .*held-out families \(no held-out family.*force: true"):
        run_recipe(recipe(places, "plan", plan={"force": None}), tmp_path / "a")
    assert RunRecord.load(tmp_path / "a").steps[0].status == "failed"
    tested = {"force": None, "cases": [{"source": places["train"]["source"]}]}
    with pytest.raises(
        DataError, match=r"8 of 24 cases are of another split .* of split 'validation'.*set split: train"
    ):
        run_recipe(recipe(places, "plan", plan=tested), tmp_path / "b")


def test_a_collapsed_training_stops_with_a_sentence_in_the_record(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.methods.causal.gates.VARIANCE", 1e9)
    with pytest.raises(NumericsError, match="Representations have collapsed at layers"):
        run_recipe(recipe(places, "plan", "chosen"), tmp_path / "run")
    last = RunRecord.load(tmp_path / "run").steps[-1]
    assert (last.id, last.status) == ("chosen", "failed")
    assert "have collapsed" in last.notes[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chosen": {"objective": "paln"}}, "steps.chosen.objective: no step 'paln'. Did you mean 'plan'?"),
        ({"chosen": {"objective": {"chosen": 1.0}}}, "steps.chosen.objective: step 'chosen' does not run before"),
        (
            {"chosen": {"objective": "tuned"}},
            "steps.chosen.objective: step 'tuned' is a 'train' step, expected a 'caus",
        ),
        ({"chosen": {"objective": {"plan": 0}}}, "steps.chosen.objective.plan: should be greater than 0"),
        ({"chosen": {"model": "lab"}}, "steps.chosen.objective: step 'plan' plans for another model: it has model.sou"),
        ({"plan": {"model": "lab"}}, "steps.tuned.objective: step 'plan' plans for another model"),
        (
            {"plan": {"validation": None}, "tuned": {"data": None}},
            "steps.tuned.evaluate_every: there are no validation",
        ),
        ({"tuned": {"objective": None, "data": None}}, "steps.tuned.data: missing"),
        (
            {"tuned": {"constraint": None, "baseline": "plain"}},
            "steps.tuned: baseline and objective exclude each other",
        ),
        ({"chosen": {"keep": None}}, "steps.chosen: best_by has no effect without keep: best or patience"),
        ({"chosen": {"best_by": {"cases": []}}}, "steps.chosen.best_by.cases: "),
        (
            {"other": PLAN, "last": {**TRAIN, "objective": {"plan": 1, "other": 1}}},
            "steps.last.objective: 'plan' and 'o",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_loads(
    places: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe(places, **changes)
    assert sentence in str(refused.value)


def test_check_counts_cases_and_finds_layers_and_lengths(places: dict[str, Any]) -> None:
    needs = {step.id: step for step in estimate(recipe(places), "steady").steps}
    name = places["plain"].replace("plain", "cases")
    assert needs["plan"].rows == {f"{name} (train)": CASES, f"{name} (validation)": 4}
    assert needs["chosen"].rows[f"best_by {name} (validation)"] == 4
    assert needs["plan"].disk_bytes > 0
    with pytest.raises(ConfigError, match=r"steps.plan: no layer matches 'qproj'"):
        estimate(recipe(places, plan={"layers": ["qproj"]}), "steady")
    with pytest.raises(
        ConfigError, match=r"cases of plan are too long: an attacked view has \d+ tokens, expected at most 40"
    ):
        estimate(recipe(places, chosen={"max_length": 40}), "steady")
    with pytest.raises(ConfigError, match=r"steps.plan: needs about 0.50 GB, over the budget of 0.10 GB"):
        estimate(parse_recipe({**document(places), "budget": "100 MB"}, "steady"), "steady")


def test_a_case_that_is_too_long_under_attack_alone_is_refused(places: dict[str, Any], tmp_path: Path) -> None:
    chat = tiny("llama").chat
    most = max(len(chat.training(row)) for n in range(sum(SPLITS.values())) for row in (case(n).benign(),))
    with pytest.raises(
        ConfigError, match=rf"The attacked view .* is too long: got \d+ tokens, expected at most {most}"
    ):
        run_recipe(recipe(places, "plan", "chosen", chosen={"max_length": most}), tmp_path / "run")


def test_a_plan_of_each_seed_serves_the_training_of_that_seed(places: dict[str, Any]) -> None:
    made = document(places, "plan")
    tuned = {**TRAIN, "objective": {"plan-{seed}": 0.5}}
    made |= {"seeds": [3, 4], "steps": {"plan-{seed}": made["steps"]["plan"], "tuned-{seed}": tuned}}
    steps = parse_recipe(made, "seeds").steps
    assert [steps[f"tuned-{seed}"].objective for seed in (3, 4)] == [{"plan-3": 0.5}, {"plan-4": 0.5}]  # type: ignore[union-attr]


BEFORE = {ATTACK: 0.8, BENIGN: 0.5}


def evaluation(attack: float, benign: float) -> dict[str, float]:
    return {ATTACK: attack, BENIGN: benign}


def test_best_is_the_lowest_attack_success_that_keeps_benign_accuracy() -> None:
    made = rule(BestBy(cases=("x",), within=0.02), [case(0)])  # type: ignore[arg-type]
    in_order = [
        evaluation(0.1, 0.9),
        evaluation(0.2, 0.48),  # 0.02 less than before is within 0.02
        evaluation(0.5, 0.7),
        evaluation(0.5, 0.6),
        evaluation(0.0, 0.47),  # kept too little: accuracy counts first
        evaluation(0.1, 0.47),
        evaluation(0.0, 0.0),
    ]
    ranks = [made.rank(values, BEFORE) for values in in_order]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == len(ranks)
    assert "no evaluation kept benign accuracy within 0.02" in made.said(in_order[-1], BEFORE)
    assert made.said(in_order[0], BEFORE) == (
        "by attack success 0.100 (before 0.800) at benign accuracy 0.900 (before 0.500) on 1 validation cases"
    )


def test_shares_are_of_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def outcomes(loaded: object, rows: Any, batch_size: int) -> list[str]:
        seen.append([row.id for row in rows])
        return ["task_done", "invalid", "task_done", "refused", *["followed", "invalid", "task_done", "followed"]]

    monkeypatch.setattr("holdfast.recipes.best_by._outcomes", outcomes)
    made = rule(BestBy(cases=("x",)), [case(n) for n in range(4)])  # type: ignore[arg-type]
    assert made.measure is not None
    assert made.measure(None) == {ATTACK: 0.5, BENIGN: 0.5}  # type: ignore[arg-type]
    assert [name.split("/")[1] for name in seen[0]] == ["benign"] * 4 + ["attacked"] * 4


@pytest.mark.parametrize(
    ("keys", "what"),
    [({"witness": "", "payload_answer": ""}, "'witness' and 'payload_answer'"), ({"answer": " "}, "'answer'")],
)
def test_a_case_whose_answers_nobody_can_judge_chooses_no_checkpoint(keys: dict[str, str], what: str) -> None:
    with pytest.raises(DataError, match=f"Cannot choose a checkpoint by case 'case-train-1': {what} are empty"):
        rule(BestBy(cases=("x",)), [case(0), case(1, **keys)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attacked_answer": "I cannot."}, "case-train-1' wants another answer under attack"),
        ({"payload_answer": ""}, "case-train-1' has no answer to its payload"),
    ],
)
def test_a_case_that_cannot_be_learnt_is_told_before_anything_loads(
    tmp_path: Path, places: dict[str, Any], change: dict[str, str], said: str
) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(case(n, **(change if n == 1 else {})).as_dict()) + "\n" for n in range(4)))
    cases = [{"source": str(file), "split": "train"}]
    with pytest.raises(ConfigError, match=f"steps.plan: Case '{said}"):
        estimate(recipe(places, "plan", plan={"cases": cases, "validation": []}), "r")
    kept = {"cases": cases, "validation": [], "families": ["naive"]}  # the case is of the other family
    assert estimate(recipe(places, "plan", plan=kept), "r").steps
