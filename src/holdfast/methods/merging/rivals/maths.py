r"""The rivals of repair on one layer. Pure functions.

Letters in names: ``o`` out, ``i`` in, ``r`` the rank of the change, ``k`` leading directions of the alignment. ``D`` is
the change that fine-tuning made, ``D = B A`` for an adapter, and ``V`` the one that aligned the layer before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.layers.adapters import LowRank
from holdfast.layers.alignment import similarity, toward_alignment


def scaled(delta: LowRank, factor: float) -> LowRank:
    """``factor * D``: the plainest way back to the base.

    Reference:
        Wortsman et al., Robust fine-tuning of zero-shot models (2109.01903): a point between base and fine-tuned model.
    """
    return LowRank(delta.A, factor * delta.B)


def safe_lora(delta: LowRank, V_oi: Tensor, threshold: float) -> LowRank:
    r"""Safe LoRA: :math:`C D` with :math:`C = V V^\top / \|V\|_F` where :math:`\cos(C D, D)` is at most ``threshold``.

    Reference:
        Hsu et al., Safe LoRA (2405.16833), equations 1 and 2.
    """
    if similarity(V_oi, delta.B, delta.A) > threshold:
        return delta
    B_or = delta.B.to(torch.promote_types(delta.B.dtype, torch.float32))
    return LowRank(delta.A, toward_alignment(V_oi.to(B_or), B_or))


def lox(delta: LowRank, V_oi: Tensor, alpha: float, directions: int) -> LowRank:
    r"""LoX: :math:`D + \alpha U_k S_k W_k^\top` with the leading singular triples of the alignment ``V``.

    The paper extrapolates the aligned model before it is fine-tuned; here it is added to a fine-tuning that was made
    without it, the only form that is left afterwards. Its own setting is 6 directions and ``alpha`` 1.25.

    Reference:
        Perin et al., LoX (2506.15606).
    """
    U_ok, s_k, Wt_ki = _leading(V_oi, directions)
    more = LowRank(Wt_ki.to(delta.A), (alpha * U_ok * s_k).to(delta.B))
    return LowRank(torch.cat([delta.A, more.A]), torch.cat([delta.B, more.B], dim=1))


def csulora(delta: LowRank, V_oi: Tensor, penalty: float, directions: int) -> LowRank:
    r"""CSULoRA: the nearest change whose parts outside the alignment's directions are penalised by their energy.

    With ``P`` and ``Q`` the projectors on the leading left and right singular vectors of ``V``, ``D`` has a fully
    aligned part :math:`P D Q`, a partly aligned one :math:`P D (I - Q) + (I - P) D Q` and the rest
    :math:`(I - P) D (I - Q)`, orthogonal to each other. With :math:`e_c = \|D_c\|^2 / \|D\|^2` for the last two,

    .. math:: \min_X \|X - D\|^2 + \lambda \sum_c e_c \|X_c\|^2 \quad\Rightarrow\quad X_c = D_c / (1 + \lambda e_c).

    Re-implemented from the description: the paper's abstract names the three parts, a closed-form penalised problem of
    least change and attenuation by relative energy; its exact weights could not be checked.

    Reference:
        Marchenko Breneur et al., CSULoRA (2605.30640).
    """
    U_ok, _, Wt_ki = _leading(V_oi, directions)
    B_or, A_ri = delta.B.double(), delta.A.double()
    U_ok, Wt_ki = U_ok.to(B_or), Wt_ki.to(A_ri)
    within_or, within_ri = U_ok @ (U_ok.T @ B_or), A_ri @ Wt_ki.T @ Wt_ki
    beyond_or, beyond_ri = B_or - within_or, A_ri - within_ri
    whole = _energy(B_or, A_ri)
    if not whole > 0:
        return delta
    partly = (_energy(within_or, beyond_ri) + _energy(beyond_or, within_ri)) / whole
    rest = _energy(beyond_or, beyond_ri) / whole
    soft, hard = 1 / (1 + penalty * partly), 1 / (1 + penalty * rest)
    A_2ri = torch.cat([within_ri + soft * beyond_ri, soft * within_ri + hard * beyond_ri])
    return LowRank(A_2ri.to(delta.A), torch.cat([within_or, beyond_or], dim=1).to(delta.B))


def irr(D_oi: Tensor, V_oi: Tensor, importance_oi: Tensor, C_ii: Tensor, share: float, damping: float) -> Tensor:
    r"""IRR: remove the entries that oppose the alignment and matter most to safety, and let the others make up for it.

    Identify: entries of ``D`` whose sign is not that of ``V``. Remove: of these the ``share`` of largest importance,
    the diagonal Fisher of safety rows. Recalibrate: column by column, what a removed entry did to the layer's outputs
    is taken over by the columns after it, :math:`D_{j:} \mathrel{-}= d_j [H^{-1}]_{0,:} / [H^{-1}]_{00}` with
    :math:`H` the damped second moment of the inputs ``j:`` (optimal brain surgery, as SparseGPT sweeps).

    As in the authors' code; there the share is taken of each 128 columns by themselves, here of the whole layer.

    Args:
        importance_oi: At least 0.
        C_ii: Second moment of the layer's inputs on utility rows, of any scale.
        damping: Added to it, as a share of its mean diagonal entry.
    Reference:
        Wu et al., Separate the wheat from the chaff (2412.11041); Frantar & Alistarh, SparseGPT (2301.00774).
    """
    opposed_oi = torch.sign(D_oi) != torch.sign(V_oi)
    removed_oi = _largest(torch.where(opposed_oi, importance_oi, -1.0), round(share * int(opposed_oi.sum())))
    return _recalibrated(D_oi.double(), removed_oi, C_ii, damping)


def _recalibrated(D_oi: Tensor, removed_oi: Tensor, C_ii: Tensor, damping: float) -> Tensor:
    H_ii = C_ii.double().clone()
    H_ii.diagonal().add_(damping * H_ii.diagonal().mean())
    factor_ii, failed = torch.linalg.cholesky_ex(H_ii)
    if int(failed):
        raise NumericsError(
            f"inputs do not decide the recalibration: got a second moment that is not positive definite with damping "
            f"{damping:g}. Do: raise damping, or give more utility rows."
        )
    # row j of the upper factor U of H^-1 = U^T U is the inverse of H[j:, j:], first row, over the root of its corner
    upper_ii = torch.linalg.cholesky(torch.cholesky_inverse(factor_ii), upper=True)
    left_oi = D_oi.clone()
    for j in range(D_oi.shape[1]):
        gone_o = torch.where(removed_oi[:, j], left_oi[:, j], 0.0) / upper_ii[j, j]
        left_oi[:, j:] -= gone_o[:, None] * upper_ii[j, j:]
        left_oi[removed_oi[:, j], j] = 0.0
    return left_oi


def prune(D_oi: Tensor, safety_oi: Tensor, utility_oi: Tensor, share: float, damping: float) -> Tensor:
    """Set the ``share`` of entries of largest safety Fisher over damped utility Fisher to 0.

    Re-implemented from the description: both are diagonals in the weight's own coordinates; damping is a share of the
    utility Fisher's mean.

    Reference:
        Wei et al., Assessing the brittleness of safety alignment via pruning (2402.05162), whose sets of weights that
        matter to safety and not to utility are here a ratio.
    """
    ratio_oi = safety_oi / (utility_oi + damping * utility_oi.mean())
    return torch.where(_largest(ratio_oi, round(share * D_oi.numel())), 0.0, D_oi)


def _largest(X_oi: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest entries stand."""
    chosen = torch.zeros_like(X_oi, dtype=torch.bool)
    chosen.view(-1)[X_oi.flatten().topk(count).indices] = True
    return chosen


def _leading(V_oi: Tensor, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    U_ok, s_k, Wt_ki = torch.linalg.svd(V_oi, full_matrices=False)
    return U_ok[:, :directions], s_k[:directions], Wt_ki[:directions]


def _energy(B_or: Tensor, A_ri: Tensor) -> float:
    return float(((B_or.T @ B_or) * (A_ri @ A_ri.T)).sum())
