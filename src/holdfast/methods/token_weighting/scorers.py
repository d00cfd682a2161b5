"""Scores to weights: one table of scorers, then selection, normalisation and controls, the same for all.

Every tensor has one number a learnt token, rows one after the other; letters in names as in `maths`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.methods.token_weighting import maths
from holdfast.methods.token_weighting.config import TokenWeightingConfig


@dataclass(frozen=True, slots=True)
class Seen:
    """What scores are made of; what a scorer does not read may be absent."""

    loss_n: Tensor
    """Of the model that is trained, without a gradient."""
    reference_n: Tensor | None = None
    entropy_n: Tensor | None = None


def _rho1(seen: Seen) -> Tensor:
    assert seen.reference_n is not None
    return maths.excess(seen.loss_n, seen.reference_n)


def _entropy(seen: Seen) -> Tensor:
    assert seen.entropy_n is not None
    return seen.entropy_n


FOLLOWING: dict[str, Callable[[Seen], Tensor]] = {
    "rho1": _rho1,
    "entropy": _entropy,
    "dft": lambda seen: maths.own_probability(seen.loss_n),
}
"""Scores that follow the model, by the name of the scorer."""


def weigh(config: TokenWeightingConfig, score_n: Tensor, row_n: Tensor, keys: Sequence[bytes]) -> maths.Weights:
    """The weights of tokens from their scores: selection, mean 1, bounds, mean 1, then a control.

    Rows of one key are one row that stands there several times: scored once, and kept or left out together, though a
    share would end between them.

    Args:
        row_n: The number of each token's row, ascending.
        keys: Of every row, from which a control draws: the same for a row wherever it stands.
    """
    unit_n = row_n if config.unit == "sequence" else torch.zeros_like(row_n)
    first_n = _firsts(row_n, keys)
    score_n = score_n.detach()[first_n]
    if not config.selects:
        raw_n = score_n
    elif config.soft is None:
        raw_n = maths.top_share(score_n, unit_n, config.keep)[first_n]
    else:
        raw_n = maths.soft_share(score_n, unit_n, config.soft)
    made = maths.bounded(raw_n, unit_n, config.clip)
    if config.scorer == "shuffled":
        order_n = _orders(row_n, keys, config.seed).to(row_n.device)
        return maths.Weights(made.weight_n[order_n], made.clipped_n[order_n])
    if config.scorer == "random_matched":
        normal_n = _normals(row_n, keys, config.seed).to(score_n)
        drawn_n = maths.matched_weights(normal_n, unit_n, maths.spread(made.weight_n, unit_n), config.clip)
        return maths.Weights(drawn_n, torch.zeros_like(made.clipped_n))
    return made


def _firsts(row_n: Tensor, keys: Sequence[bytes]) -> Tensor:
    """The place of each token, in the first row with the key of its own row."""
    first: dict[bytes, int] = {}
    same_r = torch.tensor([first.setdefault(key, row) for row, key in enumerate(keys)], dtype=torch.long)
    same_r = same_r.to(row_n.device)
    size_r = row_n.bincount(minlength=len(keys))
    start_r = size_r.cumsum(0) - size_r
    return torch.arange(len(row_n), device=row_n.device) + (start_r[same_r] - start_r)[row_n]


def _dice(seed: int, key: bytes) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(f"{seed}/".encode() + key).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def _orders(row_n: Tensor, keys: Sequence[bytes], seed: int) -> Tensor:
    """A permutation of the tokens that keeps each in its row."""
    parts, first = [], 0
    for row, size in enumerate(row_n.bincount().tolist()):
        parts.append(first + torch.randperm(size, generator=_dice(seed, keys[row])))
        first += size
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _normals(row_n: Tensor, keys: Sequence[bytes], seed: int) -> Tensor:
    """Standard normal draws."""
    sizes = enumerate(row_n.bincount().tolist())
    parts = [torch.randn(size, generator=_dice(seed, keys[row])) for row, size in sizes]
    return torch.cat(parts) if parts else torch.empty(0)
