"""Gates against collapse: a contrastive term is content with one bit, so the representations are watched.

Looked at are the attacked views of the last cases: a constant has no variance, one bit has one direction; and how near
the cosines come to the floor of a contrastive term, which opposite vectors reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from holdfast.core.errors import NumericsError
from holdfast.methods.causal import maths
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.plan import Null
from holdfast.methods.causal.representations import Representation

VARIANCE = 0.01
"""Share of the undefended model's variance, by dimension, below which representations count as collapsed."""
RANK = 0.1
"""The same for the effective rank, of which one direction is always there."""
FLOOR = 0.98
"""Share of a contrastive term's floor beyond which representations count as opposite."""


@dataclass(frozen=True, slots=True)
class Health:
    """One representation over a window of cases."""

    rank: float
    """Effective rank of the attacked views."""
    variance: float
    """Median over dimensions of their variance, as a share of the undefended model's."""
    contrast: float
    """Of a contrastive term, as a share of its floor: 1 where obeyed views are opposite and benign ones the same."""


def health(benign_nd: Tensor, attacked_nd: Tensor, obeyed_nd: Tensor, null: Null, config: CausalConfig) -> Health:
    """Measure one representation."""
    positive, negative = (
        float(cosine_similarity(attacked_nd, other_nd, dim=-1).double().mean()) for other_nd in (benign_nd, obeyed_nd)
    )
    weights = config.lambda_spurious, config.lambda_spurious, config.temperature  # both cosines are of ``separation``
    return Health(
        rank=maths.effective_rank(attacked_nd, null.scale_d),
        variance=maths.variance_left(attacked_nd, null.scale_d),
        contrast=maths.contrast(positive, negative, *weights) / maths.contrast_floor(*weights),
    )


def check(name: str, found: Health, null: Null, n: int) -> None:
    """Stop a run whose representations have collapsed.

    Raises:
        NumericsError: with what was found and what the undefended model has.
    """
    least = 1 + RANK * (null.rank - 1)
    if found.variance < VARIANCE:
        what = f"a variance of {found.variance:.2g} of the undefended model's, expected at least {VARIANCE:g}"
    elif found.rank < least:
        what = f"an effective rank of {found.rank:.2f}, expected at least {least:.2f} (undefended {null.rank:.1f})"
    elif found.contrast > FLOOR:
        what = (
            f"{found.contrast:.1%} of the floor of a contrastive term, expected at most {FLOOR:.0%}: attacked and "
            "obeyed views are opposite vectors"
        )
    else:
        return
    raise NumericsError(
        f"Representations have collapsed at {name}: got {what}, over {n} cases. The weights are those before the step. "
        "Do: lower lambda_spurious, raise guard or temperature, or lower learning_rate."
    )


class Watch:
    """Keeps what a window of cases looked like, and checks each whole window; one on every process."""

    def __init__(self, nulls: Mapping[str, Null], window: int, config: CausalConfig) -> None:
        self._nulls, self._window, self._config = nulls, window, config
        self._held: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = []
        self._cases = 0
        self._told = True
        self.latest: dict[str, float] = {}
        """The last whole window, by ``<measure>/<representation>``."""

    def see(self, benign: Representation, attacked: Representation, obeyed: Representation) -> None:
        """Take in the views of some cases.

        Raises:
            NumericsError: a window is whole and a representation has collapsed in it.
        """
        views = (benign, attacked, obeyed)
        self._held.append({name: tuple(view[name].detach() for view in views) for name in attacked})  # type: ignore[misc]
        self._cases += len(next(iter(attacked.values())))
        if self._cases >= self._window:
            self._look()
            self._told = False
            self._held, self._cases = [], 0

    def news(self) -> dict[str, float]:
        """``latest`` where it was not asked for yet, else nothing."""
        told, self._told = self._told, True
        return {} if told else dict(self.latest)

    def _look(self) -> None:
        for name, null in self._nulls.items():
            benign, attacked, obeyed = (torch.cat([held[name][view] for held in self._held]).cpu() for view in range(3))
            if not all(bool(torch.isfinite(R_nd).all()) for R_nd in (benign, attacked, obeyed)):
                continue  # the loop stops at the loss of this very step, and names the rows
            found = health(benign, attacked, obeyed, null, self._config)
            for measure in ("rank", "variance", "contrast"):
                self.latest[f"{measure}/{name}"] = getattr(found, measure)
            check(name, found, null, self._cases)
