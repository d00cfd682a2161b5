"""Core space against dense matrices in float64."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import AdapterError, NumericsError
from holdfast.layers.adapters import LowRank
from holdfast.layers.core_space import CoreSpace, truncation_error

OUT, IN = 40, 28


def pair(rank: int, seed: int, *, o: int = OUT, i: int = IN, dtype: torch.dtype = torch.float64) -> LowRank:
    dice = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, i, generator=dice, dtype=torch.float64).to(dtype),
        torch.randn(o, rank, generator=dice, dtype=torch.float64).to(dtype),
    )


def scaled(delta: LowRank, factor: float) -> LowRank:
    return LowRank(delta.A, delta.B * factor)


def regauged(delta: LowRank, seed: int) -> LowRank:
    """The same change from other factors, ``(B R^-1) (R A)``."""
    R = torch.randn(delta.rank, delta.rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LowRank((R @ delta.A.double()).to(delta.A.dtype), (delta.B.double() @ R.inverse()).to(delta.B.dtype))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


ZERO = LowRank(pair(3, 9).A, torch.zeros(OUT, 3, dtype=torch.float64))
STACKS: dict[str, tuple[list[LowRank], tuple[int, int]]] = {
    "one": ([pair(4, 0)], (4, 4)),
    "mixed ranks": ([pair(2, 0), pair(5, 1), pair(1, 2)], (8, 8)),
    "very different sizes": ([pair(3, 0), scaled(pair(3, 1), 1e-9)], (6, 6)),
    "identical": ([pair(4, 0)] * 3, (4, 4)),
    "identical up to factors and scale": ([pair(4, 0), scaled(regauged(pair(4, 0), 5), -1e-4)], (4, 4)),
    "shared A": ([pair(4, 0), LowRank(pair(4, 0).A, pair(4, 1).B)], (8, 4)),
    "a zero": ([pair(4, 0), ZERO], (4, 4)),
    "zeros alone": ([ZERO, ZERO], (1, 1)),
    "factors without full rank": ([LowRank(pair(2, 0).A.repeat(3, 1), pair(6, 1).B)], (2, 2)),
    "wider together than the layer": ([pair(20, n) for n in range(4)], (OUT, IN)),
    "wider alone than the layer": ([pair(60, 0), pair(1, 1)], (IN + 1, IN)),
}


@pytest.mark.parametrize("case", STACKS)
def test_every_delta_comes_back_from_its_core(case: str) -> None:
    deltas, _ = STACKS[case]
    space = CoreSpace.of(deltas)
    for delta in deltas:
        scale = max(float(delta.dense().norm()), 1e-300)
        assert_close(space.lift(space.core(delta)).dense() / scale, delta.dense() / scale, "float64")


@pytest.mark.parametrize("case", STACKS)
def test_space_is_no_larger_than_what_the_deltas_span(case: str) -> None:
    deltas, size = STACKS[case]
    space = CoreSpace.of(deltas)
    stacked = torch.cat([d.dense() / max(float(d.dense().norm()), 1e-300) for d in deltas], 1)
    assert (space.left_op.shape[1], space.right_iq.shape[1]) == size
    assert space.left_op.shape[1] == max(1, int(torch.linalg.matrix_rank(stacked, rtol=1e-8)))
    assert space.shape == (OUT, IN)
    for basis in (space.left_op, space.right_iq):
        assert_close(basis.T @ basis, torch.eye(basis.shape[1]), "float64")


@pytest.mark.parametrize(("o", "i", "ranks"), [(512, 384, (8, 16, 4)), (2048, 96, (16, 16)), (30, 1024, (16, 16, 16))])
def test_float32_deltas_come_back_to_a_millionth(o: int, i: int, ranks: Sequence[int]) -> None:
    deltas = [pair(rank, n, o=o, i=i, dtype=torch.float32) for n, rank in enumerate(ranks)]
    space = CoreSpace.of(deltas)
    assert space.left_op.dtype == torch.float32
    for delta in deltas:
        exact = delta.B.double() @ delta.A.double()
        assert relative_error(space.lift(space.core(delta)).dense(), exact) < 1e-6


@pytest.mark.parametrize("falls", [1.0, 1e-2, 1e-5])
def test_axes_of_float32_deltas_are_those_of_their_svd_and_orthonormal_also_where_few_matter(falls: float) -> None:
    """Singular values fall to ``falls`` of the largest within an adapter; the second one shares half of its rows."""
    rank, deltas = 8, []
    for n in range(2):
        one = pair(rank, n, o=300, i=200)
        fall_r = torch.logspace(0, 1, rank, base=falls, dtype=torch.float64)
        Q_or = torch.linalg.qr(one.B).Q
        shared = torch.cat([pair(rank, 0, o=300, i=200).A[: rank // 2], one.A[rank // 2 :]])
        deltas.append(LowRank(shared.float(), (Q_or * fall_r).float()))
    space = CoreSpace.of(deltas)
    exact = [delta.B.double() @ delta.A.double() for delta in deltas]
    beside = torch.cat([D / D.norm() for D in exact], 1)
    U, s, _ = torch.linalg.svd(beside, full_matrices=False)
    assert space.left_op.shape[1] == 16
    assert space.right_iq.shape[1] == 12
    for basis in (space.left_op, space.right_iq):
        assert_close(basis.T @ basis, torch.eye(basis.shape[1]), "float32")
    apart = s[:15] - s[1:16] > 1e-3 * s[:15]
    assert apart.sum() > 8
    axes = (U[:, :16].T @ space.left_op.double()).abs().diagonal()[:15]
    assert_close(axes[apart], torch.ones(int(apart.sum())), "float32")
    for delta, D in zip(deltas, exact, strict=True):
        assert relative_error(space.lift(space.core(delta)).dense(), D) < 1e-6


def test_a_float32_basis_is_orthonormal_also_where_its_last_axis_is_nearly_rounding() -> None:
    """Singular values fall to 1.5e-6: Gram matrices alone leave the last axes 3e-6 from orthogonal."""
    noise = pair(24, 0, o=60, i=50)
    Q_or, P_ir = (torch.linalg.qr(X).Q for X in (noise.B, noise.A.T))
    W_rr = torch.linalg.qr(pair(24, 1, o=24, i=24).A).Q
    fall_r = torch.logspace(0, 1, 24, base=1.5e-6, dtype=torch.float64)
    basis = CoreSpace.of([LowRank((W_rr @ P_ir.T).float(), ((Q_or * fall_r) @ W_rr.T).float())]).left_op.double()
    assert basis.shape == (60, 24)
    assert float((basis.T @ basis - torch.eye(24)).abs().max()) < 2e-7


def test_cores_of_several_deltas_are_those_of_each() -> None:
    deltas = [pair(3, 0), pair(5, 1)]
    space = CoreSpace.of(deltas)
    assert torch.equal(space.cores(deltas), torch.stack([space.core(delta) for delta in deltas]))


def test_float32_copies_with_other_factors_add_no_dimension() -> None:
    delta = pair(8, 0, o=600, i=500, dtype=torch.float32)
    space = CoreSpace.of([delta, *(regauged(delta, seed) for seed in range(1, 4))])
    assert (space.left_op.shape[1], space.right_iq.shape[1]) == (8, 8)


def test_bfloat16_factors_are_read_as_they_are() -> None:
    deltas = [pair(4, n, dtype=torch.bfloat16) for n in range(2)]
    space = CoreSpace.of(deltas)
    assert space.left_op.dtype == torch.float32
    for delta in deltas:
        assert relative_error(space.lift(space.core(delta)).dense(), delta.dense()) < 1e-6


def test_core_of_lift_is_the_identity() -> None:
    space = CoreSpace.of([pair(3, 0), pair(5, 1)])
    M_pq = torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_close(space.core(space.lift(M_pq)), M_pq, "float64")


def test_sum_of_deltas_is_the_lift_of_the_sum_of_cores() -> None:
    deltas, weights = [pair(rank, rank) for rank in (2, 3, 4)], (0.5, -2.0, 1.25)
    space = CoreSpace.of(deltas)
    lifted = space.lift(sum(w * space.core(d) for w, d in zip(weights, deltas, strict=True)))
    assert lifted.rank == 9
    assert_close(lifted.dense(), sum(w * d.dense() for w, d in zip(weights, deltas, strict=True)), "float64")


def test_norms_and_inner_products_of_deltas_are_those_of_cores() -> None:
    first, second = pair(3, 0), pair(4, 1)
    space = CoreSpace.of([first, second])
    cores = [space.core(delta) for delta in (first, second)]
    assert_close(cores[0].norm(), first.dense().norm(), "float64")
    assert_close((cores[0] * cores[1]).sum(), (first.dense() * second.dense()).sum(), "float64")


def test_gauge_of_the_factors_has_no_say() -> None:
    deltas = [pair(3, 0), pair(4, 1)]
    other = [regauged(delta, n + 10) for n, delta in enumerate(deltas)]
    space, space_other = CoreSpace.of(deltas), CoreSpace.of(other)
    for delta, twin in zip(deltas, other, strict=True):
        assert_close(space.core(twin), space.core(delta), "float64")
        assert_close(space_other.core(twin).abs(), space.core(delta).abs(), "float64")


def test_order_and_scale_of_deltas_change_axes_by_signs_alone() -> None:
    deltas = [pair(2, 0), pair(3, 1), pair(4, 2)]
    space = CoreSpace.of(deltas)
    for order in itertools.permutations(deltas):
        other = CoreSpace.of([scaled(delta, 3.0 + n) for n, delta in enumerate(order)])
        for basis, twin in ((space.left_op, other.left_op), (space.right_iq, other.right_iq)):
            assert_close((basis.T @ twin).abs(), torch.eye(9), "float64")
        for delta in deltas:
            assert_close(other.lift(other.core(delta)).dense(), space.lift(space.core(delta)).dense(), "float64")


@pytest.mark.parametrize("rank", [1, 3, 6, 7, 50])
def test_truncated_lift_is_the_dense_truncation(rank: int) -> None:
    deltas = [pair(3, 0), pair(4, 1)]
    space = CoreSpace.of(deltas)
    M_pq = space.core(deltas[0]) + space.core(deltas[1])
    whole = deltas[0].dense() + deltas[1].dense()
    U, s, Vh = torch.linalg.svd(whole, full_matrices=False)
    best = (U[:, :rank] * s[:rank]) @ Vh[:rank]
    lifted = space.lift(M_pq, rank)
    assert lifted.rank == min(rank, 7)
    assert_close(lifted.dense(), best, "float64")
    assert truncation_error(M_pq, rank) == pytest.approx(float((whole - best).norm() / whole.norm()), abs=1e-12)


def test_factors_of_a_lift_are_balanced() -> None:
    delta = scaled(pair(4, 0), 1e4)
    space = CoreSpace.of([delta])
    lifted = space.lift(space.core(delta))
    values = torch.linalg.svdvals(delta.dense())[:4].diag()
    assert_close(lifted.B.T @ lifted.B, values, "float64")
    assert_close(lifted.A @ lifted.A.T, values, "float64")


def test_zero_core_lifts_to_a_zero_delta_of_rank_one() -> None:
    lifted = CoreSpace.of([pair(3, 0)]).lift(torch.zeros(3, 3, dtype=torch.float64))
    assert lifted.rank == 1
    assert not lifted.dense().any()
    assert truncation_error(torch.zeros(3, 3), 1) == 0.0


def test_core_of_a_stranger_is_its_projection() -> None:
    space, stranger = CoreSpace.of([pair(3, 0)]), pair(4, 1)
    left, right = space.left_op, space.right_iq
    assert_close(
        space.lift(space.core(stranger)).dense(), left @ left.T @ stranger.dense() @ right @ right.T, "float64"
    )


def test_misfits_are_one_sentence() -> None:
    space = CoreSpace.of([pair(3, 0)])
    with pytest.raises(AdapterError, match="got no deltas, expected at least 1"):
        CoreSpace.of([])
    with pytest.raises(AdapterError, match=r"got deltas of \(40, 28\) and \(28, 40\), expected one shape"):
        CoreSpace.of([pair(3, 0), pair(3, 0, o=IN, i=OUT)])
    with pytest.raises(AdapterError, match="got NaN or infinity in a delta"):
        CoreSpace.of([pair(3, 0), scaled(pair(3, 1), float("nan"))])
    with pytest.raises(AdapterError, match=r"delta does not fit its core space: got shape \(40, 2\)"):
        space.core(pair(1, 0, i=2))
    with pytest.raises(AdapterError, match=r"core does not fit its space: got shape \(2, 3\), expected \(3, 3\)"):
        space.lift(torch.zeros(2, 3))
    with pytest.raises(AdapterError, match="cannot cut a core to rank 0"):
        space.lift(torch.zeros(3, 3), rank=0)
    with pytest.raises(AdapterError, match="cannot cut a core to rank -1"):
        truncation_error(torch.zeros(3, 3), -1)
    with pytest.raises(NumericsError, match="not finite"):
        space.lift(torch.full((3, 3), torch.inf))
