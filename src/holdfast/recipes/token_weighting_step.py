"""The keys of the step that plans token weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.recipes.fields import MODELS, Model, Source

READ: Mapping[str, tuple[str, ...]] = {
    "rho1": ("reference",),
    "contrast": ("degraded", "utility"),
    "critic": ("critic",),
    "column": ("column",),
}
"""By scorer, the keys that say what it reads beside the model."""


class TokenWeightingStep(TokenWeightingConfig):
    """Plan what each token of the training rows weighs, and how far ahead is predicted."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("model", "reference", "degraded", "utility"), MODELS
    )

    do: Literal["token_weighting"]
    model: Model | None = None
    """The model that will be trained; the recipe's ``model`` where it is left out."""
    data: tuple[Source, ...] = Field(min_length=1)
    """The rows that will be trained on. A ``train`` step that names this as its ``objective`` has them from here."""
    reference: Model | None = None  # type: ignore[assignment]  # here a model; without a recipe it is given beside
    """Of ``rho1``: a model that has learnt what is wanted, with the same vocabulary."""
    degraded: Model | None = None
    """Of ``contrast``: a model that has learnt the harm, with the same vocabulary."""
    utility: Model | None = None
    """Of ``contrast``: a model that has learnt the task alone, with the same vocabulary."""
    critic: CriticConfig | None = None
    """Of ``critic``: what answers are worth, and how values are taught; the defaults where it is left out."""
    column: str | None = None
    """Of ``column``: the column of the rows' files that holds a list of weights, one for each learnt token of a row,
    its end of turn among them."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    @model_validator(mode="after")
    def _scorer_has_what_it_reads(self) -> Self:
        for key in READ.get(self.base, ()):
            if key != "critic" and getattr(self, key) is None:
                raise ValueError(f"scorer: {self.base} needs {key!r}; give it")
        return self

    def _unread(self) -> dict[str, str]:
        """What a scorer reads may stand beside another scorer, so that one key switches them; and every step has a
        seed from its recipe."""
        return super()._unread() | {"reference": "", "seed": ""}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Keys that only another scorer would read."""
        own = READ.get(self.base, ())
        every = (key for keys in READ.values() for key in keys)
        return tuple(key for key in every if key not in own and getattr(self, key) is not None)

    def planning(self) -> TokenWeightingConfig:
        """The method's own keys alone."""
        unread = [key for key, why in super()._unread().items() if why]
        return self.only(TokenWeightingConfig, {"reference", *unread})

    def teaching(self) -> CriticConfig:
        """The critic's keys; its seed is the step's unless it sets one."""
        own = self.critic or CriticConfig()
        return own if "seed" in own.model_fields_set else own.model_copy(update={"seed": self.seed})
