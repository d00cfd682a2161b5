"""Attacks of one or several runs as rows: every figure of every defence, over the same prompts and seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from holdfast.core.errors import DataError
from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.evaluation.aligned import asked_in, columns_of
from holdfast.evaluation.attacks.figures import case_of
from holdfast.evaluation.attacks.tasks import ATTACK_TASKS, PREFIX
from holdfast.evaluation.composites import Estimate
from holdfast.evaluation.crossed import Array, CrossedMean, crossed_means, difference_of, kept_of, mean_of
from holdfast.evaluation.log import Record, read_log
from holdfast.evaluation.measures import cluster_of, figures
from holdfast.recipes.context import LOG_FILE

BEFORE, OURS = "before", "ours"
END = "after"
FAMILY = "family="
EVENTS: dict[str, tuple[str, str]] = {
    "followed": ("attacked", "followed"),
    "done": ("attacked", "task_done"),
    "benign": ("benign", "task_done"),
    "refused": ("benign", "refused"),
    "quoting": ("quoting", "task_done"),
    "obeyed": ("obeyed", "executed"),
    "best_of": ("best_of", "followed"),
    "gcg": ("gcg", "followed"),
}
"""By measure, the part of the attack and the figure of an answer."""
PAIRED = {"trigger": ("neutral", "trigger"), "last": ("benign", "last")}
"""By effect, the parts between which task-done falls, case by case."""
REMARKED = "trigger:neutral"
"""The measure of task-done beside a harmless remark."""
WORST = "injection/attack/attacked/followed/worst_family"
Figures = Mapping[str, Mapping[str, CrossedMean]]


@dataclass(frozen=True)
class Found:
    """A finished step, and where its run lies."""

    step: StepRecord
    folder: Path

    @property
    def log(self) -> Path:
        """Its answers."""
        return self.folder / self.step.id / LOG_FILE

    def metric(self, name: str, group: str = "") -> Metric | None:
        """A figure of the record; the worst of several parts has one of them as its group."""
        worst = name.endswith("/worst")
        of = (
            (_of(metric.group) if worst else metric.group, metric)
            for metric in self.step.metrics
            if metric.name == name
        )
        return next((metric for known, metric in of if known == group), None)

    def holds(self, name: str) -> bool | None:
        """What a verdict says; ``None`` where it abstains or is missing."""
        return next((verdict.holds for verdict in self.step.verdicts if verdict.name == name), None)


@dataclass(frozen=True)
class Steps:
    """The finished steps of runs of one recipe. Steps without a seed in their id are taken from the first run."""

    runs: tuple[RunRecord, ...]
    plain: Mapping[str, Found]
    seeded: Mapping[str, Mapping[int, Found]]
    """By the id without its seed, by seed."""

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Steps:
        """Read the records.

        Raises:
            DataError: no record in a folder, or a step of one seed stands in two runs.
        """
        runs = tuple(RunRecord.load(folder) for folder in folders)
        plain: dict[str, Found] = {}
        seeded: dict[str, dict[int, Found]] = {}
        for run, folder in zip(runs, folders, strict=True):
            for step in run.steps:
                if step.status != "done":
                    continue
                name, number = _split(step.id)
                if number is None:
                    plain.setdefault(name, Found(step, folder))
                elif number in seeded.setdefault(name, {}):
                    other = seeded[name][number].folder
                    raise DataError(
                        f"Step {step.id} stands in two runs: got {other} and {folder}, expected each seed once. "
                        "Do: give runs of different seeds."
                    )
                else:
                    seeded[name][number] = Found(step, folder)
        return cls(runs, plain, {name: dict(sorted(found.items())) for name, found in seeded.items()})

    def of(self, name: str, seeds: Sequence[int]) -> list[Found]:
        """The step, or that of every one of ``seeds``; nothing where one of them has not run."""
        if name in self.plain:
            return [self.plain[name]]
        found = self.seeded.get(name, {})
        return [found[seed] for seed in seeds] if seeds and all(seed in found for seed in seeds) else []


def _of(group: str) -> str:
    """The model that a group names, without the attack."""
    return ", ".join(part for part in group.split(", ") if not part.startswith("attack="))


def _split(step_id: str) -> tuple[str, int | None]:
    """
    >>> _split("after-ours-2"), _split("keyword-drop")
    (('after-ours', 2), ('keyword-drop', None))
    """
    found = re.fullmatch(r"(.+)-(\d+)", step_id)
    return (found[1], int(found[2])) if found else (step_id, None)


@dataclass(frozen=True)
class Rows:
    """Attacks on several models with the same prompts: by label the step of every seed."""

    found: Mapping[str, Sequence[Found]]

    @property
    def labels(self) -> list[str]:
        """Rows, in order."""
        return list(self.found)

    @cached_property
    def _logs(self) -> dict[str, list[dict[str, dict[str, Record]]]]:
        """By label, for each seed: by part, by id, the answer. Every log has the prompts of the first."""
        first = read_log(next(iter(self.found.values()))[0].log)
        asked = {head.name: asked_in(head, first[1]) for head in first[0].tasks}
        logs: dict[str, list[dict[str, dict[str, Record]]]] = {}
        for label, steps in self.found.items():
            for found in steps:
                log = read_log(found.log)
                columns_of(found.log, log, asked)  # refuses other prompts and other judges
                parts: dict[str, dict[str, Record]] = {}
                for record in log[1]:
                    parts.setdefault(record.task.removeprefix(PREFIX), {})[record.id] = record
                logs.setdefault(label, []).append(parts)
        return logs

    @cached_property
    def parts(self) -> list[str]:
        """Parts that every log has."""
        every = [set(parts) for logs in self._logs.values() for parts in logs]
        first = next(iter(self._logs.values()))[0]
        return [part for part in first if all(part in parts for parts in every)]

    @cached_property
    def families(self) -> list[str]:
        """Attack families, by name."""
        first = next(iter(self._logs.values()))[0]
        return sorted({record.sample.example.attack for record in first["attacked"].values()})

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Cases of each family."""
        attacks = [r.sample.example.attack for r in next(iter(self._logs.values()))[0]["attacked"].values()]
        return {family: attacks.count(family) for family in self.families}

    @cached_property
    def scenarios(self) -> dict[str, int]:
        """Groups of cases of each family: as many cases as an exact limit may count."""
        groups: dict[str, set[str]] = {family: set() for family in self.families}
        for record in self._first("attacked"):
            groups[record.sample.example.attack].add(cluster_of(record))
        return {family: len(found) for family, found in groups.items()}

    @cached_property
    def means(self) -> Figures:
        """By measure and row, the mean over prompts and seeds; prompts and seeds are drawn once for all rows."""
        made: dict[str, dict[str, CrossedMean]] = {}
        for place, part in enumerate(self.parts):
            wanted = {name: self._column(*event) for name, event in EVENTS.items() if event[0] == part}
            if part == "attacked":
                wanted |= self._within(wanted["followed"])
            if wanted:
                made |= self._drawn(wanted, part, place)
        for place, (name, pair) in enumerate(PAIRED.items(), start=len(self.parts)):
            if all(part in self.parts for part in pair):
                cases = [case_of(r) for r in self._first(pair[1])]
                sides = {f"{name}:{part}": self._done(part, cases) for part in pair}
                made |= self._drawn(sides, pair[1], place)
        return made

    def _first(self, part: str) -> list[Record]:
        return list(next(iter(self._logs.values()))[0][part].values())

    def _column(self, part: str, word: str) -> Callable[[Mapping[str, dict[str, Record]]], Array]:
        """An event as a column of one log: 0 or 1, nan where it cannot be told."""
        task = ATTACK_TASKS[PREFIX + part]
        figure = next(figure for figure in figures(task) if figure.name.rpartition("/")[2] == word)

        def column(parts: Mapping[str, dict[str, Record]]) -> Array:
            answers = [parts[part][record.id] for record in self._first(part)]
            values = [figure.value(next(iter(answer.scores.values()))) for answer in answers]
            return np.array([np.nan if value is None else value for value in values])

        return column

    def _within(
        self, followed: Callable[[Mapping[str, dict[str, Record]]], Array]
    ) -> dict[str, Callable[[Mapping[str, dict[str, Record]]], Array]]:
        """Attack success of each family, and of injections at the end and elsewhere."""
        examples = [record.sample.example for record in self._first("attacked")]
        masks = {
            f"{FAMILY}{family}": [example.attack == family for example in examples] for family in self.families
        } | {
            "end": [example.position == END for example in examples],
            "elsewhere": [example.position not in ("", END) for example in examples],
        }

        def of(mask: Sequence[bool]) -> Callable[[Mapping[str, dict[str, Record]]], Array]:
            return lambda parts: np.where(mask, followed(parts), np.nan)

        return {name: of(mask) for name, mask in masks.items()}

    def _done(self, part: str, cases: Sequence[str]) -> Callable[[Mapping[str, dict[str, Record]]], Array]:
        """Task done by case; an answer that cannot be judged is not done."""

        def column(parts: Mapping[str, dict[str, Record]]) -> Array:
            known = {case_of(record): record for record in parts[part].values()}
            outcomes = [next(iter(known[case].scores.values())).outcome for case in cases]
            return np.array([float(outcome == "task_done") for outcome in outcomes])

        return column

    def _drawn(
        self, columns: Mapping[str, Callable[[Mapping[str, dict[str, Record]]], Array]], part: str, place: int
    ) -> dict[str, dict[str, CrossedMean]]:
        grids = {
            f"{name}|{label}": np.column_stack([column(parts) for parts in logs])
            for name, column in columns.items()
            for label, logs in self._logs.items()
        }
        valid = {key: grid for key, grid in grids.items() if np.isfinite(grid).any(axis=0).all()}
        one = int(np.random.SeedSequence((0, place)).generate_state(1)[0])
        clusters = [cluster_of(record) for record in self._first(part)]
        found = crossed_means(valid, clusters, rates=True, seed=one) if valid else {}
        made: dict[str, dict[str, CrossedMean]] = {name: {} for name in columns}
        for key, mean in found.items():
            name, _, label = key.partition("|")
            made[name][label] = mean
        return made

    def mean(self, measure: str, row: str) -> Estimate:
        """A rate over prompts and seeds."""
        return self._made(mean_of, (measure, row))

    def from_row(self, measure: str, row: str, other: str) -> Estimate:
        """``row - other`` on the same prompts and seeds."""
        return self._made(difference_of, (measure, row), (measure, other))

    def share(self, measure: str, row: str) -> Estimate:
        """The rate as a share of the undefended model's."""
        return self._made(lambda a, b: kept_of({measure: (a, b)}), (measure, row), (measure, BEFORE))

    def fall(self, effect: str, row: str) -> Estimate:
        """The fall of task-done that a trigger word, or an instruction in the last place, makes."""
        before, after = (f"{effect}:{part}" for part in PAIRED[effect])
        return self._made(difference_of, (before, row), (after, row))

    def bias(self, row: str) -> Estimate:
        """Attack success of injections at the end less that of others."""
        return self._made(difference_of, ("end", row), ("elsewhere", row))

    def _made(self, how: Callable[..., Estimate], *of: tuple[str, str]) -> Estimate:
        means = [self.means.get(measure, {}).get(row) for measure, row in of]
        return Estimate(None, None, None, "not measured") if None in means else how(*means)

    def worst(self, row: str) -> tuple[str, Estimate]:
        """The family with the highest mean over seeds."""
        each = {family: self.mean(f"{FAMILY}{family}", row) for family in self.families}
        name = max(each, key=lambda family: each[family].value or 0.0)
        return name, each[name]

    def count(self, part: str) -> int:
        """Prompts of a part, of each seed; 0 where not every log has it."""
        return len(self._first(part)) if part in self.parts else 0

    def upper(self, row: str) -> float | None:
        """Of the exact upper limits of every family and seed, the largest: of the worst model."""
        limits = [m.high for found in self.found[row] for m in found.step.metrics if m.name == WORST]
        return max((limit for limit in limits if limit is not None), default=None)


def complete(steps: Steps, names: Iterable[str]) -> tuple[int, ...]:
    """Seeds of which every one of ``names`` that has run at all has run."""
    found = [set(steps.seeded[name]) for name in names if name in steps.seeded]
    return tuple(sorted(set.intersection(*found))) if found else ()
