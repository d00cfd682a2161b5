"""Fisher matrices in core coordinates, from per-sample gradients that are never a weight's size.

A change ``Q_B M Q_A^T`` of a weight (`CoreSpace`) has few coordinates, the entries of ``M``. With a layer's input ``a``
and output gradient ``g``, the gradient of one sample's loss with respect to them is

    ``sum over its tokens of (Q_B^T g)(Q_A^T a)^T``,

two skinny products and a small one. The Fisher matrix is the second moment of these gradients over samples: with
labels that the model itself draws it is the Fisher information of the model (``sampled``); with the rows' own labels it
is the empirical one, which sees how far the model is from its data (Kunstner et al., Limitations of the empirical
Fisher approximation for natural gradient descent, NeurIPS 2019).

Letters in names: ``o`` outputs and ``i`` inputs of a layer, ``p`` and ``q`` its core coordinates on either side,
``d = p q`` entries of ``M`` row by row, ``n`` samples, ``b`` rows of a batch, ``t`` tokens, ``s`` positions that
predict a response token of their row, all rows one after another, ``v`` the vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.core.errors import AdapterError, ConfigError, LayerError, NumericsError, did_you_mean
from holdfast.core.sizes import GRADIENT_ROWS
from holdfast.curvature.passes import at_least_float32, full_precision
from holdfast.curvature.samples import (
    Reduction,
    backward_pass,
    check_finite,
    check_reduction,
    response_logits,
    row_losses,
)
from holdfast.data.batches import Batch, Encoded
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.capture import PairConsumer
from holdfast.layers.core_space import CoreSpace
from holdfast.models.load import LoadedModel

Labels = Literal["empirical", "sampled"]
"""Whose labels the loss takes: the row's own, or one drawn from the model at each response position of the row."""
_CoreConsumer = Callable[[Layer, Sequence[int], Tensor, Tensor], None]
"""Called with a layer, the numbers of a batch's rows, and their ``a_btq`` and ``g_btp``, zero on padding."""
Take = Callable[[str, Sequence[int], Tensor], None]
"""Called with a layer's name, the numbers of a batch's rows, and their gradients ``G_bd``."""


def core_gradients(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    spaces: Mapping[str, CoreSpace],
    *,
    labels: Labels = "empirical",
    loss: Reduction = "mean",
    seed: int = 0,
    batch_size: int = GRADIENT_ROWS,
) -> dict[str, Tensor]:
    """Each row's gradient with respect to the core coordinates of each layer, at the model's current weights.

    The loss is that of `sample_gradients`. With ``sampled`` labels the row's own tokens stay what the model reads; only
    what it is to predict is drawn, from ``seed`` and the row's id alone: another seed gives other labels, and two rows
    of one id draw alike. Gradients do not depend on batch size, padding or order beyond rounding (a drawn label may
    flip where rounding moves it over an edge, about once in 1e6). The model is left as it was.

    Beside the model and one batch's graph, ``4 n d`` bytes a layer are held, on the layer's device.

    Args:
        spaces: By layer name; a fused module's name for a fused module, as in an `Adapter`.
        labels: Whose labels.
        loss: ``mean`` over a row's response tokens, or their ``sum``.
        seed: Of drawn labels.
        batch_size: Rows in one forward and backward, as in `backward_pass`.
    Returns:
        By layer name ``G (n, d)`` in the order of ``rows``, float32, or float64 where the model computes in it; ``M``
        is flattened row by row.
    Raises:
        ConfigError: ``labels``, ``loss`` or ``batch_size`` is out of range.
        DataError: No rows, a row without a response token to predict, or one too long for the model.
        LayerError: There are no spaces, a name is unknown, or a fused layer comes with one of its parts.
        AdapterError: A space does not fit its layer.
        NumericsError: A loss or gradient is not finite; names the row, and the layer.
    """
    found: dict[str, Tensor] = {}

    def take(name: str, numbers: Sequence[int], G_bd: Tensor) -> None:
        if name not in found:
            found[name] = G_bd.new_empty(len(rows), G_bd.shape[1])
        found[name][torch.tensor(numbers, device=G_bd.device)] = G_bd

    _core_pass(loaded, rows, spaces, _Loss(loaded, labels, loss, seed), _each_gradient(rows, take), batch_size)
    return {name: found[name] for name in spaces}


def stream_core_gradients(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    spaces: Mapping[str, CoreSpace],
    take: Take,
    *,
    labels: Labels = "empirical",
    seed: int = 0,
) -> None:
    """`core_gradients` a batch and a layer at a time, for more of them than memory holds.

    Rows come longest first, the last layer first; beside the model and one batch's graph nothing is held.

    Raises:
        ConfigError, DataError, LayerError, AdapterError, NumericsError: As `core_gradients`.
    """
    losses = _Loss(loaded, labels, "mean", seed)
    _core_pass(loaded, rows, spaces, losses, _each_gradient(rows, take), GRADIENT_ROWS)


def _each_gradient(rows: Sequence[Encoded], take: Take) -> _CoreConsumer:
    def consume(layer: Layer, numbers: Sequence[int], a_btq: Tensor, g_btp: Tensor) -> None:
        G_bd = torch.bmm(g_btp.transpose(1, 2), a_btq).flatten(1)
        check_finite(layer, [rows[n].id for n in numbers], torch.isfinite(G_bd).all(1))
        take(layer.name, numbers, G_bd)

    return consume


def core_factors(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    spaces: Mapping[str, CoreSpace],
    *,
    labels: Labels = "empirical",
    loss: Reduction = "mean",
    seed: int = 0,
    batch_size: int = GRADIENT_ROWS,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The Kronecker factors of each layer's Fisher matrix in core coordinates, ``F ~ G (x) A``.

    ``A`` is the mean over tokens of ``a a^T``, ``G`` the mean over rows of the sum over tokens of ``g g^T``, both in
    core coordinates. ``G (x) A``, in the order of ``M`` row by row, has the scale of the `full` Fisher; it equals it
    where inputs and output gradients are independent of each other and from token to token.

    Arguments, errors and determinism are those of `core_gradients`; only the sums are held.

    Returns:
        By layer name ``A_qq`` and ``G_pp``.
    Reference:
        Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature (ICML 2015);
        Eschenhagen et al., K-FAC for modern neural network architectures (NeurIPS 2023), "expand".
    """
    sums: dict[str, tuple[Tensor, Tensor]] = {}

    def consume(layer: Layer, numbers: Sequence[int], a_btq: Tensor, g_btp: Tensor) -> None:
        A_bqq, G_bpp = (torch.bmm(x.transpose(1, 2), x) for x in (a_btq, g_btp))
        finite_b = torch.isfinite(A_bqq).all((1, 2)) & torch.isfinite(G_bpp).all((1, 2))
        check_finite(layer, [rows[n].id for n in numbers], finite_b)
        A_qq, G_pp = A_bqq.sum(0), G_bpp.sum(0)
        if layer.name in sums:
            A_qq, G_pp = sums[layer.name][0] + A_qq, sums[layer.name][1] + G_pp
        sums[layer.name] = A_qq, G_pp

    _core_pass(loaded, rows, spaces, _Loss(loaded, labels, loss, seed), consume, batch_size)
    tokens = sum(map(len, rows))
    return {name: (sums[name][0] / tokens, sums[name][1] / len(rows)) for name in spaces}


class _Loss:
    """The loss of each row of a batch, under its own labels or drawn ones."""

    def __init__(self, loaded: LoadedModel, labels: Labels, loss: Reduction, seed: int) -> None:
        if labels not in get_args(Labels):
            raise ConfigError(f"Unknown labels {labels!r}. {did_you_mean(labels, get_args(Labels))}")
        check_reduction(loss)
        self._model, self._labels, self._loss, self._seed = loaded.model, labels, loss, seed

    def __call__(self, batch: Batch) -> Tensor:
        """``(b,)``."""
        predicted = response_logits(self._model, batch)
        if self._labels == "sampled":
            dice_s = _uniforms(batch.row_ids, predicted.counts_b.tolist(), self._seed)
            predicted = replace(predicted, targets_p=_drawn(predicted.logits_pv.detach(), dice_s))
        return row_losses(predicted, self._loss)


def _uniforms(row_ids: Sequence[str], counts: Sequence[int], seed: int) -> Tensor:
    """A number in [0, 1) for each label, row by row: a row's n-th depends on seed, id and n alone."""
    dice = [random.Random(f"{seed}/{row_id}") for row_id in row_ids]
    numbers = [die.random() for die, count in zip(dice, counts, strict=True) for _ in range(count)]
    return torch.tensor(numbers, dtype=torch.float64)


def _drawn(logits_sv: Tensor, dice_s: Tensor) -> Tensor:
    """A label drawn from the model at each position, ``(s,)``: the inverse of the summed probabilities."""
    summed_sv = logits_sv.softmax(-1).cumsum(-1)
    whole_s1 = summed_sv[:, -1:].contiguous()
    drawn_s = torch.searchsorted(summed_sv, dice_s.to(summed_sv)[:, None] * whole_s1, right=True)[:, 0]
    # a threshold that rounds up to the whole sum lies beyond the last token
    return torch.minimum(drawn_s, torch.searchsorted(summed_sv, whole_s1)[:, 0])


def _core_pass(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    spaces: Mapping[str, CoreSpace],
    losses: Callable[[Batch], Tensor],
    consume: _CoreConsumer,
    batch_size: int,
) -> None:
    layers = _layers_of(loaded, spaces)

    def watch(numbers: Sequence[int]) -> PairConsumer:
        lengths = torch.tensor([len(rows[n]) for n in numbers])

        def rotate(layer: Layer, a_bti: Tensor, g_bto: Tensor) -> None:
            space = spaces[layer.name]
            padding_bt = torch.arange(g_bto.shape[1]) >= lengths[:, None]
            padding_bt1 = padding_bt[:, :, None].to(g_bto.device)
            with full_precision(g_bto.device):
                a_btq, g_btp = (
                    (x @ basis.to(x)).masked_fill_(padding_bt1, 0)
                    for x, basis in (
                        (at_least_float32(a_bti), space.right_iq),
                        (at_least_float32(g_bto), space.left_op),
                    )
                )
                consume(layer, numbers, a_btq, g_btp)

        return rotate

    backward_pass(loaded, rows, layers, losses, watch, batch_size)


def _layers_of(loaded: LoadedModel, spaces: Mapping[str, CoreSpace]) -> LayerMap:
    """The layers that have a space, all of them checked."""
    if not spaces:
        raise LayerError("no core gradients: got no spaces, expected at least 1 layer's. Give CoreSpace.of its deltas.")
    layers = LayerMap.of(loaded.model)
    for name, space in spaces.items():
        expected = (layers[name].out_features, layers[name].in_features)
        if space.shape != expected:
            raise AdapterError(f"core space of {name} does not fit: got shape {space.shape}, expected {expected}.")
    return layers.select(list(spaces))


def full(G_nd: Tensor) -> Tensor:
    """The Fisher matrix, ``F = G^T G / n``, ``(d, d)``; like all forms in the type of ``G``."""
    _check_samples(G_nd)
    with full_precision(G_nd.device):
        return G_nd.T @ G_nd / len(G_nd)


def diagonal(G_nd: Tensor) -> Tensor:
    """The diagonal of `full`, ``(d,)``: each coordinate's mean squared gradient."""
    _check_samples(G_nd)
    return G_nd.square().mean(0)


def gradient_variance(G_nd: Tensor) -> Tensor:
    """Each coordinate's variance over samples, ``(d,)``: `diagonal` less the squared mean gradient.

    A common stand-in for the Fisher of LoRA weights. It is blind to what all samples agree on.
    """
    _check_samples(G_nd)
    return G_nd.var(0, correction=0)


def topk(G_nd: Tensor, share: float) -> Tensor:
    """The `diagonal` with all but its largest entries set to 0, ``(d,)``.

    Args:
        share: Of the entries that stay, rounded up; of equal ones any.
    Raises:
        ConfigError: ``share`` is not more than 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is out of range: got {share}, expected more than 0 and at most 1.")
    F_d = diagonal(G_nd)
    kept_k = F_d.topk(math.ceil(round(share * len(F_d), 6))).indices
    return torch.zeros_like(F_d).index_copy(0, kept_k, F_d[kept_k])


def _check_samples(G_nd: Tensor) -> None:
    if G_nd.ndim != 2 or not G_nd.numel():
        raise NumericsError(
            f"no Fisher of these gradients: got shape {tuple(G_nd.shape)}, expected (n, d), at least 1 of each."
        )
