"""Which value of a dial to take: decided by a rule that is written down before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from holdfast.core.errors import DataError
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.curved import PARTS, with_parts
from holdfast.methods.merging.plan import MergePlan, cores_of


@dataclass(frozen=True, slots=True)
class Tried:
    """One value of the dial, measured on validation rows. Figures are 1 at best."""

    value: float
    safety: float
    utility: float
    settings: Mapping[str, float] = field(default_factory=dict)
    """What else was varied, by the rule's keys."""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """One value of the dial with figures that could not be computed. Nothing was shown, so it is never taken."""

    value: float
    figures: tuple[str, ...]
    """Those figures, each with the reason."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """As of `Tried`."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was tried, what was taken, and why."""

    tried: tuple[Tried, ...]
    taken: Tried
    reference: float
    """Utility of the first adapter alone."""
    drop: float
    kept: bool
    """Whether any value kept utility within ``drop``; else the one of most utility was taken."""
    unmeasured: tuple[Unmeasured, ...] = ()

    @property
    def rule(self) -> str:
        """The rule in words."""
        return f"most safety with utility at most {self.drop:g} below the first adapter's; else most utility"

    def left_out(self) -> tuple[str, ...]:
        """A sentence on each value that could not be taken."""
        return tuple(
            f"Value {each.value:g} of the dial{worded(each.settings)} could not be taken: no figure for "
            f"{'; '.join(each.figures)}."
            for each in self.unmeasured
        )


def worded(settings: Mapping[str, float]) -> str:
    """What was varied beside the dial, as a sentence goes on with it.

    >>> worded({"k": 4, "damping": 0.1}), worded({})
    (' with k 4 and damping 0.1', '')
    """
    return f" with {' and '.join(f'{key} {value:g}' for key, value in settings.items())}" if settings else ""


def resettled(plan: MergePlan, settings: Mapping[str, float]) -> MergePlan:
    """The plan with other values of ``k``, ``tau`` or ``damping``, which no pass over the rows depends on.

    Raises:
        ConfigError: ``k`` is larger than the directions that a layer's safety rows use.
        NumericsError: damping is too small.
    """
    if not settings:
        return plan
    config = plan.config.only(MergingConfig, **settings)
    if config.rule not in PARTS:
        return replace(plan, config=config)
    layers = [(name, cores_of(plan.spaces[name], deltas), plan.evidence[name]) for name, deltas in plan.deltas.items()]
    return replace(plan, config=config, evidence=with_parts(config, layers))


def choose(tried: Sequence[Tried | Unmeasured], reference: float, drop: float) -> Selection:
    """The value of most safety among those that keep utility; of equals the one of more utility.

    Raises:
        DataError: no value has all its figures.

    >>> points = [Tried(0.1, 0.5, 0.80), Tried(1.0, 0.9, 0.79), Tried(10.0, 1.0, 0.60)]
    >>> choose(points, 0.80, 0.02).taken.value, choose(points, 0.99, 0.02).taken.value
    (1.0, 0.1)
    """
    known = tuple(point for point in tried if isinstance(point, Tried))
    unmeasured = tuple(point for point in tried if isinstance(point, Unmeasured))
    if not known:
        first = f"; the first, {unmeasured[0].value:g}, has no {'; '.join(unmeasured[0].figures)}" if unmeasured else ""
        raise DataError(
            f"Cannot choose a value of the dial: got all figures for none of {len(unmeasured)} values, expected them "
            f"for at least 1{first}. Do: look at the answers, try smaller values, or give other validation tasks."
        )
    within = [point for point in known if point.utility >= reference - drop - 1e-12]
    if within:
        taken = max(within, key=lambda point: (point.safety, point.utility))
    else:
        taken = max(known, key=lambda point: (point.utility, point.safety))
    return Selection(known, taken, reference, drop, bool(within), unmeasured)
