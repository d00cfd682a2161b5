"""Solvers that only multiply, against the dense ones."""

import pytest
import torch
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import Directions, Operator, gevp
from holdfast.curvature.iterative import conjugate_gradients, lobpcg_gevp

D = 120


def draw(n: int, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=dice, dtype=torch.float64) * torch.logspace(0, -1.5, D).double()


def times(G_nd: Tensor) -> Operator:
    """The Fisher of these samples, never stored."""
    return lambda v: G_nd.T @ (G_nd @ v) / len(G_nd)


def fisher(G_nd: Tensor) -> Tensor:
    return G_nd.T @ G_nd / len(G_nd)


def by_diagonal(F_dd: Tensor, eps: float) -> Operator:
    return lambda v: v / (F_dd.diagonal() + eps).view(-1, *[1] * (v.ndim - 1))


def by_solve(F_dd: Tensor, eps: float) -> Operator:
    L_dd = torch.linalg.cholesky(F_dd + eps * torch.eye(D, dtype=torch.float64))
    return lambda v: torch.cholesky_solve(v, L_dd)


def start(k: int) -> Tensor:
    return torch.randn(D, k, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def problem(damping: float) -> tuple[Tensor, Tensor, Directions]:
    """Safety's samples, utility's, and the dense answer."""
    G_sd, G_ud = draw(40, 0), draw(300, 1)
    return G_sd, G_ud, gevp(fisher(G_sd), fisher(G_ud), damping=damping)


@pytest.mark.parametrize("precondition", [by_diagonal, by_solve])
@pytest.mark.parametrize("damping", [1e-1, 1e-4])
@pytest.mark.parametrize("k", [1, 6])
def test_leading_directions_are_the_dense_ones(
    k: int, damping: float, precondition: type[by_diagonal] | type[by_solve]
) -> None:
    G_sd, G_ud, dense = problem(damping)
    M = precondition(fisher(G_ud), dense.eps)
    found = lobpcg_gevp(times(G_sd), times(G_ud), start(k), eps=dense.eps, precondition=M, tolerance=1e-9)
    assert found.eps == dense.eps
    assert_close(found.values_k / dense.values_k[:k], torch.ones(k), "float64")
    B_dd = fisher(G_ud) + dense.eps * torch.eye(D, dtype=torch.float64)
    turn_kk = found.vectors_dk.T @ B_dd @ dense.vectors_dk[:, :k]
    assert_close(turn_kk, torch.eye(k), "float32")


def test_directions_beyond_what_safety_uses_have_the_value_zero() -> None:
    G_sd, G_ud = draw(3, 0), draw(300, 1)
    dense = gevp(fisher(G_sd), fisher(G_ud), damping=1e-2)
    M = by_solve(fisher(G_ud), dense.eps)
    found = lobpcg_gevp(times(G_sd), times(G_ud), start(6), eps=dense.eps, precondition=M)
    assert_close(found.values_k, dense.values_k[:6], "float64")
    none = lobpcg_gevp(lambda v: 0 * v, times(G_ud), start(6), eps=dense.eps, precondition=M)
    assert_close(none.values_k, torch.zeros(6), "exact")


def test_products_in_float32_give_values_of_that_precision() -> None:
    G_sd, G_ud, dense = problem(1e-2)
    M = by_diagonal(fisher(G_ud).float(), dense.eps)
    found = lobpcg_gevp(
        times(G_sd.float()), times(G_ud.float()), start(4).float(), eps=dense.eps, precondition=M, tolerance=1e-4
    )
    assert found.values_k.dtype == torch.float64
    assert_close(found.values_k / dense.values_k[:4], torch.ones(4), "float32")


def test_iteration_that_has_not_converged_is_refused_with_its_residual() -> None:
    G_sd, G_ud, dense = problem(1e-4)
    with pytest.raises(NumericsError, match=r"4 directions did not converge: got a residual of \S+ after 7 steps"):
        lobpcg_gevp(times(G_sd), times(G_ud), start(4), eps=dense.eps, precondition=lambda v: v, steps=7)


@pytest.mark.parametrize(
    ("B_d", "start_dk", "sentence"),
    [
        (-torch.ones(D), start(3), "expected a positive definite matrix"),
        (torch.linspace(-1, 1, D), start(3), "expected a positive definite matrix"),
        (torch.full((D,), torch.nan), start(3), "cannot be found: got 'array must not contain infs or NaNs'"),
        (torch.ones(D), torch.ones(D, 3), "independent start vectors"),
        (torch.ones(D), start(25), "25 of 120 directions are too many to iterate for"),
        (torch.ones(D), start(0), "0 of 120 directions"),
    ],
)
def test_what_cannot_be_iterated_is_refused(B_d: Tensor, start_dk: Tensor, sentence: str) -> None:
    with pytest.raises(NumericsError, match=sentence):
        lobpcg_gevp(lambda v: v, lambda v: B_d[:, None] * v, start_dk, eps=0.0, precondition=lambda v: v)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradients_merge_as_the_dense_solve_does(preconditioned: bool) -> None:
    G_sd, G_ud, eps, mu = draw(40, 0), draw(300, 1), 1e-3, 3.0
    phi_s, phi_u = draw(2, 2)
    M_dd = fisher(G_ud) + mu * fisher(G_sd) + eps * torch.eye(D, dtype=torch.float64)
    b_d = fisher(G_ud) @ phi_u + mu * fisher(G_sd) @ phi_s
    x_d = conjugate_gradients(
        lambda v: times(G_ud)(v) + mu * times(G_sd)(v) + eps * v,
        b_d,
        tolerance=1e-12,
        precondition=by_diagonal(M_dd, 0.0) if preconditioned else None,
    )
    assert (b_d - M_dd @ x_d).norm() <= 1e-12 * b_d.norm()
    assert_close(x_d, torch.linalg.solve(M_dd, b_d), "float32")


def test_nothing_asked_is_nothing_answered() -> None:
    assert_close(conjugate_gradients(lambda v: 2 * v, torch.zeros(D)), torch.zeros(D), "exact")


@pytest.mark.parametrize(
    ("M_d", "steps"), [(torch.logspace(0, -8, D), 20), (torch.linspace(-1, 1, 2), 99), (torch.full((D,), torch.nan), 9)]
)
def test_linear_system_that_was_not_solved_is_refused_with_its_residual(M_d: Tensor, steps: int) -> None:
    with pytest.raises(NumericsError, match=rf"got a residual of \S+ of the right-hand side after at most {steps} st"):
        conjugate_gradients(lambda v: M_d * v, torch.ones(len(M_d)), steps=steps)
