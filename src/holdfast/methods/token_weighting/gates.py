"""Gates before the weights of the model change, and the figures of a step: over all its tokens, on all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.methods.token_weighting import maths

LEAST_SHARE = 0.05
"""Effective sample size, as a share of the learnt tokens, below which a few of them are the whole step."""

_UNCHANGED = "The model's weights are those before the step."


def check_numbers(what: str, value_n: Tensor, row_n: Tensor, rows: Sequence[str], loss_n: Tensor | None) -> None:
    """Scores or weights are numbers; where the model's own loss is none, the loop says so and names the rows.

    Scores go first: a mean spreads one that is no number over the weights of all rows that share it.

    Args:
        what: For people.
    Raises:
        NumericsError: names the first row with a value that is none.
    """
    bad_n = ~value_n.isfinite()
    if loss_n is not None and not bool(loss_n.isfinite().all()):
        return
    if bool(bad_n.any()):
        row = rows[int(row_n[bad_n][0])]
        raise NumericsError(
            f"{int(bad_n.sum())} of {len(value_n)} token {what} are not numbers: got {float(value_n[bad_n][0])}, "
            f"first in row {row!r}. {_UNCHANGED} Do: plan again, and look at this row."
        )


class Watch:
    """Collects what the forwards of a step weighed; one on every process."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._clipped: list[Tensor] = []
        self._losses: dict[str, list[tuple[float, float]]] = {}

    def clear(self) -> None:
        """A step begins."""
        self._weights, self._clipped, self._losses = [], [], {}

    def see(self, weight_n: Tensor, clipped_n: Tensor | None) -> None:
        """Take in the weights of the learnt tokens of a batch, and which met a bound where these are made in a step."""
        self._weights.append(weight_n.detach().cpu())
        if clipped_n is not None:
            self._clipped.append(clipped_n.cpu())

    def see_loss(self, head: str, total: Tensor, weight: float) -> None:
        """Take in the weighted loss of a head on a batch, and what it is to be divided by."""
        self._losses.setdefault(head, []).append((float(total.detach()), weight))

    def figures(self, kept_share: str | None) -> dict[str, float]:
        """Of the step, over all processes: every one of them must call this.

        Args:
            kept_share: The name of the share of tokens with any weight, where it is logged.
        Raises:
            NumericsError: so few tokens have weight that they are the whole step.
        """
        clipped = torch.cat(self._clipped).tolist() if self._clipped else []
        mine = (torch.cat(self._weights).tolist(), clipped, self._losses)
        everyone = gather_object([mine])
        weight_n = torch.tensor([weight for weights, _, _ in everyone for weight in weights], dtype=torch.float64)
        clipped_n = torch.tensor([met for _, each, _ in everyone for met in each], dtype=torch.bool)
        found = maths.summary(weight_n, clipped_n if len(clipped_n) else None)
        check_share(found["ess"], len(weight_n))
        if kept_share is not None:
            found[kept_share] = found["kept_share"]
        del found["kept_share"]
        made = {name if "/" in name else f"weight/{name}": value for name, value in found.items()}
        made["nan_weights"] = float((~weight_n.isfinite()).sum())
        made["extreme_weights"] = float((weight_n > maths.EXTREME).sum())
        for head in mine[2]:
            parts = [part for _, _, losses in everyone for part in losses.get(head, [])]
            total, weight = (sum(column) for column in zip(*parts, strict=True))
            made[f"{head}/loss"] = total / weight
        return made


def check_share(share: float, n: int) -> None:
    """Enough tokens have weight.

    Raises:
        NumericsError: with the share and the least one.
    """
    if not share >= LEAST_SHARE:  # a share that is no number is not enough either
        raise NumericsError(
            f"Token weights have collapsed: got an effective sample size of {share:.1%} of {n} learnt tokens, expected "
            f"at least {LEAST_SHARE:.0%}. {_UNCHANGED} Do: raise keep or soft (with a scorer that reads neither, "
            "lower the upper bound of clip), or give a step more rows."
        )
