"""What planning an objective takes, whichever method plans it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.models.describe import Description


@dataclass(frozen=True, slots=True)
class PlanNeeds:
    """Of one plan."""

    model: Description
    rows: dict[str, int | None]
    memory_bytes: int
    """Without the runtime."""
    disk_bytes: int
