"""A dense matrix back to a few factors, and what that loses. ``o`` out, ``i`` in, ``k`` columns of a sketch."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.layers.adapters import LowRank

OVERSAMPLING = 10
PASSES = 4


def truncated(M_oi: Tensor, rank: int, seed: int = 0) -> tuple[LowRank, float]:
    r"""The leading ``rank`` singular triples of a matrix, nearly: block power iteration on a random sketch.

    The error is exact for the factors that are returned. It exceeds the smallest possible one by the more the flatter
    the spectrum: by less than 1 % on merged deltas. Global random state is not touched.

    Args:
        M_oi: Float32.
        rank: At most this many; fewer where the matrix has fewer rows or columns.
        seed: Of the sketch.
    Returns:
        Balanced factors, and :math:`\|M - B A\|_F / \|M\|_F`, 0 for a zero matrix.
    Reference:
        Halko, Martinsson & Tropp, SIAM Review 53 (2011), algorithm 4.4.
    """
    width = min(rank + OVERSAMPLING, *M_oi.shape)
    sketch_ik = torch.randn(M_oi.shape[1], width, generator=torch.Generator().manual_seed(seed)).to(M_oi)
    Q_ik = torch.linalg.qr(sketch_ik).Q
    for _ in range(PASSES):
        Q_ok = torch.linalg.qr(M_oi @ Q_ik).Q
        Q_ik = torch.linalg.qr((Q_ok.T @ M_oi).T).Q
    U_ok, s_k, Vh_kk = torch.linalg.svd(M_oi @ Q_ik, full_matrices=False)
    root_r = s_k[:rank].sqrt()
    delta = LowRank(root_r[:, None] * (Vh_kk[:rank] @ Q_ik.T), U_ok[:, :rank] * root_r)
    return delta, _error(M_oi, delta)


def _error(M_oi: Tensor, delta: LowRank) -> float:
    """By blocks of rows: ``1 - sum s^2 / |M|^2`` would drown small errors in rounding."""
    whole = lost = 0.0
    for M_ni, B_nr in zip(torch.split(M_oi, 64), torch.split(delta.B, 64), strict=True):
        whole += float(M_ni.double().square().sum())
        lost += float((M_ni - B_nr @ delta.A).double().square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0
