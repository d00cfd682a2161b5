"""Weighted sums in core space: exact, and without a matrix of the layer's size. ``t`` adapters, ``p q`` core."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.methods.merging.rules.base import RuleSettings


def weighted_sum(M_tpq: Tensor, weights_t: Tensor, settings: RuleSettings) -> Tensor:
    """``sum_t w_t M_t``, ``(p, q)``."""
    return torch.einsum("t,tpq->pq", weights_t, M_tpq)


def average(M_tpq: Tensor, weights_t: Tensor, settings: RuleSettings) -> Tensor:
    """``sum_t w_t M_t / sum_t w_t``, ``(p, q)``.

    Raises:
        ConfigError: the weights sum to 0.
    """
    whole = weights_t.sum()
    if whole == 0:
        raise ConfigError("rule average divides by the sum of the weights: got 0. Do: use task_arithmetic.")
    return weighted_sum(M_tpq, weights_t, settings) / whole
