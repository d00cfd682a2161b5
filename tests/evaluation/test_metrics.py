"""Metrics say how they came to be, and are never a made-up 0."""

import pytest

from holdfast.evaluation.intervals import clopper_pearson, wilson
from holdfast.evaluation.metrics import Provenance, mean_metric, missing_metric, rate_metric

ORIGIN = Provenance(judge="prefix@1", decoding="greedy", seed=4, group="attack=story", n_invalid=2)


def test_rate_carries_counts_interval_and_origin():
    metric = rate_metric("safety/x/safety_rate", 30, 40, higher_is_better=True, origin=ORIGIN)
    assert (metric.value, metric.k, metric.n, metric.n_invalid) == (0.75, 30, 40, 2)
    assert (metric.low, metric.high) == wilson(30, 40)
    assert metric.interval == "wilson (continuity-corrected) 95%"
    assert (metric.judge, metric.decoding, metric.seed, metric.group) == ("prefix@1", "greedy", 4, "attack=story")


def test_guaranteed_rate_uses_the_exact_interval_and_says_so():
    metric = rate_metric("x", 0, 100, higher_is_better=False, interval="clopper-pearson")
    assert (metric.low, metric.high) == clopper_pearson(0, 100)
    assert metric.interval == "clopper-pearson 95%"


def test_rate_over_nothing_is_missing_with_a_reason():
    metric = rate_metric("x", 0, 0, higher_is_better=False, origin=ORIGIN)
    assert (metric.value, metric.low, metric.n, metric.n_invalid) == (None, None, 0, 2)
    assert metric.reason == "no valid row"


def test_mean_is_over_rows_and_its_interval_over_clusters():
    metric = mean_metric("x", [0.0, 1.0, 1.0], ["a", "b", "b"], higher_is_better=True, cluster="group", origin=ORIGIN)
    assert metric.value == pytest.approx(2 / 3)
    assert (metric.low, metric.high) == (0.0, 1.0)
    assert (metric.interval, metric.cluster) == ("bootstrap 95% by group", "group")


@pytest.mark.parametrize(("values", "keys"), [([0.4], None), ([0.2, 0.8], ["a", "a"]), ([1.0, 1.0, 1.0], None)])
def test_mean_without_spread_has_no_interval_and_says_why(values, keys):
    metric = mean_metric("x", values, keys, higher_is_better=True)
    assert (metric.low, metric.high, metric.interval) == (None, None, "")
    assert metric.reason.startswith("no interval")


def test_mean_of_nothing_is_missing():
    assert mean_metric("x", [], higher_is_better=True).value is None
    assert missing_metric("x", "endpoint unreachable", higher_is_better=True).reason == "endpoint unreachable"
