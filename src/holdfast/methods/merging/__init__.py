"""Several adapters of one base model become one, or one is repaired.

The record is complete without torch; the work is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.methods.base import Method
from holdfast.methods.merging.config import MergingConfig

if TYPE_CHECKING:
    from holdfast.layers.adapters import Adapter
    from holdfast.methods.merging.plan import Expert, MergePlan
    from holdfast.models.load import LoadedModel


def _plan(config: MergingConfig, loaded: LoadedModel | None, experts: Sequence[Expert]) -> MergePlan:
    """See `holdfast.methods.merging.plan.plan`."""
    from holdfast.methods.merging import plan

    return plan.plan(config, loaded, experts)


def _apply(loaded: LoadedModel, made: MergePlan) -> Adapter:
    """See `holdfast.methods.merging.apply.apply`."""
    from holdfast.methods.merging import apply

    return apply.apply(loaded, made)


MERGING = Method(
    name="merging",
    gives="adapter",
    config=MergingConfig,
    plan=_plan,
    apply=_apply,
    summary="Merge adapters by what each one's own rows need.",
    reference="Fisher merging, NeurIPS 2022; MaTS, TMLR 2024",
)
