"""Rows of dense deltas, some at a time: ``t`` adapters, ``n`` rows of a tile, ``o`` out, ``i`` in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from holdfast.layers.adapters import LowRank

ENTRIES = 1 << 16
"""Entries of a tile, 256 KiB in float32: the dozen tiles that are made of one stay in a core's cache."""
_BITS = 0x7FFFFFFF


class Tiles:
    """The dense deltas of one layer in float32, computed again whenever they are read.

    Args:
        name: The layer; masks are drawn from it.
        deltas: Low-rank deltas of one shape.
        entries: About how many entries a tile has.
    """

    def __init__(self, name: str, deltas: Sequence[LowRank], entries: int = ENTRIES) -> None:
        self.name = name
        self.shape = deltas[0].shape
        self.device = deltas[0].A.device
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
        """Random numbers for adapter ``t``, drawn on the CPU row after row: the same for any tiles, device and order
        of layers."""
        key = blake2b(f"{seed}/{self.name}/{t}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)

    def uniforms(self, rows: slice, generator: torch.Generator) -> Tensor:
        """The next uniform numbers in [0, 1), ``(n, i)``."""
        return torch.rand(rows.stop - rows.start, self.shape[1], generator=generator).to(self.device)


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
