"""The smallest constraint: some input columns of some weights may not move."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FreeColumns:
    """Coordinates are the free columns alone."""

    free: Tensor
    """Indices of the columns that may move."""
    width: int

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        return (weight.shape[0], len(self.free))

    def expand(self, coordinates: Tensor) -> Tensor:
        whole = torch.zeros(coordinates.shape[0], self.width)
        whole[:, self.free] = coordinates
        return whole

    def contract(self, gradient: Tensor) -> Tensor:
        return gradient[:, self.free]

    def settle(self, coordinates: Tensor) -> None:
        """No coordinate is frozen."""


@dataclass(frozen=True)
class Columns:
    """Holds the first ``share`` of the columns of every weight whose name has ``pattern`` in it."""

    pattern: str = "_proj.weight"
    share: float = 0.5

    def frozen(self, width: int) -> int:
        return int(self.share * width)

    def holds(self, model: nn.Module) -> Mapping[str, FreeColumns]:
        return {
            name: FreeColumns(torch.arange(self.frozen(p.shape[1]), p.shape[1]), p.shape[1])
            for name, p in model.named_parameters()
            if self.pattern in name and p.requires_grad
        }
