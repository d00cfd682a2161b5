"""Values of a recipe: set once at the top, put wherever their name stands in braces."""

from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import ConfigError
from holdfast.recipes.schema import load_recipe, parse_recipe

RECIPE = """
name: named
model: {source: lab, dtype: "{kind}"}
seeds: [0, 4]
values: {file: rows.jsonl, kind: float32, epochs: 2, least: null, ids: [q_proj], quick: 3}
steps:
  tuned-{seed}:
    do: train
    data: [{source: "{file}", rows: 8}, {source: "more/{file}", rows: 4}]
    params: lora
    lora: {targets: "{ids}"}
    epochs: "{epochs}"
    save_every: "{least}"
    quick: {epochs: "{quick}"}
  after-{seed}: {do: evaluate, model: "tuned-{seed}", tasks: [lab/arithmetic], limit: "{quick}"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "named.yaml"
    path.write_text(RECIPE)
    return path


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(document, "named.yaml")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_value_stands_wherever_its_name_does_as_what_it_is(file: Path) -> None:
    recipe = load_recipe(file)
    step: Any = recipe.steps["tuned-4"]
    assert [source.source for source in step.data] == ["rows.jsonl", "more/rows.jsonl"]
    assert (step.epochs, step.save_every, step.lora.targets) == (2, None, ("q_proj",))
    assert recipe.model is not None
    assert recipe.model.dtype == "float32"
    assert recipe.values is None


def test_one_override_changes_a_value_everywhere_and_values_may_name_seeds(file: Path) -> None:
    recipe = load_recipe(file, ["values.file=other-{seed}.csv", "values.epochs=0.5"])
    for seed in (0, 4):
        step: Any = recipe.steps[f"tuned-{seed}"]
        assert [source.source for source in step.data] == [f"other-{seed}.csv", f"more/other-{seed}.csv"]
        assert step.epochs == 0.5


def test_a_value_may_stand_nowhere_once_an_override_replaces_the_step_that_has_it(file: Path) -> None:
    recipe = load_recipe(file, ["steps.tuned-{seed}={do: adapter, source: some/folder}"])
    assert recipe.steps["tuned-4"].do == "adapter"
    with pytest.raises(ConfigError, match=r"values\.epohcs: has no effect: \{epohcs\} stands nowhere in the recipe"):
        load_recipe(file, ["values.epohcs=3"])


def test_quick_sees_values_and_not_their_names(file: Path) -> None:
    recipe = load_recipe(file, quick=True)
    tuned, after = recipe.steps["tuned-0"], recipe.steps["after-0"]
    assert (tuned.epochs, after.limit) == (3, 3)  # type: ignore[union-attr]


def test_a_recipe_is_the_same_with_a_value_as_with_the_text_itself(file: Path, tmp_path: Path) -> None:
    plain = RECIPE.replace('"{kind}"', "float32").replace('"{file}"', "rows.jsonl").replace("{file}", "rows.jsonl")
    plain = plain.replace('"{epochs}"', "2").replace('"{least}"', "null").replace('"{ids}"', "[q_proj]")
    plain = "\n".join(line for line in plain.replace('"{quick}"', "3").splitlines() if "values" not in line)
    (tmp_path / "plain.yaml").write_text(plain)
    assert load_recipe(tmp_path / "plain.yaml") == load_recipe(file)


STEP = {"do": "evaluate", "tasks": ["lab/arithmetic"]}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"epohcs": 1}, "values.epohcs: has no effect: {epohcs} stands nowhere in the recipe. "),
        ({"seed": 1}, "values.seed: not a name: use small letters, digits and '_', and not 'seed'"),
        ({"Rows": 1}, "values.Rows: not a name: "),
        ([1], "values: should be a mapping of 'key: value' lines (got [1])"),
        ({"limit": "many"}, "steps.a.limit: should be a valid integer (got 'many')"),
    ],
)
def test_a_value_that_is_not_used_or_no_name_is_told_beside_the_other_problems(values: Any, line: str) -> None:
    step = {**STEP, "limit": "{limit}", "batch_size": 0}
    found = problems({"name": "r", "model": "lab", "values": values, "steps": {"a": step}})
    assert any(each.startswith(line) for each in found), found
    assert any(each.startswith("steps.a.batch_size") for each in found), found


def test_braces_round_other_words_stay() -> None:
    judge = {"judge": "chat", "url": "http://localhost/v1", "model": "m", "question": 'Say {"verdict": 1} or {no}.'}
    step = {"do": "evaluate", "tasks": [{"name": "{task}", "judge": judge}]}
    recipe = parse_recipe({"name": "r", "model": "lab", "values": {"task": "advbench"}, "steps": {"a": step}}, "r")
    chosen: Any = recipe.steps["a"]
    assert (chosen.tasks[0].name, chosen.tasks[0].judge.question) == ("advbench", judge["question"])
