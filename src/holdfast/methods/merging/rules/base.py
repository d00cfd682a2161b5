"""What a rule is, and what it reads: a table row, its settings, the checks on its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from holdfast.core.errors import AdapterError, ConfigError, NumericsError
from holdfast.layers.adapters import LowRank

Semantics = Literal["paper", "peft", "mergekit"]


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What rules read besides deltas and weights; `Rule.settings` names the ones that a rule reads."""

    density: float | None = None
    """Share of entries that is kept, more than 0 and at most 1 (nothing is dropped). ``None``: the rule's own."""
    semantics: Semantics = "paper"
    """Whose reading of the rule, where tools differ from its paper and from each other."""
    election: Literal["mass", "count"] = "mass"
    """A sign is elected by the sum of the entries (TIES) or by how many have it."""
    rescale: bool = True
    """Make up for randomly dropped entries: by the keep probability (paper, peft), or to the L1 norm of the whole
    delta as it was (mergekit)."""
    gamma: float = 0.01
    """Share of the largest entries that ``breadcrumbs`` drops, at most ``1 - density``; in mergekit a larger one gives
    way."""
    epsilon: float = 0.15
    """How far ``della``'s keep probabilities spread: over ``density +- epsilon / 2`` (paper), ``+- epsilon``
    (mergekit)."""
    tau: float = 0.35
    """Cosine below which ``safe_merge`` takes a layer for unsafe."""
    seed: int = 0
    """Of the dropped entries of ``dare_*`` and ``della``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to make one delta of a layer from several.

    Attributes:
        name: As in recipes.
        space: ``core``: works on the deltas in the layer's core space. ``dense``: works on entries of the dense deltas,
            some rows at a time.
        merge: A pure function. ``core``: ``(M_tpq, weights_t, settings) -> M_pq``. ``dense``:
            ``(name, deltas, weights, settings) -> M_oi``, float32.
        settings: The fields of `RuleSettings` that it reads.
        paper: Where it comes from.
        linear: Whether the merged delta is linear in the deltas, for the same masks, which follow the order of the
            deltas by norm. ``dare_linear`` is not where mergekit rescales to a norm.
        summary: One line for people.
        exact: With no rank asked for, nothing is cut off. The others are cut back: a core rule to the largest rank of
            the deltas, a dense one to the sum of their ranks.
        density: What ``settings.density`` is where it is left out.
        semantics: The readings that exist; empty where all agree.
        pair: Takes exactly two adapters: utility, then safety.
        isotropic: The singular values of what ``merge`` gives are replaced by their mean.
        turned: The rows of the dense deltas are turned into their common left singular vectors first.
    """

    name: str
    space: Literal["core", "dense"]
    merge: Callable[..., Tensor]
    settings: frozenset[str]
    paper: str
    linear: bool
    summary: str
    exact: bool = False
    density: float = 1.0
    semantics: tuple[Semantics, ...] = ()
    pair: bool = False
    isotropic: bool = False
    turned: bool = False


def missing(shape: tuple[int, int], like: LowRank) -> LowRank:
    """The zero delta of an adapter that does not touch a layer, of rank 1.

    Args:
        shape: ``(o, i)`` of the layer.
        like: A delta of the same layer, for type and device.
    """
    return LowRank(like.A.new_zeros(1, shape[1]), like.B.new_zeros(shape[0], 1))


def check_inputs(name: str, deltas: Sequence[LowRank], weights: Sequence[float]) -> None:
    """Refuse what no rule can merge.

    Raises:
        AdapterError: no delta, not a weight for each, or deltas of different layers.
        NumericsError: a weight or a factor is not finite.
    """
    if not deltas or len(deltas) != len(weights):
        raise AdapterError(
            f"cannot merge {name}: got {len(deltas)} deltas and {len(weights)} weights, expected one weight for each "
            "of at least one delta."
        )
    shapes = {delta.shape for delta in deltas}
    if len(shapes) > 1:
        raise AdapterError(
            f"cannot merge {name}: got deltas of {' and '.join(map(str, sorted(shapes)))}, expected one shape. Do: "
            "merge adapters of one base model."
        )
    for number, (delta, weight) in enumerate(zip(deltas, weights, strict=True), 1):
        if not (math.isfinite(weight) and bool(delta.A.isfinite().all()) and bool(delta.B.isfinite().all())):
            raise NumericsError(
                f"cannot merge {name}: got NaN or infinity in adapter {number} or its weight ({weight}), expected "
                "numbers. Do: train it again."
            )


def resolve(rule: Rule, settings: RuleSettings, adapters: int) -> RuleSettings:
    """The settings with the rule's own density where it was left out.

    Raises:
        ConfigError: the rule does not exist in the asked semantics, a value is out of range, or the number of adapters
            does not fit.
    """
    if rule.pair and adapters != 2:
        raise ConfigError(
            f"rule {rule.name} takes two adapters, utility and then safety: got {adapters}. Do: merge others first."
        )
    if rule.semantics and settings.semantics not in rule.semantics:
        raise ConfigError(
            f"rule {rule.name} does not exist in {settings.semantics}: expected semantics "
            f"{' or '.join(rule.semantics)}."
        )
    density = rule.density if settings.density is None else settings.density
    if "density" in rule.settings and not 0 < density <= 1:
        raise ConfigError(f"density of rule {rule.name}: got {density}, expected more than 0 and at most 1.")
    if "gamma" in rule.settings and not 0 <= settings.gamma < 1:
        raise ConfigError(f"gamma of rule {rule.name}: got {settings.gamma}, expected 0 to less than 1.")
    if "gamma" in rule.settings and settings.semantics == "paper" and density + settings.gamma > 1:
        raise ConfigError(
            f"gamma of rule {rule.name}: got {settings.gamma} beside density {density}, expected at most 1 in all. Do: "
            f"lower gamma to {1 - density:.3g} or density to {1 - settings.gamma:.3g}."
        )
    reach = settings.epsilon / (2 if settings.semantics == "paper" else 1)
    if "epsilon" in rule.settings and density < 1 and not (reach >= 0 and reach < density and density + reach < 1):
        raise ConfigError(
            f"epsilon of rule {rule.name}: got {settings.epsilon} around density {density}, expected keep "
            f"probabilities between 0 and 1. Do: lower it below {2 * min(density, 1 - density):.3g} (paper) or "
            f"{min(density, 1 - density):.3g} (mergekit)."
        )
    return replace(settings, density=density)


def finite(M: Tensor, name: str, rule: str) -> Tensor:
    """The merged delta, checked.

    Raises:
        NumericsError: it overflowed.
    """
    if not (math.isfinite(float(M.min())) and math.isfinite(float(M.max()))):  # isfinite() makes more such matrices
        raise NumericsError(f"rule {rule} gave NaN or infinity in {name}, expected numbers. Do: use smaller weights.")
    return M
