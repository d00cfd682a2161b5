"""The keys of the step that attacks a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from holdfast.evaluation.attacks.config import AttackConfig
from holdfast.recipes.fields import MODELS, Model, Source


class AttackStep(AttackConfig):
    """Attack a model with injected instructions and keep a log of every answer."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS}

    do: Literal["attack"]
    model: Model | None = None
    """The model to attack; the recipe's ``model`` where it is left out."""
    cases: tuple[Source, ...] = Field(min_length=1)
    """Cases: ``lab/injection``, a file in any format of cases, or a set on the hub. Without ``split``: the test
    split."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    def settings(self) -> AttackConfig:
        """The attack's settings alone, as the evaluation wants them."""
        return self.only(AttackConfig)
