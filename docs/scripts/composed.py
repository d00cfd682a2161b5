"""Figures made of several tasks, from the logs of a run: safety, utility, what safety costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.results import RunRecord, StepRecord
from holdfast.evaluation.aligned import Prompts, asked_in, columns_of
from holdfast.evaluation.composites import Estimate, safety_tax, utility_at_safety
from holdfast.evaluation.crossed import Array, crossed_means
from holdfast.evaluation.front import Curve
from holdfast.evaluation.log import read_log
from holdfast.recipes.merging import TRIED_FOLDER

TAIL = 0.025


@dataclass(frozen=True)
class Both:
    """Safety and utility of a row, each as measured and then in every resample, ``(1 + draws,)``."""

    safety: Array
    utility: Array


def resampled(rows: Mapping[str, Sequence[Path]], tasks: Sequence[str]) -> dict[str, Array]:
    """Mean over tasks of their main figures, each 1 at best, by row: as measured, then in every resample.

    Prompts and seeds are drawn once for all rows, as trade-off curves do it, so what is made of two rows is paired. A
    row with a seed of which no answer could be judged is left out.

    Args:
        rows: By label, the log of every seed; those of the longest row have the prompts that all must have.
        tasks: Names of the tasks.
    """
    first = [read_log(path) for path in max(rows.values(), key=len)]
    asked = [{head.name: asked_in(head, rs) for head in header.tasks if head.name in tasks} for header, rs in first]
    seen = {
        row: [columns_of(path, read_log(path), own) for path, own in zip(paths, asked, strict=False)]
        for row, paths in rows.items()
    }
    parts = []
    for name in tasks:
        prompts = Prompts(tuple(each[name] for each in asked))
        grids = {row: prompts.grid([columns[name] for columns in seeds]) for row, seeds in seen.items()}
        valid = {row: grid for row, grid in grids.items() if np.isfinite(grid).any(axis=0).all()}
        means = crossed_means(valid, prompts.clusters, rates=False, seed=first[0][0].seed)
        parts.append({row: np.array([mean.value, *mean.draws]) for row, mean in means.items()})
    return {row: np.mean([part[row] for part in parts], axis=0) for row in rows if all(row in part for part in parts)}


def estimate(draws: Array, reason: str = "", undefined: str = "it is undefined") -> Estimate:
    """The first value with the middle 95 % of the others.

    Args:
        draws: As measured, then in every resample; nan where it is undefined.
        reason: Why the first one is missing, where it is.
        undefined: Why it is missing in a resample, in words.
    """
    if not np.isfinite(draws[0]):
        return Estimate(None, None, None, reason)
    defined = draws[1:][np.isfinite(draws[1:])]
    share = 1 - len(defined) / (len(draws) - 1)
    if share > TAIL:
        return Estimate(
            float(draws[0]), None, None, f"no interval: {undefined} in {100 * share:.0f} % of the resamples"
        )
    low, high = (float(limit) for limit in np.quantile(defined, [TAIL, 1 - TAIL]))
    if low == high:
        return Estimate(float(draws[0]), None, None, "no interval: every resample says the same")
    return Estimate(float(draws[0]), low, high)


def tax(before: Both, after: Both) -> tuple[Array, str]:
    """The safety tax in every resample, nan where it is undefined, and why it is where nothing was resampled."""
    four = zip(before.utility, after.utility, before.safety, after.safety, strict=True)
    found = [safety_tax(*(float(value) for value in each)) for each in four]
    return np.array([np.nan if each.value is None else each.value for each in found]), found[0].reason


def less(ours: Array, theirs: Array) -> Estimate:
    """``1 - ours / theirs`` where theirs is above 0; elsewhere nothing can be cut."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.where(theirs > 0, 1 - ours / theirs, np.nan)
    return estimate(cut, "there is nothing to cut", "there is nothing to cut")


def asked_by(step: StepRecord) -> tuple[list[str], list[str]]:
    """Names of the tasks that a merge step's dial was chosen by: safety, utility."""
    safety, utility = ([task["name"] for task in step.config["select"][side]] for side in ("safety", "utility"))
    return safety, utility


def tried(folder: Path, run: RunRecord, curves: StepRecord) -> tuple[dict[str, Curve], Array]:
    """The curve of every row on validation rows, with the utility of the first adapter alone, in one resampling."""
    steps = {step.id: step for step in run.steps}
    made: dict[str, list[StepRecord]] = {
        row: [steps[name] for name in ids] for row, ids in curves.config["rows"].items()
    }
    safety, utility = asked_by(next(iter(made.values()))[0])
    dials = {row: _values(of[0].config) for row, of in made.items()}
    logs = {
        f"{row} {value:g}": [folder / step.id / TRIED_FOLDER / f"{value:g}.jsonl" for step in of]
        for row, of in made.items()
        for value in dials[row]
    }
    alone = {"": [folder / step.id / TRIED_FOLDER / "first.jsonl" for step in next(iter(made.values()))]}
    safe, useful = resampled(logs, safety), resampled(logs | alone, utility)
    found = {}
    for row, values in dials.items():
        safety_of, utility_of = (np.array([side[f"{row} {value:g}"] for value in values]) for side in (safe, useful))
        found[row] = Curve(tuple(values), safety_of, utility_of, n=0)
    return found, useful[""]


def _values(config: Mapping[str, Any]) -> list[float]:
    return sorted(config["select"]["weights"])


def matched(curve: Curve, safety: float) -> tuple[Array, str]:
    """The curve's utility at a safety in every resample, and why it is missing where nothing was resampled."""
    found = [utility_at_safety(curve.points(draw), safety) for draw in range(curve.safety.shape[1])]
    return np.array([np.nan if each.value is None else each.value for each in found]), found[0].reason
