r"""Merges that know what each adapter's data needs: pure functions of core coordinates.

Letters in names: ``t`` adapters, ``d`` core coordinates of one layer, which are the entries of its ``M_pq`` row by
row; ``p`` outputs and ``q`` inputs of the core space; ``n`` samples; ``c`` some of the coordinates or outputs; ``k``
kept directions. Everything is computed in float64.

A Fisher matrix says how fast the loss on an adapter's own rows grows around that adapter. The merge that loses least
on all of these quadratic models is their weighted mean,
:math:`\phi = (\sum w_t F_t)^{-1} \sum w_t F_t \phi_t`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import Directions, damped_cholesky, mean_energy, solve_sampled, symmetric
from holdfast.curvature.iterative import conjugate_gradients
from holdfast.curvature.subspaces import oblique, soft_weights

STEPS = 5000
"""Products at most when a mean is found by conjugate gradients."""
COLUMNS = 1024
"""Coordinates of the samples that are in float64 at a time: few, as memory of tens of megabytes is not given back."""


def damped(F_dd: Tensor, damping: float) -> Tensor:
    """``F + eps I`` in float64, ``eps = damping * trace(F) / d``."""
    wide_dd = F_dd.double()
    eps = damping * wide_dd.diagonal().mean()
    return wide_dd + eps * torch.eye(len(wide_dd), dtype=wide_dd.dtype, device=wide_dd.device)


def quadratic_mean(F_tdd: Tensor, phi_td: Tensor, weights_t: Tensor, damping: float, name: str = "a layer") -> Tensor:
    r"""The point of least total loss under quadratic models with full Fisher matrices.

    Solves :math:`\sum w_t (F_t + \epsilon_t I)\, \phi = \sum w_t (F_t + \epsilon_t I)\, \phi_t`. For two adapters it
    mixes each direction of the generalized eigenproblem :math:`F_2 v = \lambda F_1 v` by
    :math:`w \lambda / (1 + w \lambda)` with :math:`w = w_2 / w_1`: a soft choice of directions.

    Args:
        F_tdd: Symmetric, positive semi-definite, ``(t, d, d)``.
        phi_td: ``(t, d)``; or ``(t, d, m)``, ``m`` points with the same matrices.
        weights_t: At least 0, one of them more.
        damping: Relative to each matrix' own mean eigenvalue.
        name: What the matrices are of, for messages.
    Returns:
        ``phi_d``, or ``phi_dm``, in float64.
    Raises:
        NumericsError: the sum is not positive definite beyond the rounding of the type of ``F_tdd``.
    Reference:
        Matena & Raffel, Merging models with Fisher-weighted averaging (NeurIPS 2022), with full matrices; Tam et al.,
        Merging by matching models in task parameter subspaces (TMLR 2024).
    """
    weights_t = weights_t.double().to(F_tdd.device)
    whole_dd = torch.zeros_like(F_tdd[0], dtype=torch.double)
    wanted_d = torch.zeros_like(phi_td[0], dtype=torch.double)
    for weight, F_dd, phi_d in zip(weights_t, F_tdd, phi_td, strict=True):
        if weight == 0:
            continue
        weighted_dd, wide_d = weight * F_dd.double(), phi_d.double()
        whole_dd += weighted_dd
        wanted_d += weighted_dd @ wide_d + damping * weighted_dd.diagonal().mean() * wide_d
    what = f"weighted sum of the Fisher matrices of {name}"
    unit, noise = mean_energy(float(whole_dd.trace()), len(whole_dd), what), torch.finfo(F_tdd.dtype).eps
    factor_dd = damped_cholesky(whole_dd, damping=damping, unit=unit, noise=noise, name=what)
    return torch.cholesky_solve(wanted_d.reshape(len(wanted_d), -1), factor_dd).reshape(wanted_d.shape)


def diagonal_mean(F_td: Tensor, phi_td: Tensor, weights_t: Tensor, damping: float, name: str = "a layer") -> Tensor:
    """`quadratic_mean` with diagonal matrices: Fisher merging.

    Args:
        F_td: Diagonals, ``(t, d)``.
    Raises:
        NumericsError: a coordinate has no evidence at all.
    Reference:
        Matena & Raffel, Merging models with Fisher-weighted averaging (NeurIPS 2022).
    """
    wide_td = F_td.double()
    weighted_td = weights_t.double().to(F_td.device)[:, None] * (wide_td + damping * wide_td.mean(1, keepdim=True))
    whole_d = weighted_td.sum(0)
    if not bool((whole_d > 0).all()):
        raise NumericsError(
            f"Fisher diagonals of {name} do not decide the merge: got 0 for {int((whole_d <= 0).sum())} of "
            f"{len(whole_d)} coordinates with damping {damping:g}, expected more. Do: raise damping."
        )
    return (weighted_td * phi_td.double()).sum(0) / whole_d


def side_by_side(G_tnd: Sequence[Tensor], width: int) -> Iterator[tuple[int, Tensor]]:
    """The samples of all adapters in float64, ``width`` coordinates at a time: the first one's number, and ``G_nc``."""
    for left in range(0, G_tnd[0].shape[1], width):
        yield left, torch.cat([G_nd[:, left : left + width] for G_nd in G_tnd]).double()


def of_samples(G_tnd: Sequence[Tensor]) -> Tensor:
    """The number of the adapter whose sample each is, ``(n,)``."""
    sizes_t = torch.tensor([len(G_nd) for G_nd in G_tnd], device=G_tnd[0].device)
    return torch.repeat_interleave(torch.arange(len(sizes_t), device=sizes_t.device), sizes_t)


def block_mean(
    G_tnd: Sequence[Tensor], M_tpq: Tensor, weights_t: Tensor, damping: float, name: str = "a layer"
) -> Tensor:
    """`quadratic_mean` of each core output by itself: Fisher matrices with a block for each row of ``M``.

    A few outputs are looked at together, so that memory is that of `COLUMNS` coordinates of the samples and of their
    blocks, whatever ``p`` is.

    Args:
        G_tnd: Per-sample gradients of each adapter's rows, ``(n, d)``; damping is relative to the mean eigenvalue of
            all of an adapter's blocks.
    Returns:
        ``M_pq`` in float64.
    Raises:
        NumericsError: a block is not positive definite.
    """
    (p, q), of_n = M_tpq.shape[1:], of_samples(G_tnd)
    weights_t, wide_tpq = weights_t.double().to(M_tpq.device), M_tpq.double()
    energy_t = torch.stack([torch.linalg.vector_norm(G_nd, dim=1).double().square().sum() for G_nd in G_tnd])
    floor_t = weights_t * damping * energy_t / torch.tensor([G_nd.numel() for G_nd in G_tnd], device=M_tpq.device)
    w_n = (weights_t / torch.bincount(of_n, minlength=len(weights_t)))[of_n]
    damping_qq = floor_t.sum() * torch.eye(q, dtype=torch.double, device=M_tpq.device)
    merged, failed = [], 0
    for left, G_nc in side_by_side(G_tnd, max(1, COLUMNS // q) * q):
        G_cnq = G_nc.reshape(len(G_nc), -1, q).transpose(0, 1)
        own_tcq = wide_tpq[:, left // q : left // q + len(G_cnq)]
        asks_cnt = G_cnq @ own_tcq.permute(1, 2, 0)
        asks_cn1 = asks_cnt.gather(2, of_n[None, :, None].expand(len(G_cnq), -1, 1))
        weighted_cqn = (w_n[:, None] * G_cnq).mT
        wanted_cq1 = weighted_cqn @ asks_cn1 + torch.einsum("t,tcq->cq", floor_t, own_tcq)[:, :, None]
        factors_cqq, bad_c = torch.linalg.cholesky_ex(weighted_cqn @ G_cnq + damping_qq)
        failed += int((bad_c > 0).sum())
        merged.append(torch.cholesky_solve(wanted_cq1, factors_cqq)[:, :, 0])
    if failed:
        raise NumericsError(
            f"Fisher blocks of {name} do not decide the merge: {failed} of {p} are not positive definite with damping "
            f"{damping:g}. Do: raise damping, or give more rows."
        )
    return torch.cat(merged)


def kronecker_mean(
    factors: Sequence[tuple[Tensor, Tensor]], M_tpq: Tensor, weights_t: Tensor, damping: float, name: str = "a layer"
) -> Tensor:
    """`quadratic_mean` with Fisher matrices ``G (x) A``, by conjugate gradients.

    Args:
        factors: ``A_qq`` and ``G_pp`` of each adapter.
    Returns:
        ``M_pq`` in float64.
    Raises:
        NumericsError: no evidence, or no convergence.
    Reference:
        Tam et al., Merging by matching models in task parameter subspaces (TMLR 2024).
    """
    wide = [(A_qq.double(), G_pp.double()) for A_qq, G_pp in factors]
    eps = [damping * float(A.diagonal().mean() * G.diagonal().mean()) for A, G in wide]
    weights = [float(weight) for weight in weights_t]

    def weighted(t: int, M_pq: Tensor) -> Tensor:
        A_qq, G_pp = wide[t]
        return weights[t] * (G_pp @ M_pq @ A_qq + eps[t] * M_pq)

    def whole(M_d: Tensor) -> Tensor:
        M_pq = M_d.reshape(M_tpq.shape[1:])
        return sum((weighted(t, M_pq) for t in range(len(wide))), torch.zeros_like(M_pq)).reshape(M_d.shape)

    wanted_pq = sum((weighted(t, M_pq.double()) for t, M_pq in enumerate(M_tpq)), torch.zeros(()))
    diagonal_pq = sum(
        (
            weight * (torch.outer(G.diagonal(), A.diagonal()) + e)
            for weight, (A, G), e in zip(weights, wide, eps, strict=True)
        ),
        torch.zeros(()),
    )
    if not bool((diagonal_pq > 0).all()):
        raise NumericsError(
            f"Fisher matrices of {name} do not decide the merge: got 0 or less for {int((diagonal_pq <= 0).sum())} of "
            f"{diagonal_pq.numel()} coordinates, expected more. Do: raise damping, or give rows with gradients."
        )
    diagonal_d = diagonal_pq.reshape(-1)
    found_d = conjugate_gradients(
        whole, wanted_pq.reshape(-1), steps=STEPS, precondition=lambda v_d: v_d / diagonal_d.to(v_d)
    )
    return found_d.reshape(M_tpq.shape[1:])


def input_mean(A_tqq: Tensor, M_tpq: Tensor, weights_t: Tensor, damping: float, name: str = "a layer") -> Tensor:
    r"""The merge whose outputs are nearest to each adapter's on its own inputs: RegMean in core coordinates.

    :math:`M = (\sum w_t M_t A_t)(\sum w_t A_t)^{-1}`. RegMean proper uses all inputs of the layer; here the merged
    delta stays in the core space, and this is its best one there.

    Args:
        A_tqq: Second moments of the layer's inputs in core coordinates, ``(t, q, q)``.
    Returns:
        ``M_pq`` in float64.
    Raises:
        NumericsError: the inputs leave a direction without evidence.
    Reference:
        Jin et al., Dataless knowledge fusion by merging weights of language models (ICLR 2023); its shrinking of
        off-diagonal entries is replaced by damping.
    """
    return quadratic_mean(A_tqq, M_tpq.mT, weights_t, damping, name).mT


def projected(
    G_sd: Tensor,
    F_u: Tensor,
    phi_d: Tensor,
    damping: float,
    keep: Callable[[Directions, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """The part of a safety update in chosen directions, oblique in the damped utility Fisher.

    Args:
        G_sd: Per-sample gradients of safety rows, whose second moment is the safety Fisher.
        F_u: Utility Fisher, ``(d, d)``.
        phi_d: The safety update.
        keep: From all directions that safety uses and the damped ``F_u`` to the kept ones, orthonormal in it, and their
            weights.
    Returns:
        ``phi_d`` in float64.
    """
    name = "utility Fisher"
    wide_dd, S_nd = symmetric(F_u.double(), name), G_sd.double() / len(G_sd) ** 0.5
    unit = mean_energy(float(wide_dd.trace()), len(wide_dd), name)
    found = solve_sampled(S_nd, wide_dd, damping=damping, unit=unit, noise=torch.finfo(F_u.dtype).eps, name=name)
    B_dd = damped(F_u, damping)
    vectors_dk, weights_k = keep(found, B_dd)
    return oblique(vectors_dk, B_dd, phi_d.double(), weights_k)


def first(k: int, found: Directions, B_dd: Tensor) -> tuple[Tensor, Tensor]:
    """The ``k`` directions of most safety per utility."""
    return found.vectors_dk[:, :k], torch.ones(k, dtype=torch.double, device=B_dd.device)


def soft(tau: float, found: Directions, B_dd: Tensor) -> tuple[Tensor, Tensor]:
    """All directions, each by ``lambda / (lambda + tau)``."""
    return found.vectors_dk, soft_weights(found.values_k, tau)


def drawn(k: int, seed: int, found: Directions, B_dd: Tensor) -> tuple[Tensor, Tensor]:
    """``k`` random directions, orthonormal in ``B``: a control."""
    generator = torch.Generator().manual_seed(seed)
    X_dk = torch.randn(len(B_dd), k, generator=generator, dtype=torch.double).to(B_dd.device)
    L_kk = torch.linalg.cholesky(X_dk.T @ B_dd @ X_dk)
    V_kd = torch.linalg.solve_triangular(L_kk, X_dk.T, upper=False)
    return V_kd.T, torch.ones(k, dtype=torch.double, device=B_dd.device)


def most_used(k: int, found: Directions, B_dd: Tensor) -> tuple[Tensor, Tensor]:
    """The ``k`` eigenvectors of largest utility Fisher, orthonormal in it: a control."""
    values_d, vectors_dd = torch.linalg.eigh(B_dd)
    return vectors_dd[:, -k:] / values_d[-k:].sqrt(), torch.ones(k, dtype=torch.double, device=B_dd.device)
