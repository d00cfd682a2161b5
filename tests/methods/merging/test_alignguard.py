"""AlignGuard as a merge rule: against a search for the least loss as the formula has it, closed forms, and its laws."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tests.close import assert_close
from tests.methods.merging.test_curved import layers
from tests.methods.merging.test_maths import D, drawn, fishers
from torch import Tensor

from holdfast.core.errors import ConfigError, NumericsError
from holdfast.methods.merging import alignguard
from holdfast.methods.merging.alignguard import axes, guarded, split
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.curved import Layer, merged_cores, with_parts
from holdfast.methods.merging.evidence import Evidence

K = 4
LAMBDA_A, LAMBDA_T, LAMBDA_NC, ALPHA, BETA, TAU = 0.25, 0.5, 0.1, 0.5, 4.0, 1.0


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Safety Fisher, utility Fisher, and the two updates."""
    F_u, F_s = fishers(2)
    return F_s, F_u, drawn(2, D, seed=9)


def found(weight: float = 1.0, utility: float = 1.0, k: int = K) -> Tensor:
    F_s, F_u, phi_td = given()
    return guarded(split(F_s, F_u, k), phi_td, (utility, weight))


def critical(k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues over the mean of all, and their vectors as columns."""
    values, vectors = np.linalg.eigh(given()[0].numpy())
    return values[-k:] / values.mean(), vectors[:, -k:]


def geodesic(A: np.ndarray, T: np.ndarray) -> float:
    return float(A @ T) ** 2 / float(A @ A) / float(T @ T)


def loss(update: np.ndarray, weight: float) -> float:
    """The formula, entry by entry, with both collision penalties."""
    F_s, F_u, phi_td = (each.numpy() for each in given())
    values, vectors = np.linalg.eigh(F_s)
    A = sum((v @ update) * v for v in vectors.T[-K:])
    T = update - A
    utility, H = phi_td[0], F_u / np.mean(np.linalg.eigvalsh(F_u))
    away = utility - update
    away_task = away - sum((v @ away) * v for v in vectors.T[-K:])
    size = math.sqrt(sum(x * x for x in utility) / D)
    overlap = 0.0
    for j in range(D):
        eta = 1 + BETA / (1 + math.exp(-(abs(utility[j]) / size - TAU)))
        overlap += eta * math.hypot(A[j], 0.01 * size) * math.hypot(T[j], 0.01 * size)
    penalty = LAMBDA_A * sum(s / values.mean() * (v @ A) ** 2 for s, v in zip(values, vectors.T, strict=True))
    penalty += LAMBDA_NC * (ALPHA * overlap + (1 - ALPHA) * geodesic(A, T))
    return float(away @ away + LAMBDA_T * away_task @ H @ away_task + weight * penalty)


@pytest.mark.parametrize("weight", [0.1, 1.0, 5.0])
def test_the_merge_is_the_safety_update_and_the_update_of_least_loss(weight: float) -> None:
    phi_td = given()[2].numpy()
    best = minimize(loss, phi_td[0], args=(weight,), method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    update = found(weight).numpy() - weight * phi_td[1]
    assert loss(update, weight) <= best.fun + 1e-12
    assert_close(update, best.x)
    assert loss(phi_td[0], weight) > best.fun + 0.01 * weight


def test_the_geodesic_penalty_that_is_left_out_is_zero_for_every_update() -> None:
    _, vectors = critical()
    for update in [drawn(D, seed=seed) for seed in range(20)] + [found(w) - w * given()[2][1] for w in (0.1, 1.0)]:
        A = vectors @ (vectors.T @ update.numpy())
        assert min(np.linalg.norm(A), np.linalg.norm(update.numpy() - A)) > 0.1
        assert geodesic(A, update.numpy() - A) < 1e-25


def test_without_collisions_each_critical_direction_of_the_utility_update_shrinks_by_its_share_of_the_fisher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``1 / (1 + w lambda f)``; the task part and the whole safety update are kept."""
    monkeypatch.setattr(alignguard, "COLLISION", 0.0)
    (values, vectors), phi_td = critical(), given()[2].numpy()
    lost = 0.4 * LAMBDA_A * values / (1 + 0.4 * LAMBDA_A * values)
    expected = 3 * phi_td[0] + 0.4 * phi_td[1] - vectors @ (lost * (vectors.T @ (3 * phi_td[0])))
    assert_close(found(0.4, 3.0), expected, "float64")


def test_a_collision_penalty_makes_the_parts_overlap_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def overlap() -> float:
        D_d = found() - given()[2][1]
        A_d = torch.from_numpy(critical()[1] @ (critical()[1].T @ D_d.numpy()))
        return float((A_d.abs() * (D_d - A_d).abs()).sum())

    penalised = overlap()
    monkeypatch.setattr(alignguard, "COLLISION", 0.0)
    assert penalised < 0.9 * overlap()


def test_weight_0_leaves_the_utility_update_and_no_utility_update_leaves_the_safety_update() -> None:
    phi_td = given()[2]
    assert_close(found(0.0), phi_td[0], "float64")
    assert_close(found(0.7, 0.0), 0.7 * phi_td[1], "exact")
    assert_close(found(1e-7), phi_td[0])


def test_only_the_shape_of_a_fisher_matrix_matters() -> None:
    F_s, F_u, phi_td = given()
    assert_close(guarded(split(1e-9 * F_s, 1e6 * F_u, K), phi_td, (1.0, 1.0)), found(), "float64")


def test_larger_updates_give_a_larger_merge_and_nothing_else() -> None:
    F_s, F_u, phi_td = given()
    small = guarded(split(F_s, F_u, K), 1e-4 * phi_td, (1.0, 1.0))
    assert_close(small, 1e-4 * found(), "float64")
    assert_close(1e4 * small, found(), "float32")


def merged(given: list[Layer], **keys: Any) -> dict[str, Tensor]:
    config = MergingConfig(rule="alignguard", **keys)
    seen = with_parts(config, given)
    return merged_cores(config, (1.0, 1.5), [(name, M_tpq, seen[name]) for name, M_tpq, _ in given])


def turned(layer: Layer, seed: int) -> tuple[Layer, Tensor, Tensor]:
    """A layer in other orthonormal bases of the same core space."""
    name, M_tpq, seen = layer
    p, q = M_tpq.shape[1:]
    R_pp, S_qq = torch.linalg.qr(drawn(p, p, seed=seed))[0], torch.linalg.qr(drawn(q, q, seed=seed + 1))[0]
    other = [
        Evidence(gradients=(R_pp @ e.gradients.reshape(-1, p, q) @ S_qq.T).flatten(1))
        for e in seen
        if e.gradients is not None
    ]
    return (name, R_pp @ M_tpq @ S_qq.T, other), R_pp, S_qq


def test_the_bases_of_the_core_space_do_not_matter() -> None:
    """Entries collide between axes of the updates; in the bases as they come, other ones would."""
    for layer in layers():
        other, R_pp, S_qq = turned(layer, seed=50)
        there, back = merged([layer], k=2)[layer[0]], merged([other], k=2)[layer[0]]
        assert_close(R_pp.T @ back @ S_qq, there, "float64")
    F_s, F_u, phi_td = given()
    R_dd = torch.linalg.qr(drawn(D, D, seed=51))[0]
    unaware = R_dd.T @ guarded(split(R_dd @ F_s @ R_dd.T, R_dd @ F_u @ R_dd.T, K), phi_td @ R_dd.T, (1.0, 1.0))
    assert (unaware - found()).norm() > 0.01


def test_axes_are_orthogonal_and_those_of_a_single_update_are_its_singular_vectors() -> None:
    M_tpq = drawn(1, 4, 3)
    U_pp, V_qq = axes(M_tpq)
    assert_close(U_pp.T @ U_pp, torch.eye(4), "float64")
    assert_close(V_qq.T @ V_qq, torch.eye(3), "float64")
    between_pq = (U_pp.T @ M_tpq[0] @ V_qq).abs()
    assert_close(between_pq.sort().values[:, -1].sort().values[1:], torch.linalg.svdvals(M_tpq[0]).flip(0), "float64")
    assert float(between_pq.sum()) == pytest.approx(float(torch.linalg.svdvals(M_tpq[0]).sum()))


def test_each_layer_is_guarded_by_its_own_rows_and_k_is_half_of_what_they_span() -> None:
    few = layers(n=6)
    for layer in few:
        rank = min(6, layer[1][0].numel())
        there = merged([layer])[layer[0]]
        assert torch.equal(there, merged(few)[layer[0]])
        assert torch.equal(there, merged([layer], k=(rank + 1) // 2)[layer[0]])
        assert (there - merged([layer], k=1)[layer[0]]).norm() > 1e-3


NOTHING = torch.zeros(D, D, dtype=torch.float64)


@pytest.mark.parametrize(
    ("do", "error", "says"),
    [
        (lambda: found(-0.1), NumericsError, "got a safety weight of -0.1, expected 0 or more"),
        (
            lambda: split(NOTHING, given()[1], K, "x.q"),
            NumericsError,
            "Fisher matrix of safety rows of x.q does not decide the merge: got a mean eigenvalue of 0",
        ),
        (lambda: split(given()[0], NOTHING, K), NumericsError, "of utility rows of a layer"),
        (lambda: merged(layers(n=5), k=6), ConfigError, "k is larger than the evidence: got 6, expected at most 5"),
    ],
)
def test_evidence_that_decides_nothing_is_refused(do: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        do()


def test_steps_that_do_not_converge_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignguard, "STEPS", 2)
    with pytest.raises(NumericsError, match=r"after 2 steps the update still changes by .* Do: lower the weight"):
        found(3.0)
