import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.methods.token_weighting import maths
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.scorers import weigh

UNITS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
"""Rows of 5, 3 and 10 tokens."""


def scores(seed: int = 0) -> Tensor:
    return torch.randn(len(UNITS), generator=torch.Generator().manual_seed(seed))


def test_excess_keeps_its_sign() -> None:
    model, reference = torch.tensor([3.0, 0.1]), torch.tensor([1.0, 2.0])
    assert_close(maths.excess(model, reference), torch.tensor([2.0, -1.9]))
    kept = maths.top_share(maths.excess(model, reference), torch.zeros(2, dtype=torch.long), 0.5)
    assert kept.tolist() == [1, 0]


def test_what_the_degraded_model_expects_and_the_utility_model_does_not_is_lowest() -> None:
    degraded, utility = torch.tensor([0.1, 2.0, 3.0]), torch.tensor([4.0, 2.0, 0.5])
    assert maths.contrast(degraded, utility).argsort().tolist() == [0, 1, 2]


def test_the_top_share_is_that_of_a_loop_over_sorted_rows() -> None:
    score_n = scores()
    for keep in (0.2, 0.5, 0.6, 1.0):
        expected = torch.zeros(len(UNITS))
        for unit in range(3):
            places = [n for n in range(len(UNITS)) if UNITS[n] == unit]
            count = max(1, int(keep * len(places) + 0.5))
            for n in sorted(places, key=lambda n: -float(score_n[n]))[:count]:
                expected[n] = 1
        assert torch.equal(maths.top_share(score_n, UNITS, keep), expected), keep


def test_a_share_of_seven_tenths_of_ten_tokens_is_seven() -> None:
    """0.7 * 10 is a little more than 7 in floating point."""
    assert int(maths.top_share(torch.arange(10.0), torch.zeros(10, dtype=torch.long), 0.7).sum()) == 7


def test_of_equal_scores_the_earlier_token_is_kept() -> None:
    assert maths.top_share(torch.zeros(4), torch.zeros(4, dtype=torch.long), 0.5).tolist() == [1, 1, 0, 0]


def test_soft_shares_are_a_softmax_of_each_unit() -> None:
    score_n = scores()
    made = maths.bounded(maths.soft_share(score_n, UNITS, 0.7), UNITS, (0.0, 1e9)).weight_n
    for unit in range(3):
        own = unit == UNITS
        assert_close(made[own], torch.softmax(score_n[own] / 0.7, 0) * own.sum())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(1e-3, 1e3))
def test_weights_have_mean_one_and_no_constant_changes_them(seed: int, factor: float) -> None:
    raw_n = scores(seed).exp()
    made, scaled = (maths.bounded(k * raw_n, UNITS, (0.2, 2.0)).weight_n for k in (1.0, factor))
    assert_close(made, scaled)
    for unit in range(3):
        assert_close(made[unit == UNITS].mean(), torch.tensor(1.0))


def test_a_factor_for_one_token_changes_the_weights() -> None:
    raw_n = scores().exp()
    changed = raw_n.clone()
    changed[0] *= 3
    apart = maths.bounded(changed, UNITS, (0.0, 10.0)).weight_n - maths.bounded(raw_n, UNITS, (0.0, 10.0)).weight_n
    assert float(apart[UNITS == 0].abs().min()) > 0.01
    assert not apart[UNITS != 0].any()


def test_bounds_hold_weights_of_mean_one_and_say_which() -> None:
    raw_n = torch.tensor([100.0, 1.0, 1.0, 1.0, 1.0])
    made = maths.bounded(raw_n, torch.zeros(5, dtype=torch.long), (0.2, 3.0))
    assert made.clipped_n.tolist() == [True, True, True, True, True]
    assert_close(made.weight_n, torch.tensor([3.0, 0.2, 0.2, 0.2, 0.2]) / 0.76)


def test_weights_carry_no_gradient() -> None:
    score_n = scores().requires_grad_()
    for keys in ({}, {"soft": 0.5}, {"scorer": "dft"}, {"scorer": "random_matched"}, {"scorer": "shuffled"}):
        made = weigh(TokenWeightingConfig(**keys), score_n.exp(), UNITS, [b"a", b"b", b"c"])
        assert not made.weight_n.requires_grad, keys


def test_shuffled_weights_are_the_same_in_each_row_in_another_order() -> None:
    score_n, keys = scores(), [b"a", b"b", b"c"]
    plain = weigh(TokenWeightingConfig(soft=1.0), score_n, UNITS, keys).weight_n
    mixed = weigh(TokenWeightingConfig(scorer="shuffled", soft=1.0), score_n, UNITS, keys).weight_n
    for unit in range(3):
        assert torch.equal(plain[unit == UNITS].sort()[0], mixed[unit == UNITS].sort()[0])
    assert not torch.equal(plain, mixed)


def test_random_weights_match_mean_and_spread_after_clipping_and_nothing_else() -> None:
    n = 2000
    score_n = torch.randn(n, generator=torch.Generator().manual_seed(1))
    row_n = torch.arange(n) // 100
    keys = [bytes([row]) for row in range(20)]
    settings_of = {"soft": 0.8, "clip": (0.1, 3.0)}
    plain = weigh(TokenWeightingConfig(**settings_of), score_n, row_n, keys).weight_n
    drawn = weigh(TokenWeightingConfig(scorer="random_matched", **settings_of), score_n, row_n, keys).weight_n
    for row in range(20):
        a, b = plain[row_n == row].double(), drawn[row_n == row].double()
        assert_close(b.mean(), a.mean())
        assert_close(b.std(correction=0), a.std(correction=0))
    # 2,000 tokens: four standard errors of a correlation of 0
    correlation = float(torch.corrcoef(torch.stack([plain, drawn]))[0, 1])
    assert abs(correlation) < 4 / n**0.5


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_random_weights_match_a_share_of_short_rows_also_where_one_token_has_all_weight(size: int) -> None:
    rows = 100
    score_n = torch.randn(rows * size, generator=torch.Generator().manual_seed(size))
    row_n = torch.arange(rows).repeat_interleave(size)
    keys = [bytes([row]) for row in range(rows)]
    for keep in (0.2, 0.4, 0.6):
        plain = weigh(TokenWeightingConfig(keep=keep), score_n, row_n, keys).weight_n
        drawn = weigh(TokenWeightingConfig(scorer="random_matched", keep=keep), score_n, row_n, keys).weight_n
        assert_close(maths.spread(drawn, row_n), maths.spread(plain, row_n))
        assert_close(maths.sums(drawn, row_n) / size, torch.ones(rows))


def test_a_row_that_stands_there_again_has_the_same_weights_though_a_share_ends_between_its_copies() -> None:
    """Copies that the model scored in other batches differ in the last digits."""
    row_n = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    score_n = torch.tensor([1.0, 2.0, 1.5, 0.0, 1.0 + 1e-6, 2.0 - 1e-6, 1.0, 2.0])
    for keep in (0.2, 0.4, 0.6, 0.8):
        for scorer in ("contrast", "shuffled", "random_matched"):
            of = {} if scorer == "contrast" else {"of": "contrast"}
            config = TokenWeightingConfig(scorer=scorer, keep=keep, **of)
            made = weigh(config, score_n, row_n, [b"a", b"b", b"a", b"a"]).weight_n
            assert torch.equal(made[:2], made[4:6]), (keep, scorer)
            assert torch.equal(made[:2], made[6:]), (keep, scorer)
            assert_close(made.mean(), torch.tensor(1.0))


def test_bounds_hold_nothing_back_where_one_token_has_all_weight() -> None:
    raw_n = torch.tensor([1.0] + [0.0] * 99)
    assert maths.bounded(raw_n, torch.zeros(100, dtype=torch.long), (0.0, 2.0)).weight_n.max() == 100


def test_a_control_is_the_same_for_a_row_wherever_it_stands() -> None:
    score_n = scores()
    for scorer in ("shuffled", "random_matched"):
        config = TokenWeightingConfig(scorer=scorer, soft=1.0)
        whole = weigh(config, score_n, UNITS, [b"a", b"b", b"c"]).weight_n
        last = weigh(config, score_n[8:], UNITS[8:] - 2, [b"c"]).weight_n
        assert_close(whole[8:], last)


def test_bounds_without_room_for_the_spread_are_an_error() -> None:
    with pytest.raises(NumericsError, match=r"cannot match those of the scorer: got a spread of .*Do: widen clip"):
        maths.matched_weights(torch.randn(6), torch.zeros(6, dtype=torch.long), torch.tensor([1.5]), (0.5, 1.5))


def test_the_effective_share_of_equal_weights_is_the_share_kept() -> None:
    for kept in (1, 3, 10):
        assert maths.effective_share(torch.tensor([1.0] * kept + [0.0] * (10 - kept))) == pytest.approx(kept / 10)


def test_a_unit_of_zeros_stays_so() -> None:
    made = maths.bounded(torch.tensor([0.0, 0.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1]), (0.1, 10.0))
    assert made.weight_n.tolist() == [0, 0, 0.5, 1.5]


def test_entropy_of_a_uniform_prediction_is_that_of_the_vocabulary() -> None:
    assert_close(maths.entropy(torch.zeros(2, 8)), torch.tensor([8.0, 8.0]).log())
    assert_close(maths.own_probability(torch.tensor([0.25]).log().neg()), torch.tensor([0.25]))
