"""From a plan to an `Objective`: what is loss."""

from __future__ import annotations

from typing import Literal

from holdfast.methods.base import check_origin
from holdfast.methods.token_weighting.objective import WeightedObjective
from holdfast.methods.token_weighting.plan import TokenWeightingPlan
from holdfast.methods.token_weighting.reference import vocabulary
from holdfast.models.heads import Heads
from holdfast.models.load import LoadedModel


def apply(
    loaded: LoadedModel, plan: TokenWeightingPlan, over: Literal["tokens", "rows"] = "tokens"
) -> WeightedObjective:
    """The objective of ``plan``, for `holdfast.training.loop.train` on ``loaded`` with the rows of the plan.

    Args:
        over: What each head's loss is the mean of, as in `TrainConfig.loss_over`.
    Raises:
        ConfigError: the plan is of another model, chat template or tokenizer.
        LayerError: no heads of this kind can be built on the model.
    """
    check_origin(plan.origin, loaded, ("tokenizer", plan.origin.tokenizer, vocabulary(loaded.tokenizer)))
    keys = plan.config
    heads = Heads(loaded.model, keys.heads, keys.horizon, seed=keys.seed) if keys.n_heads else None
    return WeightedObjective(plan, heads, over)
