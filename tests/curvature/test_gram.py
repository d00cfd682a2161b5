"""Two Fishers through the inner products of their samples, against the dense matrices they stand for."""

import pytest
import scipy.linalg
import torch
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import ConfigError, NumericsError
from holdfast.curvature.gevp import gevp
from holdfast.curvature.gram import (
    Outside,
    coordinates,
    gram_gevp,
    gram_oblique,
    gram_solve,
    inner_products,
    sample_coordinates,
)

DAMPING = 1e-2


def samples(n: int, d: int, seed: int = 0) -> Tensor:
    """Gradients whose coordinates have unequal size."""
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=dice, dtype=torch.float64) * torch.logspace(0, -1, d).double()


def fisher(G_nd: Tensor) -> Tensor:
    return G_nd.T @ G_nd / len(G_nd)


def damped(F_dd: Tensor, eps: float) -> Tensor:
    return F_dd + eps * torch.eye(len(F_dd), dtype=torch.float64)


CASES = {
    "few samples, many coordinates": (samples(5, 60), samples(7, 60, 1)),
    "more samples than coordinates": (samples(40, 12), samples(30, 12, 1)),
    "every row twice": (samples(5, 60).repeat(2, 1), samples(7, 60, 1).repeat(2, 1)),
    "the same rows on both sides": (samples(6, 60), samples(6, 60)),
    "safety without any gradient": (torch.zeros(3, 60).double(), samples(7, 60, 1)),
    "one sample each": (samples(1, 60), samples(1, 60, 1)),
}
each_case = pytest.mark.parametrize(("G_sd", "G_ud"), CASES.values(), ids=CASES)


@each_case
def test_values_equal_the_dense_ones_and_the_others_are_zero(G_sd: Tensor, G_ud: Tensor) -> None:
    G_nd = torch.cat([G_sd, G_ud])
    found = gram_gevp(G_nd @ G_nd.T, len(G_sd), damping=DAMPING, d=G_nd.shape[1])
    dense = gevp(fisher(G_sd), fisher(G_ud), damping=DAMPING)
    k = int(torch.linalg.matrix_rank(G_nd))
    assert found.values_k.shape == (k,)
    assert found.eps == pytest.approx(dense.eps, rel=1e-12)
    assert_close(found.values_k, dense.values_k[:k], "float64")
    assert_close(dense.values_k[k:], torch.zeros(G_nd.shape[1] - k), "float64")


def repeated(n: int, d: int) -> Tensor:
    """Samples on orthogonal axes, all of one size: their Fisher has one eigenvalue ``n`` times."""
    return torch.linalg.qr(samples(d, n)).Q.T * n**0.5


AXES = repeated(16, 60)
PEER_CASES = CASES | {
    "one ratio many times": (AXES[:8] * 3, AXES[4:]),
    "a thousand samples of few coordinates": (samples(1000, 30), samples(900, 30, 1)),
    "without full rank in safety and in utility": (samples(30, 4) @ samples(4, 60, 2), samples(30, 5) @ samples(5, 60)),
}


@pytest.mark.parametrize(
    ("G_sd", "G_ud"),
    [
        *(pytest.param(*pair, id=name) for name, pair in PEER_CASES.items()),
        pytest.param(samples(60, 2000), samples(70, 2000, 1), id="2,000 coordinates", marks=pytest.mark.slow),
    ],
)
def test_values_equal_those_of_scipy_on_the_dense_matrices_to_1e_8(G_sd: Tensor, G_ud: Tensor) -> None:
    G_nd = torch.cat([G_sd, G_ud])
    found = gram_gevp(G_nd @ G_nd.T, len(G_sd), damping=DAMPING, d=G_nd.shape[1])
    F_s, F_u = fisher(G_sd), fisher(G_ud)
    B_dd = damped(F_u, DAMPING * float(F_u.trace()) / len(F_u))
    peer_d = torch.from_numpy(scipy.linalg.eigh(F_s.numpy(), B_dd.numpy(), eigvals_only=True)[::-1].copy())
    k = len(found.values_k)
    scale = max(float(peer_d[0]), 1e-300)
    assert float((found.values_k - peer_d[:k]).abs().max()) <= 1e-8 * scale
    assert float(peer_d[k:].abs().max() if k < len(peer_d) else 0.0) <= 1e-8 * scale or not G_sd.any()


def test_axes_of_one_ratio_have_that_ratio_every_time() -> None:
    """Eight safety axes, four of them utility's too: two ratios, four times each, and no other."""
    found = gram_gevp(torch.cat([AXES[:8] * 3, AXES[4:]]) @ torch.cat([AXES[:8] * 3, AXES[4:]]).T, 8, damping=1, d=60)
    alone, shared = 9 * 2 / found.eps, 9 * 2 / (16 / 12 + found.eps)  # F_s: 9 * 16 / 8 = 18 on its axes
    assert_close(found.values_k[:4], [alone] * 4, "float64")
    assert_close(found.values_k[4:8], [shared] * 4, "float64")
    assert_close(found.values_k[8:], torch.zeros(8), "float64")


@each_case
def test_directions_solve_the_equation_of_the_dense_matrices(G_sd: Tensor, G_ud: Tensor) -> None:
    G_nd = torch.cat([G_sd, G_ud])
    found = gram_gevp(G_nd @ G_nd.T, len(G_sd), damping=DAMPING, d=G_nd.shape[1])
    V_dk, B_dd = G_nd.T @ found.alpha_nk, damped(fisher(G_ud), found.eps)
    assert_close(V_dk.T @ B_dd @ V_dk, torch.eye(V_dk.shape[1]), "float64")
    assert_close(fisher(G_sd) @ V_dk, B_dd @ V_dk * found.values_k, "float64")
    assert_close(G_nd.T @ found.dual_nk, B_dd @ V_dk, "float64")


@each_case
def test_coordinates_are_the_same_by_the_products_of_rows_and_of_columns(G_sd: Tensor, G_ud: Tensor) -> None:
    G_nd = torch.cat([G_sd, G_ud])
    wide_nd = torch.cat([G_nd, torch.zeros(len(G_nd), 5 * len(G_nd)).double()], 1)
    for given in (G_nd, wide_nd):
        R_nr = coordinates(given)
        assert R_nr.shape == (len(G_nd), int(torch.linalg.matrix_rank(G_nd)))
        assert_close(R_nr @ R_nr.T, G_nd @ G_nd.T, "float64")
    turned_nd = G_nd[:, :1] * G_nd  # rows that use all coordinates, or one fewer
    thin_nd = torch.cat([turned_nd[:, :4], turned_nd[:, :1]], 1)
    assert coordinates(thin_nd.repeat(5, 1)).shape[1] == int(torch.linalg.matrix_rank(thin_nd))


@pytest.mark.parametrize("n", [3, 30])
def test_there_are_no_coordinates_of_samples_without_gradients(n: int) -> None:
    with pytest.raises(NumericsError, match="Do: give"):
        coordinates(torch.zeros(n, 10))


@pytest.mark.parametrize("d", [400, pytest.param(1500, marks=pytest.mark.slow)])
def test_each_value_of_hundred_samples_equals_the_dense_one_to_1e_9(d: int) -> None:
    G_sd, G_ud = samples(50, d), samples(50, d, 1)
    G_nd = torch.cat([G_sd, G_ud])
    found = gram_gevp(G_nd @ G_nd.T, 50, damping=DAMPING, d=d)
    dense = gevp(fisher(G_sd), fisher(G_ud), damping=DAMPING)
    off_s = (found.values_k[:50] / dense.values_k[:50] - 1).abs()
    assert off_s.max() <= 1e-9


@pytest.mark.parametrize("n", [1, 12, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_over_layers_are_those_of_all_coordinates(n: int, dtype: torch.dtype) -> None:
    G_nd = samples(n, 5000).to(dtype)
    K_nn = inner_products(G_nd.split([10, 4490, 500], dim=1))
    assert_close(K_nn, G_nd.double() @ G_nd.double().T, "float64")
    assert torch.equal(K_nn, K_nn.T)


def test_directions_over_layers_are_those_of_all_coordinates() -> None:
    G_nd = samples(12, 60)
    K_nn = inner_products(G_nd.split([10, 30, 20], dim=1))
    whole = gevp(fisher(G_nd[:5]), fisher(G_nd[5:]), damping=DAMPING)
    assert_close(gram_gevp(K_nn, 5, damping=DAMPING, d=60).values_k, whole.values_k[:12], "float64")


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([], "no inner products of 0 samples"),
        ([torch.ones(3, 4), torch.ones(4, 4)], "got 4 in one layer, expected 3 as in the first"),
        ([torch.ones(3, 4), torch.full((3, 1), torch.nan)], "no inner products of 3 samples: .* NaN or infinity"),
    ],
)
def test_layers_without_inner_products_are_refused(layers: list[Tensor], sentence: str) -> None:
    with pytest.raises(NumericsError, match=sentence):
        inner_products(layers)


@each_case
def test_sample_coordinates_rebuild_the_inner_products_on_orthogonal_axes(G_sd: Tensor, G_ud: Tensor) -> None:
    G_nd = torch.cat([G_sd, G_ud])
    R_nr = sample_coordinates(G_nd @ G_nd.T)
    assert R_nr.shape[1] == torch.linalg.matrix_rank(G_nd)
    assert_close(R_nr @ R_nr.T, G_nd @ G_nd.T, "float64")
    energy_r = R_nr.square().sum(0)
    assert_close(R_nr.T @ R_nr, energy_r.diag(), "float64")
    assert (energy_r[:-1] >= energy_r[1:]).all()


@pytest.mark.parametrize(("size", "rank"), [(1e-7, 2), (1e-9, 1)])
def test_direction_within_rounding_of_zero_is_left_out(size: float, rank: int) -> None:
    K_nn = torch.tensor([1.0, size**2], dtype=torch.float64).diag()
    assert sample_coordinates(K_nn).shape[1] == rank
    assert sample_coordinates(K_nn.float()).shape[1] == 1


@pytest.mark.parametrize("k", [0, 4, 12])
@pytest.mark.parametrize("outside", ["keep", "drop"])
def test_projection_is_the_dense_one_and_outside_of_the_span_as_told(k: int, outside: Outside) -> None:
    G_nd, phi_d = samples(12, 60), samples(1, 60, 2)[0]
    found = gram_gevp(G_nd @ G_nd.T, 5, damping=DAMPING, d=60)
    share, gamma_n = gram_oblique(found, G_nd @ phi_d, (torch.arange(12) < k).double(), outside=outside)
    V_dk = G_nd.T @ found.alpha_nk[:, :k]
    inside_d = torch.linalg.pinv(G_nd) @ (G_nd @ phi_d)
    expected_d = V_dk @ V_dk.T @ damped(fisher(G_nd[5:]), found.eps) @ phi_d
    expected_d += (phi_d - inside_d) * (outside == "keep")
    assert_close(share * phi_d + G_nd.T @ gamma_n, expected_d, "float64")


def test_scaled_outside_shrinks_as_the_inside_does_on_average() -> None:
    G_nd, phi_d = samples(12, 60), samples(1, 60, 2)[0]
    found = gram_gevp(G_nd @ G_nd.T, 5, damping=DAMPING, d=60)
    weights_k = found.values_k / (found.values_k + 1)
    share, gamma_n = gram_oblique(found, G_nd @ phi_d, weights_k, outside="scale")
    B_dd = damped(fisher(G_nd[5:]), found.eps)
    kept_d = G_nd.T @ gram_oblique(found, G_nd @ phi_d, weights_k, outside="drop")[1]
    inside_d = torch.linalg.pinv(G_nd) @ (G_nd @ phi_d)
    assert_close(share, inside_d @ B_dd @ kept_d / (inside_d @ B_dd @ inside_d), "float64")
    assert_close(share * phi_d + G_nd.T @ gamma_n, kept_d + share * (phi_d - inside_d), "float64")


def test_equal_weights_scale_the_whole_update() -> None:
    G_nd, phi_d = samples(12, 60), samples(1, 60, 2)[0]
    found = gram_gevp(G_nd @ G_nd.T, 5, damping=DAMPING, d=60)
    share, gamma_n = gram_oblique(found, G_nd @ phi_d, torch.full((12,), 0.3), outside="scale")
    assert_close(share * phi_d + G_nd.T @ gamma_n, 0.3 * phi_d, "float32")


def test_update_without_any_evidence_cannot_be_scaled() -> None:
    G_nd = samples(12, 60)
    found = gram_gevp(G_nd @ G_nd.T, 5, damping=DAMPING, d=60)
    with pytest.raises(NumericsError, match="none of it in the span of the samples"):
        gram_oblique(found, torch.zeros(12), torch.ones(12), outside="scale")
    with pytest.raises(ConfigError, match=r"'kepe'\. Did you mean 'keep'\? Known: drop, keep, scale"):
        gram_oblique(found, torch.zeros(12), torch.ones(12), outside="kepe")  # type: ignore[arg-type]


@each_case
@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_merge_equals_the_dense_solution(G_sd: Tensor, G_ud: Tensor, mu: float) -> None:
    G_nd, n_s, d = torch.cat([G_sd, G_ud]), len(G_sd), G_sd.shape[1]
    phi_s, phi_u, phi_0 = samples(3, d, 2)
    K_nn = G_nd @ G_nd.T
    w_n = torch.tensor([mu / n_s] * n_s + [1 / len(G_ud)] * len(G_ud), dtype=torch.float64)
    r_n = torch.cat([G_sd @ (phi_s - phi_0), G_ud @ (phi_u - phi_0)])
    F_s, F_u = fisher(G_sd), fisher(G_ud)
    unit = float((F_u + mu * F_s).trace()) / d
    eps = DAMPING * unit
    expected_d = torch.linalg.solve(damped(F_u + mu * F_s, eps), F_u @ phi_u + mu * F_s @ phi_s + eps * phi_0)
    got_d = phi_0 + G_nd.T @ gram_solve(K_nn, w_n, r_n, damping=DAMPING, unit=unit)
    assert_close(got_d, expected_d, "float64")


def test_merge_of_one_update_with_itself_is_that_update_at_any_weight() -> None:
    G_nd, phi_d = samples(12, 60), samples(1, 60, 2)[0]
    gamma_n = gram_solve(G_nd @ G_nd.T, torch.rand(12), G_nd @ (phi_d - phi_d), damping=0.1)
    assert_close(phi_d + G_nd.T @ gamma_n, phi_d, "exact")


def test_samples_of_weight_zero_have_no_say() -> None:
    G_nd, r_n = samples(12, 60), samples(1, 12)[0]
    w_n = (torch.arange(12) < 7).double()
    gamma_n = gram_solve(G_nd @ G_nd.T, w_n, r_n, damping=0.1)
    alone_n = gram_solve(G_nd[:7] @ G_nd[:7].T, torch.ones(7), r_n[:7], damping=0.1)
    assert_close(gamma_n, torch.cat([alone_n, torch.zeros(5)]), "float64")


def test_undamped_merge_gives_every_independent_sample_what_it_asks_for() -> None:
    G_nd, r_n = samples(12, 60), samples(1, 12)[0]
    gamma_n = gram_solve(G_nd @ G_nd.T, torch.rand(12) + 0.1, r_n, damping=0.0)
    assert_close(G_nd @ (G_nd.T @ gamma_n), r_n, "float64")


@pytest.mark.parametrize(
    ("K_nn", "n_s", "sentence"),
    [
        (torch.eye(4), 0, "got 0 safety samples of 4"),
        (torch.eye(4), 4, "got 4 safety samples of 4"),
        (torch.zeros(4, 4), 2, "is not one: got eigenvalues 0 to 0"),
        (torch.tensor([1.0, 1.0, -0.1]).diag(), 1, "is not one: got eigenvalues -0.1 to 1"),
        (torch.tensor([1.0, 1.0, 0.0, 0.0]).diag(), 2, "x has no energy"),
        (torch.eye(4)[:3], 2, r"cannot be decomposed: got torch.float32 \(3, 4\)"),
    ],
)
def test_what_are_no_two_fishers_is_refused(K_nn: Tensor, n_s: int, sentence: str) -> None:
    with pytest.raises(NumericsError, match=sentence):
        gram_gevp(K_nn, n_s, damping=1.0, d=10, name="x")


def test_damping_below_the_rounding_of_float32_sums_is_refused_and_float64_sums_bear_it() -> None:
    G_nd = samples(12, 60)
    K_nn = G_nd @ G_nd.T
    with pytest.raises(NumericsError, match=r"x is not positive definite.*raise damping to at least"):
        gram_gevp(K_nn.float(), 5, damping=1e-8, d=60, name="x")
    assert gram_gevp(K_nn, 5, damping=1e-8, d=60).values_k[0] > 0


def test_merge_with_weights_or_damping_that_cannot_be_is_refused() -> None:
    K_nn, ones_n = torch.ones(3, 3), torch.ones(3)
    for w_n, r_n in ((-ones_n, ones_n), (ones_n, ones_n * torch.nan), (ones_n * torch.inf, ones_n)):
        with pytest.raises(NumericsError, match="samples cannot be weighed"):
            gram_solve(K_nn, w_n, r_n, damping=1.0)
    with pytest.raises(NumericsError, match=r"sum of the Fishers is not positive definite.*raise damping"):
        gram_solve(K_nn, ones_n, ones_n, damping=0.0)
