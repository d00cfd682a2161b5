"""Memory and disk of counterfactual training, from shapes and from the cases at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.core.errors import DataError
from holdfast.core.sizes import PLANNING_ROWS, ROW_TOKENS
from holdfast.recipes.causal_step import CausalStep
from holdfast.recipes.checks import PROBED, Checks
from holdfast.recipes.plan_needs import PlanNeeds
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.data.counterfactual import Counterfactual
    from holdfast.models.chat import ChatFormat
    from holdfast.models.describe import Description

BLOCK_BYTES = 34 * 2
"""What one block holds of a forward, a token and hidden unit, in 32 bits."""
TOKEN_BYTES = 5
"""One token of a stored plan: itself, and whether it is learnt."""


def plan_needs(checks: Checks, step_id: str, step: CausalStep) -> PlanNeeds | None:
    """What a plan takes; ``None`` where its model cannot be had, and ``checks`` has the problem."""
    from holdfast.layers.address import LayerMap
    from holdfast.methods.causal.cases import check_learnable
    from holdfast.methods.causal.representations import choose_layers

    model, chat = checks.model(step_id)
    rows, cases = checks.cases(step_id, (*step.cases, *step.validation))
    used = [case for case in cases or () if not step.families or case.attack in step.families]
    checks.tried(step_id, lambda: check_learnable(step.planning(), used))
    if model is None:
        return None
    checks.tried(step_id, lambda: choose_layers(LayerMap.of(model.skeleton), step.layers))
    longest, _ = _lengths(chat, cases) or (ROW_TOKENS, ROW_TOKENS)
    tokens = PLANNING_ROWS * longest
    logits = 2 * 4 * tokens * model.vocabulary if step.lambda_preference else 0
    memory = model.weight_bytes + tokens * model.hidden * BLOCK_BYTES + logits
    views = 3 + step.twin + bool(step.lambda_preference)
    return PlanNeeds(model, rows, memory, TOKEN_BYTES * views * longest * sum(n or 0 for n in rows.values()))


def training_needs(
    checks: Checks, step_id: str, step: TrainStep, model: Description
) -> tuple[int, dict[str, int | None]]:
    """Memory of a training with a causal objective, without the runtime, and the cases that it brings as rows."""
    from holdfast.methods.causal.capacity import memory_bytes

    memory, rows = 0, dict[str, int | None]()
    for plan_id in step.objective:
        plan = checks.recipe.steps[plan_id]
        if not isinstance(plan, CausalStep):
            continue
        _, chat = checks.model(plan_id)
        found, cases = checks.cases(plan_id, (*plan.cases, *plan.validation))
        rows |= found
        longest, learnt = _lengths(chat, cases) or (step.max_length, min(step.max_length, ROW_TOKENS))
        checks.tried(step_id, lambda longest=longest, name=plan_id: _check_fits(longest, step.max_length, name))  # type: ignore[misc]
        views = 2 + bool(plan.lambda_preference)
        memory = max(memory, memory_bytes(model, step.training(), views, longest, learnt))
    return memory, rows


def _lengths(chat: ChatFormat | None, cases: Sequence[Counterfactual] | None) -> tuple[int, int] | None:
    """Tokens of the longest attacked view and of the longest answer, of the cases with the most text."""
    if chat is None or not cases:
        return None
    longest = sorted(cases, key=lambda case: -len(case.attacked_text()) - len(case.answer))[:PROBED]
    rows = [chat.training(case.attacked()) for case in longest]
    return max(map(len, rows)), max(sum(row.response) for row in rows)


def _check_fits(longest: int, most: int, plan_id: str) -> None:
    if longest > most:
        raise DataError(
            f"cases of {plan_id} are too long: an attacked view has {longest} tokens, expected at most {most}. Do: "
            "raise max_length, or leave such cases out."
        )
