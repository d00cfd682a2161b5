"""A filter that blocks data which surprises the model: random suffixes and control characters more than sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch

from holdfast.core.errors import DataError
from holdfast.data.batches import IGNORE, Encoded, collate
from holdfast.data.examples import Example
from holdfast.evaluation.attacks.defences import DEFENCES, PERPLEXITY, untrusted
from holdfast.evaluation.attacks.guard import Guard
from holdfast.models.generate import check_context
from holdfast.models.load import LoadedModel

WINDOW = 10
"""Tokens of a stretch."""


def build_guard(
    defence: str, loaded: LoadedModel, clean: Sequence[Example], false_positives: float, batch_size: int
) -> Guard:
    """The defence as a guard before this model.

    Args:
        clean: Unattacked validation rows, from which ``perplexity`` learns its threshold; others need none.
        false_positives: Share of clean rows that may be blocked.
    Raises:
        ConfigError: an unknown defence.
        DataError: too few clean rows for that share.
    """
    change = DEFENCES[defence].change
    if change is not None:
        return lambda rows: [change(row) for row in rows]
    limit = threshold(surprise(loaded, clean, batch_size), false_positives)

    def blocks(rows: Sequence[Example]) -> list[Example | None]:
        values = surprise(loaded, rows, batch_size)
        return [None if value > limit else row for row, value in zip(rows, values, strict=True)]

    return blocks


def threshold(values: Sequence[float], rate: float) -> float:
    """The smallest limit that a new clean row exceeds with a chance of at most ``rate``.

    It is the ``ceil((m + 1) (1 - rate))``-th smallest of ``m`` exchangeable values.

    Raises:
        DataError: there are too few for any limit to be known.
    Reference:
        Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World (2005), chapter 2.

    >>> threshold([float(i) for i in range(1, 100)], 0.05)
    95.0
    """
    place = math.ceil(round((len(values) + 1) * (1 - rate), 9))
    if place > len(values):
        raise DataError(
            f"Filter {PERPLEXITY} cannot keep false positives to {rate:g}: got {len(values)} clean validation rows, "
            f"expected at least {math.ceil(1 / rate) - 1}. Do: give cases with more validation rows, or raise "
            "false_positives."
        )
    return sorted(values)[place - 1]


def surprise(loaded: LoadedModel, rows: Sequence[Example], batch_size: int) -> list[float]:
    """Perplexity of the most surprising stretch of each row's data, read after the instruction; 1 where it has none."""
    encoded = [_data_only(loaded, row) for row in rows]
    check_context(loaded, encoded, 0)
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i].ids))
    found = [1.0] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for i, losses in zip(chunk, _losses(loaded, [encoded[i] for i in chunk]), strict=True):
                found[i] = math.exp(worst_window(losses, WINDOW))
    return found


def _data_only(loaded: LoadedModel, row: Example) -> Encoded:
    """The prompt with the tokens of its untrusted turn marked."""
    prompt, at = loaded.chat.prompt(row.messages, id=row.id), untrusted(row)
    first, last = (0, 0) if at is None else prompt.spans[at][1:]
    return Encoded(prompt.id, prompt.ids, tuple(first <= i < last for i in range(len(prompt.ids))))


def _losses(loaded: LoadedModel, rows: Sequence[Encoded]) -> list[list[float]]:
    """Negative log-likelihood in nats of each row's marked tokens."""
    batch = collate(list(rows), loaded.chat.pad_id).to(loaded.model.device)
    logits = loaded.model(**batch.model_inputs()).logits[:, :-1]
    labels = batch.labels[:, 1:]
    at = labels != IGNORE
    values = -logits[at].float().log_softmax(-1).gather(-1, labels[at][:, None])[:, 0]
    return [part.tolist() for part in torch.split(values.cpu(), at.sum(1).tolist())]


def worst_window(losses: Sequence[float], size: int) -> float:
    """The largest mean of ``size`` neighbours (of all, where there are fewer); 0 of nothing.

    >>> worst_window([1.0, 5.0, 3.0, 0.0], 2)
    4.0
    """
    if not losses:
        return 0.0
    size = min(size, len(losses))
    sums = [0.0, *accumulate(losses)]
    return max(sums[i + size] - sums[i] for i in range(len(losses) - size + 1)) / size
