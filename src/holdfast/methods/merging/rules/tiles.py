"""Rows of dense deltas, some at a time: ``t`` adapters, ``n`` rows of a tile, ``o`` out, ``i`` in, ``r`` a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor

from holdfast.layers.adapters import LowRank

ENTRIES = 1 << 16
"""Entries of a tile, 256 KiB in float32: the dozen tiles that are made of one stay in a core's cache."""
_BITS = 0x7FFFFFFF
_DIGITS = 5
"""Of a norm, so that rounding of the factors does not tell equal ones apart."""


class Tiles:
    """The dense deltas of one layer in float32, computed again whenever they are read.

    Args:
        name: The layer; masks are drawn from it.
        deltas: Low-rank deltas of one shape.
        weights: One for each.
        entries: About how many entries a tile has.
    """

    def __init__(self, name: str, deltas: Sequence[LowRank], weights: Sequence[float], entries: int = ENTRIES) -> None:
        self.name = name
        self.shape = deltas[0].shape
        self.device = deltas[0].A.device
        self._deltas, self._weights = deltas, weights
        self._factors = [(delta.B.float(), delta.A.float()) for delta in deltas]
        self._height = max(1, min(self.shape[0], entries // self.shape[1]))

    def __len__(self) -> int:
        return len(self._factors)

    def spans(self) -> Iterator[slice]:
        """The rows of each tile, top to bottom."""
        for start in range(0, self.shape[0], self._height):
            yield slice(start, min(start + self._height, self.shape[0]))

    def read(self, t: int, rows: slice) -> Tensor:
        """These rows of the dense delta ``t``, ``(n, i)``, free to be written to."""
        B_or, A_ri = self._factors[t]
        return B_or[rows] @ A_ri

    def generator(self, t: int, seed: int) -> torch.Generator:
        """Random numbers for adapter ``t``, drawn on the CPU row after row: the same for any tiles, device, order of
        layers and order of adapters."""
        key = blake2b(f"{seed}/{self.name}/{self._numbers[t]}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)

    @cached_property
    def _numbers(self) -> list[int]:
        """The number of each adapter's mask: its place by norm, the largest first, those of weight 0 last.

        So a mask goes with the delta and not with its place, and an adapter of weight 0 takes none from another. Deltas
        of one norm are told apart by a random bilinear form of them; neither depends on the split into factors.
        """
        found = [_norm_and_form(delta) for delta in self._deltas]
        most = max(norm for norm, _ in found)
        keys = [
            (weight == 0, -float(f"{norm / most:.{_DIGITS}e}") if most else 0.0, form, weight)
            for (norm, form), weight in zip(found, self._weights, strict=True)
        ]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return [order.index(t) for t in range(len(keys))]

    def uniforms(self, rows: slice, generator: torch.Generator) -> Tensor:
        """The next uniform numbers in [0, 1), ``(n, i)``."""
        return torch.rand(rows.stop - rows.start, self.shape[1], generator=generator).to(self.device)


def _norm_and_form(delta: LowRank) -> tuple[float, float]:
    """``|D|_F`` and ``x^T D y`` of fixed random ``x`` and ``y``, in float64."""
    A_ri, B_or = delta.A.double(), delta.B.double()
    square = float((B_or.T @ B_or).mul_(A_ri @ A_ri.T).sum())
    draw = torch.Generator().manual_seed(0)
    x_o, y_i = (torch.randn(size, generator=draw, dtype=torch.float64).to(A_ri) for size in delta.shape)
    return max(0.0, square) ** 0.5, float((x_o @ B_or) @ (A_ri @ y_i))


def magnitudes(tiles: Tiles, t: int, places: Sequence[int]) -> list[float]:
    """The ``places``-th smallest ``|delta_t|`` (0 is the smallest), exact.

    A radix select over the bit patterns of non-negative floats, which are ordered as the numbers are: a histogram of
    the upper 16 bits, then one of the lower 16 within each bucket that was hit. Two passes, no sort, nothing kept.
    """
    upper = torch.zeros(1 << 15, dtype=torch.long, device=tiles.device)
    for rows in tiles.spans():
        upper += torch.bincount(_bits(tiles.read(t, rows)) >> 16, minlength=1 << 15)
    before = upper.cumsum(0)
    buckets = [int(torch.searchsorted(before, place, right=True)) for place in places]
    lower = {bucket: torch.zeros(1 << 16, dtype=torch.long, device=tiles.device) for bucket in buckets}
    for rows in tiles.spans():
        bits = _bits(tiles.read(t, rows))
        for bucket in lower:
            lower[bucket] += torch.bincount(bits[bits >> 16 == bucket] & 0xFFFF, minlength=1 << 16)
    found = []
    for place, bucket in zip(places, buckets, strict=True):
        left = place - int(before[bucket] - upper[bucket])
        pattern = bucket << 16 | int(torch.searchsorted(lower[bucket].cumsum(0), left, right=True))
        found.append(torch.tensor(pattern, dtype=torch.int32).view(torch.float32).item())
    return found


def _bits(tile_ni: Tensor) -> Tensor:
    return (tile_ni.view(torch.int32) & _BITS).reshape(-1)
