"""What small charts are made of: lines, plots, plots that share their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.reports.names import plain

Points = tuple[tuple[float, float], ...]
Cells = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot, with a band where it stands for several."""

    label: str
    points: Points
    low: Points = ()
    high: Points = ()

    @property
    def course(self) -> tuple[str, ...]:
        """First, lowest, highest and last value as text."""
        values = [y for _, y in self.points]
        return tuple(f"{value:.3g}".replace("-", "−") for value in (values[0], min(values), max(values), values[-1]))


@dataclass(frozen=True, slots=True)
class Plot:
    """One small chart."""

    title: str
    lines: tuple[Line, ...]
    told: str
    """Its numbers in words."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Small charts that share their axes."""

    title: str
    note: str
    plots: tuple[Plot, ...]
    across: Literal["share", "depth"]
    """What x is: a share of directions, or the block of the model."""
    up: Literal["share", "log"]
    """What y is: a share from 0 to 1, or a positive number on a scale of powers of ten."""
    marks: tuple[float, ...] = ()
    """Vertical lines, at these x."""
    head: tuple[str, ...] = ()
    rows: Cells = ()
    """The same as a table."""


def over_steps(title: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> Plot:
    """Curves of a training, by label, as one plot."""
    lines = tuple(Line(label, tuple((float(x), float(y)) for x, y in points)) for label, points in curves.items())
    told = "; ".join(f"{line.label} {line.course[0]} to {line.course[-1]}".strip() for line in lines)
    return Plot(plain(title), lines, f"{plain(title)} over optimizer steps: {told}")
