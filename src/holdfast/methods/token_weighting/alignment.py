"""Which token each position is to predict, for every horizon: position ``t`` predicts the token at ``t + h``.

Shapes: ``b`` lines, ``t`` tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import pad

from holdfast.core.errors import ConfigError
from holdfast.data.batches import IGNORE, Batch

if TYPE_CHECKING:
    from torch import Tensor


def targets_at(batch: Batch, horizon: int) -> tuple[Tensor, Tensor]:
    """The token that each position is to predict ``horizon`` ahead, and the row that it belongs to, ``(b, t)`` each.

    A target is -100 where the token is not learnt (prompt, padding), lies behind the end of the line, or belongs to
    another packed row. Horizon 1 is what plain fine-tuning learns (`holdfast.training.objective.targets_of`). A horizon
    longer than every row leaves no target; that is for the caller to refuse.

    Raises:
        ConfigError: ``horizon`` is less than 1.
    """
    owner_bt = _ahead(batch.owner, horizon, -1)
    return _ahead(batch.labels, horizon, IGNORE).masked_fill(owner_bt != batch.owner, IGNORE), owner_bt


def _ahead(values_bt: Tensor, horizon: int, filler: int) -> Tensor:
    if horizon < 1:
        raise ConfigError(f"Cannot align targets: got horizon {horizon}, expected at least 1. Do: raise it.")
    return pad(values_bt[:, horizon:], (0, min(horizon, values_bt.shape[1])), value=filler)
