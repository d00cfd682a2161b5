"""Table steps of runs, as the scripts that write results pages read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.evaluation.composites import Estimate

HARMFUL, WRAPPED = "lab/harmful/attack_success_rate", "lab/jailbreak/attack_success_rate"
BENIGN, LOOKALIKE = "lab/benign/over_refusal_rate", "lab/lookalike/over_refusal_rate"
ARITHMETIC, PASSAGES, TEXTOPS = "lab/arithmetic/exact", "lab/passages/rouge_l", "lab/textops/exact"
BEFORE = "before"
NOT_RUN = "Not run yet."
MET = {True: "yes", False: "**no**", None: "not told"}
DIALS = ("merging/weight", "repair/dial")
TRUNCATION = "merging/truncation"
Column = Callable[[str], str]
"""What is shown of a row."""


@dataclass(frozen=True)
class Table:
    """The figures of one table step, by name and row."""

    step: StepRecord
    run: RunRecord
    figures: Mapping[tuple[str, str], Metric]

    @classmethod
    def of(cls, step: StepRecord, run: RunRecord) -> Table:
        """Read a step's metrics."""
        return cls(step, run, _by_row(step.metrics))

    @property
    def rows(self) -> list[str]:
        """Labels, what was before first."""
        return list(dict.fromkeys(row for _, row in self.figures))

    @property
    def reference(self) -> str:
        """Label of the row that the others are compared with."""
        return str(self.step.config["reference"])

    def beside(self, folder: Path, reference: str) -> Table:
        """The same rows compared with another one, from the logs of the run: paired, in the same resamples."""
        from holdfast.evaluation.table import table

        logs = self.logs(folder)
        (before,) = logs.pop(BEFORE)
        return replace(self, figures=_by_row(table(before, logs, reference).metrics))

    def logs(self, folder: Path) -> dict[str, list[Path]]:
        """By row, the log of every seed."""
        from holdfast.recipes.context import LOG_FILE

        named = {BEFORE: [self.step.config["before"]], **self.step.config["rows"]}
        return {row: [folder / name / LOG_FILE for name in ids] for row, ids in named.items()}

    def makers(self, row: str) -> list[StepRecord]:
        """The steps that made the models of a row, one a seed; none for a model that no step made."""
        steps = {step.id: step for step in self.run.steps}
        models = [(steps[name].config["model"] or {}).get("source") for name in self.step.config["rows"].get(row, ())]
        return [steps[name] for name in models if name in steps]

    @property
    def size(self) -> str:
        """Seeds and prompts of the table."""
        seeds = max(len(ids) for ids in self.step.config["rows"].values())
        prompts = next(metric.n + metric.n_invalid for (_, row), metric in self.figures.items() if row == BEFORE)
        return f"Seeds: {seeds}. Test prompts a task: {prompts}."

    def dials(self, row: str) -> str:
        """The value of the dial that each seed took."""
        taken = [m.value for step in self.makers(row) for m in step.metrics if m.name in DIALS and m.value is not None]
        return ", ".join(f"{value:g}" for value in taken) or "-"

    def cut_off(self, row: str) -> str:
        """What a merge lost by becoming an adapter: of the layer where that is most, the mean over seeds."""
        lost = [m.value for step in self.makers(row) for m in step.metrics if m.name == TRUNCATION]
        known = [value for value in lost if value is not None]
        return f"{100 * sum(known) / len(known):.0f} %" if known else "-"

    def value(self, name: str, row: str) -> float | None:
        """A figure's value, where the table has it."""
        metric = self.figures.get((name, row))
        return None if metric is None else metric.value

    def show(self, name: str) -> Column:
        """A column with a figure."""
        return lambda row: shown(self.figures.get((name, row)))

    def refused(self, name: str) -> Column:
        """A column with one minus a rate of attack success."""
        return lambda row: shown(opposite(self.figures.get((name, row))))


def _by_row(metrics: Iterable[Metric]) -> dict[tuple[str, str], Metric]:
    return {(m.name.removeprefix("table/"), m.group.removeprefix("row=")): m for m in metrics}


def tables_of(run: RunRecord) -> list[Table]:
    """Every table of a run."""
    return [Table.of(step, run) for step in run.steps if step.do == "table"]


def opposite(metric: Metric | None) -> Metric | None:
    """One minus a rate."""
    if metric is None or metric.value is None:
        return metric
    low = None if metric.high is None else 1 - metric.high
    high = None if metric.low is None else 1 - metric.low
    return metric.model_copy(update={"value": 1 - metric.value, "low": low, "high": high})


def shown(metric: Metric | Estimate | None) -> str:
    """A figure with its interval.

    >>> shown(Metric(name="x", value=0.5, n=3, low=-0.25, high=10))
    '.500 [-.250, 10.000]'
    """
    if metric is None or metric.value is None:
        return "-"
    limits = [value for value in (metric.value, metric.low, metric.high) if value is not None]
    parts = [re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}") for value in limits]
    return parts[0] if len(parts) < 3 else f"{parts[0]} [{parts[1]}, {parts[2]}]"


def no_less(value: float | None, limit: float | None) -> bool | None:
    """Whether ``value`` reaches ``limit``, but for rounding; ``None`` where one of them is missing."""
    return None if value is None or limit is None else value >= limit - 1e-9


def claims(lines: Iterable[tuple[str, str, bool | None]]) -> str:
    """What was to be shown, each with the figure, and whether it was."""
    rows = ((what, measured, MET[met]) for what, measured, met in lines)
    return grid(("to be shown", "measured", "met"), rows)


def by_row(rows: Iterable[str], columns: Mapping[str, Column], first: str = "row") -> str:
    """A line a row, with a cell of each column."""
    return grid((first, *columns), ((row, *(cell(row) for cell in columns.values())) for row in rows))


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(grid(("a", "b"), [("1", "2")]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def made_by(run: RunRecord) -> str:
    """Which run a page's figures come from."""
    seconds = sum(step.seconds for step in run.steps)
    commit = f", commit `{run.git}`" if run.git else ""
    quick = " Made with `--quick`: not for citing." if run.quick else ""
    return f"Run `{run.name}` of {run.started}{commit}, {run.device}, {seconds / 60:.0f} minutes of steps.{quick}"
