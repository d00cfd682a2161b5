"""Arms of token-weighted trainings as rows: every figure on the same prompts and seeds, from one or several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from causal_rows import BEFORE, Found, Steps, complete
from composed import less, resampled

from holdfast.core.errors import DataError
from holdfast.core.results import Metric, RunRecord
from holdfast.evaluation import table as tabled
from holdfast.evaluation.composites import Estimate
from holdfast.evaluation.crossed import Array

LAB, SYNERGY, SAFETY = "wmtp-lab", "wmtp-synergy", "wmtp-safety"
RECIPES = (LAB, SYNERGY, SAFETY)
UNIFORM, RHO1, MTP, BOTH, CONTRAST = "uniform", "rho1", "mtp", "both", "contrast"
CONTROLS = {"shuffled": "shuffled", "random_matched": "random"}
"""Rows of weights that teach nothing, and what their steps are called after."""
_FOUR, _CLEAN = {row: row for row in (UNIFORM, RHO1, MTP, BOTH)}, {"reference (clean rows)": "reference"}
ROWS: dict[str, dict[str, str]] = {
    LAB: _FOUR | _CLEAN,
    SYNERGY: _FOUR | CONTROLS | _CLEAN,
    SAFETY: {row: row for row in (UNIFORM, RHO1, CONTRAST)},
}
"""By recipe its rows, each with what its steps are called: ``NAME`` trains, ``after-NAME`` evaluates."""
TOGETHER = (BOTH, MTP, RHO1)
DIGITS = "lab/arithmetic/digits"
ERROR = f"{DIGITS}/token_error"
Figures = Mapping[tuple[str, str], Metric]
"""By name and row."""


def experiments(folders: Sequence[Path]) -> dict[str, Steps]:
    """The finished steps of every recipe that was run, in the order of `RECIPES`.

    Raises:
        DataError: no record; a run of another recipe; one seed in two runs, or two runs without seeds.
    """
    by_name: dict[str, list[Path]] = {}
    for folder in folders:
        by_name.setdefault(RunRecord.load(folder).name, []).append(folder)
    if other := sorted(by_name.keys() - set(RECIPES)):
        raise DataError(
            f"The page of token weights cannot be written: got {', '.join(other)}, expected runs of "
            f"{', '.join(RECIPES)}. Do: give their folders."
        )
    return {name: _steps(name, by_name[name]) for name in RECIPES if name in by_name}


def _steps(name: str, folders: Sequence[Path]) -> Steps:
    steps = Steps.read(folders)
    twice = sorted(steps.plain.keys() & steps.seeded.keys())
    if twice or (len(folders) > 1 and not steps.seeded):
        raise DataError(
            f"Runs of {name} cannot be read as one: got {', '.join(map(str, folders))}, of which "
            f"{'some have' if twice else 'none has'} seeds in their steps, expected other seeds in each. Do: leave out "
            "the runs without seeds, or give one."
        )
    return steps


@dataclass(frozen=True)
class Arms:
    """Evaluations of the arms of one recipe: by row the step of every seed, that of before first."""

    found: Mapping[str, Sequence[Found]]
    seeds: tuple[int, ...]
    """Empty where the recipe has none."""
    missing: tuple[str, ...]
    """Rows that have not run."""
    training: tuple[str, ...]
    """How long the arms were trained, each way once."""

    @classmethod
    def of(cls, steps: Steps, rows: Mapping[str, str]) -> Arms | None:
        """The rows of which every seed has run that any row has; nothing without before or uniform weights.

        Args:
            steps: Of one recipe.
            rows: Its `ROWS`.
        """
        seeds = complete(steps, [f"after-{name}" for name in rows.values()])
        found = {BEFORE: steps.of(BEFORE, ())} | {row: steps.of(f"after-{name}", seeds) for row, name in rows.items()}
        if not found[BEFORE] or not found[UNIFORM]:
            return None
        trained = {
            _length(made)
            for row, name in rows.items()
            if name != "reference" and found[row]
            for made in steps.of(name, seeds)
        }
        there = {row: each for row, each in found.items() if each}
        return cls(there, seeds, tuple(row for row in rows if row not in there), tuple(sorted(trained)))

    @property
    def rows(self) -> list[str]:
        """Labels, before first."""
        return list(self.found)

    @property
    def n_seeds(self) -> int:
        """Seeds of the row that has most."""
        return max(len(each) for each in self.found.values())

    @cached_property
    def logs(self) -> dict[str, list[Path]]:
        """By row the log of every seed."""
        return {row: [each.log for each in found] for row, found in self.found.items()}

    @cached_property
    def _beside_uniform(self) -> tabled.Table:
        return self._beside(UNIFORM, TOGETHER if all(row in self.found for row in TOGETHER) else ())

    def _beside(self, reference: str, synergy: Sequence[str] = ()) -> tabled.Table:
        rows = {row: paths for row, paths in self.logs.items() if row != BEFORE}
        return tabled.table(self.logs[BEFORE][0], rows, reference, synergy)

    @cached_property
    def figures(self) -> Figures:
        """Every figure, its difference from uniform weights, and the synergy where all four arms are there."""
        return _named(self._beside_uniform)

    @cached_property
    def from_before(self) -> Figures:
        """The same with differences from the model before."""
        return _named(self._beside(BEFORE))

    @cached_property
    def from_rho1(self) -> Figures:
        """The same with differences from rho1; nothing where it has not run."""
        return _named(self._beside(RHO1)) if RHO1 in self.found else {}

    def by_seed(self, name: str, row: str) -> tuple[float, ...]:
        """A figure of every seed."""
        return tuple(value for _, value in self._beside_uniform.per_seed.get(f"table/{name} [row={row}]", ()))

    @cached_property
    def _right(self) -> dict[str, Array]:
        return resampled(self.logs, [DIGITS])

    def error_gone(self, row: str) -> Estimate:
        """Which share of uniform's error on digits a row does not have; below 0 it has more."""
        return less(1 - self._right[row], 1 - self._right[UNIFORM])


def _length(made: Found) -> str:
    config = made.step.config
    lasts = f"{config['steps']} steps" if config["steps"] else f"{config['epochs']} epochs"
    return f"{lasts} of {config['batch_size']} rows"


def _named(made: tabled.Table) -> Figures:
    return {(m.name.removeprefix("table/"), m.group.removeprefix("row=")): m for m in made.metrics}


@dataclass(frozen=True)
class Planted:
    """What the plans of one seed say of planted noise."""

    run: str
    seed: int | None
    plans: Mapping[str, Found]
    """By scorer."""

    def figure(self, scorer: str, name: str) -> Metric | None:
        """A figure of a plan."""
        return self.plans[scorer].metric(f"noise/{name}") if scorer in self.plans else None


def planted(name: str, steps: Steps) -> Iterator[Planted]:
    """The plans of a recipe that met planted noise, seed by seed; of scorers that read the same, the first."""
    plans = {RHO1: "weigh-rho1"} | {row: f"weigh-{called}" for row, called in CONTROLS.items()}
    plain = {row: steps.plain[plan] for row, plan in plans.items() if plan in steps.plain}
    seeds = sorted({seed for plan in plans.values() for seed in steps.seeded.get(plan, {})})
    by_seed: dict[int | None, dict[str, Found]] = {
        seed: {row: own for row, plan in plans.items() if (own := steps.seeded.get(plan, {}).get(seed))}
        for seed in seeds
    }
    for seed, each in ({None: plain} | by_seed).items():
        known = {row: found for row, found in each.items() if found.metric("noise/auroc")}
        if known:
            yield Planted(name, seed, known)
