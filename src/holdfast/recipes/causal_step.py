"""The keys of the step that plans counterfactual training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from holdfast.methods.causal.config import CausalConfig
from holdfast.recipes.fields import MODELS, Model, Source


class CausalStep(CausalConfig):
    """Plan counterfactual training: cases, what each is contrasted with, and the undefended model's representations."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS}

    do: Literal["causal"]
    model: Model | None = None
    """The model that will be trained; the recipe's ``model`` where it is left out."""
    cases: tuple[Source, ...] = Field(min_length=1)
    """Cases to train on: a file of cases, rows to attack, or ``lab/injection``."""
    validation: tuple[Source, ...] = ()
    """Cases for the validation loss of the training."""
    families: tuple[str, ...] = ()
    """Attack families of ``cases`` to train on; all of them where it is left out."""
    force: bool = False
    """Go on although the audit of the set refuses it; the record says so."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    def planning(self) -> CausalConfig:
        """The method's own keys alone."""
        return self.only(CausalConfig)
