"""What a judge sees, what it says, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.data.examples import Example


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated answer, with everything a judge may look at."""

    example: Example
    output: str = ""
    """The decoded answer, without stop strings."""
    finish: str = "stop"
    """``stop``, or ``length`` where the token budget cut the answer."""
    option_scores: tuple[tuple[float, int], ...] = ()
    """Per option of a multiple-choice row: summed log-probability and number of tokens. Of a row that is read with its
    answer, per token that counts: log-probability, and 1 where it is the model's first choice."""


@dataclass(frozen=True, slots=True)
class Score:
    """A judge's word on one sample. ``value`` is ``None`` where it cannot say; then ``reason`` tells why."""

    value: float | None
    """In [0, 1]; what 1 means is the judge's ``measures``."""
    outcome: str
    """A label, e.g. ``full_refusal``, ``followed``, ``right``, ``invalid``."""
    reason: str = ""


INVALID = "invalid"
"""Outcome of an answer that is empty, loops or is gibberish."""
FAILED = "judge_failed"
"""Outcome of a sample on which the judge itself failed: no answer, no verdict in it, unreachable."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge as a literal: a name, a version that changes with its decisions, and a function over samples."""

    id: str
    version: int
    measures: str
    """What a value of 1 means: ``refused``, ``followed``, ``right``, ``wrong``, ``overlap``, ``coherent`` or
    ``witness``."""
    judge: Callable[[Sequence[Sample]], list[Score]] = field(repr=False)
    """One score a sample, in the same order."""

    @property
    def name(self) -> str:
        """Id and version, as metrics and logs carry it: ``prefix@1``."""
        return f"{self.id}@{self.version}"


def each(decide: Callable[[Sample], Score]) -> Callable[[Sequence[Sample]], list[Score]]:
    """A judge function from a decision about one sample."""

    def judge(samples: Sequence[Sample]) -> list[Score]:
        return [decide(sample) for sample in samples]

    return judge
