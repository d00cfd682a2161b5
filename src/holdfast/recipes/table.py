"""What the step ``do: table`` does."""

from __future__ import annotations

from holdfast.core.results import Metric
from holdfast.recipes.context import LOG_FILE, Context, Outcome
from holdfast.recipes.schema import TableStep


def tabulate(context: Context) -> Outcome:
    """Read the logs of the evaluations that the step names."""
    from holdfast.evaluation.table import table

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, TableStep)
    rows = {label: [context.out / name / LOG_FILE for name in ids] for label, ids in step.rows.items()}
    found = table(context.out / step.before / LOG_FILE, rows, step.reference, step.synergy)
    told = tuple(_told(metric, step) for metric in found.metrics if metric.name.endswith("/synergy"))
    return Outcome(metrics=found.metrics, curves=found.per_seed, notes=(*found.notes, *told))


def _told(metric: Metric, step: TableStep) -> str:
    """A synergy in words; the sign is the figure's own."""
    whole, *parts = step.synergy
    name = metric.name.removeprefix("table/").removesuffix("/synergy")
    if metric.value is None or metric.low is None or metric.high is None:
        return f"{name}: no synergy of {whole}: {metric.reason}."
    limits = f"{metric.low:+.3f} to {metric.high:+.3f}"
    return (
        f"{name}: {whole} changes it by {metric.value:+.3f} ({limits}) beyond the sum of {' and '.join(parts)} "
        f"({'more' if metric.higher_is_better else 'less'} is better)."
    )
