"""Weighted sums from factors alone, against dense sums and their SVD in float64."""

from collections.abc import Sequence

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.lowrank import WEIGHTS, deltas, merged
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules import RuleSettings, merge_layer, missing
from holdfast.methods.merging.rules.sums import leading

SHAPE = (90, 70)
LINEAR = pytest.mark.parametrize("rule", ["average", "task_arithmetic", "cat"])


def _whole(given: Sequence[LowRank], weights: Sequence[float]) -> Tensor:
    return sum(w * (d.B.double() @ d.A.double()) for w, d in zip(weights, given, strict=True))  # type: ignore[return-value]


def _merge(given: Sequence[LowRank], weights: Sequence[float], rule: str, rank: int | None) -> tuple[LowRank, float]:
    return merge_layer("layer", given, weights, rule, RuleSettings(), rank)


def _off(got: LowRank, expected: Tensor) -> float:
    return float((got.B.double() @ got.A.double() - expected).norm() / expected.norm())


@LINEAR
@pytest.mark.parametrize("rank", [None, 9, 20])
def test_an_exact_sum_has_the_factors_side_by_side(rule: str, rank: int | None) -> None:
    given = deltas(shape=SHAPE)
    delta, lost = _merge(given, WEIGHTS, rule, rank)
    over = sum(WEIGHTS) if rule == "average" else 1.0
    assert_close(delta.B @ delta.A, _whole(given, WEIGHTS) / over)
    assert (delta.rank, lost) == (9, 0.0)
    assert torch.equal(delta.A, torch.cat([d.A for d in given]))


@LINEAR
def test_one_adapter_at_weight_1_comes_back_with_the_same_bits(rule: str) -> None:
    one = deltas()[0]
    for given, weights in (([one], [1.0]), ([one, missing(one.shape, one)], [1.0, 0.0])):
        delta, _ = _merge(given, weights, rule, None)
        assert torch.equal(delta.A, one.A)
        assert torch.equal(delta.B, one.B)


def test_what_is_zero_adds_no_rank() -> None:
    one, two, _ = deltas()
    silent = LowRank(one.A, torch.zeros_like(one.B))
    assert _merge([one, silent, two], (1.0, 1.0, 1.0), "task_arithmetic", None)[0].rank == one.rank + two.rank
    assert _merge([silent, silent], (1.0, 1.0), "task_arithmetic", None)[0].rank == 1


def test_rank_is_never_more_than_the_layer_has() -> None:
    given = deltas((6,) * 5)
    delta, lost = _merge(given, (1.0,) * 5, "task_arithmetic", None)
    assert delta.rank == 20
    assert lost == 0.0
    assert _off(delta, _whole(given, (1.0,) * 5)) < 1e-6


def test_bfloat16_factors_are_summed_in_float32() -> None:
    given = [LowRank(d.A.bfloat16(), d.B.bfloat16()) for d in deltas()]
    for rank in (None, 2):
        delta, _ = _merge(given, WEIGHTS, "task_arithmetic", rank)
        assert delta.A.dtype == delta.B.dtype == torch.float32
    assert_close(_merge(given, WEIGHTS, "task_arithmetic", None)[0].dense(), _whole(given, WEIGHTS))


def _regauged(delta: LowRank, spread: float) -> LowRank:
    scale_r = torch.logspace(0, 1, delta.rank, base=spread)
    return LowRank(delta.A * scale_r[:, None], delta.B / scale_r)


def _odd() -> dict[str, tuple[list[LowRank], list[float]]]:
    plain = deltas((6, 5, 7), shape=SHAPE)
    one, two, _ = plain
    near = LowRank(one.A, one.B + 1e-2 * deltas((6,), 5, SHAPE)[0].B)
    return {
        "plain": (plain, [0.7, 1.1, 0.4]),
        "shared rows": ([one, LowRank(one.A[:5], two.B), one], [1.0, 1.0, 1.0]),
        "sizes far apart": ([one, LowRank(two.A, two.B * 1e-9)], [1.0, 1.0]),
        "unbalanced factors": ([_regauged(one, 1e-8), _regauged(two, 1e8)], [1.0, 1.0]),
        "nearly cancelling": ([one, near], [1.0, -1.0]),
        "dependent factors": ([LowRank(one.A[:2].repeat(3, 1), one.B), two], [1.0, 1.0]),
    }


@pytest.mark.parametrize("case", _odd())
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_cut_sum_is_the_truncated_svd_of_the_dense_sum(case: str, rank: int) -> None:
    given, weights = _odd()[case]
    whole = _whole(given, weights)
    U, s, Vh = torch.linalg.svd(whole, full_matrices=False)
    delta, lost = _merge(given, weights, "svd", rank)
    assert _off(delta, (U[:, :rank] * s[:rank]) @ Vh[:rank]) < 1e-5
    assert lost == pytest.approx(float(s[rank:].norm() / s.norm()), rel=1e-5, abs=1e-5)
    kept = s[: delta.rank].diag()
    assert_close(delta.B.double().T @ delta.B.double() / s[0], kept / s[0])
    assert_close(delta.A.double() @ delta.A.double().T / s[0], kept / s[0])


def test_a_sum_of_less_rank_than_asked_for_is_not_padded_with_rounding() -> None:
    one = deltas((5,), shape=SHAPE)[0]
    delta, lost = _merge([one, one, one], (1.0, 2.0, -0.5), "svd", 8)
    assert delta.rank == 5
    assert lost < 1e-6
    assert _off(delta, _whole([one], (2.5,))) < 1e-6


def test_a_sum_that_cancels_is_zero() -> None:
    one = deltas()[0]
    delta, lost = leading(LowRank(torch.cat([one.A, one.A]), torch.zeros(24, 6)), 2)
    assert not delta.dense().any()
    assert lost == 0.0


def test_a_sum_beyond_the_range_of_numbers_is_refused() -> None:
    huge = [LowRank(delta.A * 1e20, delta.B * 1e20) for delta in deltas()]
    for rule in ("task_arithmetic", "svd"):
        with pytest.raises(NumericsError):
            merged(rule, huge)
