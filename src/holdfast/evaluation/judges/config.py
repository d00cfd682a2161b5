"""Naming a judge in a recipe: a plain name, or the settings of one that needs a model or an endpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from holdfast.core.config import Config
from holdfast.core.errors import did_you_mean
from holdfast.evaluation.judges import JUDGES
from holdfast.evaluation.judges.base import Judge
from holdfast.evaluation.judges.chat import QUESTION, Endpoint, chat
from holdfast.evaluation.judges.classifier import classifier

Share = Annotated[float, Field(ge=0, le=1)]


class ClassifierJudge(Config):
    """A Hugging Face sequence classifier as a judge."""

    judge: Literal["classifier"]
    source: str
    """Folder or hub name."""
    labels: dict[str, Share]
    """The classifier's labels, each with the value it stands for, e.g. ``{refusal: 1, compliance: 0}``."""
    pairs: bool = True
    """Give it prompt and answer; otherwise the answer alone."""
    batch_size: int = Field(default=16, ge=1)
    """Answers a forward pass."""


class ChatJudge(Config):
    """A chat model behind an OpenAI-compatible endpoint as a judge."""

    judge: Literal["chat"]
    url: str
    """Base URL with its version, e.g. ``http://localhost:8000/v1``."""
    model: str
    key_variable: str = ""
    """Name of the environment variable that holds the key; empty where none is needed."""
    question: str = QUESTION
    """System message; it must ask for ``{"verdict": number}``."""
    seconds: float = Field(default=60.0, gt=0)
    """Per request."""


SETTINGS = ("classifier", "chat")
"""Kinds of judge that have settings."""


def _kind(value: Any) -> str:
    """Which member of `JudgeConfig` a value is meant as.

    Raises:
        ValueError: neither a known name nor a mapping with a known ``judge``; Pydantic puts the key before it.
    """
    if isinstance(value, str):
        if value in JUDGES:
            return "name"
        raise ValueError(f"unknown judge {value!r}. {did_you_mean(value, JUDGES)}")
    kind = value.get("judge") if isinstance(value, dict) else getattr(value, "judge", None)
    if kind in SETTINGS:
        return str(kind)
    if kind is None:
        raise ValueError(f"should be a judge's name, or a mapping with 'judge: {' or '.join(SETTINGS)}'")
    raise ValueError(f"unknown judge {kind!r}. {did_you_mean(str(kind), SETTINGS)}")


def _checked(value: Any) -> Any:
    _kind(value)
    return value


JudgeConfig = Annotated[
    Annotated[str, Tag("name")] | Annotated[ClassifierJudge, Tag("classifier")] | Annotated[ChatJudge, Tag("chat")],
    Discriminator(_kind),
    BeforeValidator(_checked),
]
"""A judge by its name in `JUDGES`, or the settings of one that needs a model or an endpoint."""


def build_judge(which: str | ClassifierJudge | ChatJudge) -> Judge:
    """The judge that a recipe names.

    Raises:
        ConfigError: unknown name (the nearest one is suggested), or settings that cannot work.

    >>> build_judge("prefix").name
    'prefix@1'
    """
    if isinstance(which, ClassifierJudge):
        return classifier(which.source, which.labels, pairs=which.pairs, batch_size=which.batch_size)
    if isinstance(which, ChatJudge):
        endpoint = Endpoint(which.url, which.model, which.key_variable, which.seconds)
        return chat(endpoint, question=which.question)
    return JUDGES[which]
