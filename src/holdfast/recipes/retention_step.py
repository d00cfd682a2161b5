"""The keys of the step that says what merged adapters keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from holdfast.core.config import Config
from holdfast.recipes.references import as_list

Ids = Annotated[tuple[str, ...], BeforeValidator(as_list), Field(min_length=1)]


class RetentionStep(Config):
    """What a merge of many adapters keeps of the score that each has alone, by rule and number of adapters."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    lists: ClassVar[Mapping[str, tuple[str, ...]]] = {"alone": ("evaluate",), "rows": ("evaluate",)}

    do: Literal["retention"]
    alone: dict[str, Ids] = Field(min_length=1)
    """By any label, the evaluate step of each adapter alone on its own task: an id, ``after-sort-{seed}`` for all
    seeds, or a list."""
    rows: dict[str, Ids] = Field(min_length=1)
    """By label of a rule, the evaluate steps of its merges, each on the tasks of the adapters in it: their number is
    the number of adapters. ``after-ties-4-{seed}`` stands for all seeds."""
