"""Token weighting: teach with the tokens that matter, several of them ahead.

The record is complete without torch; the work is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from holdfast.methods.base import Method
from holdfast.methods.token_weighting.config import TokenWeightingConfig

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.methods.token_weighting.objective import WeightedObjective
    from holdfast.methods.token_weighting.plan import TokenWeightingPlan
    from holdfast.models.load import LoadedModel


def _plan(
    config: TokenWeightingConfig,
    loaded: LoadedModel,
    rows: Sequence[Example],
    references: Mapping[str, LoadedModel] | None = None,
    **sources: Any,
) -> TokenWeightingPlan:
    """See `holdfast.methods.token_weighting.plan.plan`."""
    from holdfast.methods.token_weighting import plan

    return plan.plan(config, loaded, rows, references, **sources)


def _apply(
    loaded: LoadedModel, made: TokenWeightingPlan, over: Literal["tokens", "rows"] = "tokens"
) -> WeightedObjective:
    """See `holdfast.methods.token_weighting.apply.apply`."""
    from holdfast.methods.token_weighting import apply

    return apply.apply(loaded, made, over)


TOKEN_WEIGHTING = Method(
    name="token_weighting",
    gives="objective",
    config=TokenWeightingConfig,
    plan=_plan,
    apply=_apply,
    summary="Teach with the tokens that matter, several of them ahead.",
    reference="Rho-1, NeurIPS 2024; TOSS, ICLR 2026; multi-token prediction, ICML 2024",
)
