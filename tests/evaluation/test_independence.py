"""The permutation tests keep their size, find what is planted, and say where they cannot tell."""

import numpy as np
import pytest
from tests.close import assert_close

from holdfast.core.errors import NumericsError
from holdfast.evaluation.dependence import distance_correlation, hsic
from holdfast.evaluation.independence import (
    Finding,
    Power,
    Trial,
    figures,
    paired_test,
    permutation_test,
    power_of_pairs,
    power_within,
    verdict,
)


def cases(strata=12, rows=4, d=3, seed=0):
    """Strata that differ much more than rows within them, and a label that is balanced in each."""
    rng = np.random.default_rng(seed)
    keys = np.repeat(np.arange(strata), rows)
    R_nd = 5 * rng.standard_normal((strata, d))[keys] + rng.standard_normal((strata * rows, d))
    labels = np.tile(np.arange(rows) % 2, strata)
    return R_nd, labels, keys


def rate(rejected):
    return sum(rejected) / len(rejected)


# the statistic


@pytest.mark.parametrize(("kind", "plain"), [("hsic", hsic), ("distance_correlation", distance_correlation)])
def test_one_stratum_gives_the_plain_statistic(kind, plain):
    rng = np.random.default_rng(0)
    R_nd, U_nd = rng.standard_normal((30, 4)), rng.standard_normal((30, 2))
    for U in (U_nd, rng.integers(0, 2, 30), rng.integers(0, 3, 30), np.arange(30)):
        assert_close(permutation_test(R_nd, U, statistic=kind, draws=1).statistic, plain(R_nd, U), "float64")


@pytest.mark.parametrize("kind", ["hsic", "distance_correlation"])
def test_paired_statistic_is_that_of_strata_of_two(kind):
    rng = np.random.default_rng(1)
    A_nd, B_nd = rng.standard_normal((25, 3)), rng.standard_normal((25, 3)) + 0.4
    paired = paired_test(A_nd, B_nd, statistic=kind, draws=4000)
    rows = np.concatenate([A_nd, B_nd])
    within = permutation_test(rows, [0] * 25 + [1] * 25, [*range(25)] * 2, statistic=kind, draws=4000)
    assert_close(paired.statistic, within.statistic, "float64")
    assert_close(paired.share, within.share, "float64")
    error = (within.p_value * (1 - within.p_value) * 2 / 4000) ** 0.5
    assert_close(paired.p_value, within.p_value, "estimate", sigma=error)
    assert paired.effect == pytest.approx(within.effect, abs=0.01)


def test_sums_over_labels_and_over_pairs_of_rows_give_the_same_p_value():
    """Three labels take the quick way; the same labels as corners of a triangle are numbers and take the other."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 230)
    R_nd = rng.standard_normal((230, 5)) + 0.15 * labels[:, None]
    quick = permutation_test(R_nd, labels, draws=199)
    slow = permutation_test(R_nd, np.eye(3)[labels], draws=199)
    assert quick.p_value == slow.p_value < 1
    assert_close(quick.effect, slow.effect, "float64")


def test_permutations_are_those_of_a_slow_loop_within_strata():
    R_nd, labels = np.random.default_rng(3).standard_normal((16, 2)), np.tile([0, 1, 1, 0], 4)
    strata = np.repeat(np.arange(4), 4)
    rng = np.random.default_rng(0)
    left_nd = R_nd - np.array([R_nd[strata == s].mean(0) for s in range(4)])[strata]
    one_hot = np.eye(4)[strata]
    H_nn = np.eye(16) - one_hot @ one_hot.T / 4
    D_nn = np.linalg.norm(left_nd[:, None] - left_nd, axis=2)
    K_nn = H_nn @ np.exp(-(D_nn**2) / (2 * np.median(D_nn[np.triu_indices(16, 1)]) ** 2)) @ H_nn

    def value(U):
        return float((K_nn * (U[:, None] == U)).sum())

    null = []
    for _ in range(2000):
        moved = labels.copy()
        for s in range(4):
            moved[strata == s] = rng.permutation(moved[strata == s])
        null.append(value(moved))
    found = permutation_test(R_nd, labels, strata, draws=2000)
    assert_close(found.statistic, value(labels) / 16**2, "float64")
    expected = rate([each >= value(labels) - 1e-12 for each in null])
    error = (expected * (1 - expected) * 2 / 2000) ** 0.5
    assert_close(found.p_value, expected, "estimate", sigma=error)


# size


def size_of(test):
    return rate([test(np.random.default_rng([7, number])) <= 0.05 for number in range(1000)])


def test_permutation_test_keeps_its_size_within_strata():
    strata = np.repeat(np.arange(6), 5)

    def once(rng):
        R_nd = 4 * rng.standard_normal((6, 3))[strata] + rng.standard_normal((30, 3))
        U = (rng.random(30) < 0.1 + 0.15 * strata).astype(int)
        return permutation_test(R_nd, U, strata, draws=99, seed=int(rng.integers(2**31))).p_value or 1.0

    assert 0.03 <= size_of(once) <= 0.07


def test_permutation_test_keeps_its_size_for_numbers_by_distances():
    def once(rng):
        R_nd, U_nd = rng.standard_cauchy((24, 2)), rng.exponential(size=(24, 1))
        return permutation_test(
            R_nd, U_nd, statistic="distance_correlation", draws=99, seed=int(rng.integers(2**31))
        ).p_value

    assert 0.03 <= size_of(once) <= 0.07


def test_paired_test_keeps_its_size_where_pairs_share_a_row():
    clusters = np.repeat(np.arange(8), 3)

    def once(rng):
        A_nd = rng.standard_normal((8, 4))[clusters]
        moved = rng.standard_normal((8, 4))[clusters]
        return paired_test(A_nd, moved, clusters, draws=99, seed=int(rng.integers(2**31))).p_value

    assert 0.03 <= size_of(once) <= 0.07


def test_pairs_that_share_a_row_reject_too_often_without_clusters():
    clusters = np.repeat(np.arange(8), 3)

    def once(rng):
        A_nd, B_nd = rng.standard_normal((2, 8, 4))
        return paired_test(A_nd[clusters], B_nd[clusters], draws=99, seed=int(rng.integers(2**31))).p_value

    assert rate([once(np.random.default_rng([7, number])) <= 0.05 for number in range(200)]) > 0.2


def test_what_strata_explain_is_not_found():
    rng = np.random.default_rng(0)
    strata = np.repeat(np.arange(20), 10)
    U = (rng.random(200) < np.where(strata < 10, 0.2, 0.8)).astype(int)
    R_nd = np.where(strata < 10, -3.0, 3.0)[:, None] + rng.standard_normal((200, 4))
    assert permutation_test(R_nd, U).p_value == 1 / 1000
    assert permutation_test(R_nd, U, strata).p_value > 0.05
    assert permutation_test(R_nd + 0.8 * U[:, None], U, strata).p_value == 1 / 1000


# power


def test_planted_dependence_is_found_as_often_as_power_says():
    trial = Trial(shifts=(1.0,), simulations=200, draws=99, seed=1)
    R_nd, labels, strata = cases()
    printed = power_within(R_nd, labels, strata, trial=trial).rate(1.0)
    rejected = []
    for number in range(200):
        R_nd, labels, strata = cases(seed=[3, number])
        R_nd[:, 0] += 1.0 * labels
        rejected.append(permutation_test(R_nd, labels, strata, draws=99, seed=number).p_value <= 0.05)
    assert 0.3 < printed < 0.95
    assert_close(rate(rejected), printed, "estimate", sigma=(2 * printed * (1 - printed) / 200) ** 0.5)


def test_shifts_of_pairs_are_found_as_often_as_power_says():
    rng = np.random.default_rng(0)
    trial = Trial(shifts=(0.8,), simulations=200, draws=99, seed=1)
    A_nd, B_nd = rng.standard_normal((2, 25, 4))
    printed = power_of_pairs(A_nd, B_nd, trial=trial).rate(0.8)
    rejected = []
    for number in range(200):
        A_nd, B_nd = np.random.default_rng([5, number]).standard_normal((2, 25, 4))
        B_nd[:, 1] += 0.8
        rejected.append(paired_test(A_nd, B_nd, draws=99, seed=number).p_value <= 0.05)
    assert 0.3 < printed < 0.95
    assert_close(rate(rejected), printed, "estimate", sigma=(2 * printed * (1 - printed) / 200) ** 0.5)


def test_power_rises_from_the_size_and_is_the_same_for_the_same_seed():
    R_nd, labels, strata = cases()
    trial = Trial(shifts=(0.5, 2.0, 6.0), simulations=40, draws=39, seed=4)
    for power in (
        power_within(R_nd, labels, strata, trial=trial),
        power_within(R_nd, R_nd[::-1, :1].copy(), strata, trial=trial),
        power_of_pairs(R_nd[::2], R_nd[1::2], trial=trial, statistic="distance_correlation"),
    ):
        rates = [power.rate(shift) for shift in (0.0, *trial.shifts)]
        assert rates == sorted(rates)
        assert power.interval(0.0)[0] <= 0.05
        assert power.rate(6.0) == 1.0
    assert power_within(R_nd, labels, strata, trial=trial) == power_within(R_nd, labels, strata, trial=trial)


@pytest.mark.parametrize("kind", ["hsic", "distance_correlation"])
def test_twenty_sigma_at_3072_dimensions_is_found(kind):
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(3072)
    direction /= np.linalg.norm(direction)
    A_nd, B_nd = rng.standard_normal((2, 40, 3072)).astype(np.float32)
    cases_nd = 30 * rng.standard_normal((40, 3072))
    A_nd, B_nd = A_nd + cases_nd, B_nd + cases_nd + 20 * direction
    assert paired_test(A_nd, B_nd, statistic=kind).p_value == 1 / 1000
    rows, labels = np.concatenate([A_nd, B_nd]), [0] * 40 + [1] * 40
    assert permutation_test(rows, labels, [*range(40)] * 2, statistic=kind).p_value == 1 / 1000
    assert power_of_pairs(A_nd, B_nd, statistic=kind, trial=Trial((20.0,), 20, 99)).rate(20.0) == 1.0


def test_a_change_of_spread_without_a_change_of_mean_is_found():
    rng = np.random.default_rng(0)
    strata, labels = np.repeat(np.arange(10), 20), np.tile([0, 1], 100)
    R_nd = rng.standard_normal((200, 3)) * np.where(labels, 2.0, 0.5)[:, None]
    assert permutation_test(R_nd, labels, strata).p_value == 1 / 1000


def test_effect_is_zero_on_average_without_dependence_and_grows_with_it():
    effects = []
    for size in (0.0, 1.0, 8.0):
        each = []
        for seed in range(30):
            R_nd, labels, strata = cases(seed=seed)
            each.append(permutation_test(R_nd + size * labels[:, None], labels, strata, draws=99).effect)
        effects.append((np.mean(each), np.std(each) / 30**0.5))
    assert abs(effects[0][0]) < 4 * effects[0][1]
    assert effects[0][0] < effects[1][0] < effects[2][0] <= 1


# the ends


def test_p_value_is_never_zero_and_equal_arrangements_count():
    R_nd, labels, strata = cases()
    assert permutation_test(R_nd + 99 * labels[:, None], labels, strata, draws=19).p_value == 1 / 20
    pairs = np.random.default_rng(0).standard_normal((6, 2))
    found = paired_test(pairs, pairs + 50, draws=9999)  # both ways of all signs alike reach it: 2 in 64
    assert_close(found.p_value, 2 / 64, "estimate", sigma=(2 / 64 * 62 / 64 / 9999) ** 0.5)


def test_rows_that_cannot_change_places_are_left_out_and_counted():
    R_nd, labels, strata = cases()
    alone = np.concatenate([strata, [90, 91, 91]])
    more_nd, more = np.concatenate([R_nd, np.full((3, 3), 1e3)]), np.concatenate([labels, [0, 1, 1]])
    found = permutation_test(more_nd, more, alone)
    assert (found.n, found.left_out) == (48, 3)
    assert found.p_value == permutation_test(R_nd, labels, strata).p_value


@pytest.mark.parametrize(
    ("R", "labels", "strata", "said"),
    [
        (np.eye(4), [0, 1, 0, 1], [0, 1, 2, 3], "none of 4 rows can change places"),
        (np.eye(4), [1, 1, 1, 1], None, "no stratum has two rows that differ in U"),
        (np.eye(4), [0, 0, 1, 1], None, "4 rows in 1 strata can change places in 6 ways, expected at least 40"),
        (np.full((8, 2), 0.1), [0, 1] * 4, None, "R is the same in all 8 rows"),
        (np.repeat(np.arange(8.0), 2)[:, None] / 3, [0, 1] * 8, np.repeat(np.arange(8), 2), "read before U comes in"),
    ],
)
def test_what_cannot_be_tested_says_why(R, labels, strata, said):
    found = permutation_test(R, labels, strata)
    assert found.p_value is None
    assert said in found.reason
    power = power_within(R, labels, strata, trial=Trial((1.0,), 2, 19))
    assert power.reason == found.reason
    assert verdict(found, power, name="v", null="n", shift=1.0).holds is None


def test_pairs_that_cannot_be_tested_say_why():
    rng = np.random.default_rng(0)
    A_nd, B_nd = rng.standard_normal((2, 30, 2))
    assert "read before U comes in" in paired_test(A_nd, A_nd).reason
    assert "3 cluster(s) of pairs can change sides in 8 ways" in paired_test(A_nd, B_nd, [0, 1, 2] * 10).reason
    assert "R is the same in all 60 rows" in power_of_pairs(np.ones((30, 2)), np.ones((30, 2))).reason


def test_broken_input_is_refused():
    R_nd, labels, strata = cases()
    with pytest.raises(NumericsError, match="48 rows of one variable and 47 of the other"):
        permutation_test(R_nd, labels[1:], strata)
    with pytest.raises(NumericsError, match="48 rows of one variable and 47 of the other"):
        permutation_test(R_nd, labels, strata[1:])
    with pytest.raises(NumericsError, match="draws=0"):
        paired_test(R_nd, R_nd, draws=0)
    with pytest.raises(NumericsError, match="draws of which one can be significant"):
        power_within(R_nd, labels, strata, trial=Trial(draws=9))
    R_nd[5, 0] = np.inf
    with pytest.raises(NumericsError, match="not finite in 1 of 48 rows"):
        permutation_test(R_nd, labels, strata)
    with pytest.raises(NumericsError, match="R of the other side is not finite"):
        paired_test(R_nd[24:], R_nd[:24])


# the verdict


def found(p_value, draws=999, reason="", left_out=0):
    empty = p_value is None
    return Finding(
        None if empty else 0.01,
        None if empty else 0.002,
        p_value,
        100,
        left_out,
        None if empty else 0.25,
        draws,
        0,
        "hsic",
        reason,
    )


def strength(power, size=10):
    return Power({0.0: size, 1.0: power}, Trial((1.0,)))


@pytest.mark.parametrize(
    ("p_value", "power", "size", "holds", "said"),
    [
        (0.4, 180, 10, True, "holds"),
        (0.051, 160, 10, True, "found in 80% of 200 trials"),
        (0.4, 159, 10, None, "abstains (power too low, 80% needed)"),
        (0.05, 100, 10, False, "fails"),
        (0.001, 190, 40, None, "rejects too often without dependence"),
    ],
)
def test_verdict_holds_fails_or_abstains(p_value, power, size, holds, said):
    given = verdict(found(p_value, left_out=2), strength(power, size), name="v", null="R _||_ U", shift=1.0)
    assert given.holds is holds
    assert said in given.reason
    assert "2 rows left out" in given.reason
    assert "effect 0.0020 on 25.0% of the variance" in given.reason
    assert (given.p_value, given.draws, given.n, given.null) == (p_value, 999, 100, "R _||_ U (hsic)")


def test_verdict_needs_draws_a_level_and_the_shift_that_matters():
    with pytest.raises(NumericsError, match="at least 999 draws"):
        verdict(found(0.4, draws=998), strength(200), name="v", null="n", shift=1.0)
    with pytest.raises(NumericsError, match="and level 0"):
        verdict(found(0.4), strength(200), name="v", null="n", shift=1.0, alpha=0.01)
    with pytest.raises(NumericsError, match="expected one of 0, 1"):
        verdict(found(0.4), strength(200), name="v", null="n", shift=2.0)


def test_verdict_without_a_p_value_abstains_with_the_reason():
    given = verdict(found(None, reason="no rows"), Power({}, reason="no rows"), name="v", null="n", shift=1.0)
    assert (given.holds, given.p_value, given.reason) == (None, None, "cannot be tested: no rows")


def test_figures_carry_counts_intervals_and_seeds():
    made = figures(found(0.4), strength(150), name="causal/independence")
    assert [(m.name.rsplit("/", 1)[1], m.group, m.value, m.k) for m in made] == [
        ("effect", "", 0.002, None),
        ("size", "", 0.05, 10),
        ("power", "shift=1", 0.75, 150),
    ]
    assert made[2].low < 0.75 < made[2].high
    assert [m.higher_is_better for m in made] == [False, False, True]
    missing = figures(found(None, reason="no rows"), Power({}, reason="no rows"), name="v")
    assert [(m.value, m.reason) for m in missing] == [(None, "no rows")]
