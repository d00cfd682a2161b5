"""What two adapters' rows say about the directions of a layer: safety per utility, and whether halves agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.curvature import gevp, gram, subspaces
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
    """Mean squared cosine between the leading directions of two random halves of the rows."""
    by_chance: float
    """What random directions would have on average."""
    deviation: float
    """The standard deviation of that over random directions."""


SURE = 0.05
"""Chance is ruled out where it explains as much overlap with at most this probability."""
SIGNAL = 0.5
"""The share of what half of the rows finds that must be there in all rows for the halves to agree."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Do both halves of the rows find the same leading directions, over all layers?"""

    overlap: float
    """Mean `Spectrum.stability`."""
    by_chance: float
    p_value: float | None
    """At most this probability to overlap as much by chance, however layers hang together."""
    signal: float | None
    """The share of a half's leading directions that is not its own rows' accident; ``None`` as `holds`."""
    layers: int

    @property
    def holds(self) -> bool | None:
        """Whether chance is ruled out and `signal` is at least `SIGNAL`; ``None`` where nothing can be told."""
        if self.p_value is None or self.signal is None:
            return None
        return self.p_value <= SURE and self.signal >= SIGNAL

    def words(self) -> str:
        """The finding in words."""
        said = f"mean overlap {self.overlap:.2f} over {self.layers} layers; {self.by_chance:.2f} by chance"
        if self.p_value is None or self.signal is None:
            return f"{said}: the rows span no more directions than are compared"
        return (
            f"{said} (p at most {self.p_value:.2g}); about {self.signal:.2f} of what half of the rows finds is in all "
            f"of them, at least {SIGNAL:g} is asked for"
        )


def agreement(spectra: Sequence[Spectrum]) -> Agreement | None:
    r"""What the halves of the rows agree on, over all layers; ``None`` without a spectrum.

    Layers see the same rows, so they are not independent of each other: the standard deviation of their mean is at most
    the mean of theirs, and Cantelli's inequality, :math:`P(X - \mu \ge z \sigma) \le 1 / (1 + z^2)`, holds for any
    distribution. In a layer of many coordinates that alone calls any small overlap significant. So the size counts too:
    where each half's directions keep a share :math:`q` of the true ones (the mean squared cosine), those of two halves
    overlap by about :math:`q^2` of what chance leaves, and `signal` is that :math:`q`.
    """
    if not spectra:
        return None
    count = len(spectra)
    found, chance, sigma = (
        sum(getattr(each, key) for each in spectra) / count for key in ("stability", "by_chance", "deviation")
    )
    if not (sigma > 0 and chance < 1):
        return Agreement(found, chance, None, None, count)
    z = max(0.0, (found - chance) / sigma)
    signal = max(0.0, (found - chance) / (1 - chance)) ** 0.5
    return Agreement(found, chance, 1 / (1 + z * z), signal, count)


def spectra(plan: MergePlan) -> list[Spectrum]:
    """One for each layer, where the plan has two adapters and gradients of their rows; empty otherwise."""
    found = []
    for name, seen in plan.evidence.items():
        if len(seen) != 2 or seen[0].gradients is None or seen[1].gradients is None:
            continue
        G_ud, G_sd = seen[0].gradients, seen[1].gradients
        d = G_sd.shape[1]
        R_nr = gram.coordinates(torch.cat((G_sd, G_ud)))
        values_k = _ratios(R_nr[: len(G_sd)], R_nr[len(G_sd) :], plan.config.damping, d, f"utility Fisher of {name}")
        k = max(1, min(d, len(G_sd) // 2, len(G_ud) // 2) // LEADING)
        halves = _shuffled(R_nr[: len(G_sd)]), _shuffled(R_nr[len(G_sd) :])
        angles_k = subspaces.split_half(*halves, k=k, damping=plan.config.damping, d=d)
        r = R_nr.shape[1]
        chance, deviation = subspaces.overlap_by_chance(k, r), subspaces.overlap_deviation(k, r)
        values = tuple(values_k.tolist())
        found.append(Spectrum(name, values, k, subspaces.overlap(angles_k), chance, deviation))
    return found


def _ratios(R_sr: Tensor, R_ur: Tensor, damping: float, d: int, name: str) -> Tensor:
    """Safety per utility of all directions in the span of the rows, descending."""
    F_u = R_ur.T @ R_ur / len(R_ur)
    unit = gevp.mean_energy(float(F_u.trace()), d, name)
    return gevp.ratios(R_sr / len(R_sr) ** 0.5, F_u, damping=damping, unit=unit, name=name)


def _shuffled(R_nr: Tensor) -> Tensor:
    """The rows in a fixed random order: halves are even and odd ones, and files may alternate two kinds of rows."""
    order_n = torch.randperm(len(R_nr), generator=torch.Generator().manual_seed(0))
    return R_nr[order_n.to(R_nr.device)]
