"""Means over prompts and seeds: closed forms, a slow twin, and coverage, size and power on crossed data."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from holdfast.core.errors import NumericsError
from holdfast.evaluation.crossed import (
    SMALL,
    UNCLEAR,
    CrossedMean,
    crossed_means,
    difference_of,
    mean_of,
    removed_of,
    synergy_of,
)
from holdfast.evaluation.intervals import clopper_pearson, clustered_bootstrap

Array = NDArray[np.float64]
BASE = 0.4


def crossed(rng: np.random.Generator, prompts: int, seeds: int, rate: float, of_prompt: Array, spread: float) -> Array:
    """Hits of a probit model with a random effect of the prompt and of the seed, whose mean rate is ``rate``."""
    scale = np.sqrt(1 + 1 + spread**2)
    latent = norm.ppf(rate) * scale + of_prompt[:, None] + rng.normal(0, spread, (1, seeds))
    return (latent + rng.normal(size=(prompts, seeds)) > 0).astype(np.float64)


def alone(values: Array, **options: object) -> CrossedMean:
    return crossed_means({"a": values}, range(len(values)), rates=True, **options)["a"]  # type: ignore[arg-type]


def grid(hits: int, prompts: int, seeds: int = 3) -> Array:
    return np.repeat((np.arange(prompts) < hits).astype(np.float64)[:, None], seeds, axis=1)


def test_the_interval_covers_the_true_rate_and_equal_arms_are_rarely_called_different() -> None:
    rng = np.random.default_rng(5)
    covered = called = 0
    for trial in range(120):
        of_prompt = rng.normal(size=60)
        rows = {name: crossed(rng, 60, 3, BASE, of_prompt, 0.1) for name in "ab"}
        means = crossed_means(rows, range(60), rates=True, seed=trial, draws=300)
        value, difference = mean_of(means["a"]), difference_of(means["a"], means["b"])
        assert value.low is not None
        assert value.high is not None
        covered += value.low <= BASE <= value.high
        called += difference.low is not None and not difference.low <= 0 <= (difference.high or 0)
    assert covered >= 110, "95 % of 120 are 114, with a standard deviation of 2.4"
    assert called <= 10


def test_a_difference_of_thirty_points_is_found() -> None:
    rng = np.random.default_rng(6)
    found = 0
    for trial in range(40):
        of_prompt = rng.normal(size=60)
        rows = {name: crossed(rng, 60, 3, rate, of_prompt, 0.1) for name, rate in (("a", 0.2), ("b", 0.5))}
        means = crossed_means(rows, range(60), rates=True, seed=trial, draws=300)
        found += (difference_of(means["b"], means["a"]).low or 0) > 0
    assert found >= 38


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(7)
    values = (rng.random((200, 3)) < [0.2, 0.5, 0.8]).astype(np.float64)
    wide, narrow = mean_of(alone(values)), mean_of(alone(values.reshape(-1, 1)))
    assert wide.value == pytest.approx(narrow.value)
    assert (wide.high or 0) - (wide.low or 0) > 3 * ((narrow.high or 0) - (narrow.low or 0))


def test_draws_equal_those_of_a_slow_twin_that_repeats_prompts_and_seeds() -> None:
    rng = np.random.default_rng(8)
    values = rng.random((7, 3))
    values[2, 1] = np.nan
    clusters = ["x", "x", "y", "z", "z", "z", "w"]
    fast = crossed_means({"a": values}, clusters, rates=False, seed=3, draws=50)["a"]
    again = np.random.default_rng(3)
    seeds = again.multinomial(3, np.full(3, 1 / 3), size=50)
    prompts = again.multinomial(4, np.full(4, 1 / 4), size=50)
    names = list(dict.fromkeys(clusters))
    for draw in range(50):
        of_seed = []
        for seed in range(3):
            counted = [
                values[row, seed]
                for row, cluster in enumerate(clusters)
                for _ in range(prompts[draw, names.index(cluster)])
                if np.isfinite(values[row, seed])
            ]
            of_seed += [np.mean(counted) if counted else np.nan] * seeds[draw, seed]
        np.testing.assert_allclose(fast.draws[draw], np.mean(of_seed), rtol=1e-12)


def test_the_variance_of_the_draws_is_that_of_the_pigeonhole_bootstrap() -> None:
    """Owen (2007), section 4: additive effects keep their plug-in variances, ``var(a) / n + var(b) / s``."""
    of_prompt, of_seed = np.linspace(-1, 1, 40), np.array([-0.3, 0.1, 0.2])
    mean = crossed_means({"a": of_prompt[:, None] + of_seed}, range(40), rates=False, draws=40_000)["a"]
    expected = of_prompt.var() / 40 + of_seed.var() / 3
    assert mean.draws.var() == pytest.approx(expected, rel=0.04)


def test_one_seed_is_the_bootstrap_over_prompts() -> None:
    values = grid(30, 100, seeds=1)
    one = mean_of(alone(values))
    low, high = clustered_bootstrap(values[:, 0].tolist(), seed=1)
    assert (one.low, one.high) == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015))


@pytest.mark.parametrize("hits", [0, 50])
def test_all_answers_alike_have_the_exact_interval_over_prompts(hits: int) -> None:
    found = mean_of(alone(grid(hits, 50)))
    assert (found.low, found.high) == pytest.approx(clopper_pearson(hits, 50))


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(9)
    first = (rng.random((80, 3)) < 0.5).astype(np.float64)
    second = first.copy()
    second[:4] = 1 - second[:4]
    means = crossed_means({"a": first, "b": second}, range(80), rates=True)
    paired = difference_of(means["b"], means["a"])
    whole = mean_of(means["a"])
    assert (paired.high or 0) - (paired.low or 0) < 0.7 * ((whole.high or 0) - (whole.low or 0))


def test_the_same_answers_twice_have_no_interval_and_say_why() -> None:
    means = crossed_means({"a": grid(9, 30), "b": grid(9, 30)}, range(30), rates=True)
    found = difference_of(means["a"], means["b"])
    assert (found.value, found.low, found.high) == (0.0, None, None)
    assert found.reason == "no interval: every prompt and seed says the same"


def test_a_difference_of_two_rates_at_zero_is_as_wide_as_their_exact_bounds() -> None:
    means = crossed_means({"a": grid(0, 50), "b": grid(0, 50)}, range(50), rates=True)
    found, bound = difference_of(means["a"], means["b"]), clopper_pearson(0, 50)[1]
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-bound), pytest.approx(bound))


def test_removed_is_the_share_of_the_change_and_reaches_beyond_one_where_a_row_went_the_other_way() -> None:
    rows = {"before": grid(10, 100, 1), "plain": grid(90, 100), "held": grid(30, 100), "safer": grid(2, 100)}
    means = crossed_means(rows, range(100), rates=True)
    held, safer = (removed_of(means[name], means["plain"], means["before"]) for name in ("held", "safer"))
    assert held.value == pytest.approx(0.75)
    assert safer.value == pytest.approx(1.1)
    assert held.low is not None
    assert held.high is not None
    assert 0.6 < held.low < 0.75 < held.high < 0.9


def test_removed_keeps_a_width_where_row_and_before_are_both_at_zero() -> None:
    rows = {"before": grid(0, 50, 1), "plain": grid(40, 50), "held": grid(0, 50)}
    means = crossed_means(rows, range(50), rates=True)
    found, bound = removed_of(means["held"], means["plain"], means["before"]), clopper_pearson(0, 50)[1]
    assert found.value == 1.0
    assert (found.low, found.high) == (pytest.approx(1 - bound / 0.8), pytest.approx(1 + bound / 0.8))


def test_removed_is_missing_where_the_reference_did_not_clearly_change() -> None:
    rng = np.random.default_rng(4)
    rows = {name: (rng.random((50, 3)) < 0.5).astype(np.float64) for name in ("before", "plain", "held")}
    means = crossed_means(rows, range(50), rates=True)
    found = removed_of(means["held"], means["plain"], means["before"])
    assert (found.value, found.low, found.high, found.reason) == (None, None, None, UNCLEAR)


def test_removed_is_missing_where_the_row_changed_more_than_ten_times_as_much_as_the_reference() -> None:
    rows = {"before": grid(320, 400, 1), "plain": grid(300, 400), "held": grid(2, 400), "nearer": grid(140, 400)}
    means = crossed_means(rows, range(400), rates=True)
    held, nearer = (removed_of(means[name], means["plain"], means["before"]) for name in ("held", "nearer"))
    assert (held.value, held.low, held.high, held.reason) == (None, None, None, SMALL)
    assert nearer.value == pytest.approx(1 - 180 / 20)


def test_the_same_seed_gives_the_same_draws_and_another_does_not() -> None:
    values = grid(20, 50)
    assert (alone(values, seed=1).draws == alone(values, seed=1).draws).all()
    assert (alone(values, seed=1).draws != alone(values, seed=2).draws).any()


def test_rows_of_different_prompts_or_without_a_valid_answer_are_refused() -> None:
    with pytest.raises(NumericsError, match="expected"):
        crossed_means({"a": grid(1, 5), "b": grid(1, 6)}, range(5), rates=True)
    with pytest.raises(NumericsError, match="expected"):
        crossed_means({"a": grid(1, 5, 2), "b": grid(1, 5, 3)}, range(5), rates=True)
    with pytest.raises(NumericsError, match="b has a seed without any valid answer"):
        crossed_means({"a": grid(1, 5), "b": np.full((5, 1), np.nan)}, range(5), rates=True)


def test_synergy_has_the_interval_of_what_each_prompt_says() -> None:
    """Taken prompt by prompt, ``whole - a - b + reference`` is one row, which the same resamples give the same mean."""
    rng = np.random.default_rng(5)
    names = ("whole", "a", "b", "reference")
    rows = {name: rng.normal(size=(40, 3)) for name in names}
    clusters = [i // 2 for i in range(40)]
    means = crossed_means(rows, clusters, rates=False, seed=7)
    found = synergy_of(means["whole"], [means["a"], means["b"]], means["reference"])
    alone = {"one": rows["whole"] - rows["a"] - rows["b"] + rows["reference"]}
    wanted = mean_of(crossed_means(alone, clusters, rates=False, seed=7)["one"])
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high), abs=1e-12)
