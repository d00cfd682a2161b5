r"""Generalized eigenvectors and linear systems of matrices that are too large to factor. Pure functions.

A matrix is given as a function that multiplies by it, such as ``v -> G^T (G v) / n`` a layer at a time. Both solvers
are SciPy's: vectors travel to the CPU in float64 between two products. ``torch.lobpcg`` takes no functions, and on
Fisher matrices of 400 coordinates, damping 1e-4, it was 20 times slower and ended 1e-5 off without saying so.

Letters in names: ``d`` coordinates, ``k`` directions.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg, lobpcg
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import Directions, Operator, signs

_ROUND = 50
"""Steps between two looks at the residual. Each look starts anew, which costs steps: with 5 some cases never end."""


def lobpcg_gevp(
    A: Operator,
    B: Operator,
    start_dk: Tensor,
    *,
    eps: float,
    precondition: Operator,
    tolerance: float = 1e-8,
    steps: int = 500,
) -> Directions:
    r"""The leading ``k`` directions of :math:`A v = \lambda (B + \epsilon I) v`, from products alone.

    Converged is a residual :math:`|A v - \lambda (B + \epsilon I) v|` of at most ``tolerance`` times
    :math:`\lambda_1 |(B + \epsilon I) v_1|` in every direction. Values are then right to about its square where they
    are apart from the rest. A direction that the start does not touch can be missed: start from random numbers.

    Args:
        A: Multiplies ``(d, m)`` tensors, of the start's type and device, by a symmetric matrix.
        B: Multiplies by a symmetric, positive semi-definite matrix, without damping.
        start_dk: Any ``k`` independent vectors, ``5 k <= d``.
        eps: Added to the diagonal of ``B``.
        precondition: Roughly multiplies ``(d, m)`` tensors by ``(B + eps I)^-1``: divides rows by the diagonal, or
            solves. The number of steps grows with how far off it is; the answer does not depend on it.
        steps: At most.
    Raises:
        NumericsError: No convergence, with the residual reached; or ``B + eps I`` is not positive definite.
    Reference:
        Knyazev, Toward the optimal preconditioned eigensolver (SIAM J. Sci. Comput. 2001).
    """
    d, k = start_dk.shape
    if not 0 < 5 * k <= d:
        raise NumericsError(f"{k} of {d} directions are too many to iterate for: expected up to a fifth. Do: use gevp.")
    A_op = _operator(A, start_dk)
    B_op = _operator(lambda v: B(v) + eps * v, start_dk)
    M_op = _operator(precondition, start_dk)
    found = start_dk.double().cpu().numpy()
    residual, allowed = math.inf, 0.0
    for done in range(0, steps, _ROUND):
        values, found = _some_steps((A_op, B_op, M_op), found, allowed, min(_ROUND, steps - done))
        AV, BV = A_op.matmat(found), B_op.matmat(found)
        residual = float(np.linalg.norm(AV - BV * values, axis=0).max())
        allowed = tolerance * float(abs(values[0]) * np.linalg.norm(BV[:, 0]))
        if residual <= allowed:
            V_dk = torch.as_tensor(found, device=start_dk.device)
            return Directions(torch.as_tensor(values, device=start_dk.device), V_dk * signs(V_dk), eps)
    raise NumericsError(
        f"leading {k} directions did not converge: got a residual of {residual:.2g} after {steps} steps, expected at "
        f"most {allowed:.2g}. Do: raise damping or steps, give a better preconditioner, or use gevp."
    )


def _some_steps(operators: tuple[Any, Any, Any], start: Any, allowed: float, steps: int) -> tuple[Any, Any]:
    """Values, descending, and vectors after one round; SciPy's warning that it has not converged is for the caller."""
    A_op, B_op, M_op = operators
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            values, vectors = lobpcg(A_op, start, B=B_op, M=M_op, tol=allowed, maxiter=steps, largest=True)
        except (np.linalg.LinAlgError, ValueError) as error:
            raise NumericsError(
                f"leading directions cannot be found: got {str(error).splitlines()[0]!r}, expected a positive definite "
                "matrix and independent start vectors. Do: raise damping, or start from random numbers."
            ) from error
    order = np.argsort(-values)
    return values[order], vectors[:, order]


def conjugate_gradients(
    apply: Operator,
    b_d: Tensor,
    *,
    tolerance: float = 1e-8,
    steps: int = 1000,
    precondition: Operator | None = None,
) -> Tensor:
    r"""Solve ``M x = b`` from products with ``M`` alone, to ``|b - M x| <= tolerance * |b|``.

    For merges such as ``M = sum_t mu_t F_t + eps I`` where there are too many samples for `gram_solve` and too many
    coordinates for a factor. Steps grow with the root of the condition of ``M``.

    Args:
        apply: Multiplies ``(d,)`` tensors, of ``b``'s type and device, by a symmetric, positive definite matrix.
        precondition: Roughly multiplies by the inverse, as in `lobpcg_gevp`.
    Returns:
        ``x_d`` in float64.
    Raises:
        NumericsError: No convergence, with the residual reached.
    Reference:
        Hestenes & Stiefel, Methods of conjugate gradients for solving linear systems (1952).
    """
    M_op = _operator(apply, b_d)
    P_op = None if precondition is None else _operator(precondition, b_d)
    b = b_d.double().cpu().numpy()
    # half: the residual that is updated step by step drifts from the true one, which is what was promised
    with np.errstate(divide="ignore", invalid="ignore"):
        x, _ = cg(M_op, b, rtol=tolerance / 2, maxiter=steps, M=P_op)
    size = float(np.linalg.norm(b))
    residual = float(np.linalg.norm(b - M_op.matvec(x)))
    if not residual <= tolerance * size:
        raise NumericsError(
            f"linear system did not converge: got a residual of {residual / size:.2g} of the right-hand side after at "
            f"most {steps} steps, expected {tolerance:.2g}. Do: raise damping, steps or tolerance, or precondition."
        )
    return torch.as_tensor(x, device=b_d.device)


def _operator(apply: Operator, like: Tensor) -> Any:
    """A function of tensors as SciPy wants it."""

    def product(v: Any) -> Any:
        return apply(torch.as_tensor(v).to(like)).double().cpu().numpy()

    return LinearOperator((len(like), len(like)), matvec=product, matmat=product, dtype=np.float64)
