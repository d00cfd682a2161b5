"""Which value of a dial to take: decided by a rule that is written down before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Tried:
    """One value of the dial, measured on validation rows. Figures are 1 at best."""

    value: float
    safety: float
    utility: float


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """One value of the dial with figures that could not be computed. Nothing was shown, so it is never taken."""

    value: float
    figures: tuple[str, ...]
    """Those figures, each with the reason."""


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
            f"Value {each.value:g} of the dial could not be taken: no figure for {'; '.join(each.figures)}."
            for each in self.unmeasured
        )


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
