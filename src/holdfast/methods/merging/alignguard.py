r"""AlignGuard-LoRA as a merge rule, re-implemented: pure functions of core coordinates.

Letters in names: ``d`` core coordinates of one layer, the entries of its ``M_pq`` row by row; ``k`` critical
directions. Indices: ``u`` utility, ``s`` safety. Everything is computed in float64.

**The paper** fine-tunes an aligned model. It splits the update ``D`` by the projector ``P`` on the leading eigenvectors
of a Fisher matrix ``F`` of safety rows, into a critical part ``A = P D`` and a task part ``T = D - A``, and minimises

.. math:: L_{task} + \lambda_A |F^{1/2} A|^2 + \lambda_T |H^{1/2} T|^2
   + \lambda_{NC} (\alpha E_{RM} + (1-\alpha) E_{geo})

with two penalties on collisions: the Riemannian overlap :math:`E_{RM} = \sum_j \eta_j |A_j| |T_j|`, where
:math:`\eta_j = 1 + \beta\,\mathrm{sigmoid}(|D_j| - \tau)`, and the geodesic one
:math:`E_{geo} = \langle A, T \rangle^2 / |A|^2 |T|^2`.

**Ours**, as nothing is trained here. The aligned model is the base with the weighted safety update, and ``D`` is what
becomes of the utility update on top of it:

.. math:: \phi = w_s \phi_s + \arg\min_D |D - w_u \phi_u|^2 + \lambda_T |H^{1/2} Q (D - w_u \phi_u)|^2
   + w_s (\lambda_A |F^{1/2} P D|^2 + \lambda_{NC} \alpha E_{RM}), \qquad Q = I - P

- The distance to the utility update stands for the task loss, and the trust term is centred there: its task part was
  trained already, and is what the merge keeps. ``H`` is the Fisher matrix of utility rows.
- ``F`` and ``H`` are in units of their mean eigenvalue, so that they can be weighed against a distance.
- ``w_s`` weighs the penalties too: without the safety adapter, the utility update is left as it is.
- :math:`E_{geo}` is 0 for every ``D``, as ``P`` is orthogonal; it is left out.
- Sizes in :math:`\eta_j` and :math:`\tau` are in units of the root mean square of the utility update, at which
  :math:`\eta_j` is taken, so that larger adapters give a larger merge and nothing else.
- The paper's entries are those of the dense weight. Here they are those of the core between `axes`, which do not depend
  on how the adapters are factored.

Terms and coefficients are as in the package alignment-risk, a public implementation of the penalties for training; the
authors' own settings were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.gevp import signs

CRITICAL, TRUST, COLLISION = 0.25, 0.5, 0.1
"""The paper's ``lambda_A``, ``lambda_T`` and ``lambda_NC``."""
BLEND, STEEPNESS, LARGE = 0.5, 4.0, 1.0
"""Its ``alpha``, ``beta`` and, in our units, ``tau``."""
ROUNDED = 0.01
"""``|x|`` in the overlap is ``sqrt(x^2 + r^2)``, with ``r`` this share of the utility update's root mean square."""
STEPS, TOLERANCE = 200, 1e-8
"""Solves at most, and the relative change after which no other follows."""
MEMORY = 5
"""Steps that the next one looks back on."""


def axes(M_tpq: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal ``U_pp`` and ``V_qq`` that belong to the updates themselves: principal axes of all of them together.

    Turned coordinates ``U^T M V`` are the same in whichever orthonormal bases ``M`` is given, up to signs. The first of
    the largest entries of each axis is positive.
    """
    wide_tpq = M_tpq.double()
    left_pp = torch.einsum("tpq,trq->pr", wide_tpq, wide_tpq)
    right_qq = torch.einsum("tpq,tpr->qr", wide_tpq, wide_tpq)
    U_pp, V_qq = torch.linalg.eigh(left_pp)[1], torch.linalg.eigh(right_qq)[1]
    return U_pp * signs(U_pp), V_qq * signs(V_qq)


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """The critical and the task directions of a layer. No weight changes them: one split is enough for a whole dial."""

    vectors_dd: Tensor
    """Eigenvectors of the safety Fisher as columns, the ``k`` critical ones last."""
    values_k: Tensor
    """Of the critical ones."""
    task_mm: Tensor
    """The utility Fisher along the other ``m = d - k``."""


def split(F_s: Tensor, F_u: Tensor, k: int, name: str = "a layer") -> Split:
    """The leading ``k`` eigenvectors of the safety Fisher, and what the utility Fisher is in the rest.

    Args:
        F_s: Fisher matrix of safety rows, symmetric, ``(d, d)``.
        F_u: Fisher matrix of utility rows.
        k: How many directions are critical.
        name: What the matrices are of, for messages.
    Raises:
        NumericsError: a Fisher matrix is 0.
    """
    values_d, vectors_dd = torch.linalg.eigh(_in_units(F_s, f"safety rows of {name}"))
    V_dm = vectors_dd[:, : len(values_d) - k]
    task_mm = V_dm.T @ _in_units(F_u, f"utility rows of {name}") @ V_dm
    return Split(vectors_dd, values_d[len(values_d) - k :].clone(), task_mm)


def guarded(made: Split, phi_td: Tensor, weights: tuple[float, float], name: str = "a layer") -> Tensor:
    """The safety update, and of the utility update what does not collide with it: the module's formula.

    Each step replaces the overlap by the quadratic that touches it where the last step ended,
    ``|A||T| <= (r A^2 + T^2 / r) / 2``, and solves; the loss falls in every step. For safety weights below 8 it has one
    minimum.

    Args:
        made: Of the layer's two Fisher matrices.
        phi_td: The utility update, then the safety update.
        weights: Of the two, the second at least 0.
        name: What is merged, for messages.
    Returns:
        ``phi_d`` in float64.
    Raises:
        NumericsError: the weight of safety is negative, or the steps do not converge.
    Reference:
        Das et al., AlignGuard-LoRA: Alignment-preserving fine-tuning via Fisher-guided decomposition and
        Riemannian-geodesic collision regularization (2508.02079).
    """
    share = weights[1]
    if not share >= 0:
        raise NumericsError(f"cannot guard {name}: got a safety weight of {share:g}, expected 0 or more. Do: raise it.")
    start_d, safety_d = weights[0] * phi_td[0].double(), share * phi_td[1].double()
    if not bool(start_d.any()):
        return safety_d
    V_dm, V_dk = torch.split(made.vectors_dd, [len(made.task_mm), len(made.values_k)], dim=1)
    trust_mm = TRUST * made.task_mm + torch.eye(len(made.task_mm), dtype=torch.double, device=made.task_mm.device)
    critical_kk = (1 + share * CRITICAL * made.values_k).diag()
    parts = _Part(V_dk, critical_kk, V_dk.T @ start_d), _Part(V_dm, trust_mm, trust_mm @ (V_dm.T @ start_d))
    return safety_d + _least(*parts, start_d, share, name)


@dataclass(frozen=True, slots=True)
class _Part:
    """The critical part of an update, or its task part: neither is in the other's quadratic terms."""

    V_dk: Tensor
    """Its basis, orthonormal."""
    curved_kk: Tensor
    wanted_k: Tensor
    """The terms are ``D^T curved D - 2 D^T wanted`` in that basis."""

    def least(self, weights_d: Tensor) -> Tensor:
        """Where they are least together with the squares of the part's entries, weighed."""
        steered_kk = self.V_dk.T @ (weights_d[:, None] * self.V_dk) + self.curved_kk
        found_k1 = torch.cholesky_solve(self.wanted_k[:, None], torch.linalg.cholesky(steered_kk))
        found_d: Tensor = self.V_dk @ found_k1[:, 0]
        return found_d


def _least(critical: _Part, task: _Part, start_d: Tensor, share: float, name: str) -> Tensor:
    """Where both parts' terms and the weighted overlap are least together."""
    size = float(start_d.square().mean().sqrt())
    eta_d = 1 + STEEPNESS * torch.sigmoid(start_d.abs() / size - LARGE)
    half_d, rounded = share * COLLISION * BLEND * eta_d / 2, (ROUNDED * size) ** 2

    def step(D_d: Tensor) -> Tensor:
        A_d = critical.V_dk @ (critical.V_dk.T @ D_d)
        r_d = (((D_d - A_d).square() + rounded) / (A_d.square() + rounded)).sqrt()
        return critical.least(half_d * r_d) + task.least(half_d / r_d)

    D_d, ahead = start_d, _Ahead()
    for _ in range(STEPS):
        moved_d = step(D_d)
        change = float((moved_d - D_d).norm() / start_d.norm())
        if change < TOLERANCE:
            return moved_d
        D_d = ahead.of(D_d, moved_d)
    raise NumericsError(
        f"cannot guard {name}: after {STEPS} steps the update still changes by {change:.3g} of its norm, expected less "
        f"than {TOLERANCE:g}. Do: lower the weight of the safety adapter, {share:g}."
    )


class _Ahead:
    """Where a few steps point to: Anderson's mixing of them. A step that changes more than the last one starts anew."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Tensor]] = []

    def of(self, from_d: Tensor, to_d: Tensor) -> Tensor:
        """Given one step more, from where to take the next."""
        change_d = to_d - from_d
        if self._seen and change_d.norm() > self._seen[-1][1].norm():
            self._seen = []
        self._seen = [*self._seen[-MEMORY:], (to_d, change_d)]
        if len(self._seen) == 1:
            return to_d
        ends_nd, changes_nd = (torch.stack(each) for each in zip(*self._seen, strict=True))
        shares_n1 = torch.linalg.lstsq(changes_nd.diff(dim=0).T, change_d[:, None]).solution
        mixed_d: Tensor = to_d - ends_nd.diff(dim=0).T @ shares_n1[:, 0]
        return mixed_d


def _in_units(F_dd: Tensor, what: str) -> Tensor:
    """In float64, over its mean eigenvalue."""
    wide_dd = F_dd.double()
    mean = float(wide_dd.diagonal().mean())
    if not mean > 0:
        raise NumericsError(
            f"Fisher matrix of {what} does not decide the merge: got a mean eigenvalue of {mean:.3g}, expected more "
            "than 0. Do: give rows with gradients, or leave the layer out."
        )
    return wide_dd / mean
