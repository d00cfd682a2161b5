"""The keys of the step that takes an adapter which is there already, in place of the one that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from holdfast.core.config import Config
from holdfast.recipes.fields import MODELS, Model


class AdapterStep(Config):
    """Take a PEFT adapter from elsewhere; later steps name it as they name one that was trained here."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS}

    do: Literal["adapter"]
    source: str
    """A PEFT folder, or its name on the hub."""
    model: Model | None = None
    """The base of the adapter; the recipe's ``model`` where it is left out."""
    any_base: bool = False
    """Take it also where it was made for another base, if it fits in shape; a note says so."""
