"""Merge and repair steps by rule, seeds together, and what the small charts of rules are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.core.results import StepRecord
from holdfast.reports.charts import Points
from holdfast.reports.merging_board import MADE, made_by_row


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of a small chart."""

    kind: str
    """How it is drawn: ``line1``, ``line2``, ``faint`` or ``thin1``, ``thin2``."""
    points: Points
    dotted: bool = False


@dataclass(frozen=True, slots=True)
class Small:
    """One small chart."""

    title: str
    under: str
    """A line below the title."""
    traces: tuple[Trace, ...]
    told: str
    """Its numbers in words."""
    stops: tuple[str, ...] = ()
    """Names of the places 0, 1, 2, ... across, where x is a dial."""
    rings: Points = ()
    uprights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Multiples:
    """Small charts of one kind, on the same axes."""

    kind: Literal["plane", "dial", "spectrum"]
    title: str
    note: str
    plots: tuple[Small, ...]
    keys: tuple[tuple[str, str], ...]
    """Kind of line and what it stands for."""
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The same as a table."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Merge or repair steps that differ in their seed alone."""

    label: str
    steps: tuple[StepRecord, ...]


def grouped(steps: Sequence[StepRecord]) -> list[Rule]:
    """Steps by rule: as rows of tables and fronts name them, the others by their id without the seed it ends in."""
    by_id = {step.id: step for step in steps}
    names: dict[str, str] = {}
    for step in steps:
        rows: Mapping[str, Iterable[str]] = {}
        if step.do == "table":
            rows = {label: [one.id for one in made] for label, made in made_by_row(step, by_id).items()}
        elif step.do == "front":
            rows = step.config.get("rows", {})
        for label, ids in rows.items():
            for name in ids:
                names.setdefault(name, label)
    found: dict[str, list[StepRecord]] = {}
    for step in steps:
        if step.do in MADE and step.status == "done":
            found.setdefault(names.get(step.id, step.id.removesuffix(f"-{step.seed}")), []).append(step)
    return [Rule(label, tuple(same)) for label, same in found.items()]
