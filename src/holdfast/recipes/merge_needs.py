"""What merge and repair steps need, and what would stop them, before any weight of a model loads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.sizes import GRADIENT_ROWS, ROW_TOKENS
from holdfast.data.sources import SourceConfig
from holdfast.evaluation.judges.config import build_judge
from holdfast.recipes.adapter_shapes import adapter_shapes, repaired_shapes, together
from holdfast.recipes.checks import Checks, count_rows
from holdfast.recipes.merge_step import MergeStep, Validation
from holdfast.recipes.repair_step import RepairStep

if TYPE_CHECKING:
    from holdfast.evaluation.tasks import TaskConfig
    from holdfast.methods.merging.cost import Cost, Shape
    from holdfast.models.config import ModelConfig
    from holdfast.models.describe import Description

Found = tuple["Description", "Rows", "Cost"]
"""The base, the rows by source and task, and the cost."""
Rows = dict[str, int | None]
VALIDATION = " (validation)"
"""Ends the name of rows that the dial is chosen on."""


def merge_needs(checks: Checks, step_id: str, step: MergeStep) -> Found | None:
    """The base, the rows by source and task, and the cost; ``None`` where that cannot be told.

    ``checks`` gets every problem: an adapter that is not there, is no plain LoRA or does not fit the base; a pattern
    that matches no layer; settings that the rule does not have; rows without answers; judges that cannot be made.
    """
    from holdfast.methods.merging.cost import cost

    model, _ = checks.model(step_id)
    counts, rows = _rows(checks, step_id, [item.data for item in step.adapters])
    for place, item in enumerate(step.adapters):
        if item.data and item.data in [other.data for other in step.adapters[:place]]:
            checks.tried(step_id, lambda item=item: _refuse_same(item.adapter))  # type: ignore[misc]
    rows |= _task_rows(checks, step_id, step.select, step.seed)
    checks.tried(step_id, lambda: _check_rule(step))
    if model is None:
        return None
    each = [adapter_shapes(checks, step_id, item.adapter, model) for item in step.adapters]
    shapes = checks.tried(step_id, lambda: together(step, [found for found in each if found is not None]))
    if shapes is None or None in each:
        return None
    checks.tried(step_id, lambda: _check_k(step, shapes, counts[-1], known=None not in rows.values()))
    return model, rows, cost(step.merging(), shapes, counts, base_of(model))


def repair_needs(checks: Checks, step_id: str, step: RepairStep) -> Found | None:
    """The same of a repair.

    ``checks`` gets every problem: an adapter or a model that is not there or does not fit the base; a pattern that
    matches no layer; too few rows, rows without answers, or safety rows that are the utility rows; judges that cannot
    be made.
    """
    from holdfast.methods.merging.plan import matching
    from holdfast.methods.merging.repair_cost import repair_cost

    model, _ = checks.model(step_id)
    counts, rows = _rows(checks, step_id, [step.utility, step.safety])
    checks.tried(step_id, lambda: _check_kinds(step, rows, counts))
    rows |= _task_rows(checks, step_id, step.select, step.seed)
    others = [checks.model(step_id, named)[0] for named in (step.tuned, step.unaligned) if named is not None]
    if model is None or None in others:
        return None
    for named in (step.tuned, step.unaligned):
        if named is not None:
            checks.tried(step_id, lambda named=named: _check_alike(checks, step_id, named, model))  # type: ignore[misc]
    shapes = repaired_shapes(checks, step_id, step, model)
    names = None if shapes is None else checks.tried(step_id, lambda: matching(step.layers, list(shapes)))
    if shapes is None or names is None:
        return None
    return model, rows, repair_cost(step.repairing(), shapes, names, counts, base_of(model), models=len(others))


def _check_kinds(step: RepairStep, rows: Rows, counts: Sequence[int]) -> None:
    """Both kinds of rows are there where the method reads them, and are not the same."""
    for what, sources, count in zip(("utility", "safety"), (step.utility, step.safety), counts, strict=True):
        if sources and count < 2 and None not in rows.values():
            raise DataError(f"got {count} {what} rows, expected at least 2. Do: give more.")
    if step.utility and step.utility == step.safety:
        raise DataError(
            "'utility' and 'safety' are the same rows: repair weighs what each needs against the other. Do: give rows "
            "of the task as utility, and requests with safe answers as safety."
        )


def _check_k(step: MergeStep, shapes: Mapping[str, Shape], count: int, *, known: bool) -> None:
    """No ``k`` is above what the safety rows could tell apart, nor above a layer's coordinates."""
    from holdfast.methods.merging.curved import check_k

    config = step.merging()
    most = min(count, config.samples or count) if known else sys.maxsize
    for k in (*(step.select.k if step.select else ()), *(() if config.k is None else (config.k,))):
        for name, shape in shapes.items():
            check_k(k, min(most, shape.coordinates), name)


def _check_alike(checks: Checks, step_id: str, named: ModelConfig, model: Description) -> None:
    """Another model of the step has the base's layers, in the same shapes."""
    other, _ = checks.model(step_id, named)
    there = set() if other is None else set(other.matrices)
    missing = [path for path, *shape in model.matrices if (path, *shape) not in there]
    if missing:
        raise ConfigError(
            f"{named.source} is not of the base's kind: got another shape of {missing[0]}, or none. Do: give a "
            "model of the same architecture and size."
        )


def base_of(model: Description) -> Any:
    """The base as the cost of a merge wants it."""
    import torch

    from holdfast.methods.merging.cost import Base

    passes = model.training_bytes(tokens=GRADIENT_ROWS * ROW_TOKENS, adapter=0)
    return Base(model.parameters, model.weight_bytes, passes, "cuda" if torch.cuda.is_available() else "cpu")


def _rows(checks: Checks, step_id: str, kinds: Sequence[Sequence[SourceConfig]]) -> tuple[list[int], Rows]:
    """How many rows there are of each kind, and by source."""
    counts, rows = [], Rows()
    for sources in kinds:
        found = checks.rows(step_id, sources)
        checks.answers(step_id, sources)
        counts.append(sum(count or 0 for count in found.values()))
        rows |= {name: _sum(rows[name], count) if name in rows else count for name, count in found.items()}
    return counts, rows


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _refuse_same(adapter: str) -> None:
    raise DataError(
        f"adapter {adapter!r} has the same 'data' as one before it: the merge weighs what each needs against the "
        "other. Do: give each adapter rows of its own task."
    )


def _task_rows(checks: Checks, step_id: str, select: Validation | None, seed: int) -> Rows:
    """Validation rows of the tasks that the dial is chosen by."""
    rows = Rows()
    for task in () if select is None else (task for part in select.tasks(seed) for task in part):
        checks.tried(step_id, lambda task=task: _check_judge(task))  # type: ignore[misc]
        count = checks.tried(step_id, lambda task=task: count_rows(task.rows(None, seed)))  # type: ignore[misc]
        rows[f"{task.name}{VALIDATION}"] = count
    return rows


def _check_judge(task: TaskConfig) -> None:
    if task.judge is not None:
        build_judge(task.judge)


def _check_rule(step: MergeStep) -> None:
    from holdfast.methods.merging.apply import settled
    from holdfast.methods.merging.rules import RULES

    if step.rule in RULES:
        settled(step.merging(), len(step.adapters))
