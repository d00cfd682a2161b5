"""Does a scorer find noise that was planted? The area under the ROC curve, over tokens whose noise is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.core.sizes import PLANNING_ROWS
from holdfast.methods.token_weighting import scorers
from holdfast.methods.token_weighting.plan import LOOKED_AT, TokenWeightingPlan
from holdfast.methods.token_weighting.reference import look

if TYPE_CHECKING:
    from holdfast.data.batches import Encoded
    from holdfast.data.examples import Example
    from holdfast.models.chat import ChatFormat
    from holdfast.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Found:
    """What a plan says of planted noise."""

    auroc: float
    """Probability that a token which is none has the higher score; ties count half."""
    noise_weight: float
    """Mean weight of a token that is noise, where the mean of all tokens looked at is 1."""
    n_noise: int
    n_clean: int
    rows: int
    """Rows looked at: the first ones of those of which the noise is known."""


def noise_of(chat: ChatFormat, example: Example) -> list[bool]:
    """For each learnt token of a row, whether it holds a character of planted noise.

    Raises:
        DataError: the answer without noise is not as long as the one with it.
    """
    answer, clean = example.answer, example.without_noise
    if len(answer) != len(clean):
        raise DataError(
            f"The noise of row {example.id!r} cannot be placed: got {len(clean)} characters in 'without_noise', "
            f"expected {len(answer)} as in its answer. Do: replace characters one by one, or leave it empty."
        )
    held, row = chat.answer_tokens(example), chat.training(example)
    spans = [held.get(place, (0, 0)) for place in range(len(row))]
    return [answer[a:b] != clean[a:b] for (a, b), own in zip(spans[1:], row.response[1:], strict=True) if own]


def planted(made: TokenWeightingPlan, loaded: LoadedModel, rows: Sequence[Example]) -> Found | None:
    """How well the plan's scores tell noise from the rest, on ``rows``, which are those that were planned.

    Scores are those before a share is taken of them; of controls, and of scorers whose scores are weights, the weights
    themselves. Where they follow the model they are those of the model as it is.

    Returns:
        Nothing where no row says what it was without noise, nothing in them is noise, or all tokens weigh the same.
    Raises:
        DataError: the noise of a row cannot be placed.
    """
    known = [number for number, row in enumerate(rows) if row.without_noise][:LOOKED_AT]
    if made.config.base == "uniform" or not known:
        return None
    each = [loaded.chat.training(rows[number]) for number in known]
    noise_n = torch.tensor([mark for number in known for mark in noise_of(loaded.chat, rows[number])])
    if not bool(noise_n.any()) or bool(noise_n.all()):
        return None
    weight_n, score_n = _scores(made, loaded, known, each)
    measured_n = weight_n if made.config.is_control else score_n
    clean_n, other_n = (measured_n[mask].double().numpy() for mask in (~noise_n, noise_n))
    above = float(mannwhitneyu(clean_n, other_n, method="asymptotic").statistic)
    return Found(
        auroc=above / (len(clean_n) * len(other_n)),
        noise_weight=float(weight_n[noise_n].double().mean() / weight_n.double().mean()),
        n_noise=len(other_n),
        n_clean=len(clean_n),
        rows=len(known),
    )


def _scores(
    made: TokenWeightingPlan, loaded: LoadedModel, known: Sequence[int], rows: Sequence[Encoded]
) -> tuple[Tensor, Tensor]:
    """Weights of the tokens of some rows, and what they are made from."""
    if not made.config.follows:
        weight_n = torch.cat([made.row(number) for number in known]).float()
        return weight_n, weight_n
    base = made.config.base
    parts = [
        look(loaded, rows[at : at + PLANNING_ROWS], entropies=base == "entropy")
        for at in range(0, len(rows), PLANNING_ROWS)
    ]
    seen = scorers.Seen(
        torch.cat([loss for loss, _ in parts]),
        torch.cat([made.row(number) for number in known]).float() if len(made.values_n) else None,
        torch.cat([entropy for _, entropy in parts if entropy is not None]) if base == "entropy" else None,
    )
    score_n = scorers.FOLLOWING[base](seen)
    row_n = torch.arange(len(rows)).repeat_interleave(torch.tensor([sum(row.response[1:]) for row in rows]))
    return scorers.weigh(made.config, score_n, row_n, [made.keys[number] for number in known]).weight_n, score_n
