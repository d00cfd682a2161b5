"""One layer, one rule: deltas and weights in, one low-rank delta and what was cut off out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from holdfast.core.errors import ConfigError
from holdfast.layers.adapters import LowRank
from holdfast.layers.core_space import CoreSpace, truncation_error
from holdfast.methods.merging.rules.base import Rule, RuleSettings, check_inputs, finite, missing, resolve
from holdfast.methods.merging.rules.spectral import isotropic
from holdfast.methods.merging.rules.sums import beside, is_single, leading
from holdfast.methods.merging.rules.table import RULES
from holdfast.methods.merging.rules.truncate import truncated


def merge_layer(
    name: str,
    deltas: Sequence[LowRank],
    weights: Sequence[float],
    rule: str,
    settings: RuleSettings,
    rank: int | None = None,
) -> tuple[LowRank, float]:
    """Merge the deltas of one layer.

    Core rules never make a matrix of the layer's size. Dense rules make one, in float32, and cut it back to ``rank``.
    Linear core rules put the deltas' factors side by side where ``rank`` and the layer's size allow the sum of their
    ranks: exact and as fast as copying, but not the least rank where deltas share directions. A smaller ``rank`` gives
    the best approximation of that rank.

    Args:
        name: The layer; random masks are drawn from it, ``settings.seed`` and the place of a delta by its norm, so
            neither the order of layers or adapters nor the size of tiles has a say.
        deltas: One for each adapter; `missing` for an adapter that does not touch the layer.
        weights: One for each adapter; negative ones subtract.
        rule: A name in `RULES`.
        settings: What the rule reads; other fields have no effect.
        rank: At most this rank. ``None``: all of it for rules that are exact, for ``svd`` the largest rank of the
            deltas, for dense rules the sum of their ranks; deltas that are 0 or have weight 0 do not count.
    Returns:
        The merged delta, and the relative Frobenius norm of what truncation cut off.
    Raises:
        ConfigError: an unknown rule, settings that it cannot work with, or a rank below 1.
        AdapterError: deltas or weights that do not belong together.
        NumericsError: something is not finite.
    """
    row = RULES[rule]
    check_inputs(name, deltas, weights)
    settings = resolve(row, settings, len(deltas))
    if rank is not None and rank < 1:
        raise ConfigError(f"cannot merge {name} to rank {rank}: expected at least 1.")
    heard = _heard(row, deltas, weights)
    if rank is None and not row.exact:
        rank = _usual_rank(row, heard[0])
    if row.space == "core" or row.turned:
        deltas, weights = heard
    if row.space == "core":
        summed = _summed(row, deltas, weights, settings, rank) if row.linear else None
        return summed or _in_core_space(row, name, deltas, weights, settings, rank)
    assert rank is not None
    if row.turned:
        return _turned(row, name, deltas, weights, settings, rank)
    return _dense(row, name, deltas, weights, settings, rank)


def _heard(row: Rule, deltas: Sequence[LowRank], weights: Sequence[float]) -> tuple[Sequence[LowRank], Sequence[float]]:
    """An adapter of weight 0 is left out, so that it cannot turn the axes of the space of the others."""
    if row.pair:
        return deltas, weights
    heard = [(delta, weight) for delta, weight in zip(deltas, weights, strict=True) if weight != 0]
    if not heard:
        return [missing(deltas[0].shape, deltas[0])], [1.0]
    return [delta for delta, _ in heard], [weight for _, weight in heard]


def _usual_rank(row: Rule, deltas: Sequence[LowRank]) -> int:
    """What a rule that is not exact is cut back to where no rank was asked for."""
    ranks = [delta.rank for delta in deltas if bool(delta.B.any())] or [1]
    return min(*deltas[0].shape, max(ranks) if row.space == "core" else sum(ranks))


def _summed(
    row: Rule, deltas: Sequence[LowRank], weights: Sequence[float], settings: RuleSettings, rank: int | None
) -> tuple[LowRank, float] | None:
    """A linear rule from the factors alone; ``None`` where that may overflow or would round more than core space."""
    units_t1t = torch.eye(len(deltas), dtype=torch.float64)[:, None]
    coefficients = row.merge(units_t1t, torch.tensor(weights, dtype=torch.float64), settings)[0].tolist()
    whole = beside(deltas, coefficients)
    most = min(*deltas[0].shape, *([] if rank is None else [rank]))
    if whole is None or whole.rank <= most:
        return None if whole is None else (whole, 0.0)
    return leading(whole, most) if is_single(whole) else None


def _in_core_space(
    row: Rule, name: str, deltas: Sequence[LowRank], weights: Sequence[float], settings: RuleSettings, rank: int | None
) -> tuple[LowRank, float]:
    space = CoreSpace.of(deltas)
    M_tpq = space.cores(deltas).double()
    weights_t = torch.tensor(weights, dtype=M_tpq.dtype, device=M_tpq.device)
    M_pq = finite(row.merge(M_tpq, weights_t, settings), name, row.name)
    lost = 0.0
    if row.isotropic:
        M_pq, lost = isotropic(M_pq, rank)
    elif rank is not None:
        lost = truncation_error(M_pq, rank)
    return space.lift(finite(M_pq.to(space.left_op.dtype), name, row.name), rank), lost


def _dense(
    row: Rule, name: str, deltas: Sequence[LowRank], weights: Sequence[float], settings: RuleSettings, rank: int
) -> tuple[LowRank, float]:
    M_oi = finite(row.merge(name, deltas, weights, settings), name, row.name)
    near = [delta.A for delta, weight in zip(deltas, weights, strict=True) if weight != 0]
    return truncated(M_oi, rank, near, settings.seed)


def _turned(
    row: Rule, name: str, deltas: Sequence[LowRank], weights: Sequence[float], settings: RuleSettings, rank: int
) -> tuple[LowRank, float]:
    """A dense rule on the few rows of ``U^T D_t``, with ``U`` the left singular vectors of all ``D_t`` side by side."""
    space = CoreSpace.of(deltas)
    beside_pk = torch.cat(list(space.cores(deltas).double()), dim=1)
    U_ok = space.left_op @ torch.linalg.svd(beside_pk, full_matrices=False).U.to(space.left_op.dtype)
    few = [replace(delta, B=U_ok.T @ delta.B.to(U_ok.dtype)) for delta in deltas]
    small, lost = _dense(row, name, few, weights, settings, rank)
    return LowRank(small.A, U_ok.to(small.B.dtype) @ small.B), lost
