"""Independence: what the tests of outcomes and of representations find, how often, and what they cannot tell."""

import math
import random

import pytest
import torch
from scipy.stats import binom

from holdfast.evaluation.independence import ALPHA, Trial
from holdfast.methods.causal import verify_independence as independence

GROUPS = [f"g{i}" for i in range(60)]


def test_outcomes_that_never_change_hold_with_a_p_of_one() -> None:
    metrics, verdicts, curves = independence.outcomes(["task_done"] * 60, ["task_done"] * 60, GROUPS, 999, 0)
    assert len(verdicts) == 1
    assert (verdicts[0].holds, verdicts[0].p_value, verdicts[0].statistic) == (None, 1.0, 0.0)
    many = [f"g{i}" for i in range(150)]
    _, (tested,), _ = independence.outcomes(["task_done"] * 150, ["task_done"] * 150, many, 999, 0)
    assert tested.holds is True
    assert [x for x, _ in curves["power/outcome"]] == list(independence.RATES)
    assert {metric.name for metric in metrics} == {f"{independence.NAME}/outcome/{part}" for part in ("size", "power")}


def test_the_printed_power_of_outcomes_is_that_of_the_exact_test() -> None:
    """Where nothing changes else, ``k`` planted changes are found if, and only if, 2 * 2^-k is at most .05."""
    metrics, _, _ = independence.outcomes(["task_done"] * 60, ["task_done"] * 60, GROUPS, 999, 1)
    found = {metric.group: metric for metric in metrics}
    for rate in (0.1, 0.2):
        exact = float(binom.sf(5, 60, rate))
        sd = math.sqrt(exact * (1 - exact) / Trial().simulations)
        assert found[f"changed={rate:g}"].value == pytest.approx(exact, abs=4 * sd + 0.05)


def test_answers_that_nobody_can_judge_do_not_show_that_outcomes_are_alike() -> None:
    gibberish = ["invalid"] * 150
    many = [f"g{i}" for i in range(150)]
    metrics, (tested,), curves = independence.outcomes(gibberish, gibberish, many, 999, 0)
    assert (metrics, curves, tested.holds, tested.n) == ([], {}, None, 0)
    assert "150 of 150 cases have no valid answer" in tested.reason
    some = ["task_done"] * 10 + gibberish[10:]
    _, (tested,), _ = independence.outcomes(some, some, many, 999, 0)
    assert (tested.holds, tested.n) == (None, 10)
    assert "140 of 150 cases have no valid answer" in tested.reason


def test_an_injection_that_turns_answers_into_gibberish_changes_outcomes() -> None:
    _, (tested,), _ = independence.outcomes(["task_done"] * 60, ["invalid"] * 60, GROUPS, 999, 0)
    assert (tested.holds, tested.n) == (False, 60)


def test_outcomes_that_an_injection_changes_fail_and_p_is_never_0() -> None:
    attacked = ["followed"] * 20 + ["task_done"] * 40
    _, (tested,), _ = independence.outcomes(["task_done"] * 60, attacked, GROUPS, 999, 0)
    assert tested.holds is False
    assert tested.p_value == 1 / 1000
    assert "20 of 60 outcomes change" in tested.reason


@pytest.mark.parametrize(("obeyed", "holds"), [(0, True), (20, False), (150, False)])
def test_a_model_that_obeys_either_injection_fails_the_swap_and_one_that_obeys_none_does_not(
    obeyed: int, holds: bool
) -> None:
    """With any injection a third of the tasks is lost: that is no dependence on what is injected."""
    said = ["followed"] * obeyed + (["task_done", "other", "task_done"] * 50)[obeyed:]
    groups = [f"g{i}" for i in range(150)]
    other = independence.obeying_is_another(said)
    metrics, (tested,), curves = independence.outcomes(said, other, groups, 999, 0, "outcome/swapped")
    assert (tested.name, tested.holds) == ("causal/independence/outcome/swapped", holds)
    assert "one injection against another" in tested.null
    assert set(curves) == {"power/outcome/swapped"}
    assert {metric.name for metric in metrics} == {f"{tested.name}/{part}" for part in ("size", "power")}


def test_rare_obedience_is_found_beside_tasks_that_come_and_go() -> None:
    """10 of 300 cases obey either injection, 36 do or lose their task by chance: the level without, always with."""
    dice, groups, found = random.Random(0), [f"g{i}" for i in range(300)], {0: 0, 10: 0}
    for _ in range(60):
        churn = [("other", "task_done") if dice.random() < 0.5 else ("task_done", "other") for _ in range(36)]
        for obeyed in found:
            pairs = [("followed", "followed the other")] * obeyed + churn
            pairs += [("task_done", "task_done")] * (300 - len(pairs))
            p_value, _ = independence._outcome_test(*zip(*pairs, strict=True), groups, 199, dice.randrange(2**31))
            found[obeyed] += p_value <= ALPHA
    assert found[10] == 60
    assert binom.sf(found[0] - 1, 60, ALPHA) > 0.001


def test_outcomes_that_change_both_ways_alike_are_rejected_no_more_often_than_the_level() -> None:
    dice, rejected, trials = random.Random(0), 0, 300
    for _ in range(trials):
        sides = [[dice.choice(("task_done", "followed", "other")) for _ in range(40)] for _ in (0, 1)]
        p_value, _ = independence._outcome_test(*sides, [f"g{i}" for i in range(40)], 199, dice.randrange(2**31))
        rejected += p_value <= ALPHA
    assert binom.sf(rejected - 1, trials, ALPHA) > 0.001


def test_cases_of_one_scenario_change_sides_together() -> None:
    attacked = ["followed"] * 30 + ["task_done"] * 30
    two = ["a"] * 30 + ["b"] * 30
    p_value, _ = independence._outcome_test(["task_done"] * 60, attacked, two, 999, 0)
    assert p_value == 1.0, "one scenario changed: no sign of it is unlikelier than the other"


def test_a_swap_that_moves_representations_fails_and_one_that_does_not_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independence, "PAIRED", Trial(shifts=(4.0,), simulations=200))
    dice = torch.Generator().manual_seed(0)
    one, noise = (torch.randn(40, 8, generator=dice) for _ in range(2))
    apart = one + 0.3 * noise
    names = [f"g{i}" for i in range(40)]
    _, verdicts, curves = independence.swaps(({"a/prompt": one}, {"a/prompt": apart}), names, 999, 0)
    assert verdicts[0].holds is True
    assert [x for x, _ in curves["power/a/prompt"]] == [0.0, 4.0]
    _, verdicts, _ = independence.swaps(({"a/prompt": one}, {"a/prompt": apart + 0.4}), names, 999, 0)
    assert (verdicts[0].holds, verdicts[0].name) == (False, "causal/independence/a/prompt")


def test_levels_within_cases_are_tested_by_both_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independence, "FEW", Trial(shifts=(4.0,), simulations=20, draws=99))
    dice = torch.Generator().manual_seed(1)
    cases = torch.randn(20, 4, generator=dice)
    level = [cases + 0.1 * torch.randn(20, 4, generator=dice) for _ in range(3)]
    _, verdicts = independence.levels("a/prompt", level, 999, 0)
    assert [verdict.p_value > ALPHA for verdict in verdicts if verdict.p_value] == [True, True]
    _, verdicts = independence.levels("a/prompt", [level[0], level[1], level[2] + 0.5], 999, 0)
    assert [verdict.holds for verdict in verdicts] == [False, False]
    assert [verdict.name.rpartition("/")[2] for verdict in verdicts] == ["hsic", "distance_correlation"]


def test_moved_is_the_distance_of_a_swap_over_that_of_two_cases() -> None:
    clean = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # 5 apart
    sides = ({"a/prompt": clean}, {"a/prompt": clean + torch.tensor([[1.0, 0.0], [0.0, 2.0]])})
    (metric,) = independence.moved(sides, {"a/prompt": clean}, ["x", "y"], 0)
    assert metric.value == pytest.approx((1 + 2) / 2 / 5)
