import math
import random

import pytest
import torch
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.methods.token_weighting.advantages import (
    HIGH,
    LOW,
    advantage_weights,
    gae,
    lambda_returns,
    monte_carlo,
    state_marks,
    targets_in_rows,
    value_changes,
    whiten,
)

Line = tuple[Tensor, Tensor, Tensor, Tensor]


def packed_lines(seed: int, lines: int = 4, width: int = 37) -> Line:
    """Values, rewards, target tokens and owners of lines with rows one after another, gaps in them, and padding."""
    dice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    owner = torch.full((lines, width), -1)
    learnt = torch.zeros(lines, width, dtype=torch.bool)
    rewards = torch.zeros(lines, width, dtype=torch.float64)
    row = 0
    for line in range(lines):
        at = 0
        while at < width - 3 and dice.random() < 0.85:
            length = min(dice.randint(1, 14), width - at)
            owner[line, at : at + length] = row
            rewards[line, at : at + length] = dice.random()
            for place in range(at, at + length):
                learnt[line, place] = dice.random() < 0.6
            at, row = at + length, row + 1
    values = torch.randn(lines, width, dtype=torch.float64, generator=generator)
    return values, rewards, targets_in_rows(learnt, owner), owner


def targets_of_row(targets: Tensor, owner: Tensor, line: int, row: int) -> list[int]:
    return [t for t in range(targets.shape[1]) if owner[line, t] == row and targets[line, t]]


def loop_gae(values: Tensor, targets: Tensor, owner: Tensor, decay: float) -> Tensor:
    out = torch.zeros_like(values)
    for line in range(len(values)):
        for row in set(owner[line].tolist()) - {-1}:
            advantage = 0.0
            for t in reversed(targets_of_row(targets, owner, line, row)):
                advantage = float(values[line, t] - values[line, t - 1]) + decay * advantage
                out[line, t] = advantage
    return out


def loop_returns(line_: Line, gamma: float, lam: float) -> Tensor:
    values, rewards, targets, owner = line_
    out = torch.zeros_like(values)
    for line in range(len(values)):
        for row in set(owner[line].tolist()) - {-1}:
            places = targets_of_row(targets, owner, line, row)
            if not places:
                continue
            reward = float(rewards[line, places[-1]])
            later = reward
            for number, t in enumerate(reversed(places)):
                out[line, t] = later  # of the state after t; a gap passes it on unchanged
                reached = reward if number == 0 else float(values[line, t])
                later = gamma * ((1 - lam) * reached + lam * later)
                out[line, t - 1] = later
    return out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
def test_gae_equals_a_loop_over_tokens_in_packed_lines_with_gaps(seed: int, decay: float) -> None:
    values, _, targets, owner = packed_lines(seed)
    assert targets.any()
    got = gae(value_changes(values, targets), targets, owner, decay)
    assert_close(got, loop_gae(values, targets, owner, decay), "float64")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.7), (0.97, 1.0)])
def test_lambda_returns_equal_a_loop_over_states(seed: int, gamma: float, lam: float) -> None:
    line = packed_lines(seed)
    values, rewards, targets, owner = line
    got = lambda_returns(values, rewards, targets, owner, gamma=gamma, lam=lam)
    assert_close(got, loop_returns(line, gamma, lam), "float64")


def test_a_monte_carlo_return_is_the_reward_discounted_by_the_tokens_to_come() -> None:
    targets = torch.tensor([[False, False, True, True, True, False]])
    owner = torch.tensor([[0, 0, 0, 0, 0, -1]])
    reward = torch.full((1, 6), 2.0, dtype=torch.float64)
    got = monte_carlo(reward, targets, owner, 0.5)
    assert got.tolist() == [[0.0, 0.25, 0.5, 1.0, 2.0, 0.0]]
    assert state_marks(targets).tolist() == [[False, True, True, True, True, False]]


def test_a_change_stands_at_the_token_that_was_read_between_the_two_values() -> None:
    targets = torch.tensor([[False, False, True, True]])
    changes = value_changes(torch.tensor([[5.0, 1.0, 1.0, 4.0]]), targets)
    assert changes.tolist() == [[0.0, 0.0, 0.0, 3.0]]


def test_the_changes_of_an_answer_sum_to_the_value_it_gained() -> None:
    values, _, _, owner = packed_lines(3)
    whole = targets_in_rows(owner >= 0, owner)
    changes = value_changes(values, whole)
    first = next(t for t in range(values.shape[1]) if owner[0, t] == owner[0, 0] != owner[0, t + 1])
    assert_close(changes[0, : first + 1].sum(), values[0, first] - values[0, 0], "float64")
    assert_close(gae(changes, whole, owner, 1.0)[0, 1], values[0, first] - values[0, 0], "float64")


def test_the_first_token_of_a_packed_row_has_no_value_before_it_and_is_no_target() -> None:
    owner = torch.tensor([[0, 0, 1, 1, -1]])
    assert targets_in_rows(owner >= 0, owner).tolist() == [[False, True, False, True, False]]


def test_whitened_advantages_have_mean_0_and_variance_1() -> None:
    drawn = whiten(torch.randn(500, generator=torch.Generator().manual_seed(0)) * 7 + 3)
    assert abs(float(drawn.mean())) < 1e-6
    assert float(drawn.var(correction=0)) == pytest.approx(1, abs=1e-5)


def test_advantages_that_are_all_the_same_cannot_be_whitened() -> None:
    with pytest.raises(NumericsError, match="5 tokens cannot be whitened: got a standard deviation of 0"):
        whiten(torch.full((5,), 0.3))


def test_weights_rise_with_advantages_and_stay_between_the_bounds() -> None:
    weights = advantage_weights(torch.tensor([-9.0, 0.0, 0.5, 9.0]), beta=2.0)
    assert weights.tolist() == pytest.approx([LOW, 1.0, math.exp(0.25), HIGH])
