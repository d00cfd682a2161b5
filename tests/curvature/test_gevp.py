"""The generalized eigenproblem against closed forms, a peer, what defines it and how it must transform."""

import re

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import gevp, ratios, solve_damped, solve_sampled

D = 24


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fisher(n: int, d: int = D, seed: int = 0) -> Tensor:
    """The Fisher of ``n`` gradients whose coordinates have very unequal size, as those of a real layer."""
    G_nd = torch.randn(n, d, generator=dice(seed), dtype=torch.float64) * torch.logspace(0, -1.5, d).double()
    return G_nd.T @ G_nd / n


def damped(B_dd: Tensor, eps: float) -> Tensor:
    return B_dd + eps * torch.eye(len(B_dd), dtype=torch.float64)


def test_diagonal_matrices_give_the_ratios_of_their_entries() -> None:
    a_d, b_d = torch.tensor([6.0, 1.0, 8.0]), torch.tensor([3.0, 4.0, 2.0])
    found = gevp(a_d.diag(), b_d.diag(), damping=0.0)
    assert_close(found.values_k, [4.0, 2.0, 0.25], "float64")
    expected_dk = torch.tensor([[0, 1 / 3, 0], [0, 0, 1 / 4], [1 / 2, 0, 0]], dtype=torch.float64).sqrt()
    assert_close(found.vectors_dk, expected_dk, "float64")


def test_damping_is_relative_to_the_mean_of_the_diagonal() -> None:
    found = gevp(torch.eye(3), torch.tensor([3.0, 4.0, 2.0]).diag(), damping=0.5)
    assert found.eps == 1.5
    assert_close(found.values_k, torch.tensor([3.5, 4.5, 5.5]).double() ** -1, "float64")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.floats(1e-4, 1.0), st.integers(0, 10**6))
def test_directions_solve_the_equation_and_are_orthonormal_in_the_damped_matrix(
    n_a: int, n_b: int, d: int, damping: float, seed: int
) -> None:
    A_dd, B_dd = fisher(n_a, d, seed), fisher(n_b, d, seed + 1)
    found = gevp(A_dd, B_dd, damping=damping)
    eps = damping * float(B_dd.trace()) / d
    V_dk, M_dd = found.vectors_dk, damped(B_dd, eps)
    assert found.eps == pytest.approx(eps, rel=1e-12)
    assert (found.values_k[:-1] >= found.values_k[1:]).all()
    assert_close(V_dk.T @ M_dd @ V_dk, torch.eye(d), "float64")
    assert_close(A_dd @ V_dk, M_dd @ V_dk * found.values_k, "float64")


@pytest.mark.parametrize(("n_a", "n_b"), [(200, 200), (5, 200), (200, 5), (5, 5)])
def test_values_and_vectors_equal_those_of_scipy(n_a: int, n_b: int) -> None:
    A_dd, B_dd = fisher(n_a), fisher(n_b, seed=1)
    found = gevp(A_dd, B_dd, damping=1e-2)
    s_d, V_dk = scipy.linalg.eigh(A_dd.numpy(), damped(B_dd, found.eps).numpy())
    assert_close(found.values_k / found.values_k[0], s_d[::-1].copy() / s_d[-1], "float64")
    few = 3
    turn_kk = V_dk[:, ::-1][:, :few].T @ damped(B_dd, found.eps).numpy() @ found.vectors_dk[:, :few].numpy()
    assert_close(torch.as_tensor(turn_kk).abs(), torch.eye(few), "float64")


@pytest.mark.parametrize("n", [1, 7, D, 200])
def test_directions_of_samples_are_those_of_their_second_moment(n: int) -> None:
    """As many as there are samples; without directions all values are there."""
    X_nd, B_dd, like = torch.randn(n, D, generator=dice(3), dtype=torch.float64), fisher(9), {"damping": 0.1, "unit": 1}
    whole, found = solve_damped(X_nd.T @ X_nd, B_dd, **like), solve_sampled(X_nd, B_dd, **like)
    k = min(n, D)
    assert found.vectors_dk.shape == (D, k)
    assert_close(found.values_k, whole.values_k[:k], "float64")
    assert_close(found.vectors_dk, whole.vectors_dk[:, :k], "float32")
    assert_close(found.vectors_dk.T @ damped(B_dd, found.eps) @ found.vectors_dk, torch.eye(k), "float64")
    assert_close(ratios(X_nd, B_dd, **like), whole.values_k, "float64")


def test_directions_in_which_no_sample_has_a_gradient_are_left_out() -> None:
    X_nd = torch.randn(2, D, generator=dice(3), dtype=torch.float64)
    twice = solve_sampled(torch.cat([X_nd, X_nd]), fisher(9), damping=0.1, unit=1)
    assert_close(twice.values_k, 2 * solve_sampled(X_nd, fisher(9), damping=0.1, unit=1).values_k, "float64")
    assert solve_sampled(0 * X_nd, fisher(9), damping=0.1, unit=1).vectors_dk.shape == (D, 0)


def test_change_of_coordinates_keeps_values_and_maps_vectors_by_its_inverse() -> None:
    A_dd, B_dd = fisher(100), fisher(100, seed=1)
    T_dd = torch.randn(D, D, generator=dice(2), dtype=torch.float64) + 5 * torch.eye(D, dtype=torch.float64)
    plain = gevp(A_dd, B_dd, damping=0.0)
    turned = gevp(T_dd.T @ A_dd @ T_dd, T_dd.T @ B_dd @ T_dd, damping=0.0)
    assert_close(turned.values_k, plain.values_k, "float64")
    back_dk = T_dd @ turned.vectors_dk
    assert_close(back_dk * (back_dk * plain.vectors_dk).sum(0).sign(), plain.vectors_dk, "float64")


def test_scaling_either_matrix_scales_the_values() -> None:
    A_dd, B_dd = fisher(100), fisher(100, seed=1)
    plain = gevp(A_dd, B_dd, damping=1e-2)
    assert_close(gevp(8 * A_dd, B_dd, damping=1e-2).values_k, 8 * plain.values_k, "float64")
    assert_close(gevp(A_dd, 8 * B_dd, damping=1e-2).values_k, plain.values_k / 8, "float64")
    assert_close(gevp(8 * A_dd, B_dd, damping=1e-2).vectors_dk, plain.vectors_dk, "float64")


def test_matrix_against_itself_has_the_ratio_one_in_every_direction() -> None:
    assert_close(gevp(fisher(100), fisher(100), damping=0.0).values_k, torch.ones(D), "float64")


def test_where_nothing_carries_safety_all_values_are_zero() -> None:
    found = gevp(torch.zeros(D, D), fisher(5), damping=1e-2)
    assert_close(found.values_k, torch.zeros(D), "exact")
    assert_close(found.vectors_dk.T @ damped(fisher(5), found.eps) @ found.vectors_dk, torch.eye(D), "float64")


def test_as_many_values_as_safety_samples_are_above_zero() -> None:
    values_k = gevp(fisher(4), fisher(100, seed=1), damping=1e-2).values_k
    assert values_k[3] > 1e-3
    assert_close(values_k[4:], torch.zeros(D - 4), "float64")


def test_first_of_the_largest_entries_of_each_vector_is_positive() -> None:
    for vector_d in gevp(fisher(100), fisher(100, seed=1), damping=1e-2).vectors_dk.T:
        assert vector_d[vector_d.abs().argmax()] > 0


def test_answer_is_in_float64_whatever_the_type_of_the_sums() -> None:
    A_dd, B_dd = fisher(100), fisher(100, seed=1)
    narrow = gevp(A_dd.float(), B_dd.float(), damping=1e-2)
    assert (narrow.values_k.dtype, narrow.vectors_dk.dtype) == (torch.float64, torch.float64)
    assert_close(narrow.values_k, gevp(A_dd, B_dd, damping=1e-2).values_k, "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smallest", [-0.3, -1e-3, 0.0])
def test_least_damping_that_the_error_names_is_enough_and_little_less_is_not(
    smallest: float, dtype: torch.dtype
) -> None:
    turn_dd = torch.linalg.qr(torch.randn(D, D, generator=dice(3), dtype=torch.float64))[0]
    B_dd = (turn_dd * torch.linspace(smallest, 2, D, dtype=torch.float64)) @ turn_dd.T
    B_dd = ((B_dd + B_dd.T) / 2).to(dtype)
    with pytest.raises(NumericsError, match=r"utility Fisher of q_proj is not positive definite") as refused:
        gevp(fisher(9), B_dd, damping=0.0, name="utility Fisher of q_proj")
    if smallest < 0:
        assert f"got a smallest eigenvalue of {smallest:.2g}, {smallest:.2g} after adding 0," in str(refused.value)
    named = re.search(r"Do: raise damping to at least (\S+)\.$", str(refused.value))
    assert named is not None
    least = float(named.group(1))
    assert gevp(fisher(9), B_dd, damping=least).values_k.isfinite().all()
    with pytest.raises(NumericsError, match="not positive definite"):
        gevp(fisher(9), B_dd, damping=0.8 * least)


@pytest.mark.parametrize("n", [3, D - 1])
def test_too_few_samples_are_refused_undamped_even_where_cholesky_would_pass(n: int) -> None:
    for seed in range(10):
        with pytest.raises(NumericsError, match="not positive definite"):
            gevp(fisher(9), fisher(n, seed=seed), damping=0.0)


@pytest.mark.parametrize(
    ("A_dd", "B_dd", "damping", "sentence"),
    [
        (torch.eye(2), torch.zeros(2, 2), 1.0, "x has no energy: got a trace of 0"),
        (torch.eye(2), -torch.eye(2), 1.0, "x has no energy: got a trace of -2"),
        (torch.eye(2), torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), 1.0, "^x is not finite"),
        (torch.full((2, 2), torch.inf), torch.eye(2), 1.0, "set against x is not finite"),
        (torch.eye(2), torch.tensor([[1.0, 0.5], [0.4, 1.0]]), 1.0, "^x is not symmetric: got entries ij and ji 0.1"),
        (torch.eye(2), torch.eye(2).bfloat16(), 1.0, r"^x cannot be decomposed: got torch.bfloat16 \(2, 2\)"),
        (torch.ones(2, 3), torch.eye(2), 1.0, r"set against x cannot be decomposed: got torch.float32 \(2, 3\)"),
        (torch.eye(3), torch.eye(2), 1.0, r"set against x does not fit: got \(3, 3\), expected \(2, 2\)"),
        (torch.eye(2), torch.eye(2), -0.1, "x cannot be damped: got damping -0.1"),
        (torch.eye(2), torch.eye(2), torch.nan, "x cannot be damped: got damping nan"),
    ],
)
def test_what_has_no_solution_is_refused(A_dd: Tensor, B_dd: Tensor, damping: float, sentence: str) -> None:
    with pytest.raises(NumericsError, match=sentence):
        gevp(A_dd, B_dd, damping=damping, name="x")
