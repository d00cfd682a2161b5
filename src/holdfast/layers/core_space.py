"""Core space: small coordinates in which several low-rank changes of one weight are added, weighed and cut exactly.

Every change ``D_t = B_t A_t`` has its columns in the span of all ``B`` and its rows in the span of all ``A``. With
orthonormal bases ``Q_B (o, p)`` and ``Q_A (i, q)`` of the two, ``D_t = Q_B M_t Q_A^T`` with the core ``M_t (p, q)``:
sums, norms, inner products and singular values of the changes are those of their cores.

Letters in names: ``o`` outputs and ``i`` inputs of the layer, ``r`` a rank, ``p`` and ``q`` core coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from holdfast.core.errors import AdapterError, NumericsError
from holdfast.layers.adapters import LowRank

_ORTHONORMAL = 1e-9
"""How far from orthonormal a basis may be in float64 before it is rounded to float32."""


@dataclass(frozen=True, eq=False)
class CoreSpace:
    """Orthonormal bases that hold several low-rank changes of one weight exactly: each is ``Q_B M Q_A^T``.

    Attributes:
        left_op: ``Q_B``, ``(o, p)``.
        right_iq: ``Q_A``, ``(i, q)``.
    """

    left_op: Tensor
    right_iq: Tensor

    @classmethod
    def of(cls, deltas: Sequence[LowRank]) -> CoreSpace:
        """The smallest space that holds all ``deltas``; directions that they have in common count once.

        The columns of the bases are the singular vectors of the changes side by side, each change scaled to norm 1, the
        largest first. So ``p <= min(o, sum of ranks)``, and neither the order of the changes, nor their scale, nor the
        split into factors, ``(B R^-1, R A)``, has a say: up to signs the axes are the same (where singular values
        differ), which rules that look at single coordinates need. Singular values below ``sqrt(max(o, i)) * eps`` of
        the largest are rounding of the factors and are left out: `lift` of `core` gives each change back to 1e-6 of its
        norm in float32. Computed in float64; returned in the type of the factors, at least float32.

        Raises:
            AdapterError: There are no deltas, they are of different shapes, or one is not finite.
        """
        if not deltas:
            raise AdapterError("cannot make a core space: got no deltas, expected at least 1.")
        shapes = list(dict.fromkeys(delta.shape for delta in deltas))
        if len(shapes) > 1:
            raise AdapterError(
                f"cannot make a core space: got deltas of {' and '.join(map(str, shapes))}, expected one shape (o, i). "
                "Give changes of one layer of one base model."
            )
        dtype = reduce(torch.promote_types, [f.dtype for d in deltas for f in (d.A, d.B)], torch.float32)
        slack = max(shapes[0]) ** 0.5 * torch.finfo(dtype).eps
        pairs = [(delta.A.double(), delta.B.double()) for delta in deltas]
        span = _span_single if dtype == torch.float32 else _span
        left_op = span(torch.cat([_columns(B_or, A_ri.T) for A_ri, B_or in pairs], dim=1), slack)
        right_iq = span(torch.cat([_columns(A_ri.T, B_or) for A_ri, B_or in pairs], dim=1), slack)
        return cls(left_op.to(dtype), right_iq.to(dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """``(o, i)`` of the weight."""
        return int(self.left_op.shape[0]), int(self.right_iq.shape[0])

    def core(self, delta: LowRank) -> Tensor:
        """``Q_B^T B A Q_A``, ``(p, q)``: the coordinates of a change, or of the part of it that lies in this space.

        Two skinny products, in float64; returned in the type of the bases.

        Raises:
            AdapterError: The change is of a weight of another shape.
        """
        return self.cores([delta])[0]

    def cores(self, deltas: Sequence[LowRank]) -> Tensor:
        """The `core` of each change, ``(t, p, q)``, with the bases read once.

        Raises:
            AdapterError: A change is of a weight of another shape.
        """
        for delta in deltas:
            if delta.shape != self.shape:
                raise AdapterError(
                    f"delta does not fit its core space: got shape {delta.shape}, expected {self.shape}."
                )
        left_po, right_iq = self.left_op.double().T, self.right_iq.double()
        each = [(left_po @ delta.B.double()) @ (delta.A.double() @ right_iq) for delta in deltas]
        return torch.stack(each).to(self.left_op.dtype)

    def lift(self, M_pq: Tensor, rank: int | None = None) -> LowRank:
        """The change ``Q_B M Q_A^T`` with balanced factors ``B = Q_B U s^1/2`` and ``A = s^1/2 V^T Q_A^T``.

        Args:
            M_pq: Core coordinates.
            rank: At most this many singular values are kept, the largest: the best approximation of that rank. Those
                that are rounding of ``M`` are never kept, but one always is.
        Raises:
            AdapterError: ``M`` has another shape, or ``rank`` is less than 1.
            NumericsError: ``M`` is not finite.
        """
        expected = (self.left_op.shape[1], self.right_iq.shape[1])
        if tuple(M_pq.shape) != expected:
            raise AdapterError(f"core does not fit its space: got shape {tuple(M_pq.shape)}, expected {expected}.")
        _check_core(M_pq, 1 if rank is None else rank)
        U_pk, s_k, Vh_kq = torch.linalg.svd(M_pq.double(), full_matrices=False)
        slack = max(expected) * torch.finfo(M_pq.dtype).eps
        kept = max(1, int((s_k > slack * s_k[0]).sum()))
        kept = kept if rank is None else min(rank, kept)
        root_r = s_k[:kept].sqrt()
        B_or = self.left_op.double() @ (U_pk[:, :kept] * root_r)
        A_ri = (root_r[:, None] * Vh_kq[:kept]) @ self.right_iq.double().T
        return LowRank(A_ri.to(self.right_iq.dtype), B_or.to(self.left_op.dtype))


def truncation_error(M_pq: Tensor, rank: int) -> float:
    """The relative Frobenius error of the best approximation of that rank, 0 to 1; of a zero matrix 0.

    >>> truncation_error(torch.diag(torch.tensor([4.0, 3.0])), 1)
    0.6

    Raises:
        AdapterError: ``rank`` is less than 1.
        NumericsError: ``M`` is not finite.
    """
    _check_core(M_pq, rank)
    s_k = torch.linalg.svdvals(M_pq.double())
    whole = float(s_k.norm())
    return float(s_k[rank:].norm()) / whole if whole else 0.0


def _check_core(M_pq: Tensor, rank: int) -> None:
    if rank < 1:
        raise AdapterError(f"cannot cut a core to rank {rank}: expected at least 1. Raise the rank.")
    if not bool(torch.isfinite(M_pq).all()):
        raise NumericsError("core coordinates are not finite: got NaN or infinity, expected numbers.")


def _columns(X_or: Tensor, Y_ir: Tensor) -> Tensor:
    """``Z (o, r)`` with ``Z Z^T = D D^T / |D|^2`` for ``D = X Y^T``: what ``D`` spans, free of its factors and scale.

    Raises:
        AdapterError: ``D`` is not finite.
    """
    if not bool(torch.isfinite(X_or).all() and torch.isfinite(Y_ir).all()):
        raise AdapterError("cannot make a core space: got NaN or infinity in a delta, expected numbers.")
    Z_or: Tensor = X_or @ torch.linalg.qr(Y_ir, mode="r").R.T
    size = Z_or.norm()
    return Z_or / size if size > 0 else Z_or


def _span(Z_or: Tensor, slack: float) -> Tensor:
    """An orthonormal basis of the columns, ``(o, p)`` with ``p >= 1``, by singular value."""
    Q_ok, R_kr = torch.linalg.qr(Z_or)
    U_kk, s_k, _ = torch.linalg.svd(R_kr, full_matrices=False)
    kept = max(1, int((s_k > slack * s_k[0]).sum()))
    basis_op: Tensor = Q_ok @ U_kk[:, :kept]
    return basis_op


def _span_single(Z_or: Tensor, slack: float) -> Tensor:
    """`_span` for columns that were float32, from their Gram matrix where they are fewer than rows: half the time.

    The Gram matrix in float64 tells singular values down to about 1e-8 of the largest times ``sqrt(r)``, below the
    slack of float32. The basis is then orthonormal but for ``r eps (s_1 / s_p)^2``; where that would show in float32 it
    is made so in a second pass, which leaves the largest axes where they are (Cholesky QR).
    """
    count = Z_or.shape[1]
    if count > len(Z_or) or not bool(Z_or.any()):
        return _span(Z_or, slack)
    energy_r, V_rr = torch.linalg.eigh(Z_or.T @ Z_or)
    s_r, V_rr = energy_r.clamp_(min=0).sqrt().flip(0), V_rr.flip(1)
    kept = int((s_r > slack * s_r[0]).sum())
    basis_op: Tensor = Z_or @ (V_rr[:, :kept] / s_r[:kept])
    if count * torch.finfo(torch.float64).eps * float(s_r[0] / s_r[kept - 1]) ** 2 > _ORTHONORMAL:
        L_pp = torch.linalg.cholesky(basis_op.T @ basis_op)
        basis_op = torch.linalg.solve_triangular(L_pp.T, basis_op, upper=True, left=False)
    return basis_op
