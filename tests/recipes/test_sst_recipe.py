"""The recipe `sst`: real files cut into parts that share no row, every rule, and a run of all of it on a tiny model."""

import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.public_data import public
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.results import RunRecord
from holdfast.data.sources import SourceConfig, load_examples
from holdfast.methods.merging.config import RuleName
from holdfast.models.build import new_model
from holdfast.recipes.estimate import estimate
from holdfast.recipes.run import run_recipe
from holdfast.recipes.schema import Recipe, load_recipe
from holdfast.reports.build import build_report

RECIPE = Path(__file__).parents[2] / "recipes" / "sst.yaml"
DOCUMENTS = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The public files by the recipe's names for them; RepliQA's one public row stands for many documents."""
    home = tmp_path_factory.mktemp("data")
    row = json.loads(public("repliqa/one_sample.jsonl").read_text().splitlines()[0])
    rows = [
        {
            **row,
            "document_id": f"d{document}",
            "question_id": f"d{document}-q{number}",
            "document_extracted": row["document_extracted"].replace("Fuzhou", f"Town {document}"),
            "question": f"{row['question']} ({number})",
        }
        for document in range(DOCUMENTS)
        for number in range(2)
    ]
    (home / "repliqa.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return {
        "repliqa": str(home / "repliqa.jsonl"),
        "jailbreaks": str(public("jailbreak_csv/response_dataframe.csv")),
        "harmless": str(public("dolly/dolly.csv")),
        "xstest": str(public("xstest/xstest_prompts.csv")),
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama that says digits only: random bytes are no text, and no judge can read them."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny") / "model", byte_tokenizer()
    model = new_model({**CONFIGS["llama"], "max_position_embeddings": 4096}, tokenizer, seed=0)
    with torch.no_grad():
        model.lm_head.weight[
            [number for token, number in tokenizer.get_vocab().items() if token not in string.digits]
        ] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(files: Mapping[str, str], *more: str, quick: bool = False) -> Recipe:
    return load_recipe(RECIPE, [*(f"values.{name}={path}" for name, path in files.items()), *more], quick=quick)


def uses(recipe: Recipe) -> Iterator[tuple[str, SourceConfig]]:
    """Every source of rows, and what it is used for."""
    for step in recipe.steps.values():
        known: Any = step
        if step.do == "train":
            yield from (("training", source) for source in known.data)
        elif step.do == "evaluate":
            yield from (("test", task.rows(None, 0)) for task in known.chosen())
        elif step.do == "merge":
            yield from (("Fisher", source) for item in known.adapters for source in item.data)
            tasks = known.select.tasks(0)
            yield from (("validation", task.rows(None, 0)) for side in tasks for task in side)


def test_rows_for_training_fisher_validation_and_test_share_no_prompt_and_no_document(files: dict[str, str]) -> None:
    found: dict[str, dict[str, set[str]]] = {}
    for use, source in uses(loaded(files)):
        keys = {key for row in load_examples(source) for key in (str(row.messages), row.group) if key}
        found.setdefault(source.source, {}).setdefault(use, set()).update(keys)
    assert {Path(name).name: sorted(by_use) for name, by_use in found.items()} == {
        "repliqa.jsonl": ["Fisher", "test", "training", "validation"],
        "response_dataframe.csv": ["Fisher", "test", "training", "validation"],
        "dolly.csv": ["Fisher", "training"],
        "xstest_prompts.csv": ["test", "validation"],
    }
    for name, by_use in found.items():
        together = [key for keys in by_use.values() for key in keys]
        assert len(together) == len(set(together)), name


def test_every_rule_is_there_is_measured_and_stands_in_the_table_and_the_front() -> None:
    recipe = loaded({})
    merges: dict[str, Any] = {name: step for name, step in recipe.steps.items() if step.do == "merge"}
    assert {step.rule for step in merges.values()} == set(get_args(RuleName))
    table: Any = recipe.steps["rules"]
    front: Any = recipe.steps["curves"]
    assert set(table.rows) == {"utility", "safety", *merges}
    assert set(front.rows) == set(merges)
    assert [recipe.model_of(f"after-{name}").source for name in merges] == list(merges)


def test_values_reach_every_step_that_they_are_for() -> None:
    recipe: Any = loaded({}, "values.epochs=1", "values.k=7", "values.weights=[2]", "values.ratios=[4, 5]")
    assert [recipe.steps[name].epochs for name in ("utility", "safety")] == [1, 1]
    assert [recipe.steps[name].k for name in ("sst-published", "random-subspace", "utility-subspace")] == [7] * 3
    assert recipe.steps["ties"].select.weights == recipe.steps["sst-published"].select.weights == (2,)
    assert recipe.steps["sst"].select.weights == recipe.steps["fisher"].select.weights == (4, 5)


def test_both_trainings_give_way_to_adapters_that_are_there() -> None:
    given = [f"steps.{name}={{do: adapter, source: some/{name}}}" for name in ("utility", "safety")]
    for quick in (False, True):
        recipe = loaded({}, *given, quick=quick)
        assert [recipe.steps[name].do for name in ("utility", "safety", "sst")] == ["adapter", "adapter", "merge"]


@pytest.mark.slow
def test_the_whole_recipe_runs_quickly_on_a_tiny_model_and_again_with_the_adapters_given(
    files: dict[str, str], tiny: str, tmp_path: Path
) -> None:
    short = ["steps.utility.quick.steps=2", "steps.safety.quick.steps=2", f"model.source={tiny}"]
    recipe = loaded(files, *short, quick=True)
    estimate(recipe, RECIPE.name)
    record = run_recipe(recipe, tmp_path / "run", quick=True)
    check(record, recipe, tmp_path / "run")
    given = [f"steps.{name}={{do: adapter, source: {tmp_path}/run/{name}/adapter}}" for name in ("utility", "safety")]
    again = loaded(files, short[-1], *given, quick=True)
    alone = {name: step for name, step in again.steps.items() if step.do == "adapter" or name == "ties"}
    taken = run_recipe(again.model_copy(update={"steps": alone}), tmp_path / "again", quick=True)
    weights = [
        (out / "ties" / "adapter" / "adapter_model.safetensors").read_bytes()
        for out in (tmp_path / "run", tmp_path / "again")
    ]
    assert weights[0] == weights[1]
    assert [step.do for step in taken.steps] == ["adapter", "adapter", "merge"]


def check(record: RunRecord, recipe: Recipe, out: Path) -> None:
    """All is done, and the report shows every rule."""
    assert [step.status for step in record.steps] == ["done"] * len(recipe.steps)
    build_report(record, out)
    page = (out / "report.html").read_text(encoding="utf-8")
    for name, step in recipe.steps.items():
        assert step.do != "merge" or name in page, name
