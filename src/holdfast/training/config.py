"""The keys of a training step."""

from __future__ import annotations

from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from holdfast.core.config import Config

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class LoraConfig(Config):
    """Low-rank adapters (PEFT)."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the delta is ``alpha / rank * B A``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ()
    """Linear layers to adapt, as PEFT matches names (suffixes); empty means every one but the output head."""


class TrainConfig(Config):
    """How to train. Exactly one of ``steps`` and ``epochs`` is given."""

    params: Literal["full", "lora", "qlora"] = "full"
    """What is trained: all weights, a low-rank adapter, or an adapter on a 4-bit base."""
    lora: LoraConfig = LoraConfig()
    """The adapter, when ``params`` is ``lora`` or ``qlora``."""
    loss_over: Literal["tokens", "rows"] = "tokens"
    """What the loss is the mean of: learnt tokens, or rows, each the mean of its own tokens: then short answers
    weigh as much as long ones."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after warm-up; ``linear`` and ``cosine`` end at 0."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the rows."""
    batch_size: int = Field(8, ge=1)
    """Rows (packed lines with ``packing``) per forward pass and process."""
    accumulate: int = Field(1, ge=1)
    """Forward passes per optimizer step. The loss does not depend on how a step is divided."""
    max_length: int = Field(1024, ge=2)
    """Longest row in tokens."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to longer rows; dropped rows are counted in the result's notes."""
    packing: bool = False
    """Put several rows on one line of ``max_length`` tokens; no row attends to another."""
    optimizer: Literal["adamw", "muon", "amsgrad", "sgd", "adafactor"] = "adamw"
    """The optimizer; ``muon`` is Muon for the matrices of linear layers and AdamW for the rest, ``amsgrad`` is AdamW
    with the AMSGrad maximum, ``sgd`` has momentum 0.9."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices; biases and norms are not decayed."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of Adam's second moment."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient over all trained parameters; null turns clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` computes the forward and backward pass under autocast; trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between losses on the validation rows."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better validation loss."""
    keep: Literal["last", "best"] = "last"
    """Which weights are the result: those of the last step or of the best validation loss."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; null saves none but an interrupted run's."""
    trackers: tuple[Tracker, ...] = ()
    """Trackers beside the JSONL log that is always written."""
    seed: int = 0
    """Seed of order, dropout and new adapter weights."""

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps of the whole training, where one pass over the rows has ``epoch``."""
        return self.steps or ceil((self.epochs or 0) * epoch)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.evaluate_every is None and (self.patience is not None or self.keep == "best"):
            raise ValueError("patience and keep: best need evaluate_every")
        if self.params == "full" and "lora" in self.model_fields_set:
            raise ValueError("lora has no effect with params: full; set params: lora")
        if self.optimizer in ("sgd", "adafactor") and "beta2" in self.model_fields_set:
            raise ValueError(f"beta2 has no effect with optimizer: {self.optimizer}")
        return self
