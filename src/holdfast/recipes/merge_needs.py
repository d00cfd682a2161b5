"""What a merge step needs, and what would stop it: its adapters, rows and tasks, before any weight of a model loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import AdapterError, ConfigError, DataError
from holdfast.evaluation.judges.config import build_judge
from holdfast.recipes.adapter_step import AdapterStep
from holdfast.recipes.checks import Checks, count_rows
from holdfast.recipes.merge_step import MergeStep
from holdfast.recipes.schema import TrainStep

if TYPE_CHECKING:
    from holdfast.evaluation.tasks import TaskConfig
    from holdfast.methods.merging.cost import Cost, Shape
    from holdfast.models.describe import Description

Shapes = Mapping[str, tuple[int, int, int]]
"""By layer, ``(o, i)`` and the rank of an adapter's delta."""
Rows = dict[str, int | None]
VALIDATION = " (validation)"
"""Ends the name of rows that the dial is chosen on."""


def merge_needs(checks: Checks, step_id: str, step: MergeStep) -> tuple[Description, Rows, Cost] | None:
    """The base, the rows by source and task, and the cost; ``None`` where that cannot be told.

    ``checks`` gets every problem: an adapter that is not there, is no plain LoRA or does not fit the base; a pattern
    that matches no layer; settings that the rule does not have; rows without answers; judges that cannot be made.
    """
    from holdfast.methods.merging.cost import cost

    model, _ = checks.model(step_id)
    counts, rows = _rows(checks, step_id, step)
    rows |= _task_rows(checks, step_id, step)
    checks.tried(step_id, lambda: _check_rule(step))
    if model is None:
        return None
    each = [_shapes(checks, step_id, item.adapter, model) for item in step.adapters]
    shapes = checks.tried(step_id, lambda: _together(step, [found for found in each if found is not None]))
    if shapes is None or None in each:
        return None
    return model, rows, cost(step.merging(), shapes, counts, base_of(model))


def base_of(model: Description) -> Any:
    """The base as the cost of a merge wants it."""
    import torch

    from holdfast.methods.merging.cost import GRADIENT_BATCH, ROW_TOKENS, Base

    passes = model.training_bytes(tokens=GRADIENT_BATCH * ROW_TOKENS, adapter=0)
    return Base(model.parameters, model.weight_bytes, passes, "cuda" if torch.cuda.is_available() else "cpu")


def _rows(checks: Checks, step_id: str, step: MergeStep) -> tuple[list[int], Rows]:
    """How many rows each adapter has, and by source."""
    counts, rows = [], Rows()
    for place, item in enumerate(step.adapters):
        found = checks.rows(step_id, item.data)
        checks.answers(step_id, item.data)
        counts.append(sum(count or 0 for count in found.values()))
        rows |= {name: _sum(rows[name], count) if name in rows else count for name, count in found.items()}
        if item.data and item.data in [other.data for other in step.adapters[:place]]:
            checks.tried(step_id, lambda item=item: _refuse_same(item.adapter))  # type: ignore[misc]
    return counts, rows


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _refuse_same(adapter: str) -> None:
    raise DataError(
        f"adapter {adapter!r} has the same 'data' as one before it: the merge weighs what each needs against the "
        "other. Do: give each adapter rows of its own task."
    )


def _task_rows(checks: Checks, step_id: str, step: MergeStep) -> Rows:
    """Validation rows of the tasks that the dial is chosen by."""
    rows = Rows()
    for task in () if step.select is None else (task for part in step.select.tasks(step.seed) for task in part):
        checks.tried(step_id, lambda task=task: _check_judge(task))  # type: ignore[misc]
        count = checks.tried(step_id, lambda task=task: count_rows(task.rows(None, step.seed)))  # type: ignore[misc]
        rows[f"{task.name}{VALIDATION}"] = count
    return rows


def _check_judge(task: TaskConfig) -> None:
    if task.judge is not None:
        build_judge(task.judge)


def _check_rule(step: MergeStep) -> None:
    from holdfast.methods.merging.apply import rule_settings
    from holdfast.methods.merging.rules import RULES
    from holdfast.methods.merging.rules.base import resolve

    if step.rule in RULES:
        resolve(RULES[step.rule], rule_settings(step.merging()), len(step.adapters))


def _shapes(checks: Checks, step_id: str, adapter: str, model: Description) -> Shapes | None:
    """What an adapter changes: read from its folder, or told by the step that will make it."""
    maker = checks.recipe.steps.get(adapter)
    if maker is None:
        return checks.tried(step_id, lambda: stored_shapes(adapter, model))
    if isinstance(maker, AdapterStep):
        return checks.tried(step_id, lambda: stored_shapes(maker.source, model))
    if isinstance(maker, TrainStep):
        rank, targets = maker.lora.rank, maker.lora.targets
        return checks.tried(step_id, lambda: _of_targets(model, rank, targets))
    if isinstance(maker, MergeStep):
        each = [_shapes(checks, step_id, item.adapter, model) for item in maker.adapters]
        known = [found for found in each if found is not None]
        found = checks.tried(step_id, lambda: _together(maker, known))
        return (
            None if found is None else {n: (s.out_features, s.in_features, _rank(maker, s)) for n, s in found.items()}
        )
    named = getattr(maker, "adapter", None)  # a repair keeps the layers and the rank of what it repairs
    return None if named is None else _shapes(checks, step_id, named, model)


def _rank(maker: MergeStep, shape: Shape) -> int:
    from holdfast.methods.merging.cost import result_rank

    return result_rank(maker.merging(), shape)


def stored_shapes(adapter: str, model: Description) -> Shapes:
    """What an adapter from elsewhere changes, by layer.

    Raises:
        HoldfastError: it is not there, is no plain LoRA, or does not fit the base.
    """
    from holdfast.layers.adapters import check_fit, read_peft
    from holdfast.layers.address import LayerMap
    from holdfast.models.sources import is_here, local_folder

    if not is_here(adapter):
        return _told(adapter, model)
    found = read_peft(local_folder(adapter, marker="adapter_config.json"))
    check_fit(LayerMap.of(model.skeleton), found)
    return {name: (*delta.shape, delta.rank) for name, delta in found.deltas.items()}


def _told(adapter: str, model: Description) -> Shapes:
    """What the configuration of an adapter on the hub says, without its weights."""
    from holdfast.models.sources import local_folder

    folder = local_folder(adapter, weights=False, marker="adapter_config.json")
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, targets = int(config["r"]), config["target_modules"]
    except (ValueError, KeyError, TypeError) as problem:
        raise AdapterError(
            f"Cannot read the configuration of {adapter}: got no r and target_modules, expected a LoRA's."
        ) from problem
    return _of_targets(model, rank, tuple(targets) if isinstance(targets, list) else ())


def _of_targets(model: Description, rank: int, targets: Sequence[str]) -> Shapes:
    from holdfast.layers.address import layer_name

    return {
        layer_name(path) or path: (outputs, inputs, min(rank, outputs, inputs))
        for path, inputs, outputs in model.matrices
        if not targets or path.rsplit(".", 1)[-1] in targets
    }


def _together(step: MergeStep, each: Sequence[Shapes]) -> dict[str, Shape]:
    """The layers that are merged, with the ranks of all adapters there."""
    from holdfast.methods.merging.cost import Shape
    from holdfast.methods.merging.plan import matching

    found: dict[str, Shape] = {}
    for adapter in each:
        for name, (o, i, rank) in adapter.items():
            if name in found and (found[name].out_features, found[name].in_features) != (o, i):
                raise ConfigError(f"adapters have deltas of unlike shapes for {name}. Do: merge adapters of one base.")
            found[name] = Shape(o, i, (*found[name].ranks, rank) if name in found else (rank,))
    return {name: found[name] for name in matching(step.layers, list(found))} if found else {}
