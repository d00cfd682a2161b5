"""Which entries of a delta are kept. A `Thinner` looks at a whole delta once and gives a function that thins its tiles.

Entries exactly as large as a threshold are all kept, as the code of the TIES paper does; PEFT and mergekit keep as many
of them as fit the density, in no declared order. In float32 deltas of trained adapters that is a handful of entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.methods.merging.rules.base import RuleSettings
from holdfast.methods.merging.rules.tiles import Tiles, magnitudes

Thin = Callable[[Tensor, slice], Tensor]
"""From a tile ``(n, i)`` and its rows to the tile with entries dropped. Called once for each tile, top to bottom."""
Thinner = Callable[[Tiles, int, RuleSettings], Thin]


def _keep_all(tile_ni: Tensor, rows: slice) -> Tensor:
    return tile_ni


def keep_largest(tiles: Tiles, t: int, settings: RuleSettings) -> Thin:
    """The ``int(density n)`` largest of the ``n`` entries (TIES); in mergekit at least one."""
    entries, kept = math.prod(tiles.shape), _kept(tiles, settings)
    if settings.semantics == "mergekit":
        kept = max(1, kept)
    return _band(tiles, t, entries - kept, entries - 1)


def keep_middle(tiles: Tiles, t: int, settings: RuleSettings) -> Thin:
    """``int(density n)`` entries below the ``int(gamma n)`` largest ones (breadcrumbs); in mergekit ``gamma`` gives way
    to ``density`` where they do not fit together, which `resolve` refuses in the paper's."""
    entries, kept = math.prod(tiles.shape), _kept(tiles, settings)
    low = max(0, entries - kept - int(settings.gamma * entries))
    return _band(tiles, t, low, low + kept - 1)


def _kept(tiles: Tiles, settings: RuleSettings) -> int:
    assert settings.density is not None
    return int(settings.density * math.prod(tiles.shape))


def _band(tiles: Tiles, t: int, first: int, last: int) -> Thin:
    """Keep the entries from the ``first`` to the ``last`` smallest; none if ``last`` comes before ``first``."""
    top = math.prod(tiles.shape) - 1
    if last < first:
        return lambda tile_ni, rows: tile_ni.zero_()
    if first == 0 and last == top:
        return _keep_all
    low, *high = magnitudes(tiles, t, [first] if last == top else [first, last])

    def thin(tile_ni: Tensor, rows: slice) -> Tensor:
        size_ni = tile_ni.abs()
        keep_ni = size_ni >= low
        return tile_ni.mul_(keep_ni if not high else keep_ni & (size_ni <= high[0]))

    return thin


def keep_random(tiles: Tiles, t: int, settings: RuleSettings) -> Thin:
    """Each entry with probability ``density`` (DARE)."""
    assert settings.density is not None
    share = settings.density
    return _drawn(tiles, t, settings, lambda tile_ni: share)


def keep_random_by_rank(tiles: Tiles, t: int, settings: RuleSettings) -> Thin:
    """Each entry with a probability that grows with its rank by magnitude in its row (DELLA's MAGPRUNE).

    Over a row of ``i`` entries, the largest of rank 1, the keep probability is
    ``density + epsilon / 2 - epsilon rank / i`` (paper), or falls evenly from ``density + epsilon`` to
    ``density - epsilon`` (mergekit).
    """
    assert settings.density is not None
    width, share, spread = tiles.shape[1], settings.density, settings.epsilon
    if settings.semantics == "paper":
        steps_i = share + spread / 2 - spread * (torch.arange(width, 0, -1.0) / width)
    else:
        steps_i = share - spread + 2 * spread * (torch.arange(0.0, width) / max(1, width - 1))

    def shares(tile_ni: Tensor) -> Tensor:
        order_ni = tile_ni.abs().view(torch.int32).argsort(dim=1, stable=True)  # faster than of floats, same order
        return torch.empty_like(tile_ni).scatter_(1, order_ni, steps_i.to(tile_ni).expand_as(tile_ni))

    return _drawn(tiles, t, settings, shares)


def _drawn(tiles: Tiles, t: int, settings: RuleSettings, shares: Callable[[Tensor], Tensor | float]) -> Thin:
    """Keep entries with these probabilities, and make up for the others as ``semantics`` has it."""
    if settings.density == 1:
        return _keep_all
    by_norm = settings.rescale and settings.semantics == "mergekit"
    scale = _norm_kept(tiles, t, settings, shares) if by_norm else 1.0
    generator = tiles.generator(t, settings.seed)

    def thin(tile_ni: Tensor, rows: slice) -> Tensor:
        share = shares(tile_ni)
        tile_ni.mul_(tiles.uniforms(rows, generator) < share)
        if by_norm:
            return tile_ni.mul_(scale)
        return tile_ni.div_(share) if settings.rescale else tile_ni

    return thin


def _norm_kept(tiles: Tiles, t: int, settings: RuleSettings, shares: Callable[[Tensor], Tensor | float]) -> float:
    """What the kept entries are multiplied with to have the L1 norm of all; 1 where either is nothing."""
    generator = tiles.generator(t, settings.seed)
    whole = kept = 0.0
    for rows in tiles.spans():
        tile_ni = tiles.read(t, rows)
        keep_ni = tiles.uniforms(rows, generator) < shares(tile_ni)
        size_ni = tile_ni.abs_()
        whole += float(size_ni.sum(dtype=torch.float64))
        kept += float(size_ni.mul_(keep_ni).sum(dtype=torch.float64))
    return whole / kept if min(whole, kept) >= 1e-7 else 1.0
