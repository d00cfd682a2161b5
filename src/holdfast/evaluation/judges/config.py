"""Naming a judge in a recipe: a plain name, or the settings of one that needs a model or an endpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from holdfast.core.config import Config
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


JudgeConfig = Annotated[ClassifierJudge | ChatJudge, Field(discriminator="judge")]


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
