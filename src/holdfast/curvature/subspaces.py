r"""Subspaces of directions: projecting an update on them, and how well two of them agree. Pure functions.

Letters in names: ``d`` coordinates, ``k`` directions (each a **column**), ``n`` samples (each a **row**), safety's
(``s``) and utility's (``u``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import Operator, mean_energy, solve_sampled
from holdfast.curvature.gram import sample_coordinates

_NONE = 1e-10
"""The share of the largest ratio that counts as no evidence."""


def oblique(vectors_dk: Tensor, B: Tensor | Operator, phi_d: Tensor, weights_k: Tensor | None = None) -> Tensor:
    r"""The part of an update in some directions, :math:`V \mathrm{diag}(w) V^T B \phi`.

    Directions that are orthonormal in ``B`` span a subspace onto which ``V V^T B`` projects: twice is once, and in the
    metric of ``B`` the rest is orthogonal to it. ``V V^T`` alone is no projection.

    Args:
        vectors_dk: Orthonormal in ``B``: the first few of `gevp`, or all with weights.
        B: The damped matrix, ``B + eps I`` of `gevp`, ``(d, d)``, or a function that multiplies by it.
        phi_d: One update, or several as columns ``(d, m)``.
        weights_k: One for each direction, such as `soft_weights`; without, all count in full.
    """
    Bphi = B @ phi_d if isinstance(B, Tensor) else B(phi_d)
    kept_dk = vectors_dk if weights_k is None else vectors_dk * weights_k
    return kept_dk @ (vectors_dk.T @ Bphi)


def soft_weights(values_k: Tensor, tau: float) -> Tensor:
    r"""How much of each direction to let through, ``lambda / (lambda + tau)``: half where ``lambda = tau``.

    With ``tau = 1 / mu`` they are those by which :math:`(F_u + \mu F_s)^{-1} (F_u \phi_u + \mu F_s \phi_s)` mixes.

    Args:
        values_k: Ratios of `gevp`. One that rounding left below 0 has weight 0.
    Raises:
        NumericsError: ``tau`` is not above 0, or a ratio is below 0 beyond rounding.

    >>> soft_weights(torch.tensor([3.0, 1.0, 0.0]), 1.0).tolist()
    [0.75, 0.5, 0.0]
    """
    if not tau > 0:
        raise NumericsError(f"no soft weights at tau {tau}: expected more than 0. Do: raise tau.")
    if not bool((values_k >= -1e-6 * values_k.abs().max()).all()):
        raise NumericsError(
            f"no soft weights of ratios down to {float(values_k.min()):.3g}: expected none below 0. "
            "Do: give ratios of two Fishers."
        )
    values_k = values_k.clamp(min=0)
    return values_k / (values_k + tau)


def principal_angles(U_dk: Tensor, V_dk: Tensor) -> Tensor:
    """The angles between two subspaces in radians, ascending, in float64; as many as the smaller has dimensions.

    All 0 where one contains the other, a right angle for each direction that is orthogonal to the whole other. Small
    angles come from the sine and large ones from the cosine, so 1e-9 is told from 0.

    Args:
        U_dk: Any basis of the first, independent columns; the metric is Euclidean.
        V_dk: Any basis of the second, of any number of columns.
    Raises:
        NumericsError: Columns are dependent, or the two do not fit.
    Reference:
        Björck & Golub, Numerical methods for computing angles between linear subspaces (Math. Comp. 1973).
    """
    if len(U_dk) != len(V_dk):
        raise NumericsError(
            f"no angles between subspaces in {len(U_dk)} and in {len(V_dk)} coordinates. Do: check both."
        )
    large_dk, small_dk = sorted((_orthonormal(U_dk), _orthonormal(V_dk)), key=lambda Q_dk: -Q_dk.shape[1])
    across_kk = large_dk.T @ small_dk
    cosines_k = torch.linalg.svdvals(across_kk)
    sines_k = torch.linalg.svdvals(small_dk - large_dk @ across_kk).flip(0)
    # both are ascending, and meet where sine and cosine are equal
    return torch.where(cosines_k.square() >= 0.5, sines_k.clamp(max=1).asin(), cosines_k.clamp(max=1).acos())


def overlap(angles_k: Tensor) -> float:
    """The mean squared cosine: the share of a random vector of one subspace that lies in the other, 0 to 1."""
    return float(angles_k.double().cos().square().mean())


def overlap_by_chance(k: int, d: int) -> float:
    """The expected `overlap` of two random subspaces of ``k`` dimensions in ``d``.

    >>> overlap_by_chance(16, 64)
    0.25
    """
    if not 1 <= k <= d:
        raise NumericsError(f"no subspace of {k} dimensions in {d}: expected 1 to {d}. Do: lower k.")
    return k / d


def overlap_deviation(k: int, d: int) -> float:
    r"""The standard deviation of the `overlap` of two random subspaces of ``k`` dimensions in ``d``.

    Of uniformly drawn projectors :math:`\mathrm{Var}\,\mathrm{tr}(P Q) = 2 k^2 (d - k)^2 / (d^2 (d - 1) (d + 2))`.

    >>> overlap_deviation(4, 4), round(overlap_deviation(1, 3), 6)
    (0.0, 0.298142)
    """
    overlap_by_chance(k, d)
    return 0.0 if k == d else (2 / ((d - 1) * (d + 2))) ** 0.5 * (d - k) / d


def split_half(G_sd: Tensor, G_ud: Tensor, *, k: int, damping: float, d: int | None = None) -> Tensor:
    """The angles between the leading ``k`` directions of two halves of the samples, even and odd rows: are they stable?

    Each half gives its own two Fishers and its own `gevp`. Compare `overlap` of the angles with `overlap_by_chance`.

    Args:
        G_sd: A safety sample's gradient in each row.
        G_ud: A utility sample's gradient in each row.
        k: How many directions.
        damping: Relative, as in `gevp`.
        d: Number of coordinates, where rows are `sample_coordinates` of the samples; chance is then at most that in
            their rank.
    Returns:
        ``angles_k``, ascending.
    Raises:
        NumericsError: A half has fewer than ``k`` directions that safety uses at all, or is not fit for `gevp`.
    """
    n_s = len(G_sd)
    d = d or G_sd.shape[1]
    G_nd = torch.cat([G_sd, G_ud]).double()
    if len(G_nd) < G_nd.shape[1]:
        G_nd = sample_coordinates(G_nd @ G_nd.T)
    halves = [_leading(G_nd[:n_s][odd::2], G_nd[n_s:][odd::2], k, damping, d) for odd in (0, 1)]
    return principal_angles(*halves)


def _leading(G_sd: Tensor, G_ud: Tensor, k: int, damping: float, d: int) -> Tensor:
    """The leading directions of one half, ``(d, k)``."""
    if not (len(G_sd) and len(G_ud)):
        raise NumericsError("samples cannot be halved: got a half without any. Do: give at least two of each kind.")
    F_u = G_ud.T @ G_ud / len(G_ud)
    name = "utility Fisher of half the samples"
    unit = mean_energy(float(F_u.trace()), d, name)
    found = solve_sampled(G_sd / len(G_sd) ** 0.5, F_u, damping=damping, unit=unit, name=name)
    used = min(len(G_sd), int((found.values_k > _NONE * found.values_k[:1]).sum()))
    if not 1 <= k <= used:
        raise NumericsError(
            f"no {k} directions in half the samples: got safety gradients in {used}, expected at least as many. "
            "Do: lower k or give more safety rows."
        )
    return found.vectors_dk[:, :k]


def _orthonormal(U_dk: Tensor) -> Tensor:
    """An orthonormal basis of the same subspace."""
    U_dk = U_dk.double()
    Q_dk, R_kk = torch.linalg.qr(U_dk / U_dk.norm(dim=0))
    if not bool((R_kk.diagonal().abs() > len(U_dk) * torch.finfo(torch.float64).eps).all()) or min(U_dk.shape) == 0:
        raise NumericsError(
            f"no subspace of {U_dk.shape[1]} dimensions: got dependent columns in {len(U_dk)} coordinates. Do: lower k."
        )
    basis_dk: Tensor = Q_dk
    return basis_dk
