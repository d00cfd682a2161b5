"""Per-sample gradients of the response loss with respect to weights, streamed one matrix at a time.

For ``y = W h`` a sample's gradient is ``G = sum over its tokens of g a^T`` with input ``a`` and output gradient ``g``
(Goodfellow, Efficient per-example gradient computations, 2015). Rows go forward and backward together; a row's loss
depends on that row alone, so the row's slices of ``a`` and ``g`` give its own gradient.

Letters in names: ``o`` outputs and ``i`` inputs of a layer, ``b`` rows of a batch, ``t`` tokens, ``p`` positions that
predict a response token of their row, all rows one after another, ``v`` the vocabulary, ``h`` the hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from holdfast.core.errors import ConfigError, DataError, LayerError, NumericsError, did_you_mean
from holdfast.core.sizes import GRADIENT_ROWS
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
    batch_size: int = GRADIENT_ROWS,
    basis: Mapping[str, Tensor] | None = None,
) -> None:
    """Call ``consume`` once for each selected layer and each row with the gradient of that row's loss.

    The loss of a row is the cross-entropy of its response tokens. ``mean`` over them gives every row the same say,
    however long its answer; ``sum`` gives every token the same. Gradients do not depend on batch size, padding or order
    beyond rounding. They come batch by batch, longest rows first, the last layer first; each is the consumer's to keep.

    Beside the model, one batch's graph and one ``G_oi`` are held. Afterwards the model is as before: weights, their
    ``grad`` and ``requires_grad``, modes.

    Args:
        batch_size: Rows in one forward and backward, as in `backward_pass`.
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
        return row_losses(response_logits(loaded.model, batch), loss)

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
        batch_size: Of the longest rows in one forward and backward; of shorter ones as many more as have no more tokens
            together, padding included.
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
    with untouched(loaded.model), torch.enable_grad():
        for numbers in _batches(rows, batch_size):
            batch = collate([rows[n] for n in numbers], loaded.chat.pad_id).to(loaded.model.device)
            with stream_pairs(layers, watch(numbers)):
                losses_b = losses(batch)
                _check_losses(losses_b, batch)
                torch.autograd.backward(losses_b.sum())


def _batches(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Row numbers, longest first: no batch has more tokens than ``batch_size`` of the longest rows."""
    order = longest_first(rows)
    tokens = batch_size * len(rows[order[0]])
    start = 0
    while start < len(order):
        size = tokens // len(rows[order[start]])
        yield order[start : start + size]
        start += size


@dataclass(frozen=True, eq=False, slots=True)
class Predictions:
    """What a model says at each position that predicts a response token of its row, row by row."""

    logits_pv: Tensor
    """In at least float32."""
    targets_p: Tensor
    """The row's own tokens."""
    counts_b: Tensor
    """How many positions each row has, on the CPU."""


def response_logits(model: Any, batch: Batch) -> Predictions:
    """Run the model; its head sees only the positions that are needed, whatever the other rows of the batch need.

    Raises:
        LayerError: The head is not the last thing but for entrywise functions that the model runs.
    """
    targets_bt = pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    wanted_bt = targets_bt != IGNORE
    at_p = wanted_bt.flatten().nonzero()[:, 0]

    def pick(head: Any, given: tuple[Tensor, ...]) -> Tensor:
        return given[0].flatten(0, 1).index_select(0, at_p.to(given[0].device))[None]

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits_1pv = model(**batch.model_inputs()).logits
    finally:
        handle.remove()
    if tuple(logits_1pv.shape[:-1]) != (1, len(at_p)):
        raise LayerError(
            f"cannot read the predictions of {type(model).__name__}: got logits of shape {tuple(logits_1pv.shape)}, "
            f"expected (1, {len(at_p)}, vocabulary) from a head that is run last. Do: use another model."
        )
    logits_pv = at_least_float32(logits_1pv[0])
    targets_p = targets_bt.flatten()[at_p].to(logits_pv.device)
    return Predictions(logits_pv, targets_p, wanted_bt.sum(1).cpu())


def row_losses(predicted: Predictions, loss: Reduction) -> Tensor:
    """The loss of each row, ``(b,)``: cross-entropy at its positions."""
    each_p = cross_entropy(predicted.logits_pv, predicted.targets_p, reduction="none")
    counts = predicted.counts_b.tolist()
    return torch.stack([own.mean() if loss == "mean" else own.sum() for own in torch.split(each_p, counts)])


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
