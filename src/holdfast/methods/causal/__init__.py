"""Causal: counterfactual training, so that an instruction inside data changes nothing; and its measures.

The record is complete without torch; the work is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from holdfast.methods.base import Method
from holdfast.methods.causal.config import CausalConfig

if TYPE_CHECKING:
    from holdfast.data.counterfactual import Counterfactual
    from holdfast.data.examples import Example
    from holdfast.methods.causal.objective import CausalObjective
    from holdfast.methods.causal.plan import CausalPlan
    from holdfast.models.load import LoadedModel


def _plan(
    config: CausalConfig,
    loaded: LoadedModel,
    cases: Sequence[Counterfactual],
    validation: Sequence[Counterfactual] = (),
) -> CausalPlan:
    """See `holdfast.methods.causal.plan.plan`."""
    from holdfast.methods.causal import plan

    return plan.plan(config, loaded, cases, validation)


def _apply(
    loaded: LoadedModel,
    made: CausalPlan,
    over: Literal["tokens", "rows"] = "tokens",
    plain: Sequence[Example] = (),
) -> CausalObjective:
    """See `holdfast.methods.causal.apply.apply`."""
    from holdfast.methods.causal import apply

    return apply.apply(loaded, made, over, plain)


CAUSAL = Method(
    name="causal",
    gives="objective",
    config=CausalConfig,
    plan=_plan,
    apply=_apply,
    summary="Train so that an instruction inside the data changes nothing.",
    reference="Invariance and InfoNCE on counterfactual pairs; SecAlign, CCS 2025",
)
