"""What the step ``do: retention`` does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from holdfast.recipes.context import LOG_FILE, Context, Outcome
from holdfast.recipes.retention_step import RetentionStep


def measure(context: Context) -> Outcome:
    """Read the logs of the evaluations that the step names."""
    from holdfast.evaluation.retention import retention

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, RetentionStep)
    alone = [path for ids in step.alone.values() for path in _logs(context, ids)]
    found = retention(alone, {label: _logs(context, ids) for label, ids in step.rows.items()})
    return Outcome(metrics=found.metrics, curves=found.curves)


def _logs(context: Context, ids: Iterable[str]) -> list[Path]:
    return [context.out / name / LOG_FILE for name in ids]
