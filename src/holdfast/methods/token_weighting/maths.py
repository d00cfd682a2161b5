r"""From scores of tokens to weights: pure functions of tensors.

The order is always: scores of learnt tokens alone, without a gradient -> raw weights, none negative -> mean 1 -> held
between two bounds -> mean 1 again, each within a *unit* of tokens (a row, a step, all rows).

Letters in names: ``n`` learnt tokens, one after the other in their order; ``u`` units; ``d`` dimensions of a hidden
state; ``v`` the vocabulary. ``unit_n`` is the number of the unit of each token, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import NumericsError

EXTREME = 5.0
"""A weight beyond this counts as extreme."""
_HALVINGS = 50
_SPREADS = 40
"""Doublings of the spread, from 1/16, that `matched_weights` tries: to the end all weight of a unit is on its highest
draw, also where the next one is within 1e-8 of it."""


def excess(model_n: Tensor, reference_n: Tensor) -> Tensor:
    """What the model has yet to learn of each token: its loss minus the reference's, **with its sign**, ``(n,)``.

    The absolute value would also choose what the model already does better than the reference.

    Reference:
        Lin et al., Rho-1, NeurIPS 2024, equation 3.
    """
    return model_n - reference_n


def contrast(degraded_n: Tensor, utility_n: Tensor) -> Tensor:
    r"""How far a token is the task's and not the harm's: :math:`CE_{degraded} - CE_{utility}`, signed, ``(n,)``.

    A token that a safety-degraded model expects and a model of the task alone does not, teaches harm: it is lowest.

    Reference:
        Li et al., TOSS, ICLR 2026 (2603.01185), which leaves out the tokens with the highest negative of this.
    """
    return degraded_n - utility_n


def own_probability(model_n: Tensor) -> Tensor:
    """The model's own probability of each token, from its loss, ``(n,)``.

    Reference:
        Wu et al., DFT, 2508.05629, equation 9.
    """
    return (-model_n).exp()


def entropy(logits_nv: Tensor) -> Tensor:
    """Of each prediction, in nats, ``(n,)``."""
    own_n: Tensor = torch.special.entr(logits_nv.softmax(-1)).sum(-1)
    return own_n


def top_share(score_n: Tensor, unit_n: Tensor, keep: float) -> Tensor:
    """1 on the share ``keep`` of each unit's tokens with the highest scores (at least one), 0 on the others, ``(n,)``.

    Among equal scores the earlier token comes first, so that the result does not depend on what else is there.
    """
    size_u = unit_n.bincount()
    kept_u = (keep * size_u.double() + 0.5).floor().clamp(min=1)
    order_n = score_n.argsort(descending=True, stable=True)
    order_n = order_n[unit_n[order_n].argsort(stable=True)]
    first_u = size_u.cumsum(0) - size_u
    rank_n = torch.empty_like(unit_n)
    rank_n[order_n] = torch.arange(len(unit_n), device=unit_n.device) - first_u[unit_n[order_n]]
    return (rank_n < kept_u[unit_n]).to(score_n.dtype)


def soft_share(score_n: Tensor, unit_n: Tensor, temperature: float) -> Tensor:
    """``exp(score / temperature)``, each unit divided by its highest, ``(n,)``."""
    return (below_highest(score_n, unit_n) / temperature).exp()


def below_highest(score_n: Tensor, unit_n: Tensor) -> Tensor:
    """Each score minus the highest of its unit, ``(n,)``."""
    units = int(unit_n.max()) + 1 if len(unit_n) else 0
    highest_u = score_n.new_full((units,), -torch.inf).scatter_reduce(0, unit_n, score_n, "amax")
    return score_n - highest_u[unit_n]


def sums(value_n: Tensor, unit_n: Tensor) -> Tensor:
    """Of each unit, in float64, ``(u,)``."""
    return unit_n.bincount(value_n.double())


def mean_one(raw_n: Tensor, unit_n: Tensor) -> Tensor:
    """Each unit divided by its mean, ``(n,)``; a unit that is 0 throughout stays so."""
    mean_u = sums(raw_n, unit_n) / unit_n.bincount()
    factor_u = torch.where(mean_u == 0, 0.0, 1 / mean_u)  # of a mean that is no number, the factor is none either
    return raw_n * factor_u.to(raw_n.dtype)[unit_n]


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of tokens and which of them met a bound."""

    weight_n: Tensor
    clipped_n: Tensor
    """True where the weight of mean 1 was outside the bounds."""


def bounded(raw_n: Tensor, unit_n: Tensor, clip: tuple[float, float]) -> Weights:
    """Mean 1, held between the two numbers of ``clip``, mean 1 again.

    The last may lead far beyond a bound: one token of 100 that weighs anything weighs 100 whatever the upper one, for
    weights have mean 1 before all else. Bounds hold back a few weights among many, not a hard share of the tokens.

    A unit that is 0 throughout stays so, whatever the lower bound.
    """
    one_n = mean_one(raw_n.detach(), unit_n)
    held_n = torch.where(sums(raw_n.detach(), unit_n)[unit_n] == 0, one_n, one_n.clamp(*clip))
    return Weights(mean_one(held_n, unit_n), held_n != one_n)


def spread(weight_n: Tensor, unit_n: Tensor) -> Tensor:
    """Standard deviation of each unit's weights as a share of their mean, ``(u,)``, float64; 0 of a unit that is 0."""
    size_u = unit_n.bincount().double()
    mean_u = sums(weight_n, unit_n) / size_u
    off_n = weight_n.double() - mean_u[unit_n]
    return torch.where(mean_u == 0, 0.0, (sums(off_n.square(), unit_n) / size_u).sqrt() / mean_u)


def matched_weights(normal_n: Tensor, unit_n: Tensor, target_u: Tensor, clip: tuple[float, float]) -> Tensor:
    r"""Random weights of mean 1 with the spread ``target_u`` in each unit **after** clipping, ``(n,)``.

    ``bounded(exp(a z))`` with the smallest ``a`` of each unit that reaches the spread, by doubling and then halving.
    Without bounds the spread goes to that of one token with all weight, which is what a share of one token has.

    Args:
        normal_n: Standard normal draws ``z``.
        target_u: Of `spread`.
    Raises:
        NumericsError: the bounds leave no room for that spread.
    """

    below_n = below_highest(normal_n.double(), unit_n)  # so that no exponential overflows

    def drawn(a_u: Tensor) -> Tensor:
        return bounded((a_u[unit_n] * below_n).exp(), unit_n, clip).weight_n

    low_u, high_u = torch.zeros_like(target_u), torch.zeros_like(target_u)
    missing_u = spread(drawn(high_u), unit_n) < target_u
    for doubling in range(_SPREADS):
        if not bool(missing_u.any()):
            break
        low_u, high_u = torch.where(missing_u, high_u, low_u), torch.where(missing_u, 2.0**doubling / 16, high_u)
        missing_u = spread(drawn(high_u), unit_n) < target_u * (1 - 1e-12)
    if bool(missing_u.any()):
        worst = int(missing_u.nonzero()[0])
        most = float(spread(drawn(high_u), unit_n)[worst])
        raise NumericsError(
            f"Random weights cannot match those of the scorer: got a spread of {most:.3g} at most, expected "
            f"{target_u[worst]:.3g} of {int(unit_n.bincount()[worst])} tokens. Do: widen clip."
        )
    for _ in range(_HALVINGS):
        middle_u = (low_u + high_u) / 2
        below_u = spread(drawn(middle_u), unit_n) < target_u
        low_u, high_u = torch.where(below_u, middle_u, low_u), torch.where(below_u, high_u, middle_u)
    return drawn(high_u).to(normal_n.dtype)


def effective_share(weight_n: Tensor) -> float:
    r"""Effective sample size as a share: :math:`(\sum w)^2 / (n \sum w^2)`, from 1 / n to 1.

    >>> effective_share(torch.tensor([2.0, 2.0, 0.0, 0.0]))
    0.5
    """
    wide_n = weight_n.double()
    return float(wide_n.sum().square() / (len(wide_n) * wide_n.square().sum()))


def summary(weight_n: Tensor, clipped_n: Tensor | None = None) -> dict[str, float]:
    """Of the weights of some tokens: mean, quantiles, effective share, shares kept (not 0) and, if known, clipped."""
    wide_n = weight_n.double()
    # torch.quantile takes no more than 16 million numbers
    p25, p75, p95 = np.quantile(wide_n.cpu().numpy(), [0.25, 0.75, 0.95]).tolist()
    clipped = {} if clipped_n is None else {"clipped": float(clipped_n.double().mean())}
    return {
        "mean": float(wide_n.mean()),
        "p25": p25,
        "p75": p75,
        "p95": p95,
        "ess": effective_share(weight_n),
        "kept_share": float((weight_n != 0).double().mean()),
        **clipped,
    }
