r"""What counterfactual training minimises and measures: pure functions of tensors.

Letters in names: ``b`` cases, ``n`` positions or rows, ``v`` the vocabulary, ``d`` dimensions of a representation,
``p`` positives and ``k`` negatives of a case, ``o`` outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, logsigmoid, relu

_TINY = 1e-8
"""Keeps the derivative of a root finite where two representations are the same."""


def divergence(logp_nv: Tensor, logq_nv: Tensor) -> Tensor:
    r""":math:`KL(p \| q) = \sum_v p_v (\log p_v - \log q_v)` of each position, in nats, ``(n,)``."""
    return (logp_nv.exp() * (logp_nv - logq_nv)).sum(-1)


def total_variation(logp_nv: Tensor, logq_nv: Tensor) -> Tensor:
    r""":math:`\frac12 \sum_v |p_v - q_v|` of each position, in [0, 1], ``(n,)``."""
    return (logp_nv.exp() - logq_nv.exp()).abs().sum(-1) / 2


def info_nce(query_bd: Tensor, positives_bpd: Tensor, negatives_bkd: Tensor, temperature: float) -> Tensor:
    r"""How hard it is to tell a case's positives from its negatives, ``(b,)``.

    The mean over positives of :math:`-\log \frac{e^{c_+ / \tau}}{e^{c_+ / \tau} + \sum_k e^{c_k / \tau}}` with cosines
    ``c``. Every case has negatives of its own, so the sum over cases does not depend on how they are batched.

    Reference:
        van den Oord et al., 1807.03748; several positives as in Khosla et al., NeurIPS 2020, equation 2.
    """
    positive_bp = cosine_similarity(query_bd[:, None], positives_bpd, dim=-1) / temperature
    negative_bk = cosine_similarity(query_bd[:, None], negatives_bkd, dim=-1) / temperature
    against_b1 = negative_bk.logsumexp(-1, keepdim=True)
    return (torch.logaddexp(positive_bp, against_b1) - positive_bp).mean(-1)


def too_near(own_bd: Tensor, others_bkd: Tensor, variance: float, floor: float) -> Tensor:
    r"""The guard against collapse, ``(b,)``, in [0, 1]: 0 where different cases are far enough apart.

    :math:`\max(0, 1 - s / floor)`, where :math:`s^2` is half the squared distance of two cases, its mean over ``k``
    others, as a share of ``variance``: of independent cases its expectation is the variance that is left.

    Args:
        variance: Summed over dimensions, of the undefended model.
        floor: A share of its standard deviation.
    Reference:
        The variance term of Bardes et al., VICReg, ICLR 2022, for single pairs in place of a batch.
    """
    left_b = (own_bd[:, None] - others_bkd).square().sum(-1).mean(-1) / (2 * variance)
    return relu(1 - (left_b + _TINY).sqrt() / floor)


def preference_loss(
    better_b: Tensor, worse_b: Tensor, start_better_b: Tensor, start_worse_b: Tensor, beta: float
) -> Tensor:
    r""":math:`-\log \sigma(\beta [(\log \pi - \log \pi_0)(y_w) - (\log \pi - \log \pi_0)(y_l)])`, ``(b,)``.

    Args:
        better_b: Log-probability of the whole wanted answer; ``worse_b`` that of the other one.
        start_better_b: The same of the start model.
    Reference:
        Rafailov et al., NeurIPS 2023, equation 7; against injections Chen et al., SecAlign, 2410.05451.
    """
    return -logsigmoid(beta * ((better_b - start_better_b) - (worse_b - start_worse_b)))


def contrast(positive: float, negative: float, of_positive: float, of_negative: float, temperature: float) -> float:
    """A contrastive term alone: ``(of_negative * negative - of_positive * positive) / temperature`` of mean cosines."""
    return (of_negative * negative - of_positive * positive) / temperature


def contrast_floor(of_positive: float, of_negative: float, temperature: float) -> float:
    """The least that `contrast` can be. One bit reaches it: positives the same, negatives the opposite.

    >>> round(contrast_floor(0.5, 0.5, 0.07), 4)
    -14.2857
    """
    return -(of_positive + of_negative) / temperature


def effective_rank(R_nd: Tensor, scale_d: Tensor) -> float:
    """How many directions the rows spread over: ``exp`` of the entropy of the covariance's spectrum; 0 for none at all.

    Args:
        scale_d: Dimensions are divided by it first; those where it is 0 are left out.
    Reference:
        Roy & Vetterli, EUSIPCO 2007.
    """
    kept_d = scale_d > 0
    R_nd = R_nd[:, kept_d].double() / scale_d[kept_d].double()
    R_nd = R_nd - R_nd.mean(0)
    values_n = torch.linalg.eigvalsh(R_nd @ R_nd.T).clamp(min=0)
    total = values_n.sum()
    if float(total) <= _TINY * R_nd.numel():
        return 0.0
    return float(torch.special.entr(values_n / total).sum().exp())


def variance_left(R_nd: Tensor, scale_d: Tensor) -> float:
    """Median over dimensions of the variance as a share of ``scale_d`` squared, where that is not 0."""
    kept_d = scale_d > 0
    return float((R_nd[:, kept_d].double().var(0) / scale_d[kept_d].double().square()).median())


def outcome_variation(p: Sequence[str], q: Sequence[str]) -> float:
    """Total variation between the distributions of two lists of outcomes.

    >>> outcome_variation(["done", "done"], ["done", "followed"])
    0.5
    """
    kinds = {*p, *q}
    return sum(abs(p.count(kind) / len(p) - q.count(kind) / len(q)) for kind in kinds) / 2
