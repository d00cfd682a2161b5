"""The rows of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.data.examples import Example


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on, and what is validated with."""

    train: Sequence[Example] = ()
    validation: Sequence[Example] = ()

    def __add__(self, other: Rows) -> Rows:
        return Rows((*self.train, *other.train), (*self.validation, *other.validation))
