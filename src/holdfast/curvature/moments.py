"""Streaming second moments of layer inputs: ``C = sum over tokens of h h^T``, no activation kept.

`moments` sums those of all layers in one pass over the rows, `moments_by_block` a decoder block's after another.

Letters in names: ``i`` inputs of a layer, ``b`` rows of a batch, ``t`` tokens, ``n`` chosen tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, NumericsError, did_you_mean
from holdfast.curvature.passes import check_pass, digest, full_precision, longest_first, untouched
from holdfast.curvature.records import Moment, Moments, Origin, Saved, check_same, load, merge, save
from holdfast.curvature.walk import block_by_block
from holdfast.data.batches import Encoded, collate
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.capture import capture
from holdfast.models.load import LoadedModel

__all__ = ["Moment", "Moments", "TokenChoice", "load", "merge", "moments", "moments_by_block"]

TokenChoice = Literal["all", "prompt", "response"]
"""Which tokens of a row: those to be learnt (``response``: the answer and its end of turn), the others, or both."""
MomentConsumer = Callable[[str, tuple[Moment, ...]], None]
"""Called with a group and its moments, one a part of the rows; they are the consumer's to keep or to let go."""


def moments(  # noqa: PLR0913 - the one door to second moments; all but three are optional keywords
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    layers: LayerMap,
    tokens: TokenChoice = "all",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 16,
    *,
    skip_bos: bool = False,
    path: Path | None = None,
    save_every: int | None = None,
) -> Moments:
    """The second moment of every input that the selected layers read, over the chosen tokens of ``rows``.

    A token's activation is the one at its own position, where the model reads it. Padding never counts. The sums do not
    depend on batch size, padding or order beyond rounding, and `merge` of parts of the rows gives the whole.

    One matrix a group is held, beside the model and one batch: an input of width ``i`` takes ``4 i^2`` bytes in
    float32. Where all do not fit, use `moments_by_block`.

    Args:
        tokens: Which tokens of each row.
        dtype: Of the sums, float32 or float64; activations are cast up first, whatever the model computes in.
        batch_size: Rows in one forward.
        skip_bos: Leave out a BOS that begins a row: its activations are often huge and the same in every row.
        path: Folder to keep the sums in. What is there is continued from the row where it stopped, or returned when
            complete; on the CPU and with the same ``batch_size`` bit for bit what an uninterrupted pass gives.
        save_every: Batches between two savings; ``None`` saves at the end only.
    Raises:
        ConfigError: An argument is out of range, or ``path`` holds moments of another model, template, rows or choice.
        DataError: No rows or no chosen token, a row too long for the model, or ``path`` cannot be read or written.
        LayerError: The layers belong to another model.
        NumericsError: An activation is not finite (names layer and row), or a sum overflows.
    """
    check_pass(loaded, rows, layers, batch_size)
    _check_options(tokens, dtype, path, save_every)
    ordered = [rows[n] for n in longest_first(rows)]
    chosen = _chosen(ordered, tokens, _bos(loaded, rows) if skip_bos else None)
    origin = _origin(loaded, ordered, layers, tokens, dtype, skip_bos)
    sums = _Sums(layers, dtype)
    if path is not None and path.exists():
        saved = load(path)
        check_same(path, saved.origin, origin)
        if saved.complete:
            return {group: moment.to(loaded.model.device) for group, moment in saved.moments.items()}
        sums.go_on_from(saved)
    with untouched(loaded.model), torch.no_grad(), capture(layers, consume=sums.add):
        for number, start in enumerate(range(sums.rows_done, len(ordered), batch_size), start=1):
            part = slice(start, start + batch_size)
            sums.open(ordered[part], chosen[part])
            batch = collate(ordered[part], loaded.chat.pad_id).to(loaded.model.device)
            loaded.model(**batch.model_inputs(), logits_to_keep=1)
            sums.close()
            if path is not None and save_every is not None and number % save_every == 0:
                save(path, Saved(sums.raw(), origin, sums.rows_done))
    found = sums.symmetric()
    if path is not None:
        save(path, Saved(found, origin, len(ordered)))
    return found


def moments_by_block(
    loaded: LoadedModel,
    parts: Sequence[Sequence[Encoded]],
    layers: LayerMap,
    consume: MomentConsumer,
    tokens: TokenChoice = "all",
    batch_size: int = 16,
) -> None:
    """Call ``consume`` once for each group, in model order, with the float32 moments that `moments` gives of each part.

    Rows go through one decoder block after another, in the batches of `moments`; up to the last block that has a
    selected layer, it is the work of one forward. Beside the model and one batch it holds the matrices of one block's
    groups, one a part, and the hidden states of all rows (`block_by_block`).

    Args:
        parts: Rows whose moments are kept apart.
        tokens: Which tokens of each row.
        batch_size: Rows in one forward.
    Raises:
        ConfigError: An argument is out of range.
        DataError: A part has no rows or no chosen token, or a row is too long for the model.
        LayerError: The layers belong to another model.
        NumericsError: An activation is not finite (names layer and row), or a sum overflows.
    """
    _check_options(tokens, torch.float32, None, None)
    sums, work = [], []
    for rows in parts:
        check_pass(loaded, rows, layers, batch_size)
        ordered = [rows[n] for n in longest_first(rows)]
        chosen = _chosen(ordered, tokens, None)
        sums.append(_Sums(layers, torch.float32))
        spans = [slice(start, start + batch_size) for start in range(0, len(rows), batch_size)]
        work += [(sums[-1], ordered[span], chosen[span]) for span in spans]
    batches = [collate(rows, loaded.chat.pad_id) for _, rows, _ in work]
    groups = layers.groups().items()
    now = sums[0]

    def add(layer: Layer, a_bti: Tensor) -> None:
        now.add(layer, a_bti)

    with (
        untouched(loaded.model),
        block_by_block(loaded.model, layers.blocks(), batches) as walk,
        capture(layers, consume=add),
    ):
        for block in range(1 + max(layer.block for layer in layers)):
            for number, (now, rows, chosen) in enumerate(work):
                now.open(rows, chosen)
                walk.run(block, number)
                now.close(counted=block > 0)
            for group in [group for group, members in groups if members[0].block == block]:
                consume(group, tuple(part.take(group) for part in sums))


class _Sums:
    """The sums so far, and the batch that is being read."""

    def __init__(self, layers: LayerMap, dtype: torch.dtype) -> None:
        self._groups, self._dtype = layers.groups(), dtype
        self._matrices: dict[str, Tensor] = {}
        self._tokens = 0
        self._rows: Sequence[Encoded] = ()
        self._chosen = torch.empty(0)
        self.rows_done = 0

    def go_on_from(self, saved: Saved) -> None:
        """Take over the sums of an interrupted pass."""
        self._matrices = {group: moment.matrix for group, moment in saved.moments.items()}
        self._tokens = next(iter(saved.moments.values())).tokens
        self.rows_done = saved.rows_done

    def open(self, rows: Sequence[Encoded], chosen: Sequence[Sequence[bool]]) -> None:
        """Say which rows the next forward reads, and which of their tokens count."""
        width = max(map(len, chosen))
        self._rows = rows
        self._chosen = torch.tensor([[*marks, *[False] * (width - len(marks))] for marks in chosen])

    def add(self, layer: Layer, a_bti: Tensor) -> None:
        """Add the chosen tokens of one group's input."""
        chosen_bt = self._chosen.to(a_bti.device)
        h_ni = a_bti[chosen_bt].to(self._dtype)
        self._check_finite(layer, h_ni)
        sum_ii = self._matrices.get(layer.group)
        if sum_ii is None:
            sum_ii = h_ni.new_zeros(layer.in_features, layer.in_features)
        self._matrices[layer.group] = sum_ii = sum_ii.to(h_ni.device)
        with full_precision(h_ni.device):
            sum_ii.addmm_(h_ni.T, h_ni)

    def close(self, counted: bool = False) -> None:
        """Count the batch that was read, once however often it is."""
        if not counted:
            self._tokens += int(self._chosen.sum())
            self.rows_done += len(self._rows)

    def raw(self) -> Moments:
        """The sums as they are, to go on from: symmetric up to rounding.

        Raises:
            NumericsError: A sum is not finite.
        """
        return {group: self._moment(group, self._matrices[group]) for group in self._groups}

    def symmetric(self) -> Moments:
        """The sums, exactly symmetric. Takes them over."""
        return {group: self.take(group) for group in self._groups}

    def take(self, group: str) -> Moment:
        """One sum, exactly symmetric: a kernel may round ``C_ij`` and ``C_ji`` differently. It is not kept here.

        Raises:
            NumericsError: It is not finite.
        """
        sum_ii = self._matrices.pop(group)
        return self._moment(group, (sum_ii + sum_ii.T).div_(2))

    def _moment(self, group: str, sum_ii: Tensor) -> Moment:
        if not bool(torch.isfinite(sum_ii).all()):
            raise NumericsError(
                f"second moment of {group} overflows: got infinity in {sum_ii.dtype} after {self._tokens} tokens, "
                "expected finite sums of finite activations. Do: use dtype float64."
            )
        return Moment(group, sum_ii, self._tokens)

    def _check_finite(self, layer: Layer, h_ni: Tensor) -> None:
        finite_n = torch.isfinite(h_ni).all(-1)
        if bool(finite_n.all()):
            return
        row = self._rows[int(self._chosen.nonzero()[int(finite_n.int().argmin()), 0])]
        readers = ", ".join(reader.name for reader in self._groups[layer.group])
        raise NumericsError(
            f"activations are not finite: got NaN or infinity in the input of {readers} on row {row.id!r}, expected "
            "numbers. Do: look for an overflow (float16?) or damaged weights below this layer."
        )


def _check_options(tokens: str, dtype: torch.dtype, path: Path | None, save_every: int | None) -> None:
    if tokens not in get_args(TokenChoice):
        raise ConfigError(f"Unknown choice of tokens {tokens!r}. {did_you_mean(tokens, get_args(TokenChoice))}")
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"Cannot sum second moments in {dtype}: it loses most of the mass. Do: use float32 or float64; the model "
            "itself may compute in anything."
        )
    if save_every is not None and (path is None or save_every < 1):
        raise ConfigError(
            f"Cannot save every {save_every} batches to {path}: expected at least 1 and a folder. Do: set path."
        )


def _bos(loaded: LoadedModel, rows: Sequence[Encoded]) -> int:
    bos = loaded.tokenizer.bos_token_id
    if bos is None or not any(row.ids[0] == bos for row in rows):
        raise ConfigError(
            f"Cannot leave out BOS: no row begins with one ({loaded.name} has "
            f"{'no BOS' if bos is None else f'BOS {bos}'}). Do: set skip_bos to false."
        )
    return int(bos)


def _chosen(rows: Sequence[Encoded], tokens: TokenChoice, bos: int | None) -> list[list[bool]]:
    """Which tokens of each row count.

    Raises:
        DataError: None at all.
    """
    chosen = [[tokens == "all" or learnt == (tokens == "response") for learnt in row.response] for row in rows]
    for row, marks in zip(rows, chosen, strict=True):
        marks[0] = marks[0] and row.ids[0] != bos
    if not any(map(any, chosen)):
        raise DataError(
            f"Cannot sum second moments: got no token to count in {len(rows)} rows with tokens {tokens!r}, expected at "
            "least 1. Do: choose other tokens, or rows that have a prompt and an answer."
        )
    return chosen


def _origin(
    loaded: LoadedModel, rows: Sequence[Encoded], layers: LayerMap, tokens: str, dtype: torch.dtype, skip_bos: bool
) -> Origin:
    return Origin(
        model=loaded.fingerprint,
        weights=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in loaded.model.parameters()})),
        template=loaded.chat.fingerprint,
        rows=digest(rows),
        row_count=len(rows),
        tokens=tokens,
        skip_bos=skip_bos,
        dtype=str(dtype).removeprefix("torch."),
        groups=tuple(layers.groups()),
    )
