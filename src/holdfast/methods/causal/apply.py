"""From a plan to an `Objective`: what is loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from holdfast.core.errors import DataError
from holdfast.data.examples import Example
from holdfast.methods.base import check_origin
from holdfast.methods.causal.objective import CausalObjective
from holdfast.methods.causal.plan import CausalPlan
from holdfast.models.load import LoadedModel


def apply(
    loaded: LoadedModel,
    plan: CausalPlan,
    over: Literal["tokens", "rows"] = "tokens",
    plain: Sequence[Example] = (),
) -> CausalObjective:
    """The objective of ``plan``, for `holdfast.training.loop.train` on ``loaded`` with `plan.training_rows`.

    Args:
        over: What ``task`` and ``invariance`` are means of, as in `TrainConfig.loss_over`.
        plain: Rows without an attack that are trained on, or validated with, beside the cases; they have a task alone.
    Raises:
        ConfigError: the plan is of another model or chat template.
        DataError: a plain row has the id of a case.
    """
    check_origin(plan.origin, loaded)
    ids = frozenset(row.id for row in plain)
    if both := sorted(ids & plan.cases.numbers().keys()):
        raise DataError(
            f"Row {both[0]!r} is in the plain rows and a case of the plan, expected it in one of them. Do: rename it."
        )
    return CausalObjective(plan, loaded.chat.pad_id, over, ids)
