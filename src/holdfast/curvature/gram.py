r"""Two Fisher matrices in any number of coordinates, through the inner products of their samples. Pure functions.

A Fisher of ``n`` samples is :math:`F = G^T \mathrm{diag}(w) G` with a sample's gradient in each **row** of ``G_nd``. It
acts only in the span of those rows, so what is asked of it is answered exactly by ``K = G G^T``, which is ``(n, n)``
and a sum over layers: memory is that and the gradients of one layer. What comes back are coefficients of the samples,
``v = G^T alpha``, again a layer at a time.

`inner_products` sums ``K`` in float64: its small eigenvalues are the ones that tell directions apart.

Outside the span both matrices are zero: nothing was measured there, and no ratio is defined. Such directions have
no row in the answers; `gram_oblique` and `gram_solve` say what becomes of an update's part there.

Letters in names: ``n`` samples, safety's (``s``) before utility's (``u``); ``d`` coordinates, ``c`` as many of them as
are multiplied at once; ``r`` the rank of ``K``; ``k`` directions, as many as ``r``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, NumericsError, did_you_mean
from holdfast.curvature.gevp import damped_cholesky, mean_energy, signs, solve_damped, symmetric

Outside = Literal["keep", "drop", "scale"]
"""What becomes of the part of an update outside the span of the samples.

``keep`` it as it is: no sample speaks against it, and with far fewer samples than coordinates it is most of the update.
``drop`` it: only what was measured goes in. ``scale`` it as the part inside was scaled on average.
"""
_DOUBLE = torch.finfo(torch.float64).eps
_ROWS, _COLUMNS = 96, 2048
"""The tile in which `inner_products` multiplies."""


@dataclass(frozen=True)
class GramDirections:
    """Solutions of ``F_s v = lambda (F_u + eps I) v`` in the span of the samples, in float64."""

    values_k: Tensor
    """Descending."""
    alpha_nk: Tensor
    """Coefficients: ``V = G^T alpha`` with ``V^T (F_u + eps I) V = I``."""
    dual_nk: Tensor
    """Coefficients of ``(F_u + eps I) V = G^T dual``: an update has the coordinates ``dual^T (G phi)``."""
    eps: float
    """What was added to the diagonal of ``F_u``."""


def inner_products(layers: Iterable[Tensor]) -> Tensor:
    """``K = G G^T`` over all layers, in float64 and exactly symmetric.

    Products are in float64 too, a few thousand coordinates at a time, and only for one half of ``K``.

    Args:
        layers: Each layer's gradients, ``(n, d_layer)``, one sample in each row, in the same order; taken one by one.
    Raises:
        NumericsError: No layer, a layer with another number of samples, or a gradient that is not finite.
    """
    K_nn = wide_nc = torch.zeros(0, 0)
    for number, G_nd in enumerate(layers):
        if number == 0:
            K_nn = torch.zeros(len(G_nd), len(G_nd), dtype=torch.float64, device=G_nd.device)
            wide_nc = K_nn.new_empty(len(G_nd), _COLUMNS)  # written over and over: fresh memory costs a fifth more
        if len(G_nd) != len(K_nn):
            raise NumericsError(
                f"samples do not fit: got {len(G_nd)} in one layer, expected {len(K_nn)} as in the first. "
                "Do: give each layer the gradients of the same rows."
            )
        for left in range(0, G_nd.shape[1], _COLUMNS):
            part_nd = G_nd[:, left : left + _COLUMNS]
            wide_nd = wide_nc[:, : part_nd.shape[1]].copy_(part_nd)
            for top in range(0, len(K_nn), _ROWS):
                K_nn[top : top + _ROWS, : top + _ROWS].addmm_(wide_nd[top : top + _ROWS], wide_nd[: top + _ROWS].T)
    if not (K_nn.numel() and bool(torch.isfinite(K_nn.tril()).all())):
        raise NumericsError(
            f"no inner products of {len(K_nn)} samples: got no gradient, NaN or infinity. Do: check the gradients."
        )
    return K_nn.tril() + K_nn.tril(-1).T


def gram_gevp(K_nn: Tensor, n_s: int, *, damping: float, d: int, name: str = "utility Fisher") -> GramDirections:
    r"""The directions in the span of the samples with the most safety per utility: `gevp` of two Fishers, exactly.

    With ``F_s = G_s^T G_s / n_s``, ``F_u`` alike, and ``K = Q S Q^T``, ``R = Q S^(1/2)``, it solves the small problem
    :math:`(R^T D_s R) c = \lambda (R^T D_u R + \epsilon I) c`, where ``D_s`` holds ``1 / n_s`` at safety rows, and
    ``alpha = Q S^(-1/2) c``. The other ``d - r`` values are 0.

    Args:
        K_nn: `inner_products` of all samples, safety first, ``(n, n)``.
        n_s: How many of them are safety's; the others are utility's.
        damping: Relative: ``eps = damping * trace(F_u) / d``. The larger ``d``, the smaller it is beside the values of
            ``F_u``, which share its trace among ``n`` directions.
        d: Number of coordinates of a gradient.
        name: What ``F_u`` is, for messages.
    Raises:
        NumericsError: ``K`` is no matrix of inner products, all utility gradients are zero, or damping is too small.
    """
    R_nr = sample_coordinates(K_nn)
    weights_n = fisher_weights(len(K_nn), n_s)
    s_nr, u_nr = ((side_n.sqrt()[:, None].to(R_nr) * R_nr) for side_n in weights_n)
    found = solve_damped(
        s_nr.T @ s_nr,
        u_nr.T @ u_nr,
        damping=damping,
        unit=mean_energy(float(u_nr.square().sum()), d, name),
        noise=torch.finfo(K_nn.dtype).eps,
        name=name,
    )
    back_nr = R_nr / R_nr.square().sum(0)
    alpha_nk = back_nr @ found.vectors_dk
    sign_1k = signs(alpha_nk)
    alpha_nk = alpha_nk * sign_1k
    dual_nk = weights_n[1][:, None].to(R_nr) * (R_nr @ found.vectors_dk) * sign_1k + found.eps * alpha_nk
    return GramDirections(found.values_k, alpha_nk, dual_nk, found.eps)


def gram_oblique(
    directions: GramDirections, p_n: Tensor, weights_k: Tensor, *, outside: Outside
) -> tuple[float, Tensor]:
    r"""The weighted part of an update: `oblique` over all layers at once, in coefficients.

    Inside the span it is :math:`V \mathrm{diag}(w) V^T (F_u + \epsilon I) \phi`; the part outside is multiplied by a
    ``share``: 1 for ``keep``, 0 for ``drop``, and for ``scale`` the mean of the weights, each counted by the energy
    that ``phi`` has in its direction in ``F_u + eps I``.

    Args:
        p_n: ``G phi``, each sample's inner product with the update.
        weights_k: One for each direction, usually 0 to 1: ones for the first few, or `soft_weights`.
        outside: What becomes of the part that no sample speaks about.
    Returns:
        ``share`` and ``gamma_n``: the projected update is ``share * phi + G^T gamma``.
    Raises:
        ConfigError: ``outside`` is none of the three.
        NumericsError: ``scale``, and the update has no part inside.
    """
    c_k = directions.dual_nk.T @ p_n.to(directions.dual_nk)
    weights_k = weights_k.to(c_k)
    share = _share_outside(c_k, weights_k, outside)
    return share, directions.alpha_nk @ ((weights_k - share) * c_k)


def gram_solve(K_nn: Tensor, w_n: Tensor, r_n: Tensor, *, damping: float, unit: float = 1.0) -> Tensor:
    r"""The merge of several updates that loses least on all their quadratic models, over all layers at once.

    With one Fisher for each update, ``F_t = G_t^T G_t / n_t``, and ``phi_0`` where no sample speaks:

    .. math::
        \left(\sum_t \mu_t F_t + \epsilon I\right) \phi = \sum_t \mu_t F_t \phi_t + \epsilon \phi_0
        \quad\Longrightarrow\quad \phi = \phi_0 + G^T \gamma, \quad
        \gamma = W^{1/2} (W^{1/2} K W^{1/2} + \epsilon I)^{-1} W^{1/2} r

    ``phi_0`` is the merge outside the span: the utility update keeps it, zero drops the rest, and
    ``sum(eps_t mu_t phi_t) / eps`` with ``eps = sum(eps_t mu_t)`` is what damping every ``F_t`` by itself gives.

    Args:
        K_nn: `inner_products` of all samples.
        w_n: A sample's weight, ``mu_t / n_t`` of the update that it speaks for.
        r_n: What a sample asks for: its gradient's inner product with ``phi_t - phi_0``, for the ``t`` it speaks for.
        damping: ``eps = damping * unit``.
        unit: What damping is relative to, such as ``trace(F) / d``.
    Returns:
        ``gamma_n`` in float64.
    Raises:
        NumericsError: A weight is negative, ``K`` is no matrix of inner products, or ``eps`` is too small.
    """
    if not bool(torch.isfinite(w_n).all() & (w_n >= 0).all() & torch.isfinite(r_n).all()):
        raise NumericsError("samples cannot be weighed: got a negative or infinite weight or product. Do: check both.")
    root_n = w_n.double().sqrt()
    M_nn = root_n[:, None] * symmetric(K_nn, "matrix of inner products") * root_n
    noise = torch.finfo(K_nn.dtype).eps
    L_nn = damped_cholesky(M_nn, damping=damping, unit=unit, noise=noise, name="sum of the Fishers")
    gamma_n: Tensor = root_n * torch.cholesky_solve((root_n * r_n.double())[:, None], L_nn)[:, 0]
    return gamma_n


def sample_coordinates(K_nn: Tensor) -> Tensor:
    """The samples in an orthonormal basis of their own span, ``R R^T = K``: ``R_nr`` with one sample in each row.

    Its columns are orthogonal, largest first. Directions whose energy is within rounding of zero are left out: those
    of at most ``max(eps of K's type, n * 2e-16)`` times the largest.

    Raises:
        NumericsError: ``K`` is zero or has an eigenvalue below zero: it is no matrix of inner products.
    """
    S_n, Q_nn = torch.linalg.eigh(symmetric(K_nn, "matrix of inner products"))
    noise = max(torch.finfo(K_nn.dtype).eps, len(K_nn) * _DOUBLE) * float(S_n.abs().max())
    if float(S_n[-1]) <= 0 or float(S_n[0]) < -16 * noise:
        raise NumericsError(
            f"matrix of inner products is not one: got eigenvalues {float(S_n[0]):.3g} to {float(S_n[-1]):.3g}, "
            "expected none below 0 and some above. Do: give K = G G^T of gradients that are not all zero."
        )
    kept_n = S_n > noise
    R_nr: Tensor = Q_nn[:, kept_n] * S_n[kept_n].sqrt()
    return R_nr.flip(-1)


def coordinates(G_nd: Tensor) -> Tensor:
    """The rows of one matrix in an orthonormal basis of their span, ``R_nr`` in float64 with ``R R^T = G G^T``.

    By the products of rows or of columns, the fewer. Where the rows span everything the basis is the one that they are
    in, else that of `sample_coordinates`.
    """
    n, d = G_nd.shape
    if n <= d:
        return sample_coordinates(inner_products([G_nd]))
    wide_nd = G_nd.double()
    C_dd = symmetric(wide_nd.T @ wide_nd, "matrix of second moments")
    floor = 2 * n * _DOUBLE * C_dd.norm()  # more than is counted as zero below: `cholesky` passes on nothing that is
    if float(floor) > 0 and not int(torch.linalg.cholesky_ex(C_dd - floor * torch.eye(d).to(C_dd))[1]):
        return wide_nd
    S_d, Q_dd = torch.linalg.eigh(C_dd)
    if float(S_d[-1]) <= 0:
        raise NumericsError(f"no coordinates of {n} samples: got gradients of 0. Do: give rows with gradients.")
    R_nr: Tensor = wide_nd @ Q_dd[:, S_d > n * _DOUBLE * S_d[-1]]
    return R_nr.flip(-1)


def fisher_weights(n: int, n_s: int) -> tuple[Tensor, Tensor]:
    """The weight of each sample in ``F_s`` and in ``F_u``: ``1 / n_s`` for the first ``n_s`` and 0, and the reverse.

    Raises:
        NumericsError: One side has no sample.
    """
    if not 0 < n_s < n:
        raise NumericsError(f"no two Fishers: got {n_s} safety samples of {n}, expected at least one of each kind.")
    safety_n = (torch.arange(n) < n_s).double()
    return safety_n / n_s, (1 - safety_n) / (n - n_s)


def _share_outside(c_k: Tensor, weights_k: Tensor, outside: Outside) -> float:
    if outside not in get_args(Outside):
        raise ConfigError(
            f"Unknown choice for what lies outside {outside!r}. {did_you_mean(outside, get_args(Outside))}"
        )
    if outside != "scale":
        return 1.0 if outside == "keep" else 0.0
    energy_k = c_k.square()
    if not bool(energy_k.any()):
        raise NumericsError(
            "update cannot be scaled: got none of it in the span of the samples. Do: keep or drop what lies outside."
        )
    return float(weights_k @ energy_k / energy_k.sum())
