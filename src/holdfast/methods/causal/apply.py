"""From a plan to an `Objective`: what is loss."""

from __future__ import annotations

from typing import Literal

from holdfast.methods.base import check_origin
from holdfast.methods.causal.objective import CausalObjective
from holdfast.methods.causal.plan import CausalPlan
from holdfast.models.load import LoadedModel


def apply(loaded: LoadedModel, plan: CausalPlan, over: Literal["tokens", "rows"] = "tokens") -> CausalObjective:
    """The objective of ``plan``, for `holdfast.training.loop.train` on ``loaded`` with `plan.training_rows`.

    Args:
        over: What ``task`` and ``invariance`` are means of, as in `TrainConfig.loss_over`.
    Raises:
        ConfigError: the plan is of another model or chat template.
    """
    check_origin(plan.origin, loaded)
    return CausalObjective(plan, loaded.chat.pad_id, over)
