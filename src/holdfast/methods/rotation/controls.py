"""Controls of a plan: what another choice of equal size would hold. Any claim about a plan is a claim against these.

===================  ==================================================================================================
``random_mask``      as many directions (or elements) of every layer, drawn at random in the plan's own coordinates
``random_subspace``  as many directions of every layer, at random in a random rotation
``unrotated``        as many of the weight's own input coordinates, those with the most energy on the safety rows
``rho0``             nothing, and the rest is free: plain fine-tuning, through the same machinery
===================  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.methods.rotation import maths
from holdfast.methods.rotation.baselines.config import ControlName, check_control
from holdfast.methods.rotation.plan import Basis, RotationPlan


def control(plan: RotationPlan, name: ControlName, seed: int) -> RotationPlan:
    """The control of equal size, from the plan alone.

    Layers that share an input and freeze equally many of its directions get the same draw, as they do by energy.

    Args:
        seed: Of what is drawn; without effect on ``unrotated`` and ``rho0``.
    Raises:
        ConfigError: the plan's scores are gradients, which are not kept for another basis.
    """
    try:
        check_control(name, str(plan.config["importance"]))
    except ValueError as problem:
        raise ConfigError(f"Cannot make a control: {problem}.") from problem
    made = {**plan.config, "control": name, "seed": seed}
    if name == "rho0":
        nothing = {layer: torch.zeros_like(frozen) for layer, frozen in plan.frozen.items()}
        return replace(plan, frozen=nothing, stability=None, config=made | {"rest": "free"})
    generator = torch.Generator().manual_seed(seed)
    found = plan.basis if name == "random_mask" else _turned(plan.basis, name, seed)

    def score(layer: str) -> Tensor:
        if name == "unrotated":
            return found.energies[found.groups[layer]].sum(0)
        return torch.rand(plan.frozen[layer].shape, generator=generator)

    return replace(plan, frozen=_as_many(plan, score), stability=None, config=made, basis=found)


def _as_many(plan: RotationPlan, score: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """As many of the highest scores of every layer as the plan freezes there."""
    known: dict[tuple[str, int], Tensor] = {}
    made = {}
    for layer, frozen in plan.frozen.items():
        count = int(frozen.sum())
        at = (plan.basis.groups[layer] if frozen.ndim == 1 else layer, count)
        if at not in known:
            known[at] = maths.highest(score(layer).reshape(-1), count).reshape(frozen.shape)
        made[layer] = known[at]
    return made


def _turned(basis: Basis, name: str, seed: int) -> Basis:
    """The same second moments in other coordinates; of the energies there only those of all rows are known."""
    vectors: dict[str, Tensor] = {}
    energies: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for number, group in enumerate(basis.vectors):
        C_ii = basis.second_moment(group)
        width = len(C_ii)
        U_ii = torch.eye(width) if name == "unrotated" else maths.random_rotation(width, seed + number)
        vectors[group], moments[group] = U_ii, C_ii.float()
        energies[group] = ((C_ii @ U_ii.double()) * U_ii).sum(0, keepdim=True).float()
    return replace(basis, vectors=vectors, energies=energies, moments=moments)
