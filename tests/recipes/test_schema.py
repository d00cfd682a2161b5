"""Recipes are validated whole, before anything loads, and every problem is reported at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.zoo import tiny_folder

from holdfast.core.config import load_yaml
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.data.sources import load_examples
from holdfast.recipes.catalogue import find_recipe, shipped
from holdfast.recipes.estimate import estimate
from holdfast.recipes.fingerprint import step_fingerprint
from holdfast.recipes.schema import STEP_TYPES, Recipe, load_recipe, parse_recipe

TRAIN = {"do": "train", "data": ["lab/textops"], "steps": 5}
EVALUATE = {"do": "evaluate", "tasks": ["lab/arithmetic"], "limit": 4}


def recipe(**changes):
    steps = {
        "before": EVALUATE,
        "tuned": TRAIN,
        "after": {**EVALUATE, "model": "tuned"},
        "change": {"do": "compare", "before": "before", "after": "after"},
    }
    return {"name": "r", "model": "lab", "steps": steps, **changes}


def with_step(step_id, **keys):
    document = recipe()
    document["steps"] = {**document["steps"], step_id: {**document["steps"][step_id], **keys}}
    return document


def task(**keys):
    return with_step("before", tasks=[{"name": "gsm8k", **keys}])


def refused(document) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(document, "r.yaml")
    return str(caught.value)


def test_a_good_recipe_knows_models_and_inputs():
    parsed = parse_recipe(recipe(), "r.yaml")
    assert parsed.model_of("before").source == "lab"
    assert parsed.model_of("after").source == "tuned"
    assert parsed.inputs_of("after") == ("tuned",)
    assert parsed.inputs_of("change") == ("before", "after")
    assert parsed.inputs_of("tuned") == ()


def test_problems_of_fields_and_between_steps_come_together():
    document = with_step("tuned", learning_rat=1)
    document["steps"]["after"]["model"] = "tunde"
    document["steps"]["change"]["before"] = "tuned"
    assert refused(document).splitlines() == [
        "r.yaml: 3 problems",
        "  steps.tuned.learning_rat: unknown key, did you mean 'learning_rate'?",
        "  steps.after.model: no step 'tunde'. Did you mean 'tuned'? Known: before, tuned.",
        "  steps.change.before: step 'tuned' is a 'train' step, expected an 'evaluate' or an 'attack' step",
    ]


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (with_step("tuned", do="trian"), "steps.tuned.do: unknown 'trian', did you mean 'train'?"),
        (with_step("tuned", params="lorra"), "steps.tuned.params: unknown 'lorra', did you mean 'lora'?"),
        (with_step("tuned", epochs=1), "give exactly one of steps and epochs"),
        (with_step("tuned", validation=["lab/textops"]), "validation has no effect without evaluate_every"),
        (with_step("tuned", evaluate_every=2), "evaluate_every needs 'validation' rows"),
        (with_step("tuned", lora={"rank": 2}), "lora has no effect with params: full"),
        (with_step("tuned", optimizer="sgd", beta2=0.9), "beta2 has no effect with optimizer: sgd"),
        (with_step("tuned", keep="best"), "patience and keep: best need evaluate_every"),
        (with_step("tuned", model={"source": "a/b", "seed": 1}), "seed has no effect on source 'a/b'"),
        (with_step("tuned", data=[]), "steps.tuned.data: "),
        (with_step("tuned", data=[{"sorce": "x"}]), "steps.tuned.data.0.sorce: unknown key, did you mean 'source'?"),
        (with_step("tuned", model="after"), "steps.tuned.model: step 'after' does not run before this step"),
        (with_step("tuned", model="tuned"), "steps.tuned.model: step 'tuned' does not run before this step"),
        (with_step("tuned", tokenizer={"vocab_size": 400}), "go together"),
        (with_step("before", tasks=["lab/arithmetc"]), "Unknown task 'lab/arithmetc'. Did you mean 'lab/arithmetic'?"),
        (with_step("before", tasks=["gsm8k", "gsm8k"]), "steps.before: task 'gsm8k' is named twice"),
        (task(judge="exct"), "tasks.0.judge: unknown judge 'exct'. Did you mean 'exact'?"),
        (task(judge={"judge": "classifer"}), "tasks.0.judge: unknown judge 'classifer'. Did you mean 'classifier'?"),
        (task(judge={"source": "x"}), "tasks.0.judge: should be a judge's name, or a mapping with 'judge: classifier"),
        (task(judge={"judge": "chat", "url": "x", "modle": "y"}), "judge.modle: unknown key, did you mean 'model'?"),
        (task(data={"source": "x.csv", "format": "gsm8"}), "tasks.0.data: unknown format 'gsm8'. Did you mean"),
        (task(data={"sorce": "x.csv"}), "tasks.0.data.sorce: unknown key, did you mean 'source'?"),
        (task(few_shot=2), "few_shot has no effect with prompting chat"),
        (task(prompting="plain", shots="x.jsonl"), "shots has no effect with few_shot 0"),
        (task(options={"a": 1}), "options has no effect with harness native"),
        (task(harness="lm-eval", data="x.csv"), "data has no effect with harness lm-eval"),
        (task(harness="lm-eval", judge="exact"), "judge has no effect with harness lm-eval"),
        (with_step("before", suite="safty"), "steps.before.suite: unknown suite 'safty'. Did you mean 'safety'?"),
        (with_step("before", harness="lm-eval", tasks=[]), "harness: lm-eval needs 'tasks'"),
        (with_step("before", limit=0), "steps.before.limit: should be greater than or equal to 1 (got 0)"),
        (with_step("change", after="aftr"), "steps.change.after: no step 'aftr'. Did you mean 'after'?"),
        (recipe(model=None), "steps.before.model: missing, and the recipe has no 'model' either"),
        (recipe(model="tund"), "steps.before.model: no step 'tund'."),
        (recipe(steps={}), "steps: "),
        (recipe(steps={"lab": TRAIN}), "steps.lab: not a step id"),
        (recipe(steps={"A b": TRAIN}), "steps.A b: not a step id"),
        (recipe(stepps=1), "stepps: unknown key, did you mean 'steps'?"),
        (recipe(name="a/b"), "name: "),
        (recipe(seed="x"), "seed: should be a valid integer"),
    ],
)
def test_a_bad_recipe_is_refused_with_the_key_and_the_nearest_word(document, line):
    assert line in refused(document)


def test_a_hub_model_without_an_owner_is_written_as_a_mapping():
    assert parse_recipe(recipe(model={"source": "gpt2"}), "r").model_of("before").source == "gpt2"
    assert parse_recipe(recipe(model="org/name"), "r").model_of("before").source == "org/name"


def test_the_recipes_seed_reaches_steps_that_do_not_set_their_own():
    document = with_step("after", seed=5)
    parsed = parse_recipe({**document, "seed": 7}, "r")
    assert [getattr(step, "seed", None) for step in parsed.steps.values()] == [7, 7, 5, None]


def write(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


YAML = """
model: lab
steps:
  tuned:
    do: train
    data: [{source: lab/textops, rows: 900}, lab/arithmetic]
    steps: 40
    learning_rate: 1e-4
  measured: {do: evaluate, suite: safety, limit: 300, quick: {limit: 7}}
"""


def test_a_file_is_read_overridden_and_named_after_itself(tmp_path):
    parsed = load_recipe(write(tmp_path, YAML), ["steps.tuned.learning_rate=3e-5", "steps.tuned.data.0.rows=5"])
    assert parsed.name == "own"
    assert parsed.steps["tuned"].training().learning_rate == 3e-5
    assert parsed.steps["tuned"].data[0].rows == 5


def test_quick_caps_rows_and_steps_and_a_quick_block_decides_where_there_is_one(tmp_path):
    parsed = load_recipe(write(tmp_path, YAML), quick=True)
    assert [(source.rows, source.at_most) for source in parsed.steps["tuned"].data] == [(50, None), (None, 50)]
    assert parsed.steps["tuned"].steps == 4
    assert parsed.steps["measured"].limit == 7


def test_quick_takes_all_rows_of_a_file_that_has_fewer_and_caps_validation_rows_too(tmp_path):
    rows = write_rows(tmp_path, [{"prompt": f"{i}?", "answer": f"{i}"} for i in range(9)])
    held_out = f"    validation: [lab/arithmetic, {rows}]\n    evaluate_every: 5\n  measured:"
    text = YAML.replace("lab/arithmetic]", f"{rows}]").replace("  measured:", held_out)
    parsed = load_recipe(write(tmp_path, text), quick=True)
    step = parsed.steps["tuned"]
    assert [len(load_examples(source)) for source in (*step.data, *step.validation)] == [50, 9, 50, 9]


def write_rows(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_quick_block_is_validated_even_when_it_is_not_used(tmp_path):
    with pytest.raises(ConfigError, match=r"with --quick: 1 problem\n  steps.measured.limitt: unknown key"):
        load_recipe(write(tmp_path, YAML.replace("{limit: 7}", "{limitt: 7}")))


def test_an_override_of_an_unknown_step_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"no step 'tuend'\. Did you mean 'tuned'"):
        load_recipe(write(tmp_path, YAML), ["steps.tuend.steps=1"])


def test_a_duplicate_step_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="duplicate key 'tuned'"):
        load_recipe(write(tmp_path, YAML + "  tuned: {do: train}\n"))


def test_a_recipe_is_found_by_path_or_by_name(tmp_path):
    path = write(tmp_path, YAML)
    assert find_recipe(str(path)) == path
    assert {"lab", "quickstart"} <= set(shipped())
    with pytest.raises(ConfigError, match="Did you mean 'quickstart'"):
        find_recipe("quikstart")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_is_valid(name):
    parsed = load_recipe(find_recipe(name), quick=True)
    assert parsed.title
    assert "quick" not in load_yaml(find_recipe(name))


def test_reading_a_recipe_does_not_import_torch():
    code = "import sys, holdfast.recipes.schema as s; print(bool({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_key_of_every_step_is_described():
    for kind in (*STEP_TYPES.values(), Recipe):
        missing = [name for name, field in kind.model_fields.items() if name != "do" and not field.description]
        assert not missing, (kind.__name__, missing)


def test_a_fingerprint_follows_the_bytes_of_files_and_the_inputs(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    parsed = parse_recipe({"name": "r", "model": "lab", "steps": {"a": {**TRAIN, "data": [str(rows)]}}}, "r")
    first = step_fingerprint(parsed, "a", {})
    rows.write_text('{"prompt": "a", "answer": "c"}\n')
    assert step_fingerprint(parsed, "a", {}) != first
    whole = parse_recipe(recipe(), "r")
    one, other = (step_fingerprint(whole, "after", {"tuned": given}) for given in ("x", "y"))
    assert one != other


OWN = """
model: {folder}/tiny-llama-0
steps:
  measured:
    do: evaluate
    limit: 4
    tasks:
      - lab/choice
      - {{name: gsm8k, data: {folder}/sums.csv, prompting: plain, few_shot: 1, shots: {folder}/shots.jsonl}}
      - name: advbench
        data: {{source: {folder}/asked.jsonl, columns: {{goal: request}}, rows: 2}}
        judge: {{judge: classifier, source: {folder}/guard, labels: {{refusal: 1, compliance: 0}}}}
        max_new_tokens: 8
      - name: arc_easy
        harness: lm-eval
        options: {{dataset_kwargs: {{data_files: {folder}/arc.json}}}}
"""


@pytest.fixture
def own(tmp_path):
    """A recipe whose tasks bring their own rows, judge and harness."""
    (tmp_path / "sums.csv").write_text("question,answer\n1 + 1?,#### 2\n1 + 2?,#### 3\n1 + 3?,#### 4\n")
    (tmp_path / "shots.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n')
    (tmp_path / "asked.jsonl").write_text('{"request": "a"}\n{"request": "b"}\n{"request": "c"}\n')
    (tmp_path / "arc.json").write_text("[]")
    tiny_folder(tmp_path, "llama")
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "config.json").write_text('{"id2label": {"0": "refusal", "1": "compliance"}}')
    (tmp_path / "own.yaml").write_text(OWN.format(folder=tmp_path))
    return tmp_path / "own.yaml"


def test_check_counts_the_rows_of_tasks_of_ones_own(own):
    needs = estimate(load_recipe(own), own.name)
    assert needs.steps[0].rows == {"lab/choice": 4, "gsm8k": 3, "advbench": 2, "arc_easy": None}


def test_check_reports_rows_and_judges_that_cannot_be_used(own):
    guard = own.parent / "guard" / "config.json"
    guard.write_text(guard.read_text().replace("refusal", "refused"))
    with pytest.raises(ConfigError, match=r"own.yaml: 1 problem\n  steps.measured: .*guard has no label 'refusal'"):
        estimate(load_recipe(own), own.name)
    guard.unlink()
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        estimate(load_recipe(own), own.name)


def test_check_reports_rows_that_are_not_there(own):
    with pytest.raises(HoldfastError, match=r"steps\.measured: .*/none/x\.csv"):
        estimate(load_recipe(own, ["steps.measured.tasks.1.data=/none/x.csv"]), own.name)


@pytest.mark.parametrize("name", ["sums.csv", "shots.jsonl", "asked.jsonl", "guard/config.json", "arc.json"])
def test_a_fingerprint_follows_every_file_that_a_task_names(own, name):
    recipe = load_recipe(own)
    before = step_fingerprint(recipe, "measured", {})
    assert step_fingerprint(recipe, "measured", {}) == before
    file = own.parent / name
    file.write_text(file.read_text() + "\n")
    assert step_fingerprint(recipe, "measured", {}) != before


def test_the_shipped_recipes_are_the_files_of_the_checkout():
    folder = Path(__file__).parents[2] / "recipes"
    assert shipped() == {path.stem: path for path in sorted(folder.glob("*.yaml"))}
