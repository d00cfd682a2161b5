"""The mathematics of the baselines.

Letters in names: ``o`` out, ``i`` in, ``k`` a rank, ``n`` learnt tokens, ``s`` directions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.layers.alignment import inner, toward_alignment


def replayed(task: int, share: float) -> int:
    """How many safety rows make up ``share`` of a mixture with ``task`` others.

    >>> replayed(90, 0.1)
    10
    """
    return round(share * task / (1 - share))


def proximal(pairs: Iterable[tuple[Tensor, Tensor]], rho: float) -> Tensor:
    r""":math:`\rho/2 \sum \|w - w_{switch}\|^2` over pairs of a weight and its value at the switch.

    Reference:
        Huang et al., 2405.18641, algorithm 1.
    """
    moved: Tensor = torch.stack([(weight - before).square().sum() for weight, before in pairs]).sum()
    return rho / 2 * moved


def outside_alignment(V_oi: Tensor, X_ok: Tensor, A_ki: Tensor | None = None) -> Tensor:
    r""":math:`\|(I - C) \Delta W\|_F^2` with :math:`\Delta W = X A` (or ``X``).

    Reference:
        Yang et al., 2506.08473, equation of the regularised loss.
    """
    rest_ok = X_ok - toward_alignment(V_oi, X_ok)
    return inner(rest_ok, rest_ok, A_ki)


def token_betas(place_n: Tensor, first: float, early: float, early_tokens: int, late: float) -> Tensor:
    """Constraint of each token by its place in the answer (from 0): ``first``, then ``early``, then ``late``."""
    beta_n = torch.where(place_n < early_tokens, early, late)
    return torch.where((place_n == 0) & (early_tokens > 0), first, beta_n)


def constrained_loss(logp_n: Tensor, reference_n: Tensor, beta_n: Tensor) -> Tensor:
    r""":math:`-\frac{2}{\beta_t} \log \sigma(\beta_t (\log \pi_\theta - \log \pi_{aligned}))` of each token.

    Its gradient is that of cross-entropy times :math:`2 \sigma(-\beta_t (\log \pi_\theta - \log \pi_{aligned}))`: 1 at
    the start, towards 0 as the token grows likelier.

    Reference:
        Qi et al., 2406.05946, equation 3 and appendix D.2.
    """
    return -2 / beta_n * logsigmoid(beta_n * (logp_n - reference_n))


def output_directions(W_oi: Tensor, U_ii: Tensor, energy_i: Tensor, count: int) -> Tensor:
    r"""The ``count`` leading left singular vectors of outputs :math:`W X`, from :math:`X X^\top = U diag(s) U^\top`.

    Returns:
        ``(o, s)``, orthonormal.
    """
    directions_os: Tensor = torch.linalg.svd(W_oi @ U_ii * energy_i.sqrt(), full_matrices=False).U[:, :count]
    return directions_os


def outside(S_os: Tensor, X_ok: Tensor) -> Tensor:
    r""":math:`(I - S S^\top) X`: the part that does not write into the directions ``S``; its own adjoint."""
    return X_ok - S_os @ (S_os.T @ X_ok)


def task_start(W_oi: Tensor, T_os: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""SaLoRA's first factors: :math:`A = \Sigma_r^{1/2} V_r^\top`, :math:`B = T T^\top U_r \Sigma_r^{1/2}`.

    Args:
        T_os: Directions of the layer's outputs on the task, orthonormal.
    Returns:
        ``A (k, i)`` and ``B (o, k)``; ``U_r``, ``Sigma_r`` and ``V_r`` are the leading part of the weight's own
        singular value decomposition.
    Reference:
        Li et al., 2501.01765, section 4.2.
    """
    U_ok, s_k, Vt_ki = torch.linalg.svd(W_oi, full_matrices=False)
    U_ok, root_k, Vt_ki = U_ok[:, :rank], s_k[:rank].sqrt(), Vt_ki[:rank]
    return root_k[:, None] * Vt_ki, T_os @ (T_os.T @ (U_ok * root_k))
