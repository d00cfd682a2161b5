"""From values of a critic to weights of tokens: changes, advantages, weights; and what the values are taught.

A *state* is the conversation up to and including the token at a position, so ``V_bt[:, t]`` is the value **after** the
token at ``t`` was read, and ``V_bt[:, t - 1]`` the value before it. What a token changes is attached to the token
itself, at its own position ``t``, not at ``t - 1`` where it is predicted. Letters in names: ``b`` lines, ``t`` tokens,
``n`` learnt tokens of all lines. ``owner_bt`` tells the rows of a line apart, as `Batch.owner` does: -1 is padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError

LOW, HIGH = 0.1, 3.0
"""Bounds of the weight of a token."""


def targets_in_rows(learnt_bt: Tensor, owner_bt: Tensor) -> Tensor:
    """The learnt tokens before which a token of the same row stands, ``(b, t)``: others have no value before them."""
    inside_bt = torch.zeros_like(learnt_bt)
    inside_bt[:, 1:] = (owner_bt[:, 1:] == owner_bt[:, :-1]) & (owner_bt[:, 1:] >= 0)
    return learnt_bt & inside_bt


def value_changes(V_bt: Tensor, target_bt: Tensor) -> Tensor:
    """``delta[t] = V[t] - V[t - 1]`` at each target token, 0 elsewhere, ``(b, t)``.

    Args:
        V_bt: The value after each token was read.
        target_bt: Of `targets_in_rows`.
    """
    delta_bt = torch.zeros_like(V_bt)
    delta_bt[:, 1:] = V_bt[:, 1:] - V_bt[:, :-1]
    return delta_bt.masked_fill(~target_bt, 0.0)


def gae(delta_bt: Tensor, target_bt: Tensor, owner_bt: Tensor, decay: float) -> Tensor:
    r"""Advantages :math:`A_t = \delta_t + \gamma \lambda A_{t'}`, ``t'`` the next target token of the row, ``(b, t)``.

    Tokens that are no targets have 0 and cost no decay; nothing passes from one row of a line to another. As on values
    alone, without rewards: the change carries no discount of its own, ``decay`` 0 leaves the changes as they are.

    Args:
        decay: :math:`\gamma \lambda`, from 0 to 1.
    Reference:
        Schulman et al., ICLR 2016, equation 16.
    """
    A_bt = _backwards(delta_bt, _carry(target_bt, owner_bt, decay))
    return A_bt.masked_fill(~target_bt, 0.0)


def lambda_returns(
    V_bt: Tensor, reward_bt: Tensor, target_bt: Tensor, owner_bt: Tensor, *, gamma: float, lam: float
) -> Tensor:
    r"""What the value of each state is taught, ``(b, t)``; 0 at positions that are no state, see `state_marks`.

    The reward of an answer is that of the state after its last token, :math:`G_T = R`; before it
    :math:`G_{t-1} = \gamma [(1 - \lambda) V_t + \lambda G_t]`, with the reward in place of :math:`V_T`. Between two
    learnt stretches of a row a return passes unchanged. ``lam`` 1 is `monte_carlo`.

    Args:
        reward_bt: The reward of the row, on each of its tokens.
        gamma: Discount of one learnt token, above 0 and at most 1.
        lam: From 0 (the next state's value) to 1 (the reward alone).
    Reference:
        Sutton & Barto, Reinforcement Learning (2nd ed.), section 12.1.
    """
    last_bt = target_bt & (_backwards(target_bt.double(), _carry(target_bt, owner_bt, 1.0)) == 1)
    before_bt, before_last_bt = _next(target_bt), _next(last_bt)
    own_bt = torch.where(before_bt, gamma * (1 - lam) * V_bt.roll(-1, 1), 0.0)
    own_bt = torch.where(before_last_bt, gamma * reward_bt, own_bt)
    own_bt = torch.where(last_bt, reward_bt, own_bt)
    factor_bt = _carry(before_bt, owner_bt, gamma * lam).masked_fill(last_bt | before_last_bt, 0.0)
    return _backwards(own_bt, factor_bt).masked_fill(~state_marks(target_bt), 0.0)


def monte_carlo(reward_bt: Tensor, target_bt: Tensor, owner_bt: Tensor, gamma: float) -> Tensor:
    """The reward discounted by the learnt tokens that are still to come, ``(b, t)``, see `lambda_returns`."""
    return lambda_returns(torch.zeros_like(reward_bt), reward_bt, target_bt, owner_bt, gamma=gamma, lam=1.0)


def state_marks(target_bt: Tensor) -> Tensor:
    """The states before and after each target token, ``(b, t)``."""
    return target_bt | _next(target_bt)


def whiten(A_n: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all learnt tokens.

    Raises:
        NumericsError: they are all the same.
    """
    deviation = A_n.double().std(correction=0)
    if not float(deviation) > 0:
        raise NumericsError(
            f"Advantages of {A_n.numel()} tokens cannot be whitened: got a standard deviation of {float(deviation):g}, "
            "expected more than 0. Do: train the critic on more answers."
        )
    return ((A_n.double() - A_n.double().mean()) / deviation).to(A_n.dtype)


def advantage_weights(A_n: Tensor, beta: float) -> Tensor:
    """``exp(A / beta)``, held between `LOW` and `HIGH`.

    Reference:
        Peng et al., Advantage-Weighted Regression, 2019, equation 4.
    """
    return (A_n / beta).exp().clamp(LOW, HIGH)


def _next(marks_bt: Tensor) -> Tensor:
    """The mark of the next position, at this one; the last has none."""
    return torch.nn.functional.pad(marks_bt[:, 1:], (0, 1), value=False)


def _carry(marks_bt: Tensor, owner_bt: Tensor, factor: float) -> Tensor:
    """The share of the next position's sum that each takes: ``factor`` at marks, 1 elsewhere, 0 where a row ends."""
    ends_bt = torch.nn.functional.pad(owner_bt[:, 1:], (0, 1), value=-1) != owner_bt
    ones_bt = torch.ones(marks_bt.shape, dtype=torch.float64, device=marks_bt.device)
    return ones_bt.masked_fill(marks_bt, factor).masked_fill(ends_bt, 0.0)


def _backwards(own_bt: Tensor, factor_bt: Tensor) -> Tensor:
    """``X[t] = own[t] + factor[t] * X[t + 1]`` in ``log2(t)`` passes, each of which doubles how far it reaches."""
    X_bt, F_bt, reach = own_bt.double(), factor_bt, 1
    while reach < own_bt.shape[1]:
        later_bt, more_bt = (torch.nn.functional.pad(x_bt[:, reach:], (0, reach)) for x_bt in (X_bt, F_bt))
        X_bt, F_bt, reach = X_bt + F_bt * later_bt, F_bt * more_bt, 2 * reach
    return X_bt.to(own_bt.dtype)
