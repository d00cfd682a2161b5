"""Merges by curvature against dense float64 solves in NumPy, closed forms, and a search for the least loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import Directions, gevp
from holdfast.methods.merging import maths

P, Q = 4, 3
D = P * Q
DAMPING = 0.05
WEIGHTS = torch.tensor([0.7, 1.6, 0.4])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(count: int = 3, n: int = 30) -> list[Tensor]:
    """Of samples that use directions unequally."""
    return [drawn(n, D, seed=t + 1) * torch.linspace(0.2, 2.0, D).roll(3 * t) for t in range(count)]


def fishers(count: int = 3, n: int = 30) -> Tensor:
    return torch.stack([G_nd.T @ G_nd / len(G_nd) for G_nd in gradients(count, n)])


def cores(count: int = 3) -> Tensor:
    return drawn(count, P, Q, seed=9)


def solved(F_tdd: Any, phi_td: Tensor, weights_t: Tensor, damping: float = DAMPING) -> np.ndarray:
    """The slow twin: dense matrices, NumPy, damping by the mean eigenvalue."""
    whole, wanted = 0.0, 0.0
    for F_dd, phi_d, weight in zip(np.asarray(F_tdd), phi_td.numpy(), weights_t.double().numpy(), strict=True):
        curved = weight * (F_dd + damping * np.linalg.eigvalsh(F_dd).mean() * np.eye(len(F_dd)))
        whole, wanted = whole + curved, wanted + curved @ phi_d
    return np.linalg.solve(whole, wanted)


def test_the_mean_is_the_dense_solve() -> None:
    F_tdd, phi_td = fishers(), cores().flatten(1)
    assert_close(maths.quadratic_mean(F_tdd, phi_td, WEIGHTS, DAMPING), solved(F_tdd, phi_td, WEIGHTS), "float64")
    narrow = maths.quadratic_mean(F_tdd.float(), phi_td.float(), WEIGHTS, DAMPING)
    assert narrow.dtype == torch.float64
    assert_close(narrow, solved(F_tdd, phi_td, WEIGHTS))


def test_the_mean_has_the_least_total_loss_of_all_quadratic_models() -> None:
    F_tdd, phi_td = fishers(), cores().flatten(1)
    damped = [maths.damped(F_dd, DAMPING).numpy() for F_dd in F_tdd]

    def loss(phi: np.ndarray) -> float:
        parts = zip(WEIGHTS.numpy(), damped, phi_td.numpy(), strict=True)
        return float(sum(weight * (phi - own) @ F @ (phi - own) for weight, F, own in parts))

    best = minimize(loss, np.zeros(D), method="BFGS", options={"gtol": 1e-9}).x
    assert_close(maths.quadratic_mean(F_tdd, phi_td, WEIGHTS, DAMPING), best)


@pytest.mark.parametrize("mu", [0.1, 1.0, 30.0])
def test_two_adapters_are_mixed_in_each_direction_by_its_safety_per_utility(mu: float) -> None:
    F_tdd, phi_td = fishers(2), cores(2).flatten(1)
    F_u, F_s = (maths.damped(F_dd, DAMPING) for F_dd in F_tdd)
    found = gevp(F_s, F_u, damping=0.0)
    coordinates = (found.vectors_dk.T @ F_u @ phi_td.T).T  # V^T F_u V = I
    share_k = mu * found.values_k / (1 + mu * found.values_k)
    expected = found.vectors_dk @ ((1 - share_k) * coordinates[0] + share_k * coordinates[1])
    assert_close(
        maths.quadratic_mean(F_tdd, phi_td, torch.tensor([1.0, mu], dtype=torch.float64), DAMPING), expected, "float64"
    )


MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "full": lambda w_t: maths.quadratic_mean(fishers(2), cores(2).flatten(1), w_t, DAMPING).reshape(P, Q),
    "diagonal": lambda w_t: maths.diagonal_mean(
        fishers(2).diagonal(dim1=1, dim2=2), cores(2).flatten(1), w_t, DAMPING
    ).reshape(P, Q),
    "block": lambda w_t: maths.block_mean(gradients(2), cores(2), w_t, DAMPING),
    "kronecker": lambda w_t: maths.kronecker_mean(factors(2), cores(2), w_t, DAMPING),
    "inputs": lambda w_t: maths.input_mean(inputs(2), cores(2), w_t, DAMPING),
}
each_mean = pytest.mark.parametrize("mean", MEANS)


def blocks(G_tnd: list[Tensor]) -> Tensor:
    """The blocks of each row of ``M``, cut out of full matrices."""
    whole = torch.stack([G_nd.T @ G_nd / len(G_nd) for G_nd in G_tnd]).reshape(-1, P, Q, P, Q)
    return torch.stack([torch.stack([F[p, :, p, :] for p in range(P)]) for F in whole])


def inputs(count: int = 3) -> Tensor:
    return torch.stack([X.T @ X / len(X) for X in (drawn(20, Q, seed=t + 40) for t in range(count))])


def factors(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    outputs = [X.T @ X / len(X) for X in (drawn(20, P, seed=t + 60) for t in range(count))]
    return list(zip(inputs(count), outputs, strict=True))


@each_mean
def test_the_weight_goes_from_the_utility_adapter_to_the_safety_adapter(mean: str) -> None:
    near, far = (MEANS[mean](torch.tensor([1.0, mu], dtype=torch.float64)) for mu in (1e-9, 1e9))
    assert_close(near, cores(2)[0])
    assert_close(far, cores(2)[1])


@each_mean
def test_only_the_ratio_of_weights_matters_and_weight_0_removes_an_adapter(mean: str) -> None:
    assert_close(MEANS[mean](torch.tensor([0.6, 1.5])), MEANS[mean](torch.tensor([2.0, 5.0])))
    assert_close(MEANS[mean](torch.tensor([1.0, 0.0])), cores(2)[0])
    assert_close(MEANS[mean](torch.tensor([0.0, 3.0])), cores(2)[1])


def test_equal_fishers_give_the_weighted_average() -> None:
    M_tpq, same = cores(), [0, 0, 0]
    average = torch.einsum("t,tpq->pq", WEIGHTS.double(), M_tpq) / WEIGHTS.sum()
    for mean in (
        maths.quadratic_mean(fishers()[same], M_tpq.flatten(1), WEIGHTS, DAMPING).reshape(P, Q),
        maths.diagonal_mean(fishers().diagonal(dim1=1, dim2=2)[same], M_tpq.flatten(1), WEIGHTS, DAMPING).reshape(P, Q),
        maths.block_mean([gradients()[0]] * 3, M_tpq, WEIGHTS, DAMPING),
        maths.kronecker_mean([factors()[0]] * 3, M_tpq, WEIGHTS, DAMPING),
        maths.input_mean(inputs()[same], M_tpq, WEIGHTS, DAMPING),
    ):
        assert_close(mean, average)


def test_the_order_of_adapters_does_not_matter() -> None:
    order = [2, 0, 1]
    F_tdd, M_tpq = fishers(), cores()
    for there, back in (
        (
            maths.quadratic_mean(F_tdd, M_tpq.flatten(1), WEIGHTS, DAMPING),
            maths.quadratic_mean(F_tdd[order], M_tpq[order].flatten(1), WEIGHTS[order], DAMPING),
        ),
        (
            maths.kronecker_mean(factors(), M_tpq, WEIGHTS, DAMPING),
            maths.kronecker_mean([factors()[t] for t in order], M_tpq[order], WEIGHTS[order], DAMPING),
        ),
        (
            maths.block_mean(gradients(), M_tpq, WEIGHTS, DAMPING),
            maths.block_mean([gradients()[t] for t in order], M_tpq[order], WEIGHTS[order], DAMPING),
        ),
    ):
        assert_close(back, there, "float32")


def test_a_diagonal_mean_is_the_dense_solve_with_diagonal_matrices() -> None:
    F_td = fishers().diagonal(dim1=1, dim2=2)
    expected = solved(torch.diag_embed(F_td), cores().flatten(1), WEIGHTS)
    assert_close(maths.diagonal_mean(F_td, cores().flatten(1), WEIGHTS, DAMPING), expected, "float64")


@pytest.mark.parametrize("columns", [1, 2 * Q, 4096])
def test_a_block_mean_is_the_dense_solve_with_blocks_on_the_diagonal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many outputs are looked at together, and with unlike numbers of rows."""
    monkeypatch.setattr(maths, "COLUMNS", columns)
    G_tnd = [G_nd[: 30 - 7 * t] for t, G_nd in enumerate(gradients())]
    F_tdd = torch.stack([torch.block_diag(*F_pqq) for F_pqq in blocks(G_tnd)])
    expected = solved(F_tdd, cores().flatten(1), WEIGHTS).reshape(P, Q)
    assert_close(maths.block_mean(G_tnd, cores(), WEIGHTS, DAMPING), expected, "float64")
    narrow = maths.block_mean([G_nd.float() for G_nd in G_tnd], cores().float(), WEIGHTS, DAMPING)
    assert narrow.dtype == torch.float64
    assert_close(narrow, expected)


def test_samples_stand_side_by_side_some_coordinates_at_a_time() -> None:
    G_tnd = [drawn(n, D, seed=n) for n in (3, 2)]
    whole, places = torch.cat(G_tnd), []
    for left, G_nc in maths.side_by_side(G_tnd, 5):
        assert torch.equal(G_nc, whole[:, left : left + 5])
        places += range(left, left + G_nc.shape[1])
    assert places == list(range(D))
    assert maths.of_samples(G_tnd).tolist() == [0, 0, 0, 1, 1]


def test_a_kronecker_mean_is_the_dense_solve_with_kronecker_products() -> None:
    F_tdd = np.stack([np.kron(G_pp.numpy(), A_qq.numpy()) for A_qq, G_pp in factors()])
    expected = solved(F_tdd, cores().flatten(1), WEIGHTS).reshape(P, Q)
    assert_close(maths.kronecker_mean(factors(), cores(), WEIGHTS, DAMPING), expected)


def test_an_input_mean_minimises_the_error_of_outputs_on_each_adapters_own_inputs() -> None:
    rows = [drawn(20, Q, seed=t + 40) for t in range(3)]
    M_tpq = cores()
    found_pq = maths.input_mean(inputs(), M_tpq, WEIGHTS, 1e-12)
    X = np.concatenate([np.sqrt(w / len(x)) * x.numpy() for w, x in zip(WEIGHTS.double().numpy(), rows, strict=True)])
    Y = np.concatenate(
        [
            np.sqrt(w / len(x)) * x.numpy() @ M_pq.numpy().T
            for w, x, M_pq in zip(WEIGHTS.double().numpy(), rows, M_tpq, strict=True)
        ]
    )
    assert_close(found_pq, np.linalg.lstsq(X, Y, rcond=None)[0].T)


def test_damping_is_a_share_of_the_mean_eigenvalue() -> None:
    F_dd = fishers(1)[0]
    s_d = torch.linalg.eigvalsh(F_dd)
    assert_close(torch.linalg.eigvalsh(maths.damped(F_dd.float(), 0.5)), s_d + 0.5 * s_d.mean())


def keeps() -> dict[str, Any]:
    return {
        "efficient": partial(maths.first, 5),
        "random": partial(maths.drawn, 5, 3),
        "utility": partial(maths.most_used, 5),
    }


@pytest.mark.parametrize("keep", keeps())
def test_a_projection_on_directions_is_idempotent_and_self_adjoint_in_the_utility_fisher(keep: str) -> None:
    F_u, G_sd = fishers(2)[0], gradients(2)[1]
    project = partial(maths.projected, G_sd, F_u, damping=DAMPING, keep=keeps()[keep])
    phi_d, other_d = drawn(D, seed=3), drawn(D, seed=4)
    once_d = project(phi_d)
    assert_close(project(once_d), once_d, "float64")
    B_dd = maths.damped(F_u, DAMPING)
    assert_close(other_d @ B_dd @ once_d, project(other_d) @ B_dd @ phi_d, "float64")
    matrix_dd = torch.stack([project(unit_d) for unit_d in torch.eye(D, dtype=torch.float64)], dim=1)
    assert int(torch.linalg.matrix_rank(matrix_dd, rtol=1e-9)) == 5
    orthogonal = bool((matrix_dd - matrix_dd.T).norm() < 1e-9)
    assert orthogonal == (keep == "utility"), "eigenvectors of the metric itself are at right angles"


@pytest.mark.parametrize("keep", [maths.first, lambda k, *rest: maths.drawn(k, 0, *rest), maths.most_used])
def test_all_directions_give_the_whole_update(keep: Any) -> None:
    F_u, G_sd = fishers(2)[0], gradients(2)[1]
    phi_d = drawn(D, seed=3)
    assert_close(maths.projected(G_sd, F_u, phi_d, DAMPING, partial(keep, D)), phi_d, "float64")


def test_the_kept_directions_are_those_of_most_safety_per_utility_and_the_controls_are_not() -> None:
    F_u, F_s = fishers(2)
    B_dd = maths.damped(F_u, DAMPING)
    found = gevp(F_s, F_u, damping=DAMPING)

    def ratio(V_dk: Tensor) -> float:
        return float(torch.trace(V_dk.T @ F_s @ V_dk))  # orthonormal in B

    kept = {name: keep(found, B_dd)[0] for name, keep in keeps().items()}
    for V_dk in kept.values():
        assert V_dk.shape == (D, 5), "controls are of equal size"
        assert_close(V_dk.T @ B_dd @ V_dk, torch.eye(5), "float64")
    assert ratio(kept["efficient"]) == pytest.approx(float(found.values_k[:5].sum()))
    assert ratio(kept["efficient"]) > 2 * max(ratio(kept["random"]), ratio(kept["utility"]))
    used_dk = torch.linalg.eigh(F_u)[1][:, -5:]
    assert torch.linalg.matrix_rank(torch.cat([used_dk, kept["utility"]], 1), rtol=1e-9) == 5
    assert torch.equal(kept["random"], maths.drawn(5, 3, found, B_dd)[0])
    assert not torch.equal(kept["random"], maths.drawn(5, 4, found, B_dd)[0])


def test_soft_weights_let_through_what_the_quadratic_mean_takes_of_the_safety_adapter() -> None:
    """With ``tau = 1 / mu`` and nothing of the utility adapter, but for the damping of ``F_s``."""
    F_u, F_s = fishers(2)
    phi_d, mu = drawn(D, seed=3), 4.0
    soft_d = maths.projected(gradients(2)[1], F_u, phi_d, DAMPING, partial(maths.soft, 1 / mu))
    B_dd = maths.damped(F_u, DAMPING)
    assert_close(soft_d, np.linalg.solve((B_dd + mu * F_s).numpy(), (mu * F_s @ phi_d).numpy()), "float64")


def test_soft_directions_are_weighed_by_their_ratio() -> None:
    found = Directions(torch.tensor([3.0, 1.0, 0.0]), torch.eye(3), 0.0)
    assert maths.soft(1.0, found, torch.eye(3))[1].tolist() == [0.75, 0.5, 0.0]


NOTHING = torch.zeros(2, D, D, dtype=torch.float64)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda: maths.quadratic_mean(NOTHING, cores(2).flatten(1), WEIGHTS[:2], 0.1, "x.q"), "Fisher matrices of x.q"),
        (
            lambda: maths.quadratic_mean(fishers(2, n=4), cores(2).flatten(1), WEIGHTS[:2], 0.0),
            "Fisher matrices of a layer is not positive definite.*Do: raise damping to at least",
        ),
        (
            lambda: maths.diagonal_mean(torch.zeros(2, D), cores(2).flatten(1), WEIGHTS[:2], 0.1, "x.q"),
            "Fisher diagonals of x.q do not decide the merge: got 0 for 12 of 12 coordinates",
        ),
        (
            lambda: maths.block_mean([torch.zeros(5, D)] * 2, cores(2), WEIGHTS[:2], 0.1, "x.q"),
            "Fisher blocks of x.q do not decide the merge: 4 of 4 are not",
        ),
        (
            lambda: maths.kronecker_mean([(torch.zeros(Q, Q), torch.zeros(P, P))] * 2, cores(2), WEIGHTS[:2], 0.1),
            "got 0 or less for 12 of 12 coordinates",
        ),
        (lambda: maths.quadratic_mean(fishers(2), cores(2).flatten(1), torch.tensor([1.0, -9.0]), 0.1), "more than 0"),
        (
            lambda: maths.quadratic_mean(fishers(2, n=4).float(), cores(2).flatten(1), WEIGHTS[:2], 1e-8),
            "expected more than .*, the rounding. Do: raise damping to at least",
        ),
        (
            lambda: maths.projected(
                gradients(2)[1], fishers(1, n=4)[0].float(), drawn(D), 1e-8, partial(maths.first, 3)
            ),
            "utility Fisher is not positive definite.*Do: raise damping to at least",
        ),
        (
            lambda: maths.projected(gradients(2)[1], fishers(1, n=4)[0], drawn(D), 1e-20, partial(maths.first, 3)),
            "utility Fisher is not positive definite.*Do: raise damping to at least",
        ),
    ],
)
def test_evidence_that_decides_nothing_is_refused(do: Callable[[], object], says: str) -> None:
    with pytest.raises(NumericsError, match=says):
        do()
