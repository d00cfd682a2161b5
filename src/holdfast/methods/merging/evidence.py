"""What each adapter's rows say about the layers: per-sample gradients, or Kronecker factors, in core coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import overload

import torch
from torch import Tensor

from holdfast.curvature.fisher import core_factors, core_gradients, stream_core_gradients
from holdfast.data.batches import Encoded
from holdfast.layers.adapters import Adapter, added
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging.config import MergingConfig, Point
from holdfast.methods.merging.scratch import Scratch
from holdfast.models.load import LoadedModel

HELD_BYTES = 2 * 2**30
"""Gradients up to this size stay in memory, on the model's device; larger ones go to a temporary file."""


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
    vectors: Tensor | None = None
    values: Tensor | None = None
    task: Tensor | None = None
    """The three of an `alignguard.Split`."""
    left: Tensor | None = None
    right: Tensor | None = None
    """``U_pp`` and ``V_qq``: the `alignguard.axes` between which the split is."""

    @property
    def device(self) -> torch.device:
        """Where it was found, and where the merge is computed."""
        found = self.inputs if self.gradients is None else self.gradients
        assert found is not None  # one of them is always there
        return found.device


class Lazily(Sequence[Evidence]):
    """Evidence that is made anew each time that it is looked at: what is mapped from disk is let go in between."""

    def __init__(self, makers: Sequence[Callable[[], Evidence]]) -> None:
        self._makers = tuple(makers)

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, place: int) -> Evidence: ...
    @overload
    def __getitem__(self, place: slice) -> Lazily: ...
    def __getitem__(self, place: int | slice) -> Evidence | Lazily:
        return Lazily(self._makers[place]) if isinstance(place, slice) else self._makers[place]()

    @classmethod
    def of(cls, *parts: Sequence[Evidence]) -> Lazily:
        """The evidence of several, one after another."""
        return cls([partial(part.__getitem__, place) for part in parts for place in range(len(part))])


def gradient_bytes(rows: int, coordinates: int) -> int:
    """Of so many rows on all layers, in float32."""
    return 4 * rows * coordinates


def gather(
    config: MergingConfig,
    loaded: LoadedModel,
    adapters: Sequence[Adapter],
    rows: Sequence[Sequence[Encoded]],
    spaces: Mapping[str, CoreSpace],
) -> dict[str, Sequence[Evidence]]:
    """By layer, the evidence of each adapter's rows; the model is left as it was.

    Gradients of more than `HELD_BYTES` are kept in a temporary file as long as anything here is.

    Raises:
        DataError: an adapter has no rows, or a row without an answer; or the disk is full.
        NumericsError: a gradient is not finite.
    """
    d = sum(space.left_op.shape[1] * space.right_iq.shape[1] for space in spaces.values())
    if not config.factored and gradient_bytes(sum(map(len, rows)), d) > HELD_BYTES:
        return _on_disk(config, loaded, adapters, rows, spaces)
    found: dict[str, list[Evidence]] = {name: [] for name in spaces}
    for number, own in enumerate(rows):
        with _at(config.point or usual_point(config), loaded, adapters, number):
            if config.factored:
                for name, (A_qq, G_pp) in core_factors(
                    loaded, own, spaces, labels=config.labels, seed=config.seed
                ).items():
                    found[name].append(Evidence(inputs=A_qq, outputs=G_pp))
            else:
                for name, G_nd in core_gradients(loaded, own, spaces, labels=config.labels, seed=config.seed).items():
                    found[name].append(Evidence(gradients=G_nd))
    return {name: tuple(each) for name, each in found.items()}


def _on_disk(
    config: MergingConfig,
    loaded: LoadedModel,
    adapters: Sequence[Adapter],
    rows: Sequence[Sequence[Encoded]],
    spaces: Mapping[str, CoreSpace],
) -> dict[str, Sequence[Evidence]]:
    """Gradients that are written as they come, and read on the CPU a layer at a time."""
    scratch = Scratch()
    for number, own in enumerate(rows):

        def take(name: str, numbers: Sequence[int], G_bd: Tensor, t: int = number, count: int = len(own)) -> None:
            scratch.write((name, t), count, numbers, G_bd)

        with _at(config.point or usual_point(config), loaded, adapters, number):
            stream_core_gradients(loaded, own, spaces, take, labels=config.labels, seed=config.seed)

    def read(name: str, t: int) -> Evidence:
        return Evidence(gradients=scratch.read((name, t)))

    return {name: Lazily([partial(read, name, t) for t in range(len(rows))]) for name in spaces}


def usual_point(config: MergingConfig) -> Point:
    """Where gradients are taken if the settings do not say."""
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
