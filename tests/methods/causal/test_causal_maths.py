import math

import pytest
import torch
from tests.close import assert_close
from torch import Tensor

from holdfast.methods.causal import maths


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.double)


def cosine(a: Tensor, b: Tensor) -> float:
    pairs = ((a, b), (a, a), (b, b))
    dot, left, right = (sum(float(x) * float(y) for x, y in zip(p, q, strict=True)) for p, q in pairs)
    return dot / math.sqrt(left * right)


def test_divergence_and_variation_agree_with_sums_over_the_vocabulary() -> None:
    p, q = drawn(4, 7).log_softmax(-1), drawn(4, 7, seed=1).log_softmax(-1)
    pairs = [list(zip(a.exp().tolist(), b.exp().tolist(), strict=True)) for a, b in zip(p, q, strict=True)]
    assert_close(maths.divergence(p, q), wide([sum(x * math.log(x / y) for x, y in each) for each in pairs]), "float64")
    assert_close(maths.total_variation(p, q), wide([sum(abs(x - y) for x, y in each) / 2 for each in pairs]), "float64")
    assert_close(maths.divergence(p, p), torch.zeros(4), "exact")


def test_variation_is_bounded_by_divergence_as_pinsker_says() -> None:
    p, q = drawn(200, 9).log_softmax(-1), drawn(200, 9, seed=1).log_softmax(-1)
    assert bool((maths.total_variation(p, q) <= (maths.divergence(p, q) / 2).sqrt()).all())


def test_info_nce_agrees_with_a_loop_over_cases_positives_and_negatives() -> None:
    query, positives, negatives = drawn(3, 5), drawn(3, 2, 5, seed=1), drawn(3, 4, 5, seed=2)
    expected = []
    for b in range(3):
        own = []
        for positive in positives[b]:
            good = math.exp(cosine(query[b], positive) / 0.3)
            own.append(-math.log(good / (good + sum(math.exp(cosine(query[b], n) / 0.3) for n in negatives[b]))))
        expected.append(sum(own) / 2)
    assert_close(maths.info_nce(query, positives, negatives, 0.3), wide(expected), "float64")


def test_info_nce_of_a_constant_is_the_log_of_the_candidates() -> None:
    same = torch.ones(2, 5, dtype=torch.double)
    found = maths.info_nce(same, same[:, None], same[:, None].expand(2, 3, 5), 0.07)
    assert_close(found, wide([math.log(4)] * 2), "float64")


def test_one_bit_reaches_the_floor_of_a_contrastive_term_and_nothing_goes_below() -> None:
    assert maths.contrast_floor(0.5, 0.5, 0.07) == pytest.approx(-14.2857, abs=1e-4)
    assert maths.contrast(1.0, -1.0, 0.5, 0.5, 0.07) == maths.contrast_floor(0.5, 0.5, 0.07)
    assert maths.contrast(0.9, 0.2, 0.5, 0.5, 0.07) > maths.contrast_floor(0.5, 0.5, 0.07)


def test_the_guard_is_the_pair_estimate_of_what_is_left_of_the_standard_deviation() -> None:
    own, others = drawn(2, 6), drawn(2, 3, 6, seed=1)
    variance, floor = 40.0, 0.9
    for b, found in enumerate(maths.too_near(own, others, variance, floor)):
        half = sum(float((own[b] - other).square().sum()) for other in others[b]) / 3 / 2
        assert_close(found, max(0.0, 1 - math.sqrt(half / variance) / floor), "float32")


def test_the_guard_is_silent_for_independent_cases_and_full_for_one_point() -> None:
    far = maths.too_near(drawn(500, 20), drawn(500, 1, 20, seed=1), 20.0, 0.25)
    assert float(far.max()) == 0
    point = torch.ones(3, 20, dtype=torch.double)
    assert_close(maths.too_near(point, point[:, None], 20.0, 0.25), torch.ones(3), "bfloat16")


def test_the_guard_pushes_cases_apart_where_they_nearly_meet() -> None:
    own = torch.full((1, 4), 1e-3, requires_grad=True)
    maths.too_near(own, torch.zeros(1, 1, 4), 4.0, 0.25).sum().backward()
    assert own.grad is not None
    assert bool((own.grad < -0.1).all())  # a step against it makes the difference larger


def test_preference_is_log_two_at_the_start_and_falls_as_the_better_answer_gains() -> None:
    start = drawn(4)
    assert_close(maths.preference_loss(start, start - 1, start, start - 1, 0.1), wide([math.log(2)] * 4), "float64")
    found = maths.preference_loss(start + 3, start - 1, start, start, 0.1)
    assert_close(found, wide([math.log(1 + math.exp(-0.4))] * 4), "float64")


def test_effective_rank_of_equal_directions_is_their_number() -> None:
    corners = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    assert_close(maths.effective_rank(corners, torch.ones(6)), 6.0, "float64")
    assert_close(maths.effective_rank(corners * torch.arange(1, 7), torch.arange(1, 7)), 6.0, "float64")


def test_effective_rank_of_one_bit_is_one_and_of_a_constant_nothing() -> None:
    bit = torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None] * drawn(1, 6)
    assert_close(maths.effective_rank(bit, torch.ones(6)), 1.0, "float64")
    assert maths.effective_rank(torch.ones(4, 6), torch.ones(6)) == 0


def test_variance_left_is_a_share_of_what_was_there() -> None:
    R = drawn(400, 11)
    scale = R.std(0)
    assert_close(maths.variance_left(R, scale), 1.0, "float64")
    assert_close(maths.variance_left(R / 10 + 3, scale), 0.01, "float64")


def test_outcome_variation_is_one_for_an_obeying_model_and_nothing_for_one_that_ignores() -> None:
    assert maths.outcome_variation(["task_done"] * 5, ["followed"] * 5) == 1
    assert maths.outcome_variation(["task_done", "refused"], ["refused", "task_done"]) == 0
