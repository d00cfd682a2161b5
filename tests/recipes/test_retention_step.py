"""The step ``do: retention`` on logs of earlier steps: what it reads, what it leaves."""

from pathlib import Path

import pytest
from tests.evaluation.logs import example, record, save

from holdfast.recipes.context import Context
from holdfast.recipes.schema import parse_recipe
from holdfast.recipes.steps import EXECUTORS

TASKS = ("lab/skills/swap", "lab/skills/ends")
RECIPE = {
    "name": "r",
    "model": "lab",
    "seeds": [3, 5],
    "steps": {
        "after-base": {"do": "evaluate", "suite": "skills"},
        "after-swap-{seed}": {"do": "evaluate", "tasks": [TASKS[0]]},
        "after-ends-{seed}": {"do": "evaluate", "tasks": [TASKS[1]]},
        "after-ties-1-{seed}": {"do": "evaluate", "tasks": [TASKS[0]]},
        "after-ties-2-{seed}": {"do": "evaluate", "tasks": list(TASKS)},
        "kept": {
            "do": "retention",
            "alone": {"swap": "after-swap-{seed}", "ends": "after-ends-{seed}"},
            "rows": {"ties": ["after-ties-2-{seed}", "after-ties-1-{seed}"]},
        },
    },
}
RIGHT = {
    "after-swap-3": (10,), "after-swap-5": (8,), "after-ends-3": (8,), "after-ends-5": (8,),
    "after-ties-1-3": (9,), "after-ties-1-5": (9,), "after-ties-2-3": (6, 4), "after-ties-2-5": (3, 4),
}  # fmt: skip


def test_retention_reads_the_logs_of_its_rows_seed_by_seed(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE, "r.yaml")
    for step_id, right in RIGHT.items():
        (tmp_path / step_id).mkdir()
        asked = [task.name for task in recipe.steps[step_id].tasks]
        made = [
            record(task, example(i, reference="kiwi"), "kiwi" if i < k else "plum")
            for task, k in zip(asked, right, strict=True)
            for i in range(10)
        ]
        save(tmp_path / step_id / "log.jsonl", made)
    outcome = EXECUTORS["retention"](Context(recipe, "kept", tmp_path, {}, False, print))
    values = {metric.group: metric.value for metric in outcome.metrics if metric.name == "retention/mean"}
    wanted = {"row=ties, experts=1": 18 / 18, "row=ties, experts=2": (9 / 18 + 8 / 16) / 2}
    assert values == pytest.approx(wanted)
    assert outcome.curves == {"retention [row=ties]": [(1.0, pytest.approx(1.0)), (2.0, pytest.approx(0.5))]}


def test_a_retention_step_waits_for_all_of_its_evaluations() -> None:
    recipe = parse_recipe(RECIPE, "r.yaml")
    assert set(recipe.inputs_of("kept")) == set(RIGHT)
