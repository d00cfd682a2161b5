"""Composite figures: closed forms, and a reason wherever they are undefined."""

import numpy as np
import pytest

from holdfast.core.errors import NumericsError
from holdfast.evaluation.composites import (
    Figure,
    TradeOffPoint,
    drift,
    drift_reduction,
    hypervolume,
    pareto_set,
    retention,
    safety_tax,
    utility_at_safety,
)

BASE = TradeOffPoint("base", 0.5, 0.5)


def points(*pairs):
    return [TradeOffPoint(str(i), s, u) for i, (s, u) in enumerate(pairs)]


def test_safety_tax_is_relative_loss_over_relative_gain():
    assert safety_tax(0.8, 0.72, 0.5, 0.6).value == pytest.approx(0.1 / 0.2)
    assert safety_tax(0.8, 0.88, 0.5, 0.6).value == pytest.approx(-0.1 / 0.2)


@pytest.mark.parametrize("before_after", [(0.5, 0.5), (0.5, 0.4), (0.0, 0.4)])
def test_safety_tax_is_undefined_without_a_gain_of_safety(before_after):
    found = safety_tax(0.8, 0.7, *before_after)
    assert found.value is None
    assert found.reason.startswith("undefined")


def test_drift_is_positive_for_a_loss_and_negative_for_a_gain():
    assert drift(0.8, 0.6).value == pytest.approx(0.25)
    assert drift(0.8, 0.9).value == pytest.approx(-0.125)
    assert drift(0.0, 0.9).value is None


def test_drift_reduction_is_one_where_nothing_was_lost():
    assert drift_reduction(drift(0.8, 0.8), drift(0.8, 0.4)).value == 1.0
    assert drift_reduction(drift(0.8, 0.6), drift(0.8, 0.4)).value == pytest.approx(0.5)
    assert drift_reduction(drift(0.8, 0.7), drift(0.8, 0.8)).value is None
    assert drift_reduction(Figure(None, "no rows"), drift(0.8, 0.4)).reason == "no rows"


def test_retention_is_the_mean_of_ratios_over_the_same_tasks():
    assert retention({"a": 0.4, "b": 0.9}, {"a": 0.5, "b": 1.0}).value == pytest.approx(0.85)
    assert "scores 0 on a" in retention({"a": 0.4}, {"a": 0.0}).reason
    with pytest.raises(NumericsError, match="same ones"):
        retention({"a": 0.4}, {"b": 0.4})


def test_pareto_set_equals_its_definition():
    rng = np.random.default_rng(0)
    cloud = points(*rng.random((40, 2)).round(1).tolist())

    def beats(q, p):
        return q.safety >= p.safety and q.utility >= p.utility and (q.safety, q.utility) != (p.safety, p.utility)

    expected = {p.name for p in cloud if not any(beats(q, p) for q in cloud)}
    front = pareto_set(cloud)
    assert {p.name for p in front} == expected
    assert [p.safety for p in front] == sorted(p.safety for p in front)


def test_hypervolume_equals_a_count_of_grid_cells():
    rng = np.random.default_rng(1)
    for _ in range(5):
        cloud = points(*rng.random((8, 2)).round(2).tolist())
        cells = (np.arange(50) + 0.5) / 100 + 0.5
        covered = np.zeros((50, 50), dtype=bool)
        for p in cloud:
            covered |= (cells[:, None] < p.safety) & (cells[None] < p.utility)
        assert hypervolume(cloud, BASE) == pytest.approx(covered.sum() / 1e4, abs=1e-9)


def test_doing_nothing_or_trading_below_the_base_earns_no_hypervolume():
    assert hypervolume([BASE], BASE) == 0.0
    assert hypervolume(points((1.0, 0.4), (0.2, 1.0)), BASE) == 0.0


def test_utility_at_matched_safety_runs_along_the_front():
    front = points((0.6, 0.9), (0.8, 0.7), (0.7, 0.1))
    assert utility_at_safety(front, 0.7).value == pytest.approx(0.8)
    assert utility_at_safety(front, 0.2).value == 0.9
    assert utility_at_safety(front, 0.8).value == 0.7
    assert "0.800" in utility_at_safety(front, 0.9).reason
    assert utility_at_safety([], 0.5).value is None
