"""The keys of a critic: what an answer is worth, how values are taught, how values become weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from holdfast.core.config import Config


class CriticConfig(Config):
    """A critic says what a conversation is worth after each token; a token weighs by what it changes."""

    reward: Literal["exact", "tests", "model", "given"] = "exact"
    """What an answer is worth: 1 where it matches the row's reference (``exact``) or passes the row's tests in the
    sandbox (``tests``), else 0; what ``reward_model`` says (``model``); or what stands in ``answers`` (``given``)."""
    reward_model: str | None = None
    """Of ``reward: model``: folder or hub name of a sequence classifier with one output."""
    answers: str | None = None
    """A file of answers in place of sampled ones. With ``reward: given`` it has columns ``prompt``, ``chosen`` and
    ``rejected``, or ``prompt``, ``answer`` and ``reward``; otherwise any rows with answers."""
    samples: int = Field(default=4, ge=2)
    """Answers that the model is asked for on each question."""
    temperature: float = Field(default=1.0, gt=0)
    """Of these answers."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Of each of these answers."""
    objective: Literal["monte_carlo", "lambda", "pairwise"] = "monte_carlo"
    """What values are taught: the reward of the answer (``monte_carlo``); a mean of the reward and the values on the
    way to it (``lambda``); or that the better answer to a question is worth more than the worse one (``pairwise``)."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of the reward by each token that is still to come."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Of ``objective: lambda``: 1 is the reward alone, 0 the next value alone."""
    backbone: Literal["trunk", "own"] = "trunk"
    """What the value head reads: the states of the model, which stays as it is, or those of a copy that is trained."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the answers, or over the pairs."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Of the head, which reads states of variance 1 where the model stays as it is."""
    backbone_rate: float = Field(default=1e-5, gt=0)
    """Of ``backbone: own``: its learning rate."""
    ridge: float = Field(default=0.3, ge=0)
    """Added to the loss: this times the squared length of the head's weights."""
    batch_size: int = Field(default=16, ge=1)
    """Answers, or pairs, of one step."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the questions that the critic is measured on and does not learn from."""
    decay: float = Field(default=0.0, ge=0, le=1)
    """What a token changes counts also for the tokens before it, times this for each step back (the gamma times lambda
    of generalised advantages); 0 leaves each change to its own token."""
    beta: float = Field(default=1.0, gt=0)
    """A token weighs ``exp(advantage / beta)``, advantages being of mean 0 and variance 1 over all learnt tokens."""
    seed: int = Field(default=0, ge=0)
    """Of the answers, of the questions held out and of the order."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Self:
        given = self.model_fields_set
        unread = {
            "reward_model": "" if self.reward == "model" else f"reward: {self.reward}",
            "lam": "" if self.objective == "lambda" else f"objective: {self.objective}",
            "gamma": "objective: pairwise" if self.objective == "pairwise" else "",
            "backbone_rate": "backbone: trunk" if self.backbone == "trunk" else "",
        }
        if self.answers is not None:
            unread |= dict.fromkeys(("samples", "temperature", "max_new_tokens"), "answers")
        for key, why in unread.items():
            if key in given and why:
                raise ValueError(f"{key} has no effect with {why}; take it out")
        if self.reward == "model" and self.reward_model is None:
            raise ValueError("reward: model needs reward_model, a folder of a sequence classifier")
        if self.reward == "given" and self.answers is None:
            raise ValueError("reward: given needs answers, a file with chosen and rejected, or with rewards")
        return self
