"""The keys of causal: which terms are summed, and where representations are read."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from holdfast.core.config import Config

Tokens = Literal["prompt", "response", "both"]

_OF_SEPARATION = ("temperature", "partners", "guard", "twin")


class CausalConfig(Config):
    """Counterfactual training: what an instruction inside the data may not change."""

    layers: tuple[str, ...] = ()
    """Kinds (``up_proj``), names (``layers.3.up_proj``) or globs of layers whose **inputs** are the representation;
    empty means what the MLP reads at a half, at three quarters and at the end of the model."""
    tokens: Tokens = "both"
    """The representation: at the last token of the prompt, the mean over the tokens of the response, or both."""
    lambda_task: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy of the wanted answer, on benign and on attacked inputs. A term of weight 0 is left
    out."""
    lambda_causal: float = Field(default=0.5, ge=0)
    """Weight of ``invariance``: the KL divergence of the answer's distribution under attack from the benign one."""
    lambda_spurious: float = Field(default=0.5, ge=0)
    """Weight of ``separation``: the representation under attack is near the benign one, away from obedience."""
    lambda_preference: float = Field(default=0.0, ge=0)
    """Weight of ``preference``: under attack the wanted answer over the payload's, beside the start model (DPO)."""
    gradient: Literal["attacked", "both"] = "attacked"
    """Which views ``invariance`` and ``separation`` move: the attacked alone, or all of them, the obeyed too. Only with
    ``both`` do representations part much from those of obedience."""
    temperature: float = Field(default=0.07, gt=0)
    """Of ``separation``: cosines are divided by it."""
    partners: int = Field(default=1, ge=1)
    """Other cases, drawn once for each case, whose obeyed views are negatives beside its own."""
    guard: float = Field(default=0.25, ge=0, lt=1)
    """Of ``separation``: two cases may not come nearer to each other than this share of the undefended model's
    standard deviation; 0 takes the guard away."""
    twin: bool = False
    """The twin is a second positive beside the benign view."""
    beta: float = Field(default=0.1, gt=0)
    """Of ``preference``."""
    samples: int = Field(default=128, ge=8)
    """At most this many cases, the first ones, on which the undefended model's representations are looked at."""
    seed: int = Field(default=0, ge=0)
    """Of the partners."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Self:
        given = self.model_fields_set
        if not (self.lambda_task or self.lambda_causal or self.lambda_spurious or self.lambda_preference):
            raise ValueError("every lambda is 0; give at least one other")
        if not self.lambda_spurious and (unread := [key for key in _OF_SEPARATION if key in given]):
            raise ValueError(f"{unread[0]} has no effect with lambda_spurious: 0; take it out")
        if not self.lambda_preference and "beta" in given:
            raise ValueError("beta has no effect with lambda_preference: 0; take it out")
        if "gradient" in given and not (self.lambda_causal or self.lambda_spurious):
            raise ValueError("gradient has no effect with lambda_causal: 0 and lambda_spurious: 0; take it out")
        return self

    @property
    def kinds(self) -> tuple[Literal["prompt", "response"], ...]:
        """Where the representation is read."""
        return ("prompt", "response") if self.tokens == "both" else (self.tokens,)
