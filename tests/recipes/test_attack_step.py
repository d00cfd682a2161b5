"""The step ``do: attack``: what reaches the attack, what is refused, and that its log stands in tables."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.evaluation.attack_cases import case, rows
from tests.models.chat_templates import BRACKETS
from tests.recipes.keys import ATTACK, KEYS
from tests.zoo import byte_tokenizer, tiny_folder

from holdfast.core.errors import ConfigError
from holdfast.data.counterfactual import Counterfactual, read_unchecked
from holdfast.data.sources import SourceConfig
from holdfast.evaluation.attacks.config import AttackConfig
from holdfast.evaluation.attacks.material import Material
from holdfast.evaluation.attacks.told import NO_DATA_ROLE
from holdfast.evaluation.judges.base import Sample
from holdfast.evaluation.judges.injection import INJECTION
from holdfast.evaluation.log import Record
from holdfast.models.templates import FOUR_ROLES
from holdfast.recipes.attacking import audit_notes, eps_causal
from holdfast.recipes.context import Context
from holdfast.recipes.estimate import estimate
from holdfast.recipes.run import run_recipe
from holdfast.recipes.schema import parse_recipe, quickened
from holdfast.recipes.steps import EXECUTORS


def recipe(**keys: Any) -> Any:
    return parse_recipe({"name": "r", "model": "lab", "steps": {"a": {**ATTACK, **keys}}}, "r.yaml")


def refused(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe(**keys)
    return str(caught.value)


@pytest.mark.parametrize("key", sorted(AttackConfig.model_fields))
def test_every_setting_reaches_the_attack(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class ReachedError(Exception):
        pass

    seen: list[Any] = []

    def attack(loaded: Any, material: Any, config: Any, **options: Any) -> None:
        seen.append((material, config))
        raise ReachedError

    monkeypatch.setattr("holdfast.models.load.load_model", lambda config: SimpleNamespace())
    monkeypatch.setattr("holdfast.evaluation.attacks.material.read_material", lambda sources, config: (sources, config))
    monkeypatch.setattr("holdfast.evaluation.attacks.run.attack", attack)
    parsed = recipe(**KEYS["attack"][key])
    with pytest.raises(ReachedError):
        EXECUTORS["attack"](Context(parsed, "a", tmp_path, {}, False, lambda *_: None))
    (((sources, read_with), config),) = seen
    assert config == read_with
    assert type(config) is AttackConfig
    assert getattr(config, key) == getattr(parsed.steps["a"], key) != getattr(recipe().steps["a"], key)
    assert sources == parsed.steps["a"].cases


def test_settings_that_would_do_nothing_are_refused() -> None:
    assert "unknown defence 'sandwitch'. Did you mean 'sandwich'?" in refused(defence="sandwitch")
    assert "false_positives has no effect with defence: none" in refused(false_positives=0.1)
    assert "best_of is tried on 'probes' cases, and there are 0" in refused(best_of=2, probes=0)
    assert "steps.a.gcg.steps" in refused(gcg={"steps": 0})


def test_quick_attacks_few_cases_of_each_family() -> None:
    step = quickened({"steps": {"a": {**ATTACK, "limit": 300}}})["steps"]["a"]
    assert (step["limit"], step["probes"]) == (5, 50)


def test_check_counts_what_is_asked() -> None:
    (needs,) = estimate(recipe(), "r.yaml").steps
    assert needs.rows["attacked"] == 20


@pytest.mark.parametrize("source", ["no.jsonl", "my-casse", "data/my/casse"])
def test_check_finds_that_cases_are_not_there(source: str) -> None:
    with pytest.raises(ConfigError, match=source):
        estimate(recipe(cases=[source]), "r.yaml")


def test_check_leaves_cases_on_the_hub_uncounted() -> None:
    (needs,) = estimate(recipe(cases=["lab/injection", "someone/injections"]), "r.yaml").steps
    assert needs.rows == {"lab/injection": None, "someone/injections": None}


def test_a_set_that_the_audit_refuses_is_attacked_with_a_note_and_a_sound_one_without(tmp_path: Path) -> None:
    def notes(made: list[dict[str, Any]]) -> tuple[str, ...]:
        path = tmp_path / "cases.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        return audit_notes(recipe(cases=[str(path)]).steps["a"])

    sound = [one.as_dict() for one in read_unchecked(SourceConfig(source="lab/injection", rows=200))]
    assert notes(sound) == audit_notes(recipe().steps["a"]) == ()
    (note,) = notes([{**one, "split": ("train", "test")[i % 2]} for i, one in enumerate(sound)])
    assert note.startswith("The audit refuses this set, and its figures may say little (refused: groups apart")
    assert note.endswith(f"see 'holdfast data audit {tmp_path / 'cases.jsonl'}'.")


def outcomes(pairs: list[tuple[str, str]]) -> Any:
    cases: list[Counterfactual] = [case(n, attack) for n, attack in enumerate(["ignore"] * 2 + ["naive"] * 2)]
    answers = {"done": "green", "obeyed": "zx{}", "refused": "I'm sorry, but I can't help with that."}
    records = []
    for n, (one, words) in enumerate(zip(cases, pairs, strict=True)):
        for view, word in zip(("benign", "attacked"), words, strict=True):
            sample = Sample(getattr(one, view)(), answers[word].format(n))
            records.append(Record(f"attack/{view}", "", sample, {INJECTION.name: INJECTION.judge([sample])[0]}))
    material = Material(tuple(cases), {}, (), (), {})
    return {(m.name, m.group): m.value for m in eps_causal(material, records)}


def test_eps_is_one_where_every_injection_is_obeyed_and_zero_where_none_is() -> None:
    assert outcomes([("done", "obeyed")] * 4)["causal/eps/outcome", ""] == 1
    assert outcomes([("done", "done")] * 3 + [("refused", "refused")])["causal/eps/outcome", ""] == 0
    mixed = outcomes([("done", "done")] * 2 + [("done", "obeyed"), ("done", "done")])
    assert mixed["causal/eps/outcome", ""] == 0.25
    assert mixed["causal/eps/outcome", "attack=naive"] == 0.5


def test_a_run_attacks_twice_and_tables_both(tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(2)), encoding="utf-8")
    step = {"do": "attack", "cases": [str(file)], "max_new_tokens": 3, "probes": 2}
    steps = {
        "open": step,
        "again": {**step, "gcg": {"steps": 1, "width": 2, "length": 2, "cases": 1}, "best_of": 2},
        "blocked": {**step, "defence": "keyword_block"},
        "table": {
            "do": "table",
            "before": "open",
            "rows": {"plain": ["again"], "blocked": ["blocked"]},
            "reference": "plain",
        },
        "change": {"do": "compare", "before": "open", "after": "blocked"},
    }
    document = {"name": "r", "model": str(tiny_folder(tmp_path, "llama")), "steps": steps}
    record = run_recipe(parse_recipe(document, "r.yaml"), tmp_path / "out")
    done = {one.id: one for one in record.steps}
    names = {metric.name for metric in done["again"].metrics}
    assert {"injection/attack/gcg/followed", "injection/attack/best_of/queries", "causal/eps/outcome"} <= names
    assert any(m.name == "table/attack/attacked/followed" for m in done["table"].metrics)
    assert done["change"].verdicts


@pytest.mark.parametrize(("template", "told"), [(BRACKETS, 1), (FOUR_ROLES, 0)])
def test_a_template_without_a_data_role_is_told_once(template: str, told: int, tmp_path: Path) -> None:
    folder, file = tiny_folder(tmp_path, "llama"), tmp_path / "cases.jsonl"
    byte_tokenizer(chat_template=template).save_pretrained(folder)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(1)), encoding="utf-8")
    step = {"do": "attack", "cases": [str(file)], "max_new_tokens": 1, "probes": 0}
    document = {"name": "r", "model": str(folder), "steps": {"open": step}}
    (done,) = run_recipe(parse_recipe(document, "r.yaml"), tmp_path / "out").steps
    assert done.notes.count(NO_DATA_ROLE) == told
