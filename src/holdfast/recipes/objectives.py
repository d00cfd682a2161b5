"""What is loss in a train step: the objectives of the plan steps that it names, added up, and the rows they bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from holdfast.recipes import causal, token_weighting
from holdfast.recipes.context import Context
from holdfast.recipes.rows import Rows
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.models.load import LoadedModel
    from holdfast.training.objective import Objective

Maker = Callable[[Context, str, "LoadedModel", Rows], "tuple[Objective, Rows]"]
"""From the id of a plan step, the model and the train step's own rows to an objective and the rows that it brings."""
MAKERS: Mapping[str, Maker] = {"causal": causal.objective, "token_weighting": token_weighting.objective}
"""By the kind of the plan step."""


def goal(context: Context, step: TrainStep, loaded: LoadedModel, own: Rows) -> tuple[Objective | None, Rows]:
    """The sum of the objectives that ``step`` names (``None``: the loop's own), and all rows: theirs, then ``own``.

    Raises:
        ConfigError: an objective was planned for another model or chat template.
        DataError: its rows do not go together with the step's; see `causal.objective`.
    """
    from holdfast.training.objective import Scaled, Sum

    whole: Objective | None = None
    rows = Rows()
    for name, factor in step.objective.items():
        made, brought = MAKERS[context.recipe.steps[name].do](context, name, loaded, own)
        part = made if factor == 1 else Scaled(factor, made)
        whole = part if whole is None else Sum(whole, part)
        rows += brought
    return whole, rows + own
