"""Steps over seeds: one pattern, one step a seed, and everything that addresses steps goes on working."""

import copy
from pathlib import Path

import pytest

from holdfast.core.errors import ConfigError
from holdfast.recipes.estimate import estimate
from holdfast.recipes.fingerprint import step_fingerprint
from holdfast.recipes.schema import load_recipe, parse_recipe
from holdfast.training.config import TrainConfig

RECIPE = """
name: arms
model: lab
seed: 7
seeds: [0, 4]
steps:
  before: {do: evaluate, tasks: [lab/harmful, lab/arithmetic], limit: 4}
  plain-{seed}: &drift
    do: train
    data: [{source: lab/arithmetic, rows: 8, seed: "{seed}"}]
    steps: 20
    batch_size: 4
    max_length: 256
  plain-{seed}-after: &measured {do: evaluate, model: "plain-{seed}", tasks: [lab/harmful, lab/arithmetic], limit: 4}
  slow-{seed}: {<<: *drift, learning_rate: 1e-5}
  slow-{seed}-after: {<<: *measured, model: "slow-{seed}"}
  table:
    do: table
    before: before
    rows: {plain: "plain-{seed}-after", slow: ["slow-{seed}-after"]}
    reference: plain
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str = RECIPE) -> Path:
        (tmp_path / "arms.yaml").write_text(text)
        return tmp_path / "arms.yaml"

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return [line.strip() for line in str(caught.value).splitlines()]


def test_a_pattern_becomes_one_step_a_seed_in_its_place(written):
    recipe = load_recipe(written())
    assert list(recipe.steps) == [
        "before",
        *("plain-0", "plain-4", "plain-0-after", "plain-4-after"),
        *("slow-0", "slow-4", "slow-0-after", "slow-4-after"),
        "table",
    ]
    assert [recipe.steps[name].seed for name in ("plain-0", "plain-4")] == [0, 4]
    assert [recipe.steps[name].data[0].seed for name in ("plain-0", "plain-4")] == [0, 4]
    assert [recipe.model_of(f"slow-{seed}-after").source for seed in (0, 4)] == ["slow-0", "slow-4"]
    assert [recipe.steps[name].learning_rate for name in ("plain-4", "slow-4")] == [
        TrainConfig(steps=1).learning_rate,
        1e-5,
    ]


def test_a_list_of_steps_runs_over_all_seeds(written):
    table = load_recipe(written()).steps["table"]
    assert table.rows == {"plain": ("plain-0-after", "plain-4-after"), "slow": ("slow-0-after", "slow-4-after")}


def test_evaluations_keep_the_seed_of_the_recipe_so_that_every_seed_is_asked_the_same_prompts(written):
    recipe = load_recipe(written())
    assert {recipe.steps[f"{arm}-{seed}-after"].seed for arm in ("plain", "slow") for seed in (0, 4)} == {7}


def test_a_step_that_sets_its_seed_keeps_it(written):
    recipe = load_recipe(written(), ["steps.plain-{seed}.seed=9"])
    assert [recipe.steps[name].seed for name in ("plain-0", "plain-4", "slow-4")] == [9, 9, 4]


def test_quick_uses_the_first_seed_only(written):
    recipe = load_recipe(written(), quick=True)
    assert list(recipe.steps) == ["before", "plain-0", "plain-0-after", "slow-0", "slow-0-after", "table"]
    assert recipe.steps["table"].rows["plain"] == ("plain-0-after",)
    assert recipe.steps["plain-0"].steps == 2


def test_an_override_addresses_the_pattern_and_leaves_other_arms_alone(written):
    recipe = load_recipe(written(), ["steps.plain-{seed}.steps=10", "steps.plain-{seed}.data.0.rows=6", "seeds=[1]"])
    assert recipe.steps["plain-1"].steps == 10
    assert [recipe.steps[name].data[0].rows for name in ("plain-1", "slow-1")] == [6, 8]
    assert problems(written(), "steps.plain-0.steps=10")[0].startswith(
        "Cannot apply --set 'steps.plain-0.steps=10': no step 'plain-0'. Did you mean 'plain-{seed}'?"
    )


def test_a_table_waits_for_all_of_its_evaluations(written):
    recipe = load_recipe(written())
    assert set(recipe.inputs_of("table")) == {
        "before",
        *(f"{arm}-{seed}-after" for arm in ("plain", "slow") for seed in (0, 4)),
    }
    inputs = dict.fromkeys(recipe.steps, "same")
    one = step_fingerprint(recipe, "table", inputs)
    assert one == step_fingerprint(recipe, "table", dict(inputs))
    assert one != step_fingerprint(recipe, "table", inputs | {"slow-4-after": "changed"})
    fewer = load_recipe(written(), ["seeds=[0]"])
    assert one != step_fingerprint(fewer, "table", inputs)
    assert step_fingerprint(fewer, "plain-0", {}) == step_fingerprint(recipe, "plain-0", {})


def test_check_says_what_every_copy_needs(written):
    needs = {step.id: step for step in estimate(load_recipe(written()), "arms.yaml").steps}
    assert needs["plain-4"].rows == {"lab/arithmetic": 8}
    assert needs["table"].parameters is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("seeds: [0, 4]\n", ""),
            "seeds: missing, and 'plain-{seed}' is to be made once for each. Do: add e.g. seeds: [0, 1, 2]",
        ),
        (("[0, 4]", "[]"), "seeds: is empty. Do: give at least one, e.g. [0, 1, 2]"),
        (("[0, 4]", "[4, 4]"), "seeds: 4 stands there twice. Do: give each seed once"),
        (("[0, 4]", "[0, -1]"), "seeds: should be a list of whole numbers from 0 (got [0, -1])"),
        (("[0, 4]", "[true]"), "seeds: should be a list of whole numbers from 0 (got [True])"),
        (("[0, 4]", "3"), "seeds: should be a list of whole numbers from 0 (got 3)"),
        (
            ("before: before", "before: plain-{seed}-after"),
            "steps.table.before: holds {seed}, and this step is made once. Do: put {seed} into its id, or take it out",
        ),
        (("steps: 20", "stesp: 20"), "steps.plain-{seed}.stesp: unknown key, did you mean 'steps'?"),
        (
            ('model: "slow-{seed}"', 'model: "slwo-{seed}"'),
            "steps.slow-{seed}-after.model: no step 'slwo-0'. Did you mean 'slow-0'? Known: before, plain-0, "
            "plain-0-after, plain-4, plain-4-after, slow-0, slow-4.",
        ),
        (
            ("  slow-{seed}:", "  plain-4: {do: evaluate}\n  slow-{seed}:"),
            "steps.plain-{seed}: 'plain-4' is the id of another step. Do: rename one of them",
        ),
        (
            ("reference: plain", "reference: plian"),
            "steps.table: reference 'plian' is no row. Did you mean 'plain'? Known: plain, slow.",
        ),
        (
            ("slow: [", "before: ["),
            "steps.table: 'before' is the row of what was before. Do: give the label another name",
        ),
        (
            ('["slow-{seed}-after"]', '["slow-{seed}-after", before]'),
            "steps.table: rows have different numbers of seeds: plain 2, slow 3. "
            "Do: give each the same number, or one id",
        ),
        (('["slow-{seed}-after"]', "[slow-0-after, slow-0-after]"), "steps.table: row 'slow' names a step twice"),
        (
            ('["slow-{seed}-after"]', '"slow-{seed}"'),
            "steps.table.rows.slow.0: step 'slow-0' is a 'train' step, expected an 'evaluate' or an 'attack' step",
        ),
        (
            ('["slow-{seed}-after"]', "[]"),
            "steps.table.rows.slow: should have at least 1 item (got [])",
        ),
    ],
)
def test_bad_input_has_its_sentence_under_the_id_that_the_file_has(written, change, line):
    changed = RECIPE.replace(*change)
    assert changed != RECIPE
    assert line in problems(written(changed))


def test_a_problem_of_a_pattern_is_told_once_and_not_once_a_seed(written):
    lines = problems(written(RECIPE.replace("batch_size: 4", "batch_size: 0")))
    assert sorted(line.partition(": ")[0] for line in lines[1:]) == [
        "steps.plain-{seed}.batch_size",
        "steps.slow-{seed}.batch_size",
    ]


def test_seeds_without_a_step_that_uses_them_are_refused():
    step = {"do": "evaluate", "model": "lab"}
    with pytest.raises(ConfigError, match=r"seeds: has no effect: no step has \{seed\} in its id"):
        parse_recipe({"name": "r", "seeds": [0, 1], "steps": {"a": step}}, "r.yaml")


def test_parsing_does_not_change_the_document():
    step = {"do": "evaluate", "model": "lab", "tasks": ["lab/harmful"]}
    document = {"name": "r", "seeds": [0], "steps": {"a-{seed}": step}}
    kept = copy.deepcopy(document)
    parse_recipe(document, "r.yaml")
    assert document == kept
