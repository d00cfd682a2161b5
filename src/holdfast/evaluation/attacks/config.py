"""Settings of an attack."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from holdfast.core.config import Config
from holdfast.core.errors import did_you_mean
from holdfast.evaluation.attacks.defences import DEFENCES, PERPLEXITY
from holdfast.evaluation.tasks import LAB_TOKENS

LAB_CASES = 30
"""Cases of each family of the lab without ``limit``."""


def _known(name: str) -> str:
    if name not in DEFENCES:
        raise ValueError(f"unknown defence {name!r}. {did_you_mean(name, DEFENCES)}")
    return name


class GcgConfig(Config):
    """Budget of the greedy coordinate gradient search, for each case."""

    steps: int = Field(default=100, ge=1)
    """Substitutions at most; the search ends at the first greedy answer that follows the injection."""
    width: int = Field(default=64, ge=1)
    """Substitutions that are tried in one step."""
    candidates: int = Field(default=64, ge=1)
    """At each place, tokens of the steepest gradient that substitutions are drawn from."""
    length: int = Field(default=12, ge=1)
    """Tokens of the suffix."""
    cases: int = Field(default=20, ge=1)
    """Cases that are attacked, drawn by ``seed``; fewer where there are fewer."""


class AttackConfig(Config):
    """What is tried on a model, and what defends it."""

    limit: int | None = Field(default=None, ge=1)
    """Cases of each attack family at most, drawn by ``seed``. Default: all; of the lab 30."""
    families: tuple[str, ...] = ()
    """Attack families that are tried; all of them where it is left out."""
    probes: int = Field(default=300, ge=0)
    """Cases for each of the other questions (triggers, order, quoting, obeyed instructions) and for ``best_of``."""
    defence: Annotated[str, AfterValidator(_known)] = "none"
    """A defence that needs no training: ``none``, ``keyword_drop``, ``keyword_block``, ``perplexity``, ``delimiters``,
    ``reminder``, ``sandwich`` or ``spotlighting``."""
    false_positives: float = Field(default=0.01, gt=0, lt=1)
    """With ``defence: perplexity``: share of clean validation data that the filter may block."""
    best_of: int | None = Field(default=None, ge=1)
    """Random wordings that are tried on a case until one works. Default: no such attack."""
    gcg: GcgConfig | None = None
    """Budget of a search by gradients for a suffix of the injection; ``{}`` is the default budget. Default: no such
    attack."""
    max_new_tokens: int = Field(default=LAB_TOKENS, ge=1)
    """Tokens of an answer."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts that are decoded together."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws, of the wordings and of the searches."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if "false_positives" in self.model_fields_set and self.defence != PERPLEXITY:
            raise ValueError(f"false_positives has no effect with defence: {self.defence}; take it out")
        if self.best_of is not None and not self.probes:
            raise ValueError("best_of is tried on 'probes' cases, and there are 0; raise probes")
        return self
