"""What the step ``do: front`` does."""

from __future__ import annotations

from pathlib import Path

from holdfast.core.errors import ConfigError
from holdfast.recipes.context import Context, Outcome
from holdfast.recipes.merge_step import MergeStep, Select
from holdfast.recipes.merging import TRIED_FOLDER
from holdfast.recipes.schema import FrontStep


def compare(context: Context) -> Outcome:
    """Read what every merge step measured at every weight that it tried."""
    from holdfast.evaluation.front import front

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, FrontStep)
    rows = {label: [_logs(context, name) for name in ids] for label, ids in step.rows.items()}
    select = _select(context, step.rows[step.reference][0])
    safety, utility = ([task.name for task in side] for side in (select.safety, select.utility))
    found = front(rows, step.reference, safety, utility)
    return Outcome(metrics=found.metrics, curves=found.curves)


def _logs(context: Context, step_id: str) -> dict[float, Path]:
    """By weight, what a merge step measured there."""
    folder = context.out / step_id / TRIED_FOLDER
    return {weight: folder / f"{weight:g}.jsonl" for weight in _select(context, step_id).weights}


def _select(context: Context, step_id: str) -> Select:
    step = context.recipe.steps[step_id]
    assert isinstance(step, MergeStep)
    if step.select is None:
        raise ConfigError(f"Step {step_id!r} has no curve: it has no 'select'. Do: give it one, or take the row out.")
    return step.select
