"""What every method is: a frozen record of functions. No base class, no decorator, no import side effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from holdfast.core.config import Config
from holdfast.core.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.models.load import LoadedModel


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


class Origin(Protocol):
    """Where a plan says what it was made from."""

    @property
    def model(self) -> str:
        """Fingerprint of the model's files."""

    @property
    def template(self) -> str:
        """Fingerprint of the chat template."""


def check_origin(origin: Origin, loaded: LoadedModel, *others: tuple[str, str, str]) -> None:
    """Refuse a plan of another model or chat template.

    Args:
        others: What else must be the same: its name, its fingerprint when the plan was made, and the one it has here.
    Raises:
        ConfigError: naming the first that differs.
    """
    same = (
        ("model", origin.model, loaded.fingerprint),
        ("chat template", origin.template, loaded.chat.fingerprint),
        *others,
    )
    for what, planned, here in same:
        if planned != here:
            raise ConfigError(
                f"The plan is of another {what}: got {here[:12]}, expected {planned[:12]}. Do: plan on this model."
            )
