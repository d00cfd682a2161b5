"""Per-sample gradients of the response loss with respect to weights, streamed one matrix at a time.

For ``y = W h`` a sample's gradient is ``G = sum over its tokens of g a^T`` with input ``a`` and output gradient ``g``
(Goodfellow, Efficient per-example gradient computations, 2015). Rows go forward and backward together; a row's loss
depends on that row alone, so the row's slices of ``a`` and ``g`` give its own gradient.

Letters in names: ``o`` outputs and ``i`` inputs of a layer, ``b`` rows of a batch, ``t`` tokens, ``p`` positions that
predict a response token in some row, ``v`` the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from holdfast.core.errors import ConfigError, DataError, NumericsError, did_you_mean
from holdfast.curvature.passes import at_least_float32, check_pass, full_precision, longest_first, untouched
from holdfast.data.batches import IGNORE, Batch, Encoded, collate
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.capture import PairConsumer, stream_pairs
from holdfast.models.load import LoadedModel

SampleConsumer = Callable[[Layer, int, Tensor], None]
"""Called with a layer, the number of the row in ``rows``, and the row's gradient ``G_oi`` in at least float32."""
Reduction = Literal["mean", "sum"]


def sample_gradients(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    layers: LayerMap,
    consume: SampleConsumer,
    loss: Reduction = "mean",
    batch_size: int = 16,
    basis: Mapping[str, Tensor] | None = None,
) -> None:
    """Call ``consume`` once for each selected layer and each row with the gradient of that row's loss.

    The loss of a row is the cross-entropy of its response tokens. ``mean`` over them gives every row the same say,
    however long its answer; ``sum`` gives every token the same. Gradients do not depend on batch size, padding or order
    beyond rounding. They come batch by batch, longest rows first, the last layer first; each is the consumer's to keep.

    Beside the model, one batch's graph and one ``G_oi`` are held. Afterwards the model is as before: weights, their
    ``grad`` and ``requires_grad``, modes.

    Args:
        batch_size: Rows in one forward and backward.
        basis: By group, a matrix ``U (i, i)`` for that input: the consumer gets ``G U``. Inputs are rotated, once for
            all layers that share one: where rows are shorter than layers are wide, far less work than ``G U``.
    Raises:
        ConfigError: ``loss`` or ``batch_size`` is out of range.
        DataError: No rows, a row without a response token to predict, or one too long for the model.
        LayerError: The layers belong to another model.
        NumericsError: A loss or gradient is not finite; names the row, and the layer. ``consume`` has not seen it.
    """
    check_reduction(loss)

    def watch(numbers: Sequence[int]) -> PairConsumer:
        split = partial(_split, rows, numbers, consume)
        return split if basis is None else _Rotated(basis, split)

    def losses(batch: Batch) -> Tensor:
        return row_losses(*response_logits(loaded.model, batch), loss)

    backward_pass(loaded, rows, layers, losses, watch, batch_size)


def check_reduction(loss: str) -> None:
    """Refuse an unknown one.

    Raises:
        ConfigError: It is unknown.
    """
    if loss not in get_args(Reduction):
        raise ConfigError(f"Unknown loss {loss!r}. {did_you_mean(loss, get_args(Reduction))}")


def backward_pass(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    layers: LayerMap,
    losses: Callable[[Batch], Tensor],
    watch: Callable[[Sequence[int]], PairConsumer],
    batch_size: int,
) -> None:
    """Run every row forward and backward, longest first, and show each layer's inputs and output gradients.

    Args:
        losses: The loss of each row of a batch, ``(b,)``, from a forward of the model.
        watch: Called before each batch with the numbers of its rows in ``rows``; what it returns gets the pairs.
    Raises:
        ConfigError: ``batch_size`` is out of range.
        DataError: No rows, a row without a response token to predict, or one too long for the model.
        LayerError: The layers belong to another model.
        NumericsError: A loss is not finite; names the row.
    """
    check_pass(loaded, rows, layers, batch_size)
    for row in rows:
        if not any(row.response[1:]):
            raise DataError(
                f"Row {row.id!r} has no loss: got no response token after the first, expected at least 1. "
                "Do: give rows with answers (ChatFormat.training)."
            )
    order = longest_first(rows)
    with untouched(loaded.model), torch.enable_grad():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = collate([rows[n] for n in numbers], loaded.chat.pad_id).to(loaded.model.device)
            with stream_pairs(layers, watch(numbers)):
                losses_b = losses(batch)
                _check_losses(losses_b, batch)
                torch.autograd.backward(losses_b.sum())


def response_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and targets, ``(b, p, v)`` and ``(b, p)``; the head runs only at positions that some row needs.

    Targets are `IGNORE` at positions that the row itself does not need.
    """
    targets_bt = pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    at_p = (targets_bt != IGNORE).any(0).nonzero()[:, 0]
    logits_bpv = at_least_float32(model(**batch.model_inputs(), logits_to_keep=at_p).logits)
    return logits_bpv, targets_bt[:, at_p].to(logits_bpv.device)


def row_losses(logits_bpv: Tensor, targets_bp: Tensor, loss: Reduction) -> Tensor:
    """The loss of each row, ``(b,)``: cross-entropy at the positions that have a target."""
    each_bp = cross_entropy(logits_bpv.transpose(1, 2), targets_bp, reduction="none", ignore_index=IGNORE)
    return each_bp.sum(1) / (targets_bp != IGNORE).sum(1) if loss == "mean" else each_bp.sum(1)


class _Rotated:
    """Passes on pairs of one batch with the inputs rotated; layers that share an input come one after another."""

    def __init__(self, basis: Mapping[str, Tensor], consume: PairConsumer) -> None:
        self._basis, self._consume = basis, consume
        self._last: tuple[str, Tensor] | None = None

    def __call__(self, layer: Layer, a_bti: Tensor, g_bto: Tensor) -> None:
        """Pass on one layer's pair."""
        if self._last is None or self._last[0] != layer.group:
            wide_bti = at_least_float32(a_bti)
            with full_precision(a_bti.device):
                self._last = (layer.group, wide_bti @ self._basis[layer.group].to(wide_bti))
        self._consume(layer, self._last[1], g_bto)


def _check_losses(losses_b: Tensor, batch: Batch) -> None:
    bad = [(row, loss) for row, loss in zip(batch.row_ids, losses_b.tolist(), strict=True) if not math.isfinite(loss)]
    if bad:
        raise NumericsError(
            f"loss of row {bad[0][0]!r} is not finite: got {bad[0][1]}, expected a number. "
            "Do: look for an overflow (float16?) or damaged weights."
        )


def _split(
    rows: Sequence[Encoded], numbers: Sequence[int], consume: SampleConsumer, layer: Layer, a_bti: Tensor, g_bto: Tensor
) -> None:
    """Give the consumer each row's gradient, from its own tokens alone; all are checked before the first."""
    pairs = [
        (at_least_float32(a_bti[b, : len(rows[n])]), at_least_float32(g_bto[b, : len(rows[n])]))
        for b, n in enumerate(numbers)
    ]
    # |G| <= t max|a| max|g|: where this is finite G is, at the cost of two passes over the captures and one wait
    bounds = torch.stack([len(a_ti) * a_ti.abs().amax() * g_to.abs().amax() for a_ti, g_to in pairs])
    check_finite(layer, [rows[n].id for n in numbers], torch.isfinite(bounds))
    for n, (a_ti, g_to) in zip(numbers, pairs, strict=True):
        with full_precision(g_to.device):
            G_oi = g_to.T @ a_ti
        consume(layer, n, G_oi)


def check_finite(layer: Layer, row_ids: Sequence[str], finite_b: Tensor) -> None:
    """Refuse gradients that are not finite, with the layer's name and the first such row's.

    Args:
        finite_b: Whether the gradient of each row of a batch is finite.
    Raises:
        NumericsError: One is not.
    """
    bad = (~finite_b).nonzero()[:, 0].tolist()
    if bad:
        raise NumericsError(
            f"gradient of {layer.name} on row {row_ids[bad[0]]!r} is not finite: got NaN or infinity in its "
            "input or output gradient, expected numbers. Do: look for an overflow (float16?) above or in this layer."
        )
