"""Read the cases that a source names."""

from __future__ import annotations

from holdfast.core.errors import ConfigError
from holdfast.data.counterfactual.lab import lab_cases
from holdfast.data.counterfactual.row import Counterfactual
from holdfast.data.sources import LAB_ROWS, SourceConfig

LAB = "lab/injection"


def read_cases(source: SourceConfig) -> tuple[Counterfactual, ...]:
    """The cases that ``source`` names.

    Raises:
        ConfigError: a source that holds no cases.
    """
    if source.source == LAB:
        wanted = source.rows or min(LAB_ROWS, source.at_most or LAB_ROWS)
        return lab_cases(source.split or "train", wanted, source.seed)
    raise ConfigError(f"{source.source!r} holds no cases. Do: take {LAB!r}.")
