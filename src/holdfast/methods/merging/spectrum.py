"""What two adapters' rows say about the directions of a layer: safety per utility, and whether halves agree on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from holdfast.curvature import gram, subspaces
from holdfast.methods.merging.plan import MergePlan

LEADING = 4
"""Split-half stability is that of the leading quarter of what half of the rows can span."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The generalized eigenproblem of one layer, in the span of the rows."""

    layer: str
    values: tuple[float, ...]
    """Safety per utility, descending."""
    k: int
    """How many leading directions were compared between the halves."""
    stability: float
    """Mean squared cosine between the leading directions of even and of odd rows."""
    by_chance: float
    """What random directions would have."""


def spectra(plan: MergePlan) -> list[Spectrum]:
    """One for each layer, where the plan has two adapters and gradients of their rows; empty otherwise."""
    found = []
    for name, seen in plan.evidence.items():
        if len(seen) != 2 or seen[0].gradients is None or seen[1].gradients is None:
            continue
        G_ud, G_sd = seen[0].gradients, seen[1].gradients
        d = G_sd.shape[1]
        K_nn = gram.inner_products([torch.cat((G_sd, G_ud))])
        values_k = gram.gram_gevp(K_nn, len(G_sd), damping=plan.config.damping, d=d, name=f"utility Fisher of {name}")
        R_nr = gram.sample_coordinates(K_nn)
        k = max(1, min(d, len(G_sd) // 2, len(G_ud) // 2) // LEADING)
        angles_k = subspaces.split_half(R_nr[: len(G_sd)], R_nr[len(G_sd) :], k=k, damping=plan.config.damping, d=d)
        chance = subspaces.overlap_by_chance(k, R_nr.shape[1])
        found.append(Spectrum(name, tuple(values_k.values_k.tolist()), k, subspaces.overlap(angles_k), chance))
    return found
