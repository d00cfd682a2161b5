"""Do the adapters that a step merges or repairs exist, and stand on its base? Asked before any model loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from holdfast.recipes.holds import ORIGIN
from holdfast.recipes.merge_step import MergeStep
from holdfast.recipes.repair_step import RepairStep
from holdfast.training.config import TrainConfig

if TYPE_CHECKING:
    from holdfast.recipes.schema import Recipe


def merge_problems(recipe: Recipe) -> list[str]:
    """Adapters that steps do not leave, or that stand on another model.

    References that lead nowhere are passed over: `holdfast.recipes.references` tells them.
    """
    return [problem for step_id in recipe.steps for problem in _step_problems(recipe, step_id)]


def _step_problems(recipe: Recipe, step_id: str) -> Iterator[str]:
    step: Any = recipe.steps[step_id]
    if step.do == "front":
        yield from _curve_problems(recipe, step_id, [name for ids in step.rows.values() for name in ids])
    if isinstance(step, MergeStep | RepairStep) and step.any_base and not _from_elsewhere(recipe, step):
        yield f"steps.{step_id}.any_base: has no effect: no adapter of this step is from elsewhere. Take it out"
    for where, maker_id in _made_here(recipe, step_id):
        maker: Any = recipe.steps[maker_id]
        if isinstance(maker, TrainConfig) and maker.params == "full":
            yield f"{where}: step {maker_id!r} trains all weights, expected an adapter. Set params: lora there"
            continue
        made, used = (getattr(recipe.steps[name], "model", None) or recipe.model for name in (maker_id, step_id))
        if made is None or used is None:
            continue
        other = [key for key in ORIGIN if getattr(made, key) != getattr(used, key)]
        if other:
            key = other[0]
            yield (
                f"{where}: step {maker_id!r} stands on another model: it has model.{key} {getattr(made, key)!r}, and "
                f"this step {getattr(used, key)!r}. Give both the same"
            )


def _curve_problems(recipe: Recipe, step_id: str, names: Iterable[str]) -> Iterator[str]:
    """A curve is over weights alone."""
    for name in names:
        made = recipe.steps.get(name)
        if isinstance(made, MergeStep) and made.select is not None and (other := made.select.settings()[0]):
            yield (
                f"steps.{step_id}.rows: step {name!r} also tries {' and '.join(other)}, and a curve is over weights "
                "alone. Take that out of its select, or the step out of the rows"
            )


def _made_here(recipe: Recipe, step_id: str) -> Iterator[tuple[str, str]]:
    """Every place of the step that names an adapter, and the step that makes it."""
    earlier = list(recipe.steps)[: list(recipe.steps).index(step_id)]
    yield from ((f"steps.{step_id}.{at}", name) for at, name in _named(recipe.steps[step_id]) if name in earlier)


def _from_elsewhere(recipe: Recipe, step: MergeStep | RepairStep) -> bool:
    return any(name not in recipe.steps for _, name in _named(step))


def _named(step: Any) -> list[tuple[str, str]]:
    """Every place of a step that names an adapter, and the name."""
    if isinstance(step, MergeStep):
        return [(f"adapters.{place}.adapter", item.adapter) for place, item in enumerate(step.adapters)]
    return [("adapter", step.adapter)] if isinstance(step, RepairStep) and step.adapter is not None else []
