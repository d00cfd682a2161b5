r"""The generalized eigenproblem of two Fisher matrices, :math:`A v = \lambda (B + \epsilon I) v`. Pure functions.

With the Fisher of safety rows as ``A`` and that of utility rows as ``B``, a value is the safety that a direction
carries for each unit of utility: large where a change moves safety and leaves utility alone.

Letters in names: ``d`` coordinates, ``k`` directions (each a **column** of ``vectors_dk``), ``L`` a Cholesky factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError

Operator = Callable[[Tensor], Tensor]
"""Multiplies a tensor ``(d,)`` or ``(d, m)`` by a matrix that is not stored."""
_DOUBLE = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Directions:
    """Solutions of a generalized eigenproblem, in float64."""

    values_k: Tensor
    """Descending. Where ``A`` is positive semi-definite, rounding may leave some just below 0."""
    vectors_dk: Tensor
    """Orthonormal in ``B + eps I``, not in the Euclidean metric: ``V^T (B + eps I) V = I``."""
    eps: float
    """What was added to the diagonal of ``B``."""


def gevp(A_dd: Tensor, B_dd: Tensor, *, damping: float, name: str = "B") -> Directions:
    r"""All directions, in order of how large ``A`` is in them relative to ``B``.

    Solves :math:`A v = \lambda (B + \epsilon I) v` in float64 through the Cholesky factor of the damped ``B``,
    :math:`L^{-1} A L^{-T} y = \lambda y` with :math:`v = L^{-T} y`: values are real, and vectors are orthonormal in
    ``B + eps I``. Values do not change under a change of coordinates, ``T^T A T`` and ``T^T B T``, apart from the
    damping. The first of the largest entries of each vector is positive.

    Args:
        A_dd: Symmetric, ``(d, d)``, float32 or float64.
        B_dd: Symmetric, positive semi-definite up to rounding, ``(d, d)``.
        damping: Relative: ``eps = damping * trace(B) / d``.
        name: What ``B`` is, for messages: "utility Fisher of layers.3.q_proj".
    Raises:
        NumericsError: ``B`` is not positive definite after damping, beyond the rounding of its type; names its
            smallest eigenvalue and the least damping that is enough. Or a matrix is not finite or not symmetric, the
            two do not fit, or ``B`` is zero.
    Reference:
        Golub & Van Loan, Matrix Computations (4th ed.), section 8.7.
    """
    rival = f"matrix set against {name}"
    A_wide, B_wide = symmetric(A_dd, rival), symmetric(B_dd, name)
    if A_dd.shape != B_dd.shape:
        raise NumericsError(
            f"{rival} does not fit: got {tuple(A_dd.shape)}, expected {tuple(B_dd.shape)}. "
            "Do: give two matrices in the same coordinates."
        )
    unit = mean_energy(float(B_wide.trace()), len(B_dd), name)
    noise = max(torch.finfo(A_dd.dtype).eps, torch.finfo(B_dd.dtype).eps)
    return solve_damped(A_wide, B_wide, damping=damping, unit=unit, noise=noise, name=name)


def solve_damped(
    A_dd: Tensor, B_dd: Tensor, *, damping: float, unit: float, noise: float = _DOUBLE, name: str = "B"
) -> Directions:
    """`gevp` of matrices that are symmetric and in float64, with ``eps = damping * unit``.

    Args:
        unit: What damping is relative to, from `mean_energy`: of a problem that was reduced to fewer coordinates, that
            of the whole one.
        noise: The rounding of ``B``'s entries relative to its largest eigenvalue; a damped ``B`` must stand out of it.
    Raises:
        NumericsError: As `gevp`, for a ``B`` that is not positive definite.
    """
    L_dd = damped_cholesky(B_dd, damping=damping, unit=unit, noise=noise, name=name)
    half_dd = torch.linalg.solve_triangular(L_dd, A_dd, upper=False)
    white_dd = torch.linalg.solve_triangular(L_dd, half_dd.T, upper=False)
    values_k, y_dk = torch.linalg.eigh((white_dd + white_dd.T) / 2)
    vectors_dk = torch.linalg.solve_triangular(L_dd.T, y_dk.flip(-1), upper=True)
    return Directions(values_k.flip(-1), vectors_dk * signs(vectors_dk), damping * unit)


def solve_sampled(
    X_nd: Tensor, B_dd: Tensor, *, damping: float, unit: float, noise: float = _DOUBLE, name: str = "B"
) -> Directions:
    """`solve_damped` with ``A = X^T X``: all directions where there are as many rows as coordinates.

    With fewer rows the work is that of their inner products, and directions in which ``A`` is 0 are left out.

    Args:
        X_nd: In float64.
    Raises:
        NumericsError: As `solve_damped`.
    """
    L_dd, W_dn = _whitened(X_nd, B_dd, damping=damping, unit=unit, noise=noise, name=name)
    if len(X_nd) < len(B_dd):
        values_k, c_nk = torch.linalg.eigh(W_dn.T @ W_dn)
        used_k = values_k > len(values_k) * _DOUBLE * values_k[-1:]
        values_k = values_k[used_k]
        y_dk = W_dn @ (c_nk[:, used_k] / values_k.sqrt())
    else:
        values_k, y_dk = torch.linalg.eigh(W_dn @ W_dn.T)
    vectors_dk = torch.linalg.solve_triangular(L_dd.T, y_dk.flip(-1), upper=True)
    return Directions(values_k.flip(-1), vectors_dk * signs(vectors_dk), damping * unit)


def ratios(
    X_nd: Tensor, B_dd: Tensor, *, damping: float, unit: float, noise: float = _DOUBLE, name: str = "B"
) -> Tensor:
    """The values of `solve_damped` with ``A = X^T X``, all ``d`` of them, descending, without the directions.

    Args:
        X_nd: In float64.
    Raises:
        NumericsError: As `solve_damped`.
    """
    _, W_dn = _whitened(X_nd, B_dd, damping=damping, unit=unit, noise=noise, name=name)
    few = len(X_nd) < len(B_dd)
    values_k = torch.linalg.eigvalsh(W_dn.T @ W_dn if few else W_dn @ W_dn.T).flip(-1)
    return torch.cat([values_k, values_k.new_zeros(len(B_dd) - len(values_k))])


def _whitened(
    X_nd: Tensor, B_dd: Tensor, *, damping: float, unit: float, noise: float, name: str
) -> tuple[Tensor, Tensor]:
    """The factor of the damped ``B``, and the rows of ``X`` as columns in coordinates in which that is 1."""
    L_dd = damped_cholesky(B_dd, damping=damping, unit=unit, noise=noise, name=name)
    return L_dd, torch.linalg.solve_triangular(L_dd, X_nd.T, upper=False)


def damped_cholesky(B_dd: Tensor, *, damping: float, unit: float, noise: float, name: str) -> Tensor:
    """The lower Cholesky factor of ``B + eps I`` with ``eps = damping * unit``.

    On a singular matrix ``cholesky`` may pass and factor the rounding. So it must pass with twice the rounding taken
    off the diagonal, or eigenvalues are looked at.

    Raises:
        NumericsError: As `solve_damped`.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise NumericsError(f"{name} cannot be damped: got damping {damping}, expected a number of 0 or more.")
    eps = damping * unit
    eye_dd = torch.eye(len(B_dd), dtype=B_dd.dtype, device=B_dd.device)
    share = max(noise, len(B_dd) * _DOUBLE)
    if int(torch.linalg.cholesky_ex(B_dd + (eps - 2 * share * float(B_dd.norm())) * eye_dd)[1]):
        _refuse_rounding(B_dd, eps, share, unit, name)
    L_dd: Tensor = torch.linalg.cholesky(B_dd + eps * eye_dd)
    return L_dd


def _refuse_rounding(B_dd: Tensor, eps: float, share: float, unit: float, name: str) -> None:
    """Unless every eigenvalue of ``B + eps I`` is above this share of the largest one of ``B``."""
    s_d = torch.linalg.eigvalsh(B_dd)
    floor = share * float(s_d[-1])
    smallest = float(s_d[0])
    if smallest + eps <= floor:
        raise NumericsError(
            f"{name} is not positive definite: got a smallest eigenvalue of {smallest:.2g}, {smallest + eps:.2g} after "
            f"adding {eps:.2g}, expected more than {floor:.2g}, the rounding. "
            f"Do: raise damping to at least {_rounded_up((floor - smallest) / unit)}."
        )


def symmetric(A_dd: Tensor, name: str) -> Tensor:
    """A matrix in float64 and exactly symmetric.

    Raises:
        NumericsError: It is not square, in a type narrower than float32, not finite, or not symmetric beyond rounding.
    """
    if A_dd.dtype not in (torch.float32, torch.float64) or A_dd.ndim != 2 or A_dd.shape[0] != A_dd.shape[1]:
        raise NumericsError(
            f"{name} cannot be decomposed: got {A_dd.dtype} {tuple(A_dd.shape)}, expected a square matrix in float32 "
            "or float64. Do: sum it in float32 or float64."
        )
    if not bool(torch.isfinite(A_dd).all()):
        raise NumericsError(f"{name} is not finite: got NaN or infinity. Do: look for gradients that overflow.")
    wide_dd = A_dd.double()
    asymmetry = float((wide_dd - wide_dd.T).abs().max())
    slack = (16 * torch.finfo(A_dd.dtype).eps + len(A_dd) * _DOUBLE) * float(wide_dd.norm())
    if asymmetry > slack:
        raise NumericsError(
            f"{name} is not symmetric: got entries ij and ji {asymmetry:.3g} apart, expected at most {slack:.1g}. "
            "Do: check what wrote it."
        )
    return (wide_dd + wide_dd.T) / 2


def mean_energy(trace: float, d: int, name: str) -> float:
    """``trace / d``, which relative damping is a share of.

    Raises:
        NumericsError: There is none.
    """
    if not trace > 0:
        raise NumericsError(
            f"{name} has no energy: got a trace of {trace:.3g}, expected more than 0. "
            "Do: give rows on which the gradient is not zero."
        )
    return trace / d


def signs(vectors_dk: Tensor) -> Tensor:
    """The sign of the first of the largest entries of each column, ``(1, k)``: times it, signs agree between runs."""
    size_dk = vectors_dk.abs()
    at_1k = (size_dk >= (1 - 1e-6) * size_dk.amax(0)).int().argmax(0, keepdim=True)
    return vectors_dk.gather(0, at_1k).sign()


def _rounded_up(number: float) -> str:
    """Two digits, never less than the number.

    >>> _rounded_up(0.0000312), _rounded_up(0.003)
    ('3.2e-05', '0.0031')
    """
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{(math.floor(number / step) + 1) * step:.2g}"
