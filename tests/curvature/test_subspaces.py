"""Projections and angles against what defines them, closed forms and SciPy."""

import math

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import Directions, gevp
from holdfast.curvature.gram import gram_gevp, gram_oblique, sample_coordinates
from holdfast.curvature.subspaces import (
    oblique,
    overlap,
    overlap_by_chance,
    overlap_deviation,
    principal_angles,
    soft_weights,
    split_half,
)

D = 20


def draw(n: int, d: int = D, seed: int = 0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=dice, dtype=torch.float64) * torch.logspace(0, -1, d).double()


def two_fishers() -> tuple[Tensor, Tensor, Directions]:
    """Safety's, utility's with its damping, and their directions."""
    F_s, F_u = (G_nd.T @ G_nd / len(G_nd) for G_nd in (draw(9), draw(30, seed=1)))
    found = gevp(F_s, F_u, damping=1e-2)
    return F_s, F_u + found.eps * torch.eye(D, dtype=torch.float64), found


def test_projecting_twice_is_projecting_once() -> None:
    _, B_dd, found = two_fishers()
    V_dk, phi_d = found.vectors_dk[:, :6], draw(1, seed=2)[0]
    once_d = oblique(V_dk, B_dd, phi_d)
    assert_close(oblique(V_dk, B_dd, once_d), once_d, "float64")
    assert (once_d - phi_d).norm() > 0.1


def test_projector_is_self_adjoint_in_the_metric_of_utility_and_not_in_the_euclidean() -> None:
    _, B_dd, found = two_fishers()
    P_dd = oblique(found.vectors_dk[:, :6], B_dd, torch.eye(D, dtype=torch.float64))
    assert_close(B_dd @ P_dd, (B_dd @ P_dd).T, "float64")
    assert (P_dd - P_dd.T).abs().max() > 0.1
    assert_close(P_dd.trace(), 6.0, "float64")


def test_projection_on_all_directions_is_the_update_itself() -> None:
    _, B_dd, found = two_fishers()
    phi_d = draw(1, seed=2)[0]
    assert_close(oblique(found.vectors_dk, B_dd, phi_d), phi_d, "float64")


def test_projection_keeps_the_directions_and_removes_the_others() -> None:
    _, B_dd, found = two_fishers()
    V_dk = found.vectors_dk
    assert_close(oblique(V_dk[:, :6], B_dd, V_dk[:, 2]), V_dk[:, 2], "float64")
    assert_close(oblique(V_dk[:, :6], B_dd, V_dk[:, 7]), torch.zeros(D), "float64")


def test_matrix_may_be_given_as_a_function_and_updates_as_columns() -> None:
    _, B_dd, found = two_fishers()
    phi_dm = draw(3, seed=2).T
    got_dm = oblique(found.vectors_dk[:, :6], lambda v: B_dd @ v, phi_dm)
    for got_d, phi_d in zip(got_dm.T, phi_dm.T, strict=True):
        assert_close(got_d, oblique(found.vectors_dk[:, :6], B_dd, phi_d), "float64")


@pytest.mark.parametrize("mu", [0.1, 1.0, 30.0])
def test_soft_weights_make_the_merge_that_loses_least_on_both_quadratic_models(mu: float) -> None:
    F_s, B_dd, found = two_fishers()
    phi_u, phi_s = draw(2, seed=2)
    merged_d = torch.linalg.solve(B_dd + mu * F_s, B_dd @ phi_u + mu * F_s @ phi_s)
    mixed_d = phi_u + oblique(found.vectors_dk, B_dd, phi_s - phi_u, soft_weights(found.values_k, 1 / mu))
    assert_close(mixed_d, merged_d, "float64")


def test_soft_projection_through_samples_is_the_dense_one() -> None:
    _, B_dd, found = two_fishers()
    G_nd, phi_d = torch.cat([draw(9), draw(30, seed=1)]), draw(1, seed=2)[0]
    through = gram_gevp(G_nd @ G_nd.T, 9, damping=1e-2, d=D)
    share, gamma_n = gram_oblique(through, G_nd @ phi_d, soft_weights(through.values_k, 0.5), outside="drop")
    dense_d = oblique(found.vectors_dk, B_dd, phi_d, soft_weights(found.values_k, 0.5))
    assert_close(share * phi_d + G_nd.T @ gamma_n, dense_d, "float64")


def test_soft_weights_count_rounding_below_zero_as_zero_and_refuse_more() -> None:
    assert_close(soft_weights(torch.tensor([1.0, -1e-9]), 1.0), [0.5, 0.0], "exact")
    with pytest.raises(NumericsError, match=r"ratios down to -0\.1: expected none below 0"):
        soft_weights(torch.tensor([1.0, -0.1]), 1.0)
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(NumericsError, match="no soft weights at tau"):
            soft_weights(torch.ones(2), tau)


def tilted(angles: list[float]) -> tuple[Tensor, Tensor]:
    """Two subspaces at these angles, in bases that are not orthonormal, turned into general position."""
    k, dice = len(angles), torch.Generator().manual_seed(3)
    radians = torch.tensor(angles, dtype=torch.float64)
    U_dk, V_dk = torch.eye(2 * k, k).double(), torch.cat([radians.cos().diag(), radians.sin().diag()])
    turn_dd = torch.linalg.qr(torch.randn(2 * k, 2 * k, generator=dice, dtype=torch.float64))[0]
    mix_kk = torch.randn(k, k, generator=dice, dtype=torch.float64) + 3 * torch.eye(k).double()
    return turn_dd @ U_dk @ mix_kk, turn_dd @ V_dk @ mix_kk.T


@pytest.mark.parametrize(
    "angles", [[0.3], [1e-9], [1e-9, 0.2, math.pi / 2 - 1e-9], [math.pi / 4, math.pi / 4], [0.0, 1e-12, 1e-6, 1.0]]
)
def test_angles_between_subspaces_are_those_they_were_built_with(angles: list[float]) -> None:
    U_dk, V_dk = tilted(angles)
    got_k = principal_angles(U_dk, V_dk)
    assert (got_k - torch.tensor(angles, dtype=torch.float64)).abs().max() <= 1e-14


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1.0, 1e-4, 1e-9]), st.integers(0, 10**6))
def test_angles_equal_those_of_scipy_in_either_order(k_u: int, k_v: int, apart: float, seed: int) -> None:
    U_dk = draw(k_u, seed=seed).T
    V_dk = torch.cat([U_dk, draw(6, seed=seed + 1).T], 1)[:, :k_v] + apart * draw(k_v, seed=seed + 2).T
    peer_k = scipy.linalg.subspace_angles(U_dk.numpy(), V_dk.numpy())[::-1].copy()
    got_k = principal_angles(U_dk, V_dk)
    assert got_k.shape == (min(k_u, k_v),)
    assert (got_k - torch.as_tensor(peer_k)).abs().max() <= 1e-12
    assert (got_k - principal_angles(V_dk, U_dk)).abs().max() <= 1e-12
    assert (got_k[:-1] <= got_k[1:] + 1e-14).all()


def test_subspace_inside_another_has_no_angle_and_one_across_a_right_one() -> None:
    axes_dd = torch.eye(5)
    assert_close(principal_angles(axes_dd[:, :2], axes_dd[:, :4]), [0.0, 0.0], "exact")
    assert_close(principal_angles(axes_dd[:, :2], axes_dd[:, 2:]), torch.full((2,), math.pi / 2), "float32")
    assert_close(principal_angles(axes_dd[:, :2], axes_dd[:, 1:3]), [0.0, math.pi / 2], "float32")


@pytest.mark.parametrize(
    ("U_dk", "V_dk", "sentence"),
    [
        (torch.ones(5, 2), torch.eye(5), "no subspace of 2 dimensions: got dependent columns in 5"),
        (torch.eye(5), torch.zeros(5, 1), "no subspace of 1 dimensions"),
        (torch.eye(5), torch.ones(5, 6), "no subspace of 6 dimensions"),
        (torch.eye(5), torch.ones(5, 0), "no subspace of 0 dimensions"),
        (torch.eye(5), torch.eye(4), "no angles between subspaces in 5 and in 4 coordinates"),
    ],
)
def test_what_spans_no_subspace_is_refused(U_dk: Tensor, V_dk: Tensor, sentence: str) -> None:
    with pytest.raises(NumericsError, match=sentence):
        principal_angles(U_dk, V_dk)


def test_overlap_is_the_mean_squared_cosine() -> None:
    assert_close(overlap(torch.tensor([0.0, math.pi / 2])), 0.5)
    assert_close(overlap(torch.tensor([math.pi / 3])), 0.25)


def test_overlap_of_random_subspaces_is_that_by_chance() -> None:
    dice = torch.Generator().manual_seed(0)
    seen = torch.tensor(
        [overlap(principal_angles(*torch.randn(2, 30, 6, generator=dice).double())) for _ in range(200)]
    )
    assert_close(seen.mean(), overlap_by_chance(6, 30), "estimate", sigma=float(seen.std()) / 200**0.5)
    assert_close(seen.std(), overlap_deviation(6, 30), "estimate", sigma=overlap_deviation(6, 30) / 400**0.5)
    for k in (0, 31):
        with pytest.raises(NumericsError, match=f"no subspace of {k} dimensions in 30"):
            overlap_by_chance(k, 30)


def halves_oracle(G_sd: Tensor, G_ud: Tensor, k: int, damping: float) -> Tensor:
    leading = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        F_s, F_u = (G_nd[part].T @ G_nd[part] / len(G_nd[part]) for G_nd in (G_sd, G_ud))
        leading.append(gevp(F_s, F_u, damping=damping).vectors_dk[:, :k])
    return torch.as_tensor(scipy.linalg.subspace_angles(*(V_dk.numpy() for V_dk in leading))[::-1].copy())


@pytest.mark.parametrize("n", [10, 50])
def test_halves_are_even_and_odd_rows_each_with_its_own_damping(n: int) -> None:
    G_sd, G_ud = draw(n, 40), draw(n + 1, 40, 1)
    angles_k = split_half(G_sd, G_ud, k=3, damping=1e-2)
    assert_close(angles_k, halves_oracle(G_sd, G_ud, 3, 1e-2), "float64")


def test_halves_through_inner_products_of_the_samples_give_the_same_angles() -> None:
    G_nd = draw(24, 200)
    R_nr = sample_coordinates(G_nd @ G_nd.T)
    angles_k = split_half(R_nr[:10], R_nr[10:], k=3, damping=1e-2, d=200)
    assert_close(angles_k, halves_oracle(G_nd[:10], G_nd[10:], 3, 1e-2), "float64")


def test_equal_halves_agree_as_do_halves_of_a_strong_signal_and_those_of_noise_only_by_chance() -> None:
    same_nd = draw(12, 30).repeat_interleave(2, 0)
    assert_close(split_half(same_nd, same_nd.roll(1, 1), k=4, damping=1e-2), torch.zeros(4), "float64")
    noise_nd, utility_nd, common_nd = torch.randn(3, 4000, 30, generator=torch.Generator().manual_seed(1)).double()
    assert overlap(split_half(noise_nd, utility_nd, k=4, damping=1e-2)) < 0.4
    signal_nd = noise_nd + 10 * common_nd * (torch.arange(30) < 4)
    assert overlap(split_half(signal_nd, utility_nd, k=4, damping=1e-2)) > 0.9


@pytest.mark.parametrize(
    ("n_s", "n_u", "k", "sentence"),
    [
        (6, 9, 4, "no 4 directions in half the samples: got safety gradients in 3"),
        (7, 9, 4, "no 4 directions in half the samples: got safety gradients in 3"),
        (6, 9, 0, "no 0 directions"),
        (1, 9, 1, "got a half without any"),
        (6, 1, 1, "got a half without any"),
        (0, 9, 1, "got a half without any"),
    ],
)
def test_too_few_samples_to_halve_are_refused(n_s: int, n_u: int, k: int, sentence: str) -> None:
    with pytest.raises(NumericsError, match=sentence):
        split_half(draw(n_s), draw(n_u, seed=1), k=k, damping=1e-2)


def test_safety_rows_that_repeat_are_not_more_evidence() -> None:
    with pytest.raises(NumericsError, match="got safety gradients in 1, expected"):
        split_half(draw(1).repeat(8, 1), draw(9, seed=1), k=2, damping=1e-2)
