"""What every method is: a frozen record of functions. No base class, no decorator, no import side effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.core.config import Config


@dataclass(frozen=True, slots=True)
class Method:
    """One method, as a literal.

    ``plan(config, model, rows)`` looks and changes nothing; ``apply(model, plan)`` yields what ``gives`` says.
    """

    name: str
    gives: Literal["constraint", "adapter", "objective"]
    config: type[Config]
    plan: Callable[..., Any]
    apply: Callable[..., Any]
    summary: str
    """One line for ``holdfast list``."""
    reference: str
    """Paper, venue, year."""
