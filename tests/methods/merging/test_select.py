"""The choice of a dial's value by the rule that is written down."""

import pytest
import torch
from tests.methods.merging.test_apply import made

from holdfast.core.errors import ConfigError, DataError
from holdfast.methods.merging.apply import merge
from holdfast.methods.merging.select import Tried, Unmeasured, choose, resettled

POINTS = [Tried(0.1, 0.30, 0.80), Tried(0.3, 0.90, 0.79), Tried(1.0, 0.95, 0.77), Tried(3.0, 1.00, 0.60)]


@pytest.mark.parametrize(
    ("reference", "drop", "value", "kept"),
    [
        (0.80, 0.02, 0.3, True),
        (0.80, 0.03, 1.0, True),
        (0.80, 0.0, 0.1, True),
        (0.80, 0.2, 3.0, True),
        (0.50, 0.0, 3.0, True),
        (0.99, 0.02, 0.1, False),
    ],
)
def test_most_safety_is_taken_among_what_keeps_utility_else_most_utility(
    reference: float, drop: float, value: float, kept: bool
) -> None:
    found = choose(POINTS, reference, drop)
    assert (found.taken.value, found.kept) == (value, kept)
    assert found.tried == tuple(POINTS)
    assert (found.reference, found.drop) == (reference, drop)
    assert choose(POINTS[::-1], reference, drop).taken == found.taken, "whatever was tried first"


def test_a_value_exactly_at_the_bound_keeps_utility() -> None:
    assert choose([Tried(1.0, 1.0, 0.78), Tried(0.1, 0.5, 0.80)], 0.80, 0.02).taken.value == 1.0
    assert choose([Tried(1.0, 1.0, 0.77999), Tried(0.1, 0.5, 0.80)], 0.80, 0.02).taken.value == 0.1


def test_of_equal_safety_more_utility_is_taken_and_of_equal_utility_more_safety() -> None:
    assert choose([Tried(1.0, 0.9, 0.79), Tried(0.3, 0.9, 0.80)], 0.80, 0.02).taken.value == 0.3
    assert choose([Tried(1.0, 0.1, 0.5), Tried(3.0, 0.2, 0.5)], 0.80, 0.02).taken.value == 3.0


def test_the_rule_says_how_much_utility_may_be_lost() -> None:
    assert choose(POINTS, 0.8, 0.02).rule == (
        "most safety with utility at most 0.02 below the first adapter's; else most utility"
    )


UNSEEN = Unmeasured(0.5, ("safety/lab/harmful/attack_success_rate (no valid row)",))


def test_a_value_without_all_figures_is_never_taken_and_it_is_said() -> None:
    found = choose([POINTS[0], UNSEEN, POINTS[3]], 0.9, 0.0)
    assert found.taken == POINTS[0]
    assert found.tried == (POINTS[0], POINTS[3])
    assert found.unmeasured == (UNSEEN,)
    assert found.left_out() == (
        "Value 0.5 of the dial could not be taken: no figure for safety/lab/harmful/attack_success_rate "
        "(no valid row).",
    )
    assert choose(POINTS, 0.9, 0.0).left_out() == ()


def test_where_no_value_has_all_figures_there_is_no_choice() -> None:
    with pytest.raises(DataError, match=r"got all figures for none of 1 values.*the first, 0\.5, has no safety/lab"):
        choose([UNSEEN], 0.9, 0.0)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("sst", {"damping": 0.5}),
        ("regmean", {"damping": 0.5}),
        ("sst_projection", {"k": 1, "damping": 0.5}),
        ("sst_projection", {"tau": 0.5}),
        ("alignguard", {"k": 1}),
        ("safe_merge", {"tau": -1.0}),
    ],
)
def test_a_plan_set_anew_merges_as_one_that_was_made_so(rule: str, settings: dict[str, float]) -> None:
    first, expected = made(rule), merge(made(rule, **settings)).adapter
    found = merge(resettled(resettled(first, settings), settings)).adapter
    assert all(torch.equal(found.delta(name), expected.delta(name)) for name in expected.deltas)
    assert found.metadata == expected.metadata
    plain = merge(first).adapter
    assert any(not torch.equal(found.delta(name), plain.delta(name)) for name in plain.deltas)
    assert resettled(first, {}) is first


def test_a_k_that_the_rows_cannot_tell_is_refused_when_it_is_set() -> None:
    with pytest.raises(ConfigError, match="k is larger than the evidence: got 99"):
        resettled(made("sst_projection"), {"k": 99})


def test_a_value_that_could_not_be_measured_is_told_with_its_settings() -> None:
    found = choose([Tried(1.0, 1.0, 1.0), Unmeasured(2.0, ("x (why)",), {"k": 3})], 0.9, 0.0)
    assert found.left_out() == ("Value 2 of the dial with k 3 could not be taken: no figure for x (why).",)
