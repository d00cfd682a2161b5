"""The keys of the step that repairs one fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from holdfast.methods.merging.repair_config import WITH_ROWS, WITH_UNALIGNED, RepairConfig
from holdfast.recipes.fields import MODELS, Model, Source
from holdfast.recipes.merge_step import Validation


class Dialled(Validation):
    """Choose the method's dial on validation rows: most safety at little loss of utility.

    ``drop`` is against the fine-tuned model as it is.
    """

    values: tuple[float, ...] = ()
    """Values of the dial to try; the method's own where none are named."""


class RepairStep(RepairConfig):
    """Take the harm out of one fine-tuning without training. The settings stand directly under the step."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": MODELS,
        "adapter": MODELS,
        "tuned": ("train",),
        "unaligned": MODELS,
    }

    do: Literal["repair"]
    model: Model | None = None
    """The base of the fine-tuning; the recipe's ``model`` where it is left out."""
    adapter: str | None = None
    """What is repaired: id of the step that made it, or a PEFT folder."""
    any_base: bool = False
    """Take an adapter from elsewhere that was made for another base, where it fits in shape; a note says so."""
    tuned: Model | None = None
    """In its place, a fully fine-tuned model: its change is cut to ``delta_rank`` and repaired as an adapter."""
    delta_rank: int = Field(default=64, ge=1)
    """Rank that the change of ``tuned`` is cut to, layer by layer; the rest of it is dropped, and reported."""
    utility: tuple[Source, ...] = ()
    """Rows of what must still be done; others than it was trained on and is measured on."""
    safety: tuple[Source, ...] = ()
    """Requests with the answers that must come back: refusals of harmful ones, and answers to others."""
    unaligned: Model | None = None
    """The base before its alignment, for the methods that go by it."""
    select: Dialled | None = None
    """How the dial is chosen; without it, it is taken as it is."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts that are decoded together where ``select`` measures."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    @model_validator(mode="after")
    def _one_thing_is_repaired(self) -> Self:
        if (self.adapter is None) == (self.tuned is None):
            raise ValueError("give one of 'adapter' and 'tuned'")
        if self.tuned is None and "delta_rank" in self.model_fields_set:
            raise ValueError("delta_rank has no effect without 'tuned'; take it out")
        return self

    @model_validator(mode="after")
    def _inputs_fit_the_method(self) -> Self:
        for key, reads in (
            ("utility", self.method in WITH_ROWS),
            ("safety", self.method in WITH_ROWS),
            ("unaligned", self.method in WITH_UNALIGNED),
        ):
            given = bool(getattr(self, key))
            if reads and not given:
                raise ValueError(f"method {self.method} needs {key!r}")
            if given and not reads:
                raise ValueError(f"{key!r} has no effect with method: {self.method}; take it out")
        return self

    @model_validator(mode="after")
    def _dial_is_set_once(self) -> Self:
        if self.select is None:
            if "batch_size" in self.model_fields_set:
                raise ValueError("batch_size has no effect without select; take it out")
            return self
        if self.dial.key in self.model_fields_set:
            raise ValueError(f"{self.dial.key} is chosen by select; take one of them out")
        for value in self.tries():
            self.repairing().at(value)
        return self

    def tries(self) -> tuple[float, ...]:
        """Values of the dial that are tried."""
        return (self.select.values if self.select is not None else ()) or self.dial.values

    def repairing(self) -> RepairConfig:
        """The method and its settings alone."""
        return self.only(RepairConfig)
