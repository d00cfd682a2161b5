"""Weighted sums of low-rank deltas from their factors alone: no core space, no matrix of the layer's size.

``sum_t c_t B_t A_t`` is ``[c_1 B_1 .. c_T B_T] [A_1; ..; A_T]``: its factors are those of the deltas side by side.

Letters in names: ``o`` out, ``i`` in, ``k`` the sum of all ranks, ``r`` the rank that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules.base import missing


def beside(deltas: Sequence[LowRank], coefficients: Sequence[float]) -> LowRank | None:
    """The exact sum with the factors of the deltas side by side, in their type, at least float32.

    Its rank is the sum of the ranks of the deltas that are not zero, also where they share directions. One delta with
    coefficient 1 comes back with the same bits.

    Returns:
        ``None`` where an entry could be beyond the range of numbers, as far as the norms of the factors tell.
    """
    dtype = reduce(torch.promote_types, [X.dtype for delta in deltas for X in (delta.A, delta.B)], torch.float32)
    most = torch.finfo(dtype).max
    parts, whole = [], 0.0
    for delta, coefficient in zip(deltas, coefficients, strict=True):
        A_ri, B_or = delta.A.to(dtype), delta.B.to(dtype)
        down, up = (float(torch.linalg.vector_norm(X, dtype=torch.float64)) for X in (A_ri, B_or))
        whole += down * up * abs(coefficient)
        if not (whole < most and up * abs(coefficient) < most):
            return None
        if down and up and coefficient:
            parts.append((A_ri, B_or * coefficient))
    if not parts:
        return missing(deltas[0].shape, LowRank(deltas[0].A.to(dtype), deltas[0].B.to(dtype)))
    return LowRank(torch.cat([A_ri for A_ri, _ in parts]), torch.cat([B_or for _, B_or in parts], dim=1))


def leading(delta: LowRank, rank: int) -> tuple[LowRank, float]:
    r"""The best approximation of a float32 delta by at most ``rank`` singular triples, from Gram matrices.

    With :math:`A A^\top = L L^\top` the matrix :math:`B L = U S V^\top` has the singular values and left singular
    vectors of ``B A``, and ``V`` and ``S^2`` come from :math:`L^\top B^\top B L`, which is ``(k, k)``. The result is
    :math:`U_r U_r^\top B A`. Gram matrices square the condition of the factors: in float64 they tell singular values
    down to about 1e-7 of the largest, what float32 factors are good for, and no less.

    Returns:
        Balanced factors, and the relative Frobenius norm of what was cut off.
    """
    A_ki, B_ok = delta.A.double(), delta.B.double()
    row_k = torch.linalg.vector_norm(A_ki, dim=1).clamp_(min=torch.finfo(torch.float64).tiny)
    A_ki, B_ok = A_ki / row_k[:, None], B_ok * row_k  # of one size each: a row's scale is not its weight in B A
    values_k, vectors_kk = torch.linalg.eigh(A_ki @ A_ki.T)
    L_kk = vectors_kk * values_k.clamp_(min=0).sqrt()
    G_kk = B_ok.T @ B_ok
    energy_k, V_kk = torch.linalg.eigh(L_kk.T @ G_kk @ L_kk)
    energy_k, V_kk = energy_k.flip(0).clamp_(min=0)[: min(delta.shape)], V_kk.flip(1)
    whole = float(energy_k.sum())
    noise = (len(values_k) * torch.finfo(delta.A.dtype).eps) ** 2 * energy_k[0]
    kept = min(rank, max(1, int((energy_k > noise).sum())))
    if whole == 0:
        return missing(delta.shape, delta), 0.0
    s_r, P_kr = energy_k[:kept].sqrt(), L_kk @ V_kk[:, :kept]  # U_r = B P / s
    B_or = (B_ok @ P_kr) * s_r.rsqrt()
    A_ri = (s_r**-1.5)[:, None] * ((P_kr.T @ G_kk) @ A_ki)
    lost = float(energy_k[rank:].sum() / whole) ** 0.5
    return LowRank(A_ri.to(delta.A.dtype), B_or.to(delta.B.dtype)), lost


def is_single(delta: LowRank) -> bool:
    """Whether both factors are float32, whose rounding `leading` stays below."""
    return delta.A.dtype == delta.B.dtype == torch.float32
