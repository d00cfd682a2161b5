"""Intervals cover what they say they cover; coverage is enumerated exactly, not sampled."""

import numpy as np
import pytest
from scipy.stats import binom

from holdfast.core.errors import NumericsError
from holdfast.evaluation.intervals import (
    clopper_pearson,
    clustered_bootstrap,
    samples_to_certify,
    upper_bound,
    wilson,
)

SIZES = [20, 21, 22, 25, 30, 37, 50, 73, 100, 199, 300, 1000]


def least_coverage(interval, n):
    """Smallest exact coverage over p in (0, 0.5]: it can only change at a limit, so both sides of each are tried."""
    limits = np.array([interval(k, n) for k in range(n + 1)])
    low, high = limits[:, 0], limits[:, 1]
    edges = np.unique(limits[(limits > 0) & (limits < 0.51)])
    p = np.concatenate([edges * (1 - 1e-9), edges * (1 + 1e-9), np.geomspace(1e-9, 0.5, 60), np.linspace(0, 0.5, 51)])
    p = p[p <= 0.5]
    chance = binom.pmf(np.arange(n + 1)[None], n, p[:, None])
    return float((chance * ((low <= p[:, None]) & (p[:, None] <= high))).sum(axis=1).min())


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
@pytest.mark.parametrize("n", SIZES)
def test_interval_covers_at_least_95_percent_at_every_rate(interval, n):
    assert least_coverage(interval, n) >= 0.95 - 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
def test_interval_covers_at_least_95_percent_at_every_size(interval):
    short = {n: least_coverage(interval, n) for n in range(20, 1001)}
    assert {n: c for n, c in short.items() if c < 0.95 - 1e-12} == {}


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
@pytest.mark.parametrize(("n", "p"), [(20, 0.0), (40, 0.004), (100, 0.01), (300, 0.5)])
def test_interval_covers_in_simulation(interval, n, p):
    draws = np.random.default_rng(7).binomial(n, p, 4000)
    limits = {k: interval(int(k), n) for k in np.unique(draws)}
    covered = np.mean([limits[k][0] <= p <= limits[k][1] for k in draws])
    assert covered >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize(("k", "n"), [(1, 20), (7, 50), (50, 300)])
def test_clopper_pearson_limits_leave_half_of_alpha_in_each_tail(k, n):
    low, high = clopper_pearson(k, n)
    assert binom.sf(k - 1, n, low) == pytest.approx(0.025, abs=1e-10)
    assert binom.cdf(k, n, high) == pytest.approx(0.025, abs=1e-10)


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
def test_interval_of_misses_mirrors_interval_of_hits(interval):
    for k in range(31):
        low, high = interval(k, 30)
        mirrored = interval(30 - k, 30)
        assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
        assert 0 <= low <= k / 30 <= high <= 1


def test_no_hit_in_100_leaves_2_95_percent():
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-12)
    assert round(upper_bound(0, 100), 4) == 0.0295


@pytest.mark.parametrize(("rate", "hits", "n"), [(0.01, 0, 299), (0.05, 0, 59), (0.01, 1, 473)])
def test_planner_gives_the_smallest_certifying_size(rate, hits, n):
    assert samples_to_certify(rate, hits=hits) == n
    assert upper_bound(hits, n) <= rate < upper_bound(hits, n - 1)


def test_bootstrap_depends_only_on_the_seed():
    values = list(np.random.default_rng(0).normal(size=40))
    assert clustered_bootstrap(values, seed=3) == clustered_bootstrap(values, seed=3)
    assert clustered_bootstrap(values, seed=3) != clustered_bootstrap(values, seed=4)


def test_repeating_every_row_inside_its_cluster_adds_no_certainty():
    values = list(np.random.default_rng(1).normal(size=30))
    repeated, keys = [v for v in values for _ in range(5)], [i for i in range(30) for _ in range(5)]
    assert clustered_bootstrap(repeated, keys) == pytest.approx(clustered_bootstrap(values), abs=1e-12)
    low, high = clustered_bootstrap(repeated)
    clustered = clustered_bootstrap(repeated, keys)
    assert high - low < 0.7 * (clustered[1] - clustered[0])


def test_bootstrap_interval_matches_the_normal_one_on_many_rows():
    values = np.random.default_rng(2).normal(3.0, 1.0, 2000)
    low, high = clustered_bootstrap(list(values))
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


@pytest.mark.parametrize("call", [lambda: wilson(3, 2), lambda: clopper_pearson(0, 0), lambda: wilson(1, 2, 1.5)])
def test_impossible_counts_are_refused(call):
    with pytest.raises(NumericsError, match="expected"):
        call()


@pytest.mark.parametrize(("values", "keys"), [([], None), ([float("nan")], None), ([1.0, 2.0], ["a"])])
def test_bootstrap_refuses_missing_values_and_keys(values, keys):
    with pytest.raises(NumericsError, match="expected"):
        clustered_bootstrap(values, keys)
