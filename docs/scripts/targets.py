"""What a row of a table is to reach, and whether another row that does not is worse beyond chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tables import Table, shown

from holdfast.core.results import Metric
from holdfast.evaluation.composites import Estimate


@dataclass(frozen=True)
class Target:
    """One line of what is to be reached, judged by the mean."""

    name: str
    figure: str
    """Name of the figure by which two rows are told apart."""
    what: str
    """The line in words."""
    shows: Callable[[str], str]
    """The figure of a row, with its interval."""
    reached: Callable[[str], bool | None]
    """Whether a row reaches it; ``None`` where that cannot be told."""


def missed(targets: Sequence[Target], row: str) -> list[str]:
    """Names of the lines that a row does not reach."""
    return [target.name for target in targets if target.reached(row) is False]


def worse_by(beside: Table, row: str, figure: str) -> Estimate:
    """By how much a row is worse in a figure than the reference of ``beside``, paired: below 0 it is better."""
    metric = beside.figures.get((f"{figure}/difference", row), Metric(name=figure, value=None, n=0))
    if metric.higher_is_better:
        return negated(metric)
    return Estimate(metric.value, metric.low, metric.high, metric.reason)


def negated(metric: Metric) -> Estimate:
    """The figure with its sign changed."""
    value, low, high = (None if each is None else -each for each in (metric.value, metric.high, metric.low))
    return Estimate(value, low, high, metric.reason)


def falls_short(beside: Table, targets: Sequence[Target], ours: str, rival: str) -> tuple[str, bool]:
    """Whether a rival misses a line that ``ours`` reaches and is worse there beyond chance; and all that it misses.

    Args:
        beside: The table with every row compared with ``ours``.
        targets: The lines.
        ours: Label of the row that is to win.
        rival: Label of the other.
    """
    told, clear = [], False
    for target in targets:
        if target.reached(rival) is not False:
            continue
        if not target.reached(ours):
            told.append(f"{target.name} (as {ours} does)")
            continue
        found = worse_by(beside, rival, target.figure)
        beyond = found.low is not None and found.low > 0
        clear = clear or beyond
        told.append(f"{target.name} (worse by {shown(found)}{'' if beyond else ', not apart'})")
    return ("misses " + ", ".join(told) if told else "reaches it too"), clear
