"""What a run leaves behind: metrics, verdicts, steps, and the record `run.json` that reports are made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from holdfast.core.errors import DataError
from holdfast.core.files import write_atomically


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Metric(_Record):
    """One measured number. A missing value is ``None`` with a reason, never 0."""

    name: str
    """Hierarchical, e.g. ``safety/advbench/attack_success_rate`` or ``utility/lab/arithmetic/exact``."""
    value: float | None
    """A rate in [0, 1], or a mean; ``None`` when it could not be computed."""
    n: int
    """Rows the value is over. Safety and injection figures leave invalid rows out, unless the name ends in ``/all``; in
    utility figures an incoherent answer counts as wrong, so only a judge's own failure leaves ``n``."""
    k: int | None = None
    """Hits among ``n``, for rates; for the change of a rate, hits gained less hits lost."""
    n_invalid: int = 0
    """Rows that no judge could judge: empty, looping or incoherent output, or a failed judge."""
    low: float | None = None
    high: float | None = None
    interval: str = ""
    """How ``low, high`` were made, e.g. ``wilson 95%``, ``clopper-pearson 95%``, ``bootstrap 95% by group``."""
    higher_is_better: bool = True
    reason: str = ""
    judge: str = ""
    """Judge id and version, e.g. ``prefix@1``."""
    cluster: str = ""
    """The key by which rows were clustered for the interval, or empty."""
    decoding: str = ""
    """E.g. ``greedy, max_new_tokens=96``."""
    seed: int | None = None
    group: str = ""
    """A breakdown this row belongs to, e.g. ``risk_area=fraud`` or ``attack=role_play``; empty for the total."""


class Bounded(Protocol):
    """Anything with an interval."""

    @property
    def low(self) -> float | None:
        """Lower limit, where there is one."""
        ...

    @property
    def high(self) -> float | None:
        """Upper limit, where there is one."""
        ...


def apart(one: Bounded, other: Bounded) -> bool:
    """Whether two intervals do not meet; no where one of them is missing.

    >>> found = [Metric(name="x", value=low, n=9, low=low, high=high) for low, high in ((0.1, 0.2), (0.3, 0.4))]
    >>> apart(*found), apart(found[0], Metric(name="x", value=0.5, n=9))
    (True, False)
    """
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low


def values_of(group: str, *keys: str) -> tuple[str, ...]:
    """What a group says of ``keys``, where it names just these in this order; else nothing. A value is any text.

    >>> values_of("row=a, b=c, experts=20", "row", "experts"), values_of("row=sst", "row", "experts")
    (('a, b=c', '20'), ())
    """
    found = re.fullmatch(", ".join(f"{re.escape(key)}=(.*)" for key in keys), group, re.DOTALL)
    return found.groups() if found else ()


class Verdict(_Record):
    """The outcome of one test. ``holds`` is ``None`` where it abstains, with the reason."""

    name: str
    holds: bool | None
    statistic: float | None
    p_value: float | None
    n: int
    null: str
    """The null hypothesis, in words."""
    draws: int | None = None
    reason: str = ""


class Artifact(_Record):
    """A file or folder that a step wrote."""

    path: str
    """Relative to the folder of ``run.json``."""
    sha256: str


class Sample(_Record):
    """One generated answer, kept for the report."""

    task: str
    prompt: str
    output: str
    outcome: str
    group: str = ""


class StepRecord(_Record):
    """One step of a run, as it ran."""

    id: str
    do: str
    config: dict[str, Any]
    """The step's configuration, complete, as it ran."""
    status: Literal["done", "failed", "interrupted"] = "done"
    metrics: tuple[Metric, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    curves: dict[str, list[tuple[float, float]]] = {}
    """Named series of (x, y), e.g. ``loss`` over optimizer steps."""
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the reader: warnings, what was shortened."""
    model_name: str = ""
    fingerprint: str = ""
    """SHA-256 over step config and inputs; ``--resume`` reuses a step only when it is unchanged."""
    seconds: float = 0.0
    peak_bytes: int | None = None
    """Largest memory of the process during this step, of the CUDA allocator where anything was on CUDA, else resident
    (elsewhere than on Linux: since the run began). Of several processes, the main one's."""
    seed: int = 0


class RunRecord(_Record):
    """A whole run: what `run.json` holds."""

    name: str
    version: str
    git: str
    """Commit of the working directory the run started in, ``-dirty`` where it had changes, or empty."""
    packages: dict[str, str]
    device: str
    started: str
    """ISO 8601, UTC."""
    quick: bool = False
    """True when rows were reduced by ``--quick``: figures are then not for citing."""
    recipe: dict[str, Any] = {}
    """The recipe as it ran, overrides applied."""
    steps: tuple[StepRecord, ...] = ()
    summary: str = ""
    """One sentence: what happened, in numbers with intervals."""

    def save(self, path: Path) -> None:
        """Write ``run.json`` so that a crash leaves either the old or the new file, never half of one."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a ``run.json``, or the one inside a run folder."""
        file = path / "run.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"Cannot read a run from {path}: no run.json there. Do: give the folder that 'holdfast run -o' wrote."
            )
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except ValueError as problem:
            first = str(problem).splitlines()[0]
            raise DataError(f"Cannot read {file}: it is not a Holdfast run record ({first}).") from problem
