"""Rotation (Safety-WaRP): fine-tune in the coordinates that safety does not use, and prove that the rest stayed.

The record is complete without torch; the work is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.methods.base import Method
from holdfast.methods.rotation.config import RotationConfig

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.methods.rotation.apply import RotationHold
    from holdfast.methods.rotation.plan import RotationPlan
    from holdfast.models.load import LoadedModel


def _plan(
    config: RotationConfig, loaded: LoadedModel, safety: Sequence[Example], task: Sequence[Example] = ()
) -> RotationPlan:
    """See `holdfast.methods.rotation.plan.plan`."""
    from holdfast.methods.rotation import plan

    return plan.plan(config, loaded, safety, task)


def _apply(loaded: LoadedModel, made: RotationPlan) -> RotationHold:
    """See `holdfast.methods.rotation.apply.apply`."""
    from holdfast.methods.rotation import apply

    return apply.apply(loaded, made)


ROTATION = Method(
    name="rotation",
    gives="constraint",
    config=RotationConfig,
    plan=_plan,
    apply=_apply,
    summary="Fine-tune only where the safety data is flat.",
    reference="WaRP, ICLR 2023",
)
