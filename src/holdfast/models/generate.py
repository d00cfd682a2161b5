"""Batched greedy decoding and answer likelihoods, the same as one row at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from holdfast.core.errors import DataError
from holdfast.data.batches import Encoded
from holdfast.models.cache import SlotCache
from holdfast.models.load import LoadedModel

_REFILL = 0.25
"""Share of the batch that must be free before new prompts are read: reading few at a time costs more than it gains."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One greedy answer. ``token_ids`` leaves out the stop token; ``finish`` says why it ended."""

    text: str
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"]


@dataclass(slots=True)
class _Row:
    index: int
    prompt: tuple[int, ...]
    made: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Greedy answers, in the order of ``prompts``.

    Rows are taken longest first, padded on the left, leave the batch as they finish, and make room for the next ones.

    Args:
        batch_size: Rows decoded together at most.
        progress: Called with the number of rows that have just finished.
    Raises:
        DataError: a prompt and its answer do not fit the model's context; the message names the row.
    """
    check_context(loaded, prompts, max_new_tokens)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    done: dict[int, Completion] = {}
    with evaluating(loaded.model):
        batch: _Batch | None = None
        while waiting or (batch and batch.live):
            free = batch_size - (len(batch.live) if batch else 0)
            if waiting and free >= batch_size * _REFILL:
                taken = [_Row(i, prompts[i].ids) for i in reversed(waiting[-free:])]
                del waiting[-free:]
                fresh = _Batch(loaded, taken, max_new_tokens)
                finished = fresh.read()
                batch = batch.joined(fresh) if batch and batch.live else fresh
            else:
                assert batch is not None  # nothing waits, or the batch is nearly full
                finished = batch.step()
                if not waiting:
                    batch.shrink()
            for row in finished:
                done[row.index] = Completion(loaded.chat.decode(row.made), tuple(row.made), row.finish)
            if progress is not None and finished:
                progress(len(finished))
    return [done[i] for i in range(len(prompts))]


class _Batch:
    """Rows being decoded, each in a slot; one forward pass a step. An ended row's slot runs on until it is reused.

    ``mask`` is ``(slots, columns)``, 1 on real tokens, the newest column last; ``positions`` and ``last`` (the tokens
    to read next) are ``(slots, 1)``.
    """

    def __init__(self, loaded: LoadedModel, rows: list[_Row], max_new_tokens: int) -> None:
        self.live = dict(enumerate(rows))
        self._model, self._stops, self._most = loaded.model, set(loaded.chat.stop_ids), max_new_tokens
        self._slots = len(rows)
        self._last, self._mask = _left_padded([row.prompt for row in rows], loaded.chat.pad_id, self._model.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache = SlotCache(self._model.config)

    def read(self) -> list[_Row]:
        """Read the prompts and make the first token of each row; returns the rows that end with it."""
        out = self._model(
            input_ids=self._last,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._last = out.logits[:, -1].argmax(-1, keepdim=True)
        self._positions = self._positions[:, -1:] + 1
        return self._end_rows(self._last[:, 0].tolist())

    def step(self) -> list[_Row]:
        """One more token for each row; returns the rows that end with it."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(self._slots, 1)], dim=1)
        return self.read()

    def _end_rows(self, tokens: list[int]) -> list[_Row]:
        ended = []
        for slot, row in self.live.items():
            if tokens[slot] in self._stops:
                row.finish = "stop"
            else:
                row.made.append(tokens[slot])
                if len(row.made) < self._most:
                    continue
            ended.append(slot)
        if ended:  # an ended slot must not run past the last position of a learnt position table
            self._positions[ended] = 0
        return [self.live.pop(slot) for slot in ended]

    def joined(self, fresh: _Batch) -> _Batch:
        """This batch with the live rows of ``fresh`` in its free slots; ``fresh`` has no more columns than this."""
        if not fresh.live:
            return self
        self._forget_columns()
        rows = torch.tensor(list(fresh.live), device=self._mask.device)
        free = [slot for slot in range(self._slots) if slot not in self.live][: len(fresh.live)]
        slots = torch.tensor(free, device=self._mask.device)
        self._cache.put(slots, fresh._cache, rows)
        self._mask[slots] = pad(fresh._mask[rows], (self._mask.shape[1] - fresh._mask.shape[1], 0))
        self._positions[slots], self._last[slots] = fresh._positions[rows], fresh._last[rows]
        self.live |= dict(zip(free, fresh.live.values(), strict=True))
        return self

    def shrink(self) -> None:
        """Give up ended slots once they are a fair share; only when no row waits for them."""
        if not self.live or self._slots - len(self.live) < self._slots * _REFILL:
            return
        kept = torch.tensor(list(self.live), device=self._mask.device)
        self._cache.keep(kept)
        self._mask, self._positions, self._last = self._mask[kept], self._positions[kept], self._last[kept]
        self.live = dict(enumerate(self.live.values()))
        self._slots = len(self.live)
        self._forget_columns()

    def _forget_columns(self) -> None:
        """Drop the oldest columns that are padding in every live row."""
        used = self._mask[list(self.live)].any(0)
        columns = int(used.int().argmax())
        self._cache.drop(columns)
        self._mask = self._mask[:, columns:]


@torch.inference_mode()
def log_likelihoods(loaded: LoadedModel, rows: Sequence[Encoded], batch_size: int) -> list[tuple[float, int]]:
    """``(sum of log probabilities in nats, number of tokens)`` of each row's response tokens, in order."""
    check_context(loaded, rows, 0)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    out: dict[int, tuple[float, int]] = {}
    with evaluating(loaded.model):
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for index, value in zip(chunk, _likelihoods(loaded, [rows[i] for i in chunk]), strict=True):
                out[index] = value
    return [out[i] for i in range(len(rows))]


def _likelihoods(loaded: LoadedModel, rows: Sequence[Encoded]) -> list[tuple[float, int]]:
    model = loaded.model
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), loaded.chat.pad_id, dtype=torch.long)
    learnt = torch.zeros((len(rows), width), dtype=torch.bool)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, : len(row.ids)] = torch.tensor(row.ids)
        learnt[r, : len(row.ids)] = torch.tensor(row.response)
        mask[r, : len(row.ids)] = 1
    ids, learnt, mask = ids.to(model.device), learnt.to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    at = learnt[:, 1:]
    chosen = logits[at].float().log_softmax(-1).gather(-1, ids[:, 1:][at][:, None])[:, 0].double()
    sums = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    sums.index_add_(0, at.nonzero()[:, 0], chosen)
    return list(zip(sums.tolist(), at.sum(1).tolist(), strict=True))


def check_context(loaded: LoadedModel, rows: Sequence[Encoded], more: int) -> None:
    """Refuse rows that, with ``more`` tokens to come, are longer than the model's context.

    Raises:
        DataError: naming the first such row.
    """
    limit = context_length(loaded.model)
    for row in rows:
        if not row.ids:
            raise DataError(f"Row {row.id or '?'} is empty: got 0 tokens, expected at least 1.")
        if limit is not None and len(row.ids) + more > limit:
            wish = f" and {more} to generate" if more else ""
            raise DataError(
                f"Row {row.id or '?'} does not fit the model: got {len(row.ids)} tokens{wish}, expected at most "
                f"{limit} in all. Do: shorten the row, lower max_new_tokens, or use a model with a longer context."
            )


def context_length(model: Any) -> int | None:
    """Tokens the model was made for, where its configuration says."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def reading_limit(tokenizer: Any, model: Any) -> int | None:
    """Tokens that a sequence classifier reads: the least that its tokenizer and its configuration say, if any does."""
    from transformers.tokenization_utils_base import LARGE_INTEGER  # a tokenizer without a limit says more

    said = (tokenizer.model_max_length, context_length(model))
    return min((length for length in said if length is not None and 0 < length < LARGE_INTEGER), default=None)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off inside; as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
