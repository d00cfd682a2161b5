"""Adapters of tiny models with rows of their own, and plans of them."""

from collections.abc import Sequence
from typing import Any

import torch
from tests.training.helpers import examples

from holdfast.layers.adapters import Adapter, LowRank
from holdfast.layers.address import LayerMap, layer_name
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.plan import Expert, MergePlan, plan
from holdfast.models.load import LoadedModel

FEW = ("q_proj", "layers.1.down_proj")
"""Layers of two widths."""


def adapter(loaded: LoadedModel, rank: int, seed: int, size: float = 0.3) -> Adapter:
    """Random factors on every module; a fused one is one layer."""
    layers, draw = LayerMap.of(loaded.model), torch.Generator().manual_seed(seed)
    deltas = {}
    for name in dict.fromkeys(layer_name(layer.path) for layer in layers):
        assert name is not None
        o, i = layers[name].out_features, layers[name].in_features
        A_ri, B_or = torch.randn(rank, i, generator=draw), torch.randn(o, rank, generator=draw)
        deltas[name] = LowRank(A_ri * size / i**0.5, B_or / rank**0.5)
    return Adapter.of(layers, deltas)


def experts(loaded: LoadedModel, ranks: Sequence[int] = (2, 3), n: int = 4) -> list[Expert]:
    """Each with ``n`` rows that no other has."""
    return [
        Expert(f"expert-{t}", adapter(loaded, rank, seed=t + 1), examples(n, seed=20 + t))
        for t, rank in enumerate(ranks)
    ]


def planned(loaded: LoadedModel, ranks: Sequence[int] = (2, 3), n: int = 4, **keys: Any) -> MergePlan:
    """A plan of few layers."""
    return plan(MergingConfig(**({"layers": FEW} | keys)), loaded, experts(loaded, ranks, n))
