"""Constrained SFT: the first tokens of an answer stay near the start model's probabilities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.curvature.passes import longest_first, untouched
from holdfast.data.batches import IGNORE, Batch, Batches, Rows, collate
from holdfast.methods.rotation.baselines import maths
from holdfast.methods.rotation.baselines.config import ConstrainedSft
from holdfast.methods.rotation.baselines.setup import Job, Setup
from holdfast.training.config import TrainConfig
from holdfast.training.loop import encode
from holdfast.training.objective import Composable, NextToken, Term, logits_at, targets_of

Reference = Mapping[bytes, Tensor]
"""Log-probabilities of a row's learnt tokens, in order, by `_key`."""


@dataclass(frozen=True, slots=True)
class Constrained(Composable):
    """The constrained loss of each learnt token, averaged as the plain loss is; the plain loss in evaluation."""

    config: ConstrainedSft
    plain: NextToken
    reference: Reference

    def weights(self, batch: Batch) -> dict[str, float]:
        """Those of the plain loss."""
        return self.plain.weights(batch)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The loss, in float32."""
        if not model.training:
            return self.plain(model, batch)
        row_n, logp_n = _log_probabilities(model, batch)
        reference_n = torch.zeros_like(logp_n)
        place_n = torch.zeros_like(row_n)
        for row in sorted(set(row_n.tolist())):
            here_n = row_n == row
            learnt = self.reference[_key(batch, row)].to(logp_n.device)
            reference_n[here_n], place_n[here_n] = learnt, torch.arange(len(learnt), device=row_n.device)
        keys = self.config
        beta_n = maths.token_betas(place_n, keys.first_beta, keys.early_beta, keys.early_tokens, keys.late_beta)
        each_n = maths.constrained_loss(logp_n, reference_n, beta_n.to(logp_n.dtype))
        return {self.plain.name: self.plain.summed(each_n, row_n)}


def _log_probabilities(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The row of each learnt token and its log-probability, ``(n,)``, row by row and in order within a row."""
    targets, owner = targets_of(batch)
    where = targets != IGNORE
    logits = logits_at(model, batch, where).float()
    return owner[where], logits.log_softmax(-1).gather(-1, targets[where][:, None]).squeeze(-1)


def _key(batch: Batch, row: int) -> bytes:
    """A row of a batch by its tokens and which of them are learnt, wherever it stands and whatever it is called."""
    mine = batch.owner == row
    return torch.stack([batch.input_ids[mine], batch.labels[mine]]).cpu().numpy().tobytes()


@torch.no_grad()
def references(job: Job, rows: Rows) -> Reference:
    """The start model's log-probabilities of every learnt token, in the precision of the training."""
    model, found = job.loaded.model, {}
    device = next(model.parameters()).device
    exact = job.train.precision == "fp32"
    with untouched(model), nullcontext() if exact else torch.autocast(device.type, dtype=torch.bfloat16):
        every = [rows[n] for n in range(len(rows))]
        order = longest_first(every)
        for start in range(0, len(order), job.train.batch_size):
            part = [every[n] for n in order[start : start + job.train.batch_size]]
            batch = collate(part, job.loaded.chat.pad_id).to(device)
            row_n, logp_n = _log_probabilities(model, batch)
            for row in sorted(set(row_n.tolist())):
                found[_key(batch, row)] = logp_n[row_n == row].cpu()
    return found


def _warmed_up(config: ConstrainedSft, job: Job, rows: Rows) -> TrainConfig:
    """The training settings with the baseline's warm-up.

    Raises:
        ConfigError: both warm-ups are set, or the baseline's is longer than the training.
    """
    train = job.train
    if "warmup" in train.model_fields_set:
        if "warmup_steps" in config.model_fields_set:
            raise ConfigError(
                f"two warm-ups: got warmup {train.warmup} and the baseline's warmup_steps {config.warmup_steps}. "
                "Do: leave one of them out."
            )
        return train
    steps = train.steps_of(_steps_per_epoch(train, rows))
    if config.warmup_steps >= steps:
        raise ConfigError(
            f"constrained_sft warms up for {config.warmup_steps} steps: got a training of {steps}, expected more. "
            "Do: set the baseline's warmup_steps lower."
        )
    share = max(0.0, config.warmup_steps - 0.5) / steps
    return train.model_copy(update={"warmup": share})


def _steps_per_epoch(train: TrainConfig, rows: Rows) -> int:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    packed = train.max_length if train.packing else None
    batches = Batches(rows, train.batch_size, 0, pad_id=0, accumulate=train.accumulate, world=world, pack_to=packed)
    return batches.steps_per_epoch


def setup(config: ConstrainedSft, job: Job) -> Setup:
    """The start model looks at every row once, then it is trained."""
    rows = encode(job.loaded, job.rows, job.train, [])
    train = _warmed_up(config, job, rows)
    return Setup(job.rows, train, objective=Constrained(config, job.plain, references(job, rows)))
