"""Which evaluation of a training gives its result: the rule of ``keep: best`` and ``patience``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.models.load import LoadedModel

Values = Mapping[str, float]
"""What one evaluation measured, by the names of the log."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How evaluations are put in order. Their second argument is what was measured before the first step."""

    rank: Callable[[Values, Values], tuple[float, ...]]
    """Of an evaluation: the largest is the best, and of equals the first."""
    said: Callable[[Values, Values], str]
    """Why the best one is the best, as the end of a sentence."""
    measure: Callable[[LoadedModel], Values] | None = None
    """What it asks the model besides, at every evaluation and before the first step. It draws no random number."""


BY_LOSS = Rule(
    rank=lambda values, _: (-values["validation/loss"],),
    said=lambda values, _: f"with the best validation loss {values['validation/loss']:.4f}",
)
