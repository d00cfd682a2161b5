"""The keys of the step that verifies a hardened model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from holdfast.methods.causal.verify_config import VerifyConfig
from holdfast.recipes.fields import MODELS, Model, Source


class VerifyStep(VerifyConfig):
    """Test whether an instruction inside the data changes what a model says: independence, graph, bounds."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS, "against": MODELS}

    do: Literal["verify"]
    model: Model | None = None
    """The model to verify; the recipe's ``model`` where it is left out."""
    against: Model | None = None
    """The model before its defence: its figures stand beside, and its graph."""
    cases: tuple[Source, ...] = Field(min_length=1)
    """Counterfactual cases of all splits: those of ``test`` are asked, the others say what was trained on."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    def settings(self) -> VerifyConfig:
        """The settings of the verification alone."""
        return self.only(VerifyConfig)
