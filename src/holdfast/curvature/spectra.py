"""Spectra of second moments: which directions of a layer's input carry its energy. Pure functions of tensors.

Letters in names: ``i`` inputs of a layer, which is also the number of eigenvalues; ``U_ii`` holds an eigenvector in
each **column**; ``s_i`` are eigenvalues in descending order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError

_NOISE = 16
"""How many ``eps * trace`` rounding may take an eigenvalue below 0; in sums of 400 random batches it took 0.14."""


def eigenbasis(C_ii: Tensor, name: str = "a layer's input") -> tuple[Tensor, Tensor]:
    r"""The eigenvectors and eigenvalues of a second moment, ``C = U diag(s) U^T``, largest first.

    Computed in float64 and returned in the type of ``C``: ``U^T U = I`` to 1e-6 in float32. The first of the largest
    entries of each column is positive, so signs are the same in every run. Directions of equal eigenvalue, among them
    all those that the data never used (`rank`), are an arbitrary basis of their common space.

    Args:
        C_ii: Symmetric and positive semi-definite up to rounding, ``(i, i)``, float32 or float64.
        name: What ``C`` is the moment of, for messages.
    Returns:
        ``U_ii`` and ``s_i``; an eigenvalue that rounding made negative is 0.
    Raises:
        NumericsError: ``C`` is not finite, all zero, in a narrower type, or not symmetric or not positive semi-definite
            beyond the rounding of its own type.
    """
    wide_ii, slack = _checked(C_ii, name)
    wide_ii = (wide_ii + wide_ii.T).div_(2)
    s_i, U_ii = torch.linalg.eigh(wide_ii)
    del wide_ii  # a layer's input may be tens of thousands wide: no more copies at a time than needed
    smallest = float(s_i[0])
    if smallest < -slack:
        raise NumericsError(
            f"second moment of {name} is not positive semi-definite: got a smallest eigenvalue of {smallest:.3g}, "
            f"expected at least {-slack:.1g}, the rounding of {C_ii.dtype}. Do: sum h h^T in float32 or float64."
        )
    U_ii, s_i = U_ii.flip(-1), s_i.flip(-1).clamp(min=0)
    size_ii = U_ii.abs()
    at_1i = (size_ii > (1 - 1e-6) * size_ii.amax(0)).int().argmax(0, keepdim=True)
    return (U_ii * U_ii.gather(0, at_1i).sign()).to(C_ii.dtype), s_i.to(C_ii.dtype)


def _checked(C_ii: Tensor, name: str) -> tuple[Tensor, float]:
    """``C`` in float64, and how far rounding may take an entry or an eigenvalue."""
    if C_ii.dtype not in (torch.float32, torch.float64) or C_ii.ndim != 2 or C_ii.shape[0] != C_ii.shape[1]:
        raise NumericsError(
            f"second moment of {name} cannot be decomposed: got {C_ii.dtype} {tuple(C_ii.shape)}, expected a square "
            "matrix in float32 or float64. Do: sum it in float32."
        )
    if not bool(torch.isfinite(C_ii).all()):
        raise NumericsError(
            f"second moment of {name} is not finite: got NaN or infinity, expected numbers. Do: look for activations "
            "that overflow, or sum in float64."
        )
    wide_ii = C_ii.double()
    slack = _rounding(C_ii, _NOISE) * abs(float(wide_ii.trace()))
    if not bool(wide_ii.any()):
        raise NumericsError(
            f"second moment of {name} is zero: got no energy at all. Do: give rows with tokens in them."
        )
    asymmetry = float((wide_ii - wide_ii.T).abs_().max())
    if asymmetry > slack:
        raise NumericsError(
            f"second moment of {name} is not symmetric: got C_ij and C_ji {asymmetry:.3g} apart, expected at most "
            f"{slack:.1g}. Do: check what wrote it."
        )
    return wide_ii, slack


def _rounding(of: Tensor, times: int) -> float:
    """What rounding may do to an eigenvalue, as a share of the trace: of the sums, in their type, and of `eigh`."""
    return times * torch.finfo(of.dtype).eps + of.shape[0] * torch.finfo(torch.float64).eps


def rank(s_i: Tensor) -> int:
    """The number of eigenvalues that stand out of rounding: of those from `eigenbasis`, the ones above ``eps * trace``.

    >>> rank(torch.tensor([4.0, 1.0, 1e-9, 0.0]))
    2
    """
    return int((s_i.double() > _rounding(s_i, 1) * s_i.double().sum()).sum())


def rank_note(s_i: Tensor, tokens: int, name: str) -> str | None:
    """A sentence on a second moment without full rank, for people; ``None`` where the rank is full.

    Args:
        s_i: All eigenvalues.
        tokens: How many tokens were summed.
    """
    used, width = rank(s_i), len(s_i)
    if used == width:
        return None
    few = f"only {tokens} tokens" if tokens < width else f"all {tokens} tokens lie in a subspace, up to rounding"
    return (
        f"{name}: rank {used} of {width} ({few}). These rows never use the other {width - used} directions: a change "
        "there does not reach their outputs, holding them protects nothing that was measured, and their order is "
        "arbitrary. " + ("Give more rows to tell them apart." if tokens < width else "")
    ).rstrip()


def effective_rank(s_i: Tensor) -> float:
    r"""How many directions the energy is spread over: ``exp(-sum p ln p)`` with ``p = s / sum(s)``.

    1 for a single direction, ``i`` for equal energy in all.

    Reference:
        Roy & Vetterli, The effective rank: a measure of effective dimensionality (EUSIPCO 2007).

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0])), 6)
    3.0
    """
    p_i = s_i.double() / s_i.double().sum()
    return float(torch.special.entr(p_i).sum().exp())
