"""Write docs/results/many_experts.md from a run of `recipes/exp2-many-experts.yaml`.

Usage: python docs/scripts/experts_results.py RUN_FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from composed import estimate, resampled
from pages import ROOT, from_runs, only
from tables import claims, grid, made_by, no_less, shown

from holdfast.core.results import Metric, RunRecord, StepRecord, values_of
from holdfast.evaluation.composites import Estimate
from holdfast.evaluation.crossed import Array
from holdfast.recipes.context import LOG_FILE

PAGE = ROOT / "docs" / "results" / "many_experts.md"
TEXT = Path(__file__).with_name("experts_results.md")
KEPT = 0.9
"""Share of single-task scores to keep."""
BASE = "base"
"""Label of the row for the model without any adapter."""
Kept = Mapping[tuple[str, int], Metric]
"""Retention by rule and number of adapters."""
Scores = dict[str, Array]
"""By row, as measured and then in every resample."""


def kept_of(step: StepRecord) -> Kept:
    """The figures of a retention step."""
    means = [metric for metric in step.metrics if metric.name == "retention/mean"]
    named = [(values_of(metric.group, "row", "experts"), metric) for metric in means]
    return {(row, int(count)): metric for (row, count), metric in named}


def rules_of(run: RunRecord, step: StepRecord) -> list[str]:
    """Rows that merge steps made: the base beside them is none."""
    steps = {each.id: each for each in run.steps}

    def merged(ident: str) -> bool:
        model = (steps[ident].config["model"] or {}).get("source")
        return model in steps and steps[model].do == "merge"

    return [row for row, ids in step.config["rows"].items() if all(merged(ident) for ident in ids)]


def best_of(kept: Kept, rules: Sequence[str], count: int) -> str | None:
    """The rule that keeps most at a number of adapters; the best rule is that of the highest mean."""
    known = {rule: kept[rule, count].value for rule in rules if (rule, count) in kept}
    return max((rule for rule, value in known.items() if value is not None), key=lambda r: known[r] or 0, default=None)


def told(kept: Kept, rules: Sequence[str]) -> str:
    """What was to be shown at the largest number of adapters, and the same of fewer."""
    lines: list[tuple[str, str, bool | None]] = []
    for count in sorted({count for _, count in kept}, reverse=True):
        what = f"{count} adapters keep at least {KEPT:.0%} of single-task scores with the best rule"
        best = best_of(kept, rules, count)
        if best is None:
            lines.append((what, "-", None))
            continue
        found, tried = kept[best, count], sum((rule, count) in kept for rule in rules)
        line = f"{best}, the best of {tried}: {shown(found)}; {BASE} {shown(kept.get((BASE, count)))}"
        lines.append((what, line, no_less(found.value, KEPT)))
    return claims(lines)


def table_text(found: Mapping[tuple[str, int], Metric | Estimate]) -> str:
    """A row a rule, a column a number of adapters."""
    rows, counts = list(dict.fromkeys(row for row, _ in found)), sorted({count for _, count in found})
    head = ["rule", *(f"{count} adapters" for count in counts)]
    return grid(head, ([row, *(shown(found.get((row, count))) for count in counts)] for row in rows))


class Answers:
    """The logs that a retention step read."""

    def __init__(self, folder: Path, run: RunRecord, step: StepRecord) -> None:
        tasks = {
            each.id: [task["name"] for task in each.config["tasks"]] for each in run.steps if each.do == "evaluate"
        }
        self._folder = folder
        self.alone: dict[str, list[Path]] = {tasks[ids[0]][0]: self._logs(ids) for ids in step.config["alone"].values()}
        """By task, the logs of its own adapter."""
        self.merges: dict[int, dict[str, list[Path]]] = {}
        """By number of adapters and row, the logs of its seeds."""
        self.tasks: dict[int, list[str]] = {}
        """By number of adapters, their tasks."""
        for row, ids in step.config["rows"].items():
            for ident in ids:
                count = len(tasks[ident])
                self.tasks[count] = tasks[ident]
                self.merges.setdefault(count, {}).setdefault(row, []).extend(self._logs([ident]))

    def _logs(self, ids: Sequence[str]) -> list[Path]:
        return [self._folder / ident / LOG_FILE for ident in ids]

    def own(self, task: str) -> Array:
        """The score of a task's own adapter."""
        return resampled({"": self.alone[task]}, [task])[""]

    def rows(self, count: int, tasks: Sequence[str], rows: Sequence[str] = ()) -> Scores:
        """Mean over tasks of the scores of merges of so many adapters, of all rows or of some.

        Every log has the same prompts in one order and the same seed, so what is drawn is the same in all of them.
        """
        logs = self.merges[count]
        return resampled({row: logs[row] for row in rows or logs}, tasks)


def gains(answers: Answers) -> dict[tuple[str, int], Estimate]:
    """Of what the adapters add to the base, the share that a merge keeps, on means over its tasks."""
    found = {}
    for count, tasks in sorted(answers.tasks.items()):
        scores, own = answers.rows(count, tasks), np.mean([answers.own(task) for task in tasks], axis=0)
        base = scores.pop(BASE)
        for row in scores:
            added = own - base
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(added > 0, (scores[row] - base) / added, np.nan)
            found[row, count] = estimate(share, "the adapters add nothing", "the adapters add nothing")
    return found


def task_text(answers: Answers, count: int, best: str) -> str:
    """A row a task: the base, the task's own adapter, and the best merge."""
    lines = []
    for task in answers.tasks[count]:
        scores = answers.rows(count, [task], (BASE, best))
        lines.append(
            [f"`{task}`", *(shown(estimate(each)) for each in (scores[BASE], answers.own(task), scores[best]))]
        )
    return grid(["task", BASE, "its own adapter", f"{best} of {count}"], lines)


def parts(folders: Sequence[Path]) -> dict[str, str]:
    """Claims, what is kept, what is gained, tasks, run."""
    folder = only(folders)
    run = RunRecord.load(folder)
    step = next(each for each in run.steps if each.do == "retention")
    kept = kept_of(step)
    rules, answers = rules_of(run, step), Answers(folder, run, step)
    most = max(count for _, count in kept)
    best = best_of(kept, rules, most)
    seeds = f"Seeds: {max(len(ids) for ids in step.config['alone'].values())}."
    return {
        "told": "\n\n".join([seeds, told(kept, rules)]),
        "kept": table_text(kept),
        "gains": table_text(gains(answers)),
        "tasks": "-" if best is None else task_text(answers, most, best),
        "run": made_by(run),
    }


if __name__ == "__main__":
    sys.exit(from_runs(PAGE, TEXT, parts))
