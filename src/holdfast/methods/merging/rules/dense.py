"""Rules on entries of dense deltas: each is thinned, then a weighted sum or an elected sign makes one of them.

Letters in names: ``t`` adapters, ``n`` rows of a tile, ``o`` out, ``i`` in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules.base import RuleSettings
from holdfast.methods.merging.rules.sparse import Thinner
from holdfast.methods.merging.rules.tiles import ENTRIES, Tiles

Mix = Callable[[Iterable[Tensor], Sequence[float], RuleSettings], Tensor]
"""From a thinned tile of each adapter, one at a time and free to be written to, and the weights to the merged tile."""


def dense_rule(thinner: Thinner, mix: Mix) -> Callable[..., Tensor]:
    """A dense rule from how a delta is thinned and how thinned deltas are mixed."""

    def merge(
        name: str, deltas: Sequence[LowRank], weights: Sequence[float], settings: RuleSettings, entries: int = ENTRIES
    ) -> Tensor:
        tiles = Tiles(name, deltas, weights, entries)
        thins = [thinner(tiles, t, settings) for t in range(len(tiles))]
        M_oi = torch.empty(tiles.shape, device=tiles.device)
        for rows in tiles.spans():
            thinned = (thin(tiles.read(t, rows), rows) for t, thin in enumerate(thins))
            M_oi[rows] = mix(thinned, weights, settings)
        return M_oi

    return merge


def weighted_sum(thinned: Iterable[Tensor], weights: Sequence[float], settings: RuleSettings) -> Tensor:
    """``sum_t w_t D_t``, ``(n, i)``."""
    sum_ni = torch.zeros(())
    for tile_ni, weight in zip(thinned, weights, strict=True):
        sum_ni = tile_ni.mul_(weight).add_(sum_ni.to(tile_ni.device))
    return sum_ni


def elected(divide: Sequence[str]) -> Mix:
    """Entries that have the sign elected for their place are merged, the others are left out (TIES).

    =========  ==============================  ============================================================
    semantics  who votes                       what comes out
    =========  ==============================  ============================================================
    paper      the weighted entries            their sum over the number of them; nothing where the vote is 0
    peft       the entries without weights     the weighted sum over the number of them; a vote of 0 is plus
    mergekit   the weighted entries            their sum, over the sum of their weights if the rule normalises;
                                               a vote of 0 is plus
    =========  ==============================  ============================================================

    Args:
        divide: The semantics in which the sum is divided at all.
    """

    def mix(thinned: Iterable[Tensor], weights: Sequence[float], settings: RuleSettings) -> Tensor:
        ballots = _count(thinned, weights, settings)
        plus_ni = ballots.vote > 0 if settings.semantics == "paper" else ballots.vote >= 0
        sum_ni = torch.where(plus_ni, ballots.plus, ballots.minus)
        if settings.semantics in divide:
            over_ni = torch.where(plus_ni, ballots.plus_n, ballots.minus_n)
            counts = settings.semantics != "mergekit"
            sum_ni /= over_ni.clamp_(min=1) if counts else over_ni.masked_fill_(over_ni == 0, 1)
        return sum_ni.masked_fill_(ballots.vote == 0, 0) if settings.semantics == "paper" else sum_ni

    return mix


@dataclass(frozen=True, eq=False, slots=True)
class _Ballots:
    """For every entry ``(n, i)``: the vote, and the weighted sum and the number (or weight) of those of either sign."""

    vote: Tensor
    plus: Tensor
    minus: Tensor
    plus_n: Tensor
    minus_n: Tensor


def _count(thinned: Iterable[Tensor], weights: Sequence[float], settings: RuleSettings) -> _Ballots:
    weighted_vote = settings.semantics != "peft"
    by_weight = settings.semantics == "mergekit"
    sums: list[Tensor] = []
    for tile_ni, weight in zip(thinned, weights, strict=True):
        voter_ni = tile_ni.mul_(weight) if weighted_vote else tile_ni
        if not sums:
            sums = [torch.zeros_like(voter_ni) for _ in range(5)]
        vote_ni, plus_ni, minus_ni, plus_n_ni, minus_n_ni = sums
        after = 1.0 if weighted_vote else weight
        plus_ni.add_(voter_ni.clamp(min=0), alpha=after)
        minus_ni.add_(voter_ni.clamp(max=0), alpha=after)
        sign_ni = voter_ni.sign()
        vote_ni.add_(voter_ni if settings.election == "mass" else sign_ni)
        each = weight if by_weight else 1.0
        plus_n_ni.add_(sign_ni.clamp(min=0), alpha=each)
        minus_n_ni.sub_(sign_ni.clamp_(max=0), alpha=each)
    return _Ballots(*sums)
