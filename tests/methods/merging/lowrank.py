"""Random low-rank deltas of one small layer, and a layer merged without loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules import RULES, RuleSettings, merge_layer

SHAPE = (24, 20)
WEIGHTS = (0.7, 1.1, 0.4)


def deltas(ranks: Sequence[int] = (3, 4, 2), seed: int = 0, shape: tuple[int, int] = SHAPE) -> list[LowRank]:
    draw = torch.Generator().manual_seed(seed)
    return [
        LowRank(torch.randn(rank, shape[1], generator=draw) / 4, torch.randn(shape[0], rank, generator=draw))
        for rank in ranks
    ]


def merged(rule: str, of: Sequence[LowRank], weights: Sequence[float] = WEIGHTS, **settings: Any) -> Tensor:
    """The dense merged delta with nothing cut off."""
    return merge_layer("layer", of, weights, rule, RuleSettings(**settings), rank=min(of[0].shape))[0].dense()


def cases() -> list[tuple[str, str]]:
    """Every rule in every semantics it has."""
    return [(rule.name, semantics) for rule in RULES.values() for semantics in rule.semantics or ("paper",)]
