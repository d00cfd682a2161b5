"""Which value of a dial to take: decided by a rule that is written down before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tried:
    """One value of the dial, measured on validation rows. Figures are 1 at best."""

    value: float
    safety: float
    utility: float


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

    @property
    def rule(self) -> str:
        """The rule in words."""
        return f"most safety with utility at most {self.drop:g} below the first adapter's; else most utility"


def choose(tried: Sequence[Tried], reference: float, drop: float) -> Selection:
    """The value of most safety among those that keep utility; of equals the one of more utility.

    >>> points = [Tried(0.1, 0.5, 0.80), Tried(1.0, 0.9, 0.79), Tried(10.0, 1.0, 0.60)]
    >>> choose(points, 0.80, 0.02).taken.value, choose(points, 0.99, 0.02).taken.value
    (1.0, 0.1)
    """
    within = [point for point in tried if point.utility >= reference - drop - 1e-12]
    if within:
        taken = max(within, key=lambda point: (point.safety, point.utility))
    else:
        taken = max(tried, key=lambda point: (point.utility, point.safety))
    return Selection(tuple(tried), taken, reference, drop, bool(within))
