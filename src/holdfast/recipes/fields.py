"""Fields that several kinds of step share: a model, rows, tasks, each also by its name alone."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from holdfast.core.errors import did_you_mean
from holdfast.data.sources import SourceConfig
from holdfast.evaluation.tasks import SUITES, TaskConfig
from holdfast.models.config import ModelConfig

MODELS = ("train", "adapter", "merge", "repair")
"""Kinds of step that leave a model, or an adapter of one."""


def as_source(value: Any) -> Any:
    """A name alone is a mapping with only its source."""
    return {"source": value} if isinstance(value, str) else value


Model = Annotated[ModelConfig, BeforeValidator(as_source)]
"""A model: ``lab``, a step's id, a folder or ``owner/name`` on the hub; or a mapping with more settings.

A hub model without an owner is written as a mapping, ``{source: gpt2}``: a misspelt step is never looked for there.
"""

Source = Annotated[SourceConfig, BeforeValidator(as_source)]
"""Rows: ``lab/arithmetic``, a file, a hub name, or a mapping with more settings."""


def _as_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _known_suites(value: str) -> str:
    for suite in filter(None, (word.strip() for word in value.split(","))):
        if suite not in SUITES:
            raise ValueError(f"unknown suite {suite!r}. {did_you_mean(suite, SUITES)}")
    return value


NamedTask = Annotated[TaskConfig, BeforeValidator(_as_name)]
"""A task by its name, or a mapping with more settings."""

Suites = Annotated[str, AfterValidator(_known_suites)]

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(MB|GB|TB)")
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def bytes_of(size: str) -> int:
    """A size with its unit, in bytes.

    >>> bytes_of("6GB"), bytes_of("5.5 GB")
    (6000000000, 5500000000)
    """
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise ValueError(f"should be a size with its unit, e.g. 6GB (got {size!r})")
    return round(float(found[1]) * _UNITS[found[2]])


def _known_size(value: str) -> str:
    bytes_of(value)
    return value


Size = Annotated[str, AfterValidator(_known_size)]
"""A size in MB, GB or TB, e.g. ``6GB``."""
