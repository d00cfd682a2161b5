"""Batched greedy decoding and answer likelihoods, the same as one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from holdfast.core.errors import DataError
from holdfast.data.batches import Encoded
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Completion:
    """One greedy answer. ``token_ids`` leaves out the stop token; ``finish`` says why it ended."""

    text: str
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"]


@dataclass(slots=True)
class _Row:
    index: int
    prompt: Encoded
    made: list[int] = field(default_factory=list)


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

    Rows are sorted by length, padded on the left, and leave the batch as they finish.

    Args:
        progress: Called with the number of rows that have just finished.
    Raises:
        DataError: a prompt and its answer do not fit the model's context; the message names the row.
    """
    check_context(loaded, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    done: dict[int, Completion] = {}
    was_training = loaded.model.training
    loaded.model.eval()
    for start in range(0, len(order), batch_size):
        rows = [_Row(i, prompts[i]) for i in order[start : start + batch_size]]
        for row, finish in _decode(loaded, rows, max_new_tokens, progress):
            done[row.index] = Completion(loaded.chat.decode(row.made), tuple(row.made), finish)
    loaded.model.train(was_training)
    return [done[i] for i in range(len(prompts))]


def _decode(
    loaded: LoadedModel, rows: list[_Row], max_new_tokens: int, progress: Callable[[int], None] | None
) -> list[tuple[_Row, Literal["stop", "length"]]]:
    model, stops = loaded.model, set(loaded.chat.stop_ids)
    inputs, mask = _left_padded([row.prompt.ids for row in rows], loaded.chat.pad_id, model.device)
    cache = DynamicCache(config=model.config)
    finished: list[tuple[_Row, Literal["stop", "length"]]] = []
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    while rows:
        out = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = out.logits[:, -1].argmax(-1)
        keep = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token in stops:
                finished.append((row, "stop"))
                continue
            row.made.append(token)
            if len(row.made) == max_new_tokens:
                finished.append((row, "length"))
            else:
                keep.append(place)
        if progress is not None and len(keep) < len(rows):
            progress(len(rows) - len(keep))
        positions = positions[:, -1:] + 1
        if len(keep) < len(rows):
            rows = [rows[place] for place in keep]
            kept = torch.tensor(keep, device=mask.device, dtype=torch.long)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            if rows:
                cache.batch_select_indices(kept)
        inputs = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return finished


@torch.inference_mode()
def log_likelihoods(loaded: LoadedModel, rows: Sequence[Encoded], batch_size: int) -> list[tuple[float, int]]:
    """``(sum of log probabilities in nats, number of tokens)`` of each row's response tokens, in order."""
    check_context(loaded, rows, 0)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    out: dict[int, tuple[float, int]] = {}
    was_training = loaded.model.training
    loaded.model.eval()
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for index, value in zip(chunk, _likelihoods(loaded, [rows[i] for i in chunk]), strict=True):
            out[index] = value
    loaded.model.train(was_training)
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


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
