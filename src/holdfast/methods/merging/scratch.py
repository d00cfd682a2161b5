"""Matrices that memory may not hold: rows are written to a temporary file, and mapped from it when they are read."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import DataError

Key = tuple[str, int]
"""A layer and the number of an adapter."""


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    shape: tuple[int, int]
    type: np.dtype


class Scratch:
    """A file without a name where the system allows that: it is gone with this object, however the process ends.

    It lies where `tempfile` puts things: ``TMPDIR`` says where.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="holdfast-")  # noqa: SIM115 - open as long as this object
        self._places: dict[Key, _Place] = {}
        self._end = 0

    def write(self, key: Key, count: int, numbers: Sequence[int], G_bd: Tensor) -> None:
        """Put rows ``G_bd`` at their ``numbers`` in the matrix of ``count`` rows that is ``key``'s.

        Raises:
            DataError: the disk is full, or cannot be written.
        """
        rows = np.ascontiguousarray(G_bd.detach().cpu().numpy())
        if key not in self._places:
            self._places[key] = _Place(self._end, (count, rows.shape[1]), rows.dtype)
            self._end += count * rows[0].nbytes
        place = self._places[key]
        try:
            for number, row in zip(numbers, rows, strict=True):
                self._file.seek(place.offset + number * row.nbytes)
                self._file.write(row.data)
            self._file.flush()
        except OSError as problem:
            raise DataError(
                f"Cannot keep gradients in {tempfile.gettempdir()}: {problem.strerror}, at {self._end / 1e9:.1f} GB. "
                "Do: let TMPDIR name a disk with more room, or lower samples."
            ) from problem

    def read(self, key: Key) -> Tensor:
        """The matrix, mapped: it comes into memory as it is looked at, and leaves it when it is dropped."""
        place = self._places[key]
        mapped = np.memmap(self._file, dtype=place.type, mode="c", offset=place.offset, shape=place.shape)
        return torch.from_numpy(mapped)
