"""Table steps of runs, as the scripts that write results pages read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.core.results import Metric, RunRecord, StepRecord


@dataclass(frozen=True)
class Table:
    """The figures of one table step, by name and row."""

    step: StepRecord
    run: RunRecord
    figures: Mapping[tuple[str, str], Metric]

    @classmethod
    def of(cls, step: StepRecord, run: RunRecord) -> Table:
        """Read a step's metrics."""
        return cls(step, run, {(m.name.removeprefix("table/"), m.group.removeprefix("row=")): m for m in step.metrics})

    @property
    def rows(self) -> list[str]:
        """Labels, what was before first."""
        return list(dict.fromkeys(row for _, row in self.figures))


def shown(metric: Metric | None) -> str:
    """A figure with its interval.

    >>> shown(Metric(name="x", value=0.5, n=3, low=0.25, high=0.75))
    '.500 [.250, .750]'
    """
    if metric is None or metric.value is None:
        return "-"
    parts = [
        f"{value:.3f}".replace("0.", ".", 1) for value in (metric.value, metric.low, metric.high) if value is not None
    ]
    return parts[0] if len(parts) < 3 else f"{parts[0]} [{parts[1]}, {parts[2]}]"


def apart(a: Metric, b: Metric) -> bool:
    """Whether two intervals do not meet."""
    return bool(a.high < b.low or b.high < a.low)  # type: ignore[operator]


def made_by(run: RunRecord) -> str:
    """Which run a page's figures come from."""
    seconds = sum(step.seconds for step in run.steps)
    commit = f", commit `{run.git}`" if run.git else ""
    return f"Run `{run.name}` of {run.started}{commit}, {run.device}, {seconds / 60:.0f} minutes of steps."
