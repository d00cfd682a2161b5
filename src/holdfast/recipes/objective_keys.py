"""What a train step may name as its ``objective``, and whether it fits; asked before any model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from holdfast.recipes.causal_step import CausalStep
from holdfast.recipes.holds import other_model
from holdfast.recipes.token_weighting_step import TokenWeightingStep
from holdfast.training.config import TrainConfig

if TYPE_CHECKING:
    from holdfast.recipes.schema import Recipe

PLANS_OF_LOSS = ("causal", "token_weighting")
"""Kinds of step that plan an objective."""
Factor = Annotated[float, Field(gt=0)]


def as_factors(value: Any) -> Any:
    """One id alone has the factor 1."""
    return {value: 1.0} if isinstance(value, str) else value


def objective_problems(recipe: Recipe) -> list[str]:
    """Objectives that were planned for another model, that cannot be added, or that leave nothing to train on.

    References that lead nowhere are passed over: `holdfast.recipes.references` tells them.
    """
    problems = []
    for step_id, step in recipe.steps.items():
        if isinstance(step, TrainConfig):
            problems += [f"steps.{step_id}.{problem}" for problem in _problems(recipe, step_id, step)]
    return problems


def _problems(recipe: Recipe, step_id: str, training: Any) -> list[str]:
    known: dict[str, Any] = {name: recipe.steps.get(name) for name in training.objective}
    if not known or any(getattr(step, "do", None) not in PLANS_OF_LOSS for step in known.values()):
        return []
    problems = []
    for name in known:
        if other := other_model(recipe, name, step_id):
            problems.append(f"objective: step {name!r} plans for another model: it has {other}. Give both the same")
    causal = [name for name, step in known.items() if isinstance(step, CausalStep)]
    if len(causal) > 1:
        problems.append(
            f"objective: {causal[0]!r} and {causal[1]!r} have the same terms. Give one step both their cases"
        )
    weighted = [name for name, step in known.items() if isinstance(step, TokenWeightingStep)]
    if weighted:
        return problems + _weighted_problems(weighted[0], known, training)
    if not (training.data or causal):
        problems.append("data: missing, and no causal step of 'objective' brings rows")
    validated = training.validation or training.best_by or any(known[name].validation for name in causal)
    if training.evaluate_every and not validated:
        problems.append("evaluate_every: there are no validation rows: give 'validation' here, or to the causal step")
    return problems


def _weighted_problems(name: str, named: dict[str, Any], training: Any) -> list[str]:
    """A plan of token weights brings all rows of its training, and knows no others."""
    problems = []
    if len(named) > 1:
        other = next(each for each in named if each != name)
        problems.append(
            f"objective: {name!r} weighs the tokens of its own rows and cannot be added to {other!r}. Name one of them"
        )
    if named[name].follows and named[name].unit == "batch" and training.accumulate > 1:
        problems.append(
            f"accumulate: step {name!r} takes shares over an optimizer step (scope: batch), which must be one forward "
            f"pass: got {training.accumulate}. Set accumulate: 1, or scope: sequence or dataset there"
        )
    if training.data:
        problems.append(f"data: step {name!r} brings the rows that it has planned. Take data out")
    if training.evaluate_every and not (training.validation or training.best_by):
        problems.append("evaluate_every: there are no validation rows: give 'validation'")
    return problems
