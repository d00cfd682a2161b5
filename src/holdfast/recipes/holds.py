"""Do the phases of a hold and the training that names it fit each other? Asked before any model loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import DataError
from holdfast.methods.rotation.baselines.config import Control, check_control
from holdfast.methods.rotation.config import BasisConfig, ImportanceConfig, MaskConfig, check_unit
from holdfast.recipes.references import PLAN_HEADER
from holdfast.training.config import TrainConfig

if TYPE_CHECKING:
    from holdfast.recipes.schema import Recipe

ORIGIN = ("source", "config", "tokenizer", "seed", "adapter", "revision", "chat_template")
"""Settings of a model that a plan depends on; how and where it is held in memory is free."""


def hold_problems(recipe: Recipe) -> list[str]:
    """Masks that their scores cannot make, and trainings that a plan does not fit.

    References that lead nowhere are passed over: `holdfast.recipes.references` tells them.
    """
    problems = []
    for step_id, step in recipe.steps.items():
        if isinstance(step, MaskConfig):
            problems += _mask_problems(recipe.steps, f"steps.{step_id}", step)
        elif isinstance(step, TrainConfig):
            problems += _training_problems(recipe, step_id, step)
    return problems


def _mask_problems(steps: Mapping[str, Any], where: str, mask: Any) -> list[str]:
    scored: Any = steps.get(mask.of)
    if not isinstance(scored, ImportanceConfig):
        return []
    problems = []
    try:
        check_unit(scored.importance, mask.unit)
    except ValueError as problem:
        problems.append(f"{where}.unit: {problem}. Change it, or the importance of step {mask.of!r}")
    if mask.spare == "task" and not scored.task:  # type: ignore[attr-defined]
        problems.append(f"{where}.spare: task needs rows of the task. Give step {mask.of!r} 'task', or take it out")
    return problems


def _training_problems(recipe: Recipe, step_id: str, training: Any) -> list[str]:
    steps: Mapping[Any, Any] = recipe.steps
    mask = steps.get(training.constraint)
    where = f"steps.{step_id}"
    if training.constraint is not None and training.constraint not in steps:
        header = Path(training.constraint).expanduser() / PLAN_HEADER
        if not header.is_file():
            return []
        try:
            unit, importance = _stored(header)
        except DataError as problem:
            return [f"{where}.constraint: {problem}"]
        return _plan_problems(where, training, f"the plan {training.constraint}", unit, importance)
    scored = steps.get(getattr(mask, "of", None))
    basis_id = getattr(scored, "of", None)
    if not (isinstance(mask, MaskConfig) and isinstance(scored, ImportanceConfig)):
        return []
    problems = _plan_problems(where, training, f"step {training.constraint!r}", mask.unit, scored.importance)
    if not isinstance(steps.get(basis_id), BasisConfig):
        return problems
    if other := other_model(recipe, str(basis_id), step_id):
        problems.append(
            f"{where}.constraint: step {training.constraint!r} plans for another model: its basis, step {basis_id!r}, "
            f"has {other}. Give both the same"
        )
    return problems


def other_model(recipe: Recipe, planned_by: str, step_id: str) -> str:
    """How the model of a training differs from the one that its plan looked at; nothing where it does not."""
    planned, trained = (_origin(recipe, name) for name in (planned_by, step_id))
    other = next((key for key in planned if planned[key] != trained.get(key)), None)
    return f"model.{other} {planned[other]!r}, and this step {trained.get(other)!r}" if other else ""


def _plan_problems(where: str, training: Any, plan: str, unit: str, importance: str) -> list[str]:
    """What of a plan does not fit the training that names it."""
    problems = []
    if unit == "element" and training.params != "full":
        problems.append(
            f"{where}.constraint: an adapter cannot hold elements: {plan} has unit: element. "
            "Set unit: column there, or params: full here"
        )
    if isinstance(training.baseline, Control):
        try:
            check_control(training.baseline.name, importance)
        except ValueError as problem:
            problems.append(f"{where}.baseline: {problem}")
    return problems


def _stored(header: Path) -> tuple[str, str]:
    """Unit and importance of a plan on disk.

    Raises:
        DataError: its header is no JSON, or does not hold them.
    """
    try:
        config = json.loads(header.read_text(encoding="utf-8"))["config"]
        return str(config["unit"]), str(config["importance"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"cannot read the plan in {header.parent}: got {type(problem).__name__} ({problem}) for config.unit and "
            f"config.importance in {PLAN_HEADER}, expected the folder 'plan' of a mask step. Do: run that step again."
        ) from problem


def share_problems(mask: MaskConfig, shapes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Layers of which the share would freeze nothing or all, one sentence for all of them.

    Args:
        shapes: ``(o, i)`` of every layer of the basis.
    """
    sizes = {name: (i if mask.unit == "column" else o * i) for name, (o, i) in shapes.items()}
    if mask.scope == "global":
        sizes = {"all layers together": sum(sizes.values())}
    wrong = {name: n for name, n in sizes.items() if not 0 < round(mask.frozen_share * n) < n}
    for name, n in list(wrong.items())[:1]:
        others = f" (and of {len(wrong) - 1} more layers)" if len(wrong) > 1 else ""
        yield (
            f"frozen_share {mask.frozen_share} freezes {round(mask.frozen_share * n)} of {n} coordinates of {name}"
            f"{others}: expected some and not all. Do: set it between {1 / n:.2g} and {1 - 1 / n:.6g}."
        )


def _origin(recipe: Recipe, step_id: str) -> dict[str, Any]:
    """What the plan of a step's model depends on; empty where no model is named."""
    own = getattr(recipe.steps[step_id], "model", None) or recipe.model
    return {} if own is None else {key: getattr(own, key) for key in ORIGIN}
