"""What each adapter's rows say about the layers: per-sample gradients, or Kronecker factors, in core coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.curvature.fisher import core_factors, core_gradients
from holdfast.data.batches import Encoded
from holdfast.layers.adapters import Adapter, added
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging.config import MergingConfig, Point
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, eq=False, slots=True)
class Evidence:
    """One adapter's rows on one layer: gradients, or the factors of `holdfast.curvature.fisher.core_factors`."""

    gradients: Tensor | None = None
    """``(n, d)``."""
    inputs: Tensor | None = None
    """``A_qq``."""
    outputs: Tensor | None = None
    """``G_pp``."""

    part: Tensor | None = None
    """``M_pq``: the part of the adapter's own change that a projection keeps."""

    @property
    def device(self) -> torch.device:
        """Where it was found, and where the merge is computed."""
        found = self.inputs if self.gradients is None else self.gradients
        assert found is not None  # one of them is always there
        return found.device


def gather(
    config: MergingConfig,
    loaded: LoadedModel,
    adapters: Sequence[Adapter],
    rows: Sequence[Sequence[Encoded]],
    spaces: Mapping[str, CoreSpace],
) -> dict[str, tuple[Evidence, ...]]:
    """By layer, the evidence of each adapter's rows; the model is left as it was.

    Raises:
        DataError: an adapter has no rows, or a row without an answer.
        NumericsError: a gradient is not finite.
    """
    found: dict[str, list[Evidence]] = {name: [] for name in spaces}
    factored = config.rule == "regmean" or config.fisher == "kfac"
    for number, own in enumerate(rows):
        with _at(config.point or _usual(config), loaded, adapters, number):
            if factored:
                for name, (A_qq, G_pp) in core_factors(
                    loaded, own, spaces, labels=config.labels, seed=config.seed
                ).items():
                    found[name].append(Evidence(inputs=A_qq, outputs=G_pp))
            else:
                for name, G_nd in core_gradients(loaded, own, spaces, labels=config.labels, seed=config.seed).items():
                    found[name].append(Evidence(gradients=G_nd))
    return {name: tuple(each) for name, each in found.items()}


def _usual(config: MergingConfig) -> Point:
    return "utility" if config.rule == "sst_projection" else "own"


@contextmanager
def _at(point: Point, loaded: LoadedModel, adapters: Sequence[Adapter], number: int) -> Iterator[None]:
    """The model at the weights where the rows of adapter ``number`` are looked at."""
    if point == "base":
        yield
    elif point == "mean":
        with _all(loaded, adapters, 1 / len(adapters)):
            yield
    else:
        with added(loaded.model, adapters[number if point == "own" else 0]):
            yield


@contextmanager
def _all(loaded: LoadedModel, adapters: Sequence[Adapter], scale: float) -> Iterator[None]:
    if not adapters:
        yield
        return
    with added(loaded.model, adapters[0], scale), _all(loaded, adapters[1:], scale):
        yield
