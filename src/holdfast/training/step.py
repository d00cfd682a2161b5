"""One optimizer step: exact however it is divided into micro-batches and processes, gated before the weights change."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.data.batches import Batch, Batches
from holdfast.training import gates
from holdfast.training.config import TrainConfig
from holdfast.training.constraint import Constraint, Shadows
from holdfast.training.objective import Objective
from holdfast.training.parameters import block_matrices, learning_rate_factor, make_optimizer

BESIDE = "beside"
"""The name of a model's submodule, while it is trained, with what an objective trains beside it."""
_LAUNCHES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(device: torch.device, trackers: Sequence[str], folder: Path) -> Accelerator:
    """The process group, as `accelerate launch` or `torchrun` set it up; one process otherwise.

    Autocast is left to `Stepper`, so that one process may train several times at different precisions.

    Raises:
        ConfigError: launched with sharding (FSDP, DeepSpeed), which the loop does not support.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=launched and device.type == "cpu",
        device_placement=launched,
        mixed_precision="no",
        log_with=list(trackers) or None,
        project_dir=str(folder),
    )
    if accelerator.distributed_type not in _LAUNCHES:
        kind = accelerator.distributed_type.value
        raise ConfigError(f"Cannot train under {kind}: got sharded weights. Do: launch data-parallel (--multi_gpu).")
    return accelerator


class Stepper:
    """A prepared model, its optimizer and the objective: `step` and `evaluate`."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        config: TrainConfig,
        objective: Objective,
        constraint: Constraint | None,
        steps: int,
    ) -> None:
        self._accelerator, self._config, self._objective, self._steps = accelerator, config, objective, steps
        self._world = accelerator.num_processes
        self.shadows = Shadows(model, constraint)
        self._bare = model
        self._attach()
        self._parameters = self.shadows.parameters(model)
        optimizer = make_optimizer(self._parameters, config, block_matrices(model))
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self._device = next(model.parameters()).device
        self.model.train()
        self.tokens = 0.0
        """Tokens without padding since this process started, over all processes."""
        self.seconds = 0.0

    def _attach(self) -> None:
        """Keep what is trained beside the model in it, in float32, after a constraint has chosen what it holds."""
        beside = nn.ModuleDict(self._objective.modules())
        if beside:
            beside.to(next(self._bare.parameters()).device, torch.float32).requires_grad_(True)
            self._bare.add_module(BESIDE, beside)

    def detach(self) -> None:
        """Take out of the model what was trained beside it."""
        if hasattr(self._bare, BESIDE):
            delattr(self._bare, BESIDE)

    @property
    def speed(self) -> float:
        """Tokens per second, evaluation and saving not counted."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._config.precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _over_processes(self, values: Sequence[float]) -> list[float]:
        """Sums, in float64."""
        if self._world == 1:
            return list(values)
        total = self._accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self._device), "sum")
        summed: list[float] = total.tolist()
        return summed

    def agreed(self, stop: bool) -> bool:
        """Whether any process wants to ``stop``."""
        return bool(self._over_processes([float(stop)])[0])

    def step(self, number: int, batches: Sequence[Batch], stop: bool) -> dict[str, float] | None:
        """Optimizer step ``number`` (from 0), or None when any process wants to ``stop`` before it.

        Returns:
            ``loss``, every term where there are several, the objective's figures, ``learning_rate`` and
            ``gradient_norm`` (before clipping).
        """
        began = time.perf_counter()
        self._objective.begin(number, self._steps)
        each = [self._objective.weights(batch) for batch in batches]
        names = sorted(each[0])
        *sums, stops = self._over_processes([sum(w[name] for w in each) for name in names] + [float(stop)])
        if stops:
            return None
        total = dict(zip(names, sums, strict=True))
        rows = [row for batch in batches for row in batch.row_ids]
        gates.check_targets(total, number + 1, rows)
        losses = self._backward(batches, total, each)
        tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
        *parts, tokens_of_all = self._over_processes([*losses.double().sum(0).tolist(), float(tokens)])
        gates.check_losses(parts, losses, batches, number + 1)
        figures = self._objective.figures()
        norm = self._update(number, rows)
        self.tokens += tokens_of_all
        self.seconds += time.perf_counter() - began
        terms = dict(zip(names, parts, strict=True)) if len(parts) > 1 else {}
        rate = self.optimizer.param_groups[0]["lr"]
        return {"loss": sum(parts), **terms, **figures, "learning_rate": rate, "gradient_norm": norm}

    def _backward(
        self, batches: Sequence[Batch], total: Mapping[str, float], each: Sequence[Mapping[str, float]]
    ) -> Tensor:
        """Accumulate gradients; returns each micro-batch's share of each term, ``(m, k)`` on the CPU."""
        losses = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self._accelerator.no_sync(self.model):
                with self._autocast():
                    terms = self._objective(self.model, batch.to(self._device))
                gates.check_weights(terms, each[number])
                parts = torch.stack([terms[name].sum / total[name] for name in sorted(total)])
                # data-parallel training averages gradients over processes; the step needs their sum
                self._accelerator.backward(parts.sum() * self._world)
            losses.append(parts.detach())
        return torch.stack(losses).cpu()

    def _update(self, number: int, rows: Sequence[str]) -> float:
        self.shadows.pull()
        parameters = list(self._parameters.values())
        norm = float(self._accelerator.clip_grad_norm_(parameters, self._config.clip or math.inf))
        gates.check_gradients(norm, self._parameters, number + 1, rows)
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate * learning_rate_factor(number, self._steps, self._config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.shadows.push()
        return norm

    @torch.no_grad()
    def evaluate(self, data: Batches) -> float:
        """The objective on one pass over ``data``.

        Raises:
            DataError: a term has nothing to measure there.
            NumericsError: the loss is not finite.
        """
        self.model.eval()
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for number in range(data.steps_per_epoch):
            for batch in data.step(number):
                with self._autocast():
                    terms = self._objective(self.model, batch.to(self._device))
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(term.sum)
                    weights[name] = weights.get(name, 0.0) + term.weight
        self.model.train()
        names = sorted(sums)
        totals = self._over_processes([sums[n] for n in names] + [weights[n] for n in names])
        half = len(names)
        return gates.validation_loss(names, totals[:half], totals[half:])
