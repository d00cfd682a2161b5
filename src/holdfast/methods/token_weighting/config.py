"""The keys of token weighting: what scores a token, how scores become weights, and how far ahead is predicted."""

from __future__ import annotations

from typing import Literal, Self, cast

from pydantic import Field, model_validator

from holdfast.core.config import Config

Base = Literal["uniform", "rho1", "critic", "contrast", "entropy", "dft", "column"]
Scorer = Literal["uniform", "rho1", "critic", "contrast", "entropy", "dft", "column", "shuffled", "random_matched"]
Scope = Literal["batch", "sequence", "dataset"]
HeadKind = Literal["parallel", "sequential", "medusa"]

CONTROLS = ("shuffled", "random_matched")
_SELECTED = ("rho1", "contrast", "entropy")
"""Scorers whose scores are ranked; those of the others are weights as they are."""
_SCOPES: dict[str, tuple[Scope, ...]] = {
    "rho1": ("sequence", "batch", "dataset"),
    "entropy": ("sequence", "batch"),
    "dft": ("sequence", "batch"),
    "contrast": ("dataset", "sequence"),
    "critic": ("dataset", "sequence"),
    "column": ("dataset", "sequence"),
}
"""What may be asked of each scorer; the first is what it does unasked."""


class TokenWeightingConfig(Config):
    """Weights of the tokens that are learnt, and heads that predict several of them ahead."""

    scorer: Scorer = "rho1"
    """What says how much a token teaches. ``rho1``: the model's loss minus a reference model's. ``critic``: what a
    value model says the token changes. ``contrast``: the loss of a safety-degraded reference minus that of a utility
    reference, so that tokens which teach harm weigh nothing. ``entropy`` of the model's prediction; ``dft``: the
    model's own probability of the token; ``column``: weights that come with the data; ``uniform``: all the same.
    Controls: ``shuffled`` and ``random_matched``, see ``of``."""
    of: Base = "rho1"
    """The scorer that a control follows: ``shuffled`` permutes its weights among the learnt tokens of each row,
    ``random_matched`` draws weights of the same mean and variance."""
    keep: float = Field(default=0.6, gt=0, le=1)
    """Share of the learnt tokens, those with the highest scores, that weigh anything: all of these the same."""
    soft: float | None = Field(default=None, gt=0)
    """In place of ``keep``: a temperature, weights are in proportion to ``exp(score / soft)``."""
    scope: Scope | None = None
    """Over which tokens shares are taken and weights have mean 1: those of a row (``sequence``), of an optimizer step
    (``batch``), or of all rows (``dataset``; with ``rho1`` by the losses before training). Left out, it is ``sequence``
    for scores that follow the model as it trains, and ``dataset`` for those that do not."""
    clip: tuple[float, float] = (0.0, 10.0)
    """Weights of mean 1 are held between these and brought back to mean 1."""
    reference: Literal["given", "base"] = "given"
    """Of ``rho1``: a model given beside the plan, or the model itself with the adapter that it carries switched off."""
    horizon: int = Field(default=1, ge=1, le=16)
    """How many tokens ahead are predicted. The model's own head predicts the next one, a head beside it each further
    one; 1 has no heads beside it."""
    heads: HeadKind = "parallel"
    """What a further head is: a block beside the others (``parallel``), one after the other (``sequential``), or a
    residual layer (``medusa``)."""
    lambda_heads: float = Field(default=0.3, ge=0)
    """Weight of the loss of each further head; 0 leaves the heads out."""
    warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps in which further heads learn and the model does not learn from them."""
    ramp: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, after these, over which ``lambda_heads`` rises from 0."""
    horizon_weights: Literal["shared", "per_head"] = "shared"
    """Whether a token weighs the same for every head, or each head scores it by its own prediction."""
    seed: int = Field(default=0, ge=0)
    """Of the controls and of new heads."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Self:
        given = self.model_fields_set
        for key, why in self._unread().items():
            if key in given and why:
                raise ValueError(f"{key} has no effect with {why}; take it out")
        if "keep" in given and "soft" in given:
            raise ValueError("keep and soft exclude each other; give one of them")
        if self.scope is not None and self.scope not in (known := _SCOPES[self.base]):
            raise ValueError(f"scope: {self.scope} does not fit scorer: {self.base}; give {' or '.join(known)}")
        low, high = self.clip
        if not 0 <= low < 1 < high:
            raise ValueError(f"clip should be a number from 0 to 1 and one above 1 (got {low:g} and {high:g})")
        if low and self.base == "contrast":
            raise ValueError(
                f"clip should begin at 0 with scorer: contrast (got {low:g}): tokens that teach harm weigh nothing"
            )
        if self.warmup + self.ramp > 1:
            raise ValueError(f"warmup and ramp should be at most 1 together (got {self.warmup + self.ramp:g})")
        if self.is_control and self.base == "uniform":
            raise ValueError(f"scorer: {self.scorer} has no effect with of: uniform; give another scorer")
        return self

    def _unread(self) -> dict[str, str]:
        """Why each key has no effect, or nothing."""
        base = self.base
        scorer = f"scorer: {base}"
        one_head = "horizon: 1" if self.horizon == 1 else "lambda_heads: 0" if not self.lambda_heads else ""
        fixed = "" if self.follows else f"weights that do not follow the model ({scorer})"
        return {
            "of": "" if self.is_control else f"scorer: {self.scorer}",
            "keep": "" if base in _SELECTED else scorer,
            "soft": "" if base in _SELECTED else scorer,
            "scope": scorer if base == "uniform" else "",
            "clip": scorer if base == "uniform" else "",
            "reference": "" if base == "rho1" else scorer,
            "heads": one_head,
            "lambda_heads": "horizon: 1" if self.horizon == 1 else "",
            "warmup": one_head,
            "ramp": one_head,
            "horizon_weights": one_head or (f"scorer: {self.scorer}" if self.is_control else fixed),
            "seed": one_head if not self.is_control else "",
        }

    @property
    def is_control(self) -> bool:
        """Whether the weights are those of another scorer, given to other tokens."""
        return self.scorer in CONTROLS

    @property
    def base(self) -> Base:
        """The scorer, or the one that a control follows."""
        return self.of if self.is_control else cast(Base, self.scorer)

    @property
    def unit(self) -> Scope:
        """``scope``, or what it is where it is left out."""
        return self.scope or _SCOPES.get(self.base, ("sequence",))[0]

    @property
    def follows(self) -> bool:
        """Whether weights follow the model as it trains; otherwise they are known when planned."""
        return self.base in ("rho1", "entropy", "dft") and self.unit != "dataset"

    @property
    def selects(self) -> bool:
        """Whether scores are ranked or put through an exponential; otherwise they are weights."""
        return self.base in _SELECTED

    @property
    def n_heads(self) -> int:
        """Heads beside the model's own."""
        return self.horizon - 1 if self.lambda_heads else 0
