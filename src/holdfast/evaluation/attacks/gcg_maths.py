"""Greedy coordinate gradient: which tokens to try next.

Suffixes: ``l`` place in the suffix, ``v`` token of the vocabulary, ``d`` embedding, ``b`` candidate, ``t`` token of a
prompt, ``k`` token of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot_gradient(gradient_ld: Tensor, table_vd: Tensor) -> Tensor:
    """Gradient of the loss by the one-hot rows that choose the suffix's tokens, ``(l, v)``.

    An embedding is ``onehot @ table``, so by the chain rule its gradient comes through the table.
    """
    return gradient_ld @ table_vd.T


def substitutions(
    slopes_lv: Tensor, allowed_v: Tensor, suffix_l: Tensor, *, candidates: int, width: int, generator: torch.Generator
) -> Tensor:
    """Suffixes with one token changed, ``(b, l)`` with at most ``width`` different rows.

    The place is drawn evenly, its new token evenly from the ``candidates`` allowed ones of the steepest descent.

    Reference:
        Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models (arXiv 2307.15043),
        algorithm 1.
    """
    barred = slopes_lv.masked_fill(~allowed_v, torch.inf)
    barred.scatter_(1, suffix_l[:, None], torch.inf)
    most = min(candidates, int(allowed_v.sum()) - 1)
    steepest_lk = barred.topk(most, dim=1, largest=False).indices
    place_b = torch.randint(len(suffix_l), (width,), generator=generator)
    rank_b = torch.randint(most, (width,), generator=generator)
    fresh_bl = suffix_l.repeat(width, 1)
    fresh_bl[torch.arange(width), place_b] = steepest_lk[place_b, rank_b]
    distinct_bl: Tensor = torch.unique(fresh_bl, dim=0)
    return distinct_bl


def target_loss(logits_bkv: Tensor, target_k: Tensor) -> Tensor:
    """Mean negative log-likelihood of the target in nats, ``(b,)``; ``logits`` stand where each token is predicted."""
    logp = logits_bkv.log_softmax(-1)
    said_bk: Tensor = logp.gather(-1, target_k.expand(len(logp), -1)[..., None])[..., 0]
    return -said_bk.mean(-1)
