"""What a model would say next at each digit of a result, while it reads the right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from holdfast.core.errors import DataError
from holdfast.data.batches import IGNORE, Encoded, collate
from holdfast.data.examples import Example
from holdfast.evaluation.judges.base import Sample
from holdfast.models.generate import evaluating
from holdfast.models.load import LoadedModel

_RESULT = re.compile(r"(?:= ?|#### ?)-?(\d+)")
"""A number behind an equals sign, or the last one of an answer."""


def counted(loaded: LoadedModel, example: Example) -> Encoded:
    """The row with its right answer, of which only the tokens that hold a digit of a result are marked.

    Raises:
        DataError: the answer holds no result.
    """
    spans = [found.span(1) for found in _RESULT.finditer(example.answer)]
    if not spans:
        raise DataError(
            f"Row {example.id!r} has no digits of a result: got the answer {example.answer!r:.80}, expected a number "
            "behind '=' or '####'. Do: take rows that have one."
        )
    row = loaded.chat.training(example)
    held = loaded.chat.answer_tokens(example)
    marks = [False] * len(row)
    for place, (first, last) in held.items():
        marks[place] = any(first < end and last > start for start, end in spans)
    return Encoded(row.id, row.ids, tuple(marks))


@torch.inference_mode()
def read_answers(
    loaded: LoadedModel, rows: Sequence[Example], batch_size: int, progress: Callable[[int], None] | None = None
) -> list[Sample]:
    """One sample a row, in order: the right answer, with the log-probability of each token that counts in it and 1
    where that token is the model's first choice.

    Raises:
        DataError: a row has no result.
    """
    marked = [counted(loaded, row) for row in rows]
    samples = []
    with evaluating(loaded.model):
        for start in range(0, len(rows), batch_size):
            part = marked[start : start + batch_size]
            scores = _scores(loaded, part)
            samples += [
                Sample(row, row.answer, "stop", own)
                for row, own in zip(rows[start : start + batch_size], scores, strict=True)
            ]
            if progress is not None:
                progress(len(part))
    return samples


def _scores(loaded: LoadedModel, rows: Sequence[Encoded]) -> list[tuple[tuple[float, int], ...]]:
    batch = collate(rows, loaded.chat.pad_id).to(loaded.model.device)
    logits = loaded.model(**batch.model_inputs()).logits[:, :-1]
    where = batch.labels[:, 1:] != IGNORE
    likely = logits[where].float().log_softmax(-1)
    right = batch.labels[:, 1:][where]
    own = likely.gather(-1, right[:, None])[:, 0].tolist()
    first = (likely.argmax(-1) == right).int().tolist()
    pairs = iter(zip(own, first, strict=True))
    return [tuple(next(pairs) for _ in range(sum(row.response[1:]))) for row in rows]
