"""The mathematics of rotation. ``o`` out, ``i`` in (or rotated in), ``t`` token, ``k`` frozen and ``f`` free ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError


def element_score(kind: str, G_oi: Tensor, W_oi: Tensor) -> Tensor:
    """What one sample adds to the importance of each rotated element: ``|G|``, ``G^2`` or ``|W G|``, ``(o, i)``.

    Args:
        kind: ``abs``, ``square`` or ``taylor``.
        G_oi: The sample's gradient in rotated coordinates.
        W_oi: The weight in rotated coordinates; read by ``taylor`` alone.
    """
    if kind == "square":
        return G_oi.square()
    return (W_oi * G_oi).abs() if kind == "taylor" else G_oi.abs()


def column_score(G_oi: Tensor) -> Tensor:
    """What one sample adds to the importance of each direction: the norm of its column, ``(i,)``."""
    norm_i: Tensor = torch.linalg.vector_norm(G_oi, dim=0)
    return norm_i


def frozen_by_share(scores: Mapping[str, Tensor], share: float, scope: str) -> dict[str, Tensor]:
    """The highest scores are frozen, exactly ``round(share * n)`` of them; the earlier of two equal ones first.

    Args:
        scores: By layer, of any shape.
        scope: ``layer``: of every layer its share. ``global``: of all layers together.
    Returns:
        Booleans of the same shapes, true where frozen.
    Raises:
        ConfigError: the share is so small that nothing would be frozen, or so large that everything would.
    """
    if scope == "global":
        flat = torch.cat([score.reshape(-1) for score in scores.values()])
        frozen_n = _top(flat, share, "all layers together")
        parts: tuple[Tensor, ...] = torch.split(frozen_n, [score.numel() for score in scores.values()])
        return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
    return {name: _top(score.reshape(-1), share, name).reshape(score.shape) for name, score in scores.items()}


def _top(score_n: Tensor, share: float, where: str) -> Tensor:
    return highest(score_n, frozen_count(score_n.numel(), share, where))


def frozen_count(n: int, share: float, where: str) -> int:
    """How many of ``n`` coordinates a share freezes.

    Raises:
        ConfigError: none or all.
    """
    count = round(share * n)
    if not 0 < count < n:
        raise ConfigError(
            f"frozen_share {share} freezes {count} of {n} coordinates of {where}: expected some and not "
            f"all. Do: set it between {1 / n:.2g} and {1 - 1 / n:.6g}."
        )
    return count


def highest(score_n: Tensor, count: int) -> Tensor:
    """True at the ``count`` highest scores, the earlier of two equal ones first."""
    frozen = torch.zeros_like(score_n, dtype=torch.bool)
    frozen[torch.argsort(score_n, descending=True, stable=True)[:count]] = True
    return frozen


def random_rotation(width: int, seed: int) -> Tensor:
    """A rotation drawn uniformly (Haar), ``(i, i)``, float32.

    Reference:
        Mezzadri, Notices of the AMS 54 (2007): QR of a Gaussian matrix with the signs of R's diagonal.
    """
    generator = torch.Generator().manual_seed(seed)
    Q_ii, R_ii = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    rotation_ii: Tensor = Q_ii * R_ii.diagonal().sign()
    return rotation_ii.float()


def free_of_directions(D_oi: Tensor, S_ik: Tensor) -> Tensor:
    r""":math:`D (I - S S^\top)`: the part of ``D`` that does not read the frozen directions ``S``; its own adjoint."""
    return torch.addmm(D_oi, D_oi @ S_ik, S_ik.T, alpha=-1)


def onto_directions(D_oi: Tensor, F_if: Tensor) -> Tensor:
    r""":math:`D F F^\top`: the part of ``D`` that reads the free directions ``F`` alone.

    The same as `free_of_directions` of all others: ``4 o i f`` operations, there ``4 o i k``.
    """
    return (D_oi @ F_if) @ F_if.T


def free_of_elements(D_oi: Tensor, frozen_oi: Tensor, U_ii: Tensor) -> Tensor:
    r""":math:`((1 - M) \circ D) U^\top`: the change whose frozen rotated coefficients are exactly 0."""
    return (D_oi * ~frozen_oi) @ U_ii.T  # on a CPU twice as fast as masked_fill


def output_drift(X_ok: Tensor, W_oi: Tensor, C_ii: Tensor, A_ki: Tensor | None = None) -> float:
    r"""How far outputs on the safety inputs move, relatively: :math:`\|dW C^{1/2}\|_F / \|W C^{1/2}\|_F`.

    The change is ``dW = X A``, of which only ``k x k`` and ``k x i`` matrices are made, or ``X`` itself without ``A``.
    In float64.
    """

    def energy(Y_ok: Tensor, M_kk: Tensor) -> float:
        return float(((Y_ok @ M_kk) * Y_ok).sum().clamp_min(0).sqrt())

    C_ii = C_ii.double()
    M_kk = C_ii if A_ki is None else A_ki.double() @ C_ii @ A_ki.double().T
    moved, whole = energy(X_ok.double(), M_kk), energy(W_oi.double(), C_ii)
    return moved / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of two frozen sets, or of several pairs together: the sizes of intersection and union, expected ones too."""

    both: int
    either: int
    both_by_chance: float
    either_by_chance: float

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Overlap:
        """Two sets in one layer; by chance: random sets of these sizes."""
        m, n = int(a.sum()), int(b.sum())
        both = m * n / a.numel()
        return cls(int((a & b).sum()), int((a | b).sum()), both, m + n - both)

    def __add__(self, other: Overlap) -> Overlap:
        """Pairs of two layers together."""
        return Overlap(
            self.both + other.both,
            self.either + other.either,
            self.both_by_chance + other.both_by_chance,
            self.either_by_chance + other.either_by_chance,
        )

    @property
    def share(self) -> float:
        """Intersection over union; 1 where both are empty."""
        return self.both / self.either if self.either else 1.0

    @property
    def share_by_chance(self) -> float:
        """The same of random sets that freeze as many in every layer, in the limit of many coordinates."""
        return self.both_by_chance / self.either_by_chance if self.either_by_chance else 1.0
