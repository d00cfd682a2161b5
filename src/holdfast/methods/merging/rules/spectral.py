"""Rules that work on singular vectors, in core space.

Letters in names: ``t`` adapters, ``p`` and ``q`` core coordinates, ``k`` singular values.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.methods.merging.rules.base import RuleSettings
from holdfast.methods.merging.rules.dense import elected
from holdfast.methods.merging.rules.linear import weighted_sum


def core_space_ties(M_tpq: Tensor, weights_t: Tensor, settings: RuleSettings) -> Tensor:
    """TIES, as its paper has it, on core coordinates, whose axes are the deltas' common singular vectors.

    Of each adapter's ``p q`` coordinates the ``int(density p q)`` largest are kept.
    """
    assert settings.density is not None
    kept = int(settings.density * M_tpq[0].numel())
    thinned = []
    for M_pq in M_tpq:
        size_pq = M_pq.abs()
        least = size_pq.flatten().topk(kept).values[-1] if kept else torch.inf
        thinned.append(M_pq * (size_pq >= least))
    return elected(divide=("paper",))(thinned, weights_t.tolist(), replace(settings, semantics="paper"))


def tsv(M_tpq: Tensor, weights_t: Tensor, settings: RuleSettings) -> Tensor:
    r"""The singular vectors of all adapters are made orthogonal to each other before they add up.

    With :math:`M_t = U_t S_t V_t^\top`, :math:`U = [U_1 .. U_T]` and :math:`V` alike, it gives
    :math:`U_\perp \mathrm{diag}(w_t S_t) V_\perp^\top`, where :math:`U_\perp` is the orthogonal matrix nearest to
    ``U``, its polar factor. Where adapters share directions ``U`` is short of rank, and so is its polar factor.

    The paper keeps ``min(o, i) / T`` singular values of each; low-rank adapters have fewer, so here all are kept.
    """
    parts = []
    for M_pq, weight in zip(M_tpq, weights_t, strict=True):
        U_pk, s_k, Vh_kq = torch.linalg.svd(M_pq, full_matrices=False)
        used = _used(s_k, M_pq)
        parts.append((U_pk[:, :used], weight * s_k[:used], Vh_kq[:used]))
    U_pk, s_k, V_qk = (torch.cat([part[n] if n < 2 else part[n].T for part in parts], -1) for n in range(3))
    return (_polar(U_pk) * s_k) @ _polar(V_qk).T


def _polar(X_pk: Tensor) -> Tensor:
    """The nearest matrix whose singular values are 1, or 0 where those of ``X`` are."""
    U_pk, s_k, Vh_kk = torch.linalg.svd(X_pk, full_matrices=False)
    used = _used(s_k, X_pk)
    nearest_pk: Tensor = U_pk[:, :used] @ Vh_kk[:used]
    return nearest_pk


def _used(s_k: Tensor, X: Tensor) -> int:
    """How many singular values stand out of the rounding of float32, in which adapters are kept."""
    slack = max(X.shape) * torch.finfo(torch.float32).eps
    return int((s_k > slack * s_k.max()).sum()) if s_k.numel() else 0


def isotropic(M_pq: Tensor, rank: int | None) -> tuple[Tensor, float]:
    """All singular values become their mean; the leading ``rank`` directions are kept (Iso-C).

    The mean is over the singular values that are not 0: at most ``min(p, q)``, the dimensions that the adapters span.
    Over all ``min(o, i)`` of the layer, as for full fine-tuning, it would be near 0 and spread over noise.

    Returns:
        The flat matrix, ``(p, q)``, and the relative Frobenius norm of the directions that ``rank`` cuts off.
    """
    U_pk, s_k, Vh_kq = torch.linalg.svd(M_pq, full_matrices=False)
    used = _used(s_k, M_pq)
    if used == 0:
        return torch.zeros_like(M_pq), 0.0
    kept = used if rank is None else min(rank, used)
    flat_pq: Tensor = s_k[:used].mean() * (U_pk[:, :kept] @ Vh_kq[:kept])
    return flat_pq, (1 - kept / used) ** 0.5


def safe_merge(M_tpq: Tensor, weights_t: Tensor, settings: RuleSettings) -> Tensor:
    r"""The utility delta as it is where it lies along the safety delta, a weighted sum of both elsewhere.

    Along means :math:`\cos(P M_u, M_u) = \|P M_u\| / \|M_u\| \ge \tau`, with ``P`` the orthogonal projector on the
    columns of the safety delta ``M_s``: the exact form of Safe LoRA's projection. SafeMERGE's own code uses
    ``M_s M_s^T / |M_s|`` in its place, and takes the aligned minus the base model for ``M_s``. A layer that the utility
    adapter does not touch, or the safety adapter does not, has cosine 0.
    """
    utility_pq, safety_pq = M_tpq[0], M_tpq[1]
    U_pk, s_k, _ = torch.linalg.svd(safety_pq, full_matrices=False)
    size = utility_pq.norm()
    along = (U_pk[:, : _used(s_k, safety_pq)].T @ utility_pq).norm()
    safe = bool(size > 0) and float(along / size) >= settings.tau
    return utility_pq.clone() if safe else weighted_sum(M_tpq, weights_t, settings)
