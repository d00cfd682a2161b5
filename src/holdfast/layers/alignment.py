r"""The change that aligned each layer, and how far another change points along it.

``V = W_aligned - W_unaligned`` shows what alignment wrote into a weight. Several published methods take its columns for
the directions of safety. Letters in names: ``o`` out, ``i`` in, ``k`` a rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, NumericsError
from holdfast.layers.address import LayerMap
from holdfast.models.load import LoadedModel


@torch.no_grad()
def alignments(aligned: LoadedModel, unaligned: LoadedModel, names: Iterable[str]) -> Mapping[str, Tensor]:
    """``V = W_aligned - W_unaligned`` of each module, ``(o, i)``, float32, on the device of the aligned model.

    Raises:
        ConfigError: the models are of different shapes or kinds.
        NumericsError: a module is the same in both, so that it has no direction.
    """
    here, there = LayerMap.of(aligned.model), LayerMap.of(unaligned.model)
    out = {}
    for name in names:
        weight = here.read(name).float()
        other = there.read(name).float() if name in there else None
        if other is None or other.shape != weight.shape:
            got = "no such layer" if other is None else f"shape {tuple(other.shape)}"
            raise ConfigError(
                f"{unaligned.name} is not {aligned.name} before its alignment: got {got} for {name}, expected shape "
                f"{tuple(weight.shape)}. Do: give the base model that it was aligned from."
            )
        out[name] = weight - other.to(weight.device)
        if not out[name].any():
            raise NumericsError(
                f"{name} is the same in {aligned.name} and {unaligned.name}: got a difference of 0, expected one that "
                "shows what alignment changed. Do: give the model before its alignment, or leave the layer out of "
                "lora.targets."
            )
    return out


def toward_alignment(V_oi: Tensor, X_ok: Tensor) -> Tensor:
    r""":math:`C X` with :math:`C = V V^\top / \|V\|_F`, without forming ``C``.

    ``C`` stands for the projection on the column space of ``V``, the change that aligned the layer. It is not one: its
    eigenvalues are those of ``V V^T`` over the norm of ``V``, so it also scales.

    Reference:
        Hsu et al., 2405.16833, equation 1; Yang et al., 2506.08473 take the same matrix.
    """
    made_ok: Tensor = V_oi @ (V_oi.T @ X_ok) / torch.linalg.matrix_norm(V_oi)
    return made_ok


def inner(X_ok: Tensor, Y_ok: Tensor, A_ki: Tensor | None = None) -> Tensor:
    r""":math:`\langle X A, Y A \rangle_F` through ``k x k`` matrices; of ``X`` and ``Y`` themselves without ``A``."""
    return (X_ok * Y_ok).sum() if A_ki is None else ((X_ok.T @ Y_ok) * (A_ki @ A_ki.T)).sum()


def similarity(V_oi: Tensor, X_ok: Tensor, A_ki: Tensor | None = None) -> float:
    r"""Cosine of :math:`C \Delta W` and :math:`\Delta W = X A` (or ``X``), in float64; 1 where nothing changed."""
    V_oi, X_ok = V_oi.double(), X_ok.double()
    A_ki = None if A_ki is None else A_ki.double()
    CX_ok = toward_alignment(V_oi, X_ok)
    norms = inner(X_ok, X_ok, A_ki).clamp_min(0).sqrt() * inner(CX_ok, CX_ok, A_ki).clamp_min(0).sqrt()
    return float(inner(CX_ok, X_ok, A_ki) / norms) if norms else 1.0
