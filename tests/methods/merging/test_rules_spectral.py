"""KnOTS, Core Space, TSV, Iso-C and SafeMERGE against slow dense versions in float64."""

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.lowrank import SHAPE, WEIGHTS, deltas, merged
from torch import Tensor

from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules import RULES, RuleSettings, merge_layer


def _dense(given: list[LowRank]) -> list[Tensor]:
    return [delta.B.double() @ delta.A.double() for delta in given]


def _ties(stack: list[Tensor], weights: tuple[float, ...], density: float) -> Tensor:
    """The paper's TIES on any coordinates."""
    X_tpq = torch.stack(stack)
    flat_tn = X_tpq.abs().flatten(1)
    kept = int(density * flat_tn.shape[1])
    least = flat_tn.sort(dim=1, descending=True).values[:, kept - 1, None, None]
    X_tpq = X_tpq * (X_tpq.abs() >= least) * torch.tensor(weights, dtype=torch.float64)[:, None, None]
    agrees = X_tpq.sign() == X_tpq.sum(0).sign()
    return (X_tpq * agrees).sum(0) / agrees.logical_and(X_tpq != 0).sum(0).clamp(min=1)


def _rank(s: Tensor) -> int:
    return int((s > 1e-6 * s[0]).sum())


def test_knots_is_ties_in_the_left_singular_vectors_of_all_deltas_side_by_side() -> None:
    D = _dense(deltas())
    U, s, _ = torch.linalg.svd(torch.cat(D, dim=1), full_matrices=False)
    U = U[:, : _rank(s)]
    assert_close(merged("knots", deltas(), density=0.4), U @ _ties([U.T @ X for X in D], WEIGHTS, 0.4))


def test_core_space_ties_is_ties_in_the_singular_vectors_of_all_deltas_on_both_sides() -> None:
    """Of the deltas scaled to norm 1, so that none sets the axes by its size alone."""
    D = _dense(deltas())
    unit = [X / X.norm() for X in D]
    U, s, _ = torch.linalg.svd(torch.cat(unit, dim=1), full_matrices=False)
    _, t, Vh = torch.linalg.svd(torch.cat(unit, dim=0), full_matrices=False)
    U, Vh = U[:, : _rank(s)], Vh[: _rank(t)]
    expected = U @ _ties([U.T @ X @ Vh.T for X in D], WEIGHTS, 0.4) @ Vh
    assert_close(merged("core_space_ties", deltas(), density=0.4), expected)


def test_tsv_adds_whitened_singular_vectors() -> None:
    """Whitening ``U (U^T U)^(-1/2)`` through an eigendecomposition, in the space of the layer."""
    parts = [torch.linalg.svd(X, full_matrices=False) for X in _dense(deltas())]
    U = torch.cat([part.U[:, : _rank(part.S)] for part in parts], dim=1)
    V = torch.cat([part.Vh[: _rank(part.S)].T for part in parts], dim=1)
    s = torch.cat([w * part.S[: _rank(part.S)] for w, part in zip(WEIGHTS, parts, strict=True)])

    def white(X: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(X.T @ X)
        return X @ vectors @ torch.diag(values.rsqrt()) @ vectors.T

    assert_close(merged("tsv", deltas()), white(U) @ torch.diag(s) @ white(V).T)


def test_tsv_of_orthogonal_adapters_is_their_sum_and_of_equal_ones_is_one_of_them() -> None:
    one, eye = deltas()[0], torch.eye(20)
    apart = [LowRank(eye[2 * t : 2 * t + 2], torch.eye(24)[:, 2 * t : 2 * t + 2] * (t + 1)) for t in range(3)]
    assert_close(merged("tsv", apart), merged("task_arithmetic", apart))
    assert_close(merged("tsv", [one, one, one], (1.0, 1.0, 1.0)), one.dense())


def test_iso_c_has_one_singular_value_the_mean_of_those_of_the_sum() -> None:
    total = merged("task_arithmetic", deltas()).double()
    s, flat = torch.linalg.svdvals(total), merged("iso_c", deltas()).double()
    assert_close(torch.linalg.svdvals(flat)[:9], s[:9].mean().expand(9))
    assert_close(torch.linalg.svdvals(flat)[9:], torch.zeros(11))
    assert_close(flat @ total.T, (flat @ total.T).T)  # the singular vectors are those of the sum
    assert float((flat * total).sum()) > 0


def test_iso_c_cut_short_keeps_the_leading_directions_of_the_sum() -> None:
    """All its singular values are equal: which ones are first is known from the sum alone."""
    U, s, Vh = torch.linalg.svd(merged("task_arithmetic", deltas()).double(), full_matrices=False)
    delta, lost = merge_layer("layer", deltas(), WEIGHTS, "iso_c", RuleSettings(), rank=4)
    assert_close(delta.dense(), s[:9].mean() * U[:, :4] @ Vh[:4])
    assert lost == pytest.approx((5 / 9) ** 0.5, rel=1e-5)


def test_safe_merge_compares_the_cosine_with_tau() -> None:
    utility, safety = deltas((3, 4))
    D_u, D_s = _dense([utility, safety])
    U = torch.linalg.svd(D_s, full_matrices=False).U[:, :4]
    projected = U @ U.T @ D_u
    cosine = float((projected * D_u).sum() / projected.norm() / D_u.norm())
    assert 0.1 < cosine < 0.9
    weights = (0.8, 0.2)
    assert_close(merged("safe_merge", [utility, safety], weights, tau=cosine - 1e-3), D_u)
    assert_close(merged("safe_merge", [utility, safety], weights, tau=cosine + 1e-3), 0.8 * D_u + 0.2 * D_s)


def test_safe_merge_takes_a_utility_delta_in_the_safety_subspace_for_safe() -> None:
    safety = deltas()[1]
    inside = LowRank(deltas()[0].A, safety.B[:, :3])
    assert_close(merged("safe_merge", [inside, safety], (1.0, 1.0), tau=0.9999), inside.dense())


@pytest.mark.parametrize("rule", [rule.name for rule in RULES.values() if not rule.pair])
def test_adapters_that_share_directions_merge_to_finite_deltas(rule: str) -> None:
    """One input subspace for all, and one adapter twice: the core space is not square and the factors are dependent."""
    one, two, _ = deltas()
    alike = [one, LowRank(one.A, two.B[:, :3]), one]
    whole = merged(rule, alike, density=0.5)
    assert whole.shape == SHAPE
    assert 0.1 < float(whole.norm() / merged("task_arithmetic", alike).norm()) < 10
    if RULES[rule].space == "core":
        inside = one.A.T @ torch.linalg.pinv(one.A.T)
        assert_close(whole @ inside, whole)
