"""The one training loop: exact over accumulation and processes, gated before every step, resumable bit for bit."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.runtime import peak_bytes, seed_everything
from holdfast.data.batches import Batch, Batches, Encoded, check_lengths
from holdfast.training import checkpoints, gates
from holdfast.training.config import TrainConfig
from holdfast.training.constraint import Constraint, Shadows
from holdfast.training.interrupts import Interrupts
from holdfast.training.objective import NextToken, Objective
from holdfast.training.parameters import learning_rate_factor, make_optimizer, make_trainable
from holdfast.training.trackers import Log, Progress, require

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.models.load import LoadedModel

Watch = Callable[[int], Mapping[str, float]]
"""Called with the step at every evaluation; what it returns is logged beside the validation loss."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training step leaves behind."""

    model: LoadedModel
    """The trained model; for an adapter, the PEFT model around the base."""
    curves: dict[str, list[tuple[float, float]]]
    """Named series of (step, value)."""
    steps: int
    """Optimizer steps done, over all resumed parts."""
    tokens_per_second: float
    """Tokens without padding, over all processes; time for evaluation and saving not counted."""
    peak_bytes: int
    folder: Path
    """A plain Hugging Face folder (``model``) or PEFT adapter folder (``adapter``)."""
    notes: tuple[str, ...] = ()


def train(  # noqa: PLR0913 - the one door to training; all but three are optional keywords
    loaded: LoadedModel,
    rows: Sequence[Example],
    config: TrainConfig,
    *,
    out: Path,
    validation: Sequence[Example] | None = None,
    objective: Objective | None = None,
    constraint: Constraint | None = None,
    watch: Watch | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train ``loaded.model`` in place on ``rows`` and save the result under ``out``.

    ``out`` receives ``log.jsonl``, ``checkpoints/`` and the result, ``model/`` or ``adapter/``. With ``resume`` the
    newest checkpoint there is continued; the end is bit for bit that of an uninterrupted run (CPU). Ctrl-C finishes the
    step, saves a checkpoint and raises KeyboardInterrupt.

    Raises:
        DataError: no rows, a row that is too long, or a step with nothing to learn.
        NumericsError: a loss or gradient is not finite; raised before the weights change.
        ConfigError: the configuration does not fit the model, the data or the checkpoint.
    """
    require(config.trackers)
    seed_everything(config.seed)
    run = _Run(loaded, rows, config, out, validation, objective or NextToken(), constraint)
    start = run.resume() if resume else run.clear()
    return run.to_the_end(start, watch)


def encode(loaded: LoadedModel, rows: Sequence[Example], config: TrainConfig, notes: list[str]) -> list[Encoded]:
    """Tokenise ``rows`` and apply ``max_length``; dropped rows are noted."""
    encoded = [loaded.chat.training(row) for row in rows]
    if config.too_long == "drop":
        kept = [row for row in encoded if len(row) <= config.max_length]
        if dropped := len(encoded) - len(kept):
            notes.append(f"{dropped} of {len(encoded)} rows are longer than {config.max_length} tokens: dropped.")
        return kept
    check_lengths(encoded, config.max_length)
    return encoded


@dataclass
class _Totals:
    """What has been counted since the start of this process."""

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class _Best:
    loss: float = math.inf
    step: int = 0
    bad: int = 0
    """Evaluations since the best one."""


@dataclass
class _Run:
    """The state of one training run."""

    loaded: LoadedModel
    examples: Sequence[Example]
    config: TrainConfig
    out: Path
    validation: Sequence[Example] | None
    objective: Objective
    constraint: Constraint | None
    notes: list[str] = field(default_factory=list)
    best: _Best = field(default_factory=_Best)
    totals: _Totals = field(default_factory=_Totals)

    def __post_init__(self) -> None:
        config, model = self.config, self.loaded.model
        device = next(model.parameters()).device
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision="no", log_with=list(config.trackers) or None
        )
        self.world, self.main = self.accelerator.num_processes, self.accelerator.is_main_process
        self.device = self.accelerator.device
        gates.check_setup(model, config, self.validation is not None)
        rows = encode(self.loaded, self.examples, config, self.notes)
        self.data = self._batches(rows, config.accumulate, shuffle=True)
        self.held_out = None
        if self.validation is not None:
            self.held_out = self._batches(encode(self.loaded, self.validation, config, self.notes), 1, shuffle=False)
        self.steps = config.steps or math.ceil((config.epochs or 0) * self.data.steps_per_epoch)
        self.fingerprint = _fingerprint(config, rows, self.loaded.fingerprint)
        self.dtype = next(model.parameters()).dtype
        if config.params == "full" and self.dtype != torch.float32:
            self.notes.append(f"The weights are {str(self.dtype).removeprefix('torch.')}: trained in float32, then cast back.")
        self.bare = make_trainable(model, config)
        self.shadows = Shadows(self.bare, self.constraint)
        self.parameters = self.shadows.parameters(self.bare)
        optimizer = make_optimizer(self.parameters, config)
        self.model, self.optimizer = self.accelerator.prepare(self.bare, optimizer)
        self.model.train()

    def _batches(self, rows: Sequence[Encoded], accumulate: int, *, shuffle: bool) -> Batches:
        config = self.config
        return Batches(
            rows,
            config.batch_size,
            config.seed,
            pad_id=self.loaded.chat.pad_id,
            accumulate=accumulate,
            rank=self.accelerator.process_index,
            world=self.world,
            pack_to=config.max_length if config.packing else None,
            shuffle=shuffle,
        )

    # One optimizer step

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _over_ranks(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.world == 1:
            return list(values)
        total = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.device), "sum")
        return total.tolist()  # type: ignore[no-any-return]

    def _weights(self, batches: Sequence[Batch], stop: bool) -> tuple[dict[str, float], list[dict[str, float]], bool]:
        """Weight of every term over the step, the same by micro-batch, and whether any process wants to stop."""
        each = [self.objective.weights(batch) for batch in batches]
        names = sorted(each[0])
        sums = self._over_ranks([sum(w[name] for w in each) for name in names] + [float(stop)])
        return dict(zip(names, sums, strict=False)), each, sums[-1] > 0

    def _backward(
        self, batches: Sequence[Batch], total: Mapping[str, float], each: Sequence[Mapping[str, float]]
    ) -> Tensor:
        """Accumulate gradients; returns the loss of every term and micro-batch, ``(m, k)``."""
        losses = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self._autocast():
                    terms = self.objective(self.model, batch)
                gates.check_weights(terms, each[number])
                parts = torch.stack([terms[name].sum / total[name] for name in sorted(total)])
                self.accelerator.backward(parts.sum() * self.world)
            losses.append(parts.detach())
        return torch.stack(losses)

    def step(self, number: int, stop: bool) -> dict[str, float] | None:
        """Optimizer step ``number`` (from 0), or None when a process was asked to stop before it began."""
        began = time.perf_counter()
        host = self.data.step(number)
        batches = [batch.to(self.device) for batch in host]
        total, each, stopping = self._weights(batches, stop)
        if stopping:
            return None
        rows = [row for batch in host for row in batch.row_ids]
        gates.check_targets(total, number + 1, rows)
        losses = self._backward(batches, total, each)
        tokens = float(sum(int(batch.attention_mask.sum()) for batch in host))
        *parts, tokens = self._over_ranks([*losses.double().sum(0).tolist(), tokens])
        gates.check_losses(parts, losses, host, number + 1)
        self.shadows.pull()
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.config.clip or math.inf)
        gates.check_gradients(float(norm), self.parameters, number + 1, rows)
        rate = self.config.learning_rate * learning_rate_factor(number, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.shadows.push()
        self.totals.tokens += tokens
        self.totals.seconds += time.perf_counter() - began
        named = dict(zip(sorted(total), parts, strict=True)) if len(parts) > 1 else {}
        return {"loss": sum(parts), **named, "learning_rate": rate, "gradient_norm": float(norm)}

    @torch.no_grad()
    def evaluate(self) -> float:
        """The objective on the validation rows."""
        if self.held_out is None:
            raise ConfigError("Cannot evaluate: no validation rows were given.")
        self.model.eval()
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for number in range(self.held_out.steps_per_epoch):
            for batch in self.held_out.step(number):
                with self._autocast():
                    terms = self.objective(self.model, batch.to(self.device))
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(term.sum)
                    weights[name] = weights.get(name, 0.0) + term.weight
        self.model.train()
        names = sorted(sums)
        totals = self._over_ranks([sums[n] for n in names] + [weights[n] for n in names])
        half = len(names)
        return sum(s / w for s, w in zip(totals[:half], totals[half:], strict=True) if w)

    # The whole run

    def to_the_end(self, start: int, watch: Watch | None) -> TrainResult:
        """Train from step ``start`` on, save and return the result."""
        log = Log(self.out / "log.jsonl", start) if self.main else None
        if self.config.trackers:
            self.accelerator.init_trackers("holdfast", config=_flat(self.config), init_kwargs={})
        done = start
        with Interrupts() as interrupts, Progress(self.steps, start, show=self.main) as progress:
            while done < self.steps and not self._patience_is_over():
                values = self.step(done, interrupts.wanted)
                if values is None:
                    self.save(done)
                    raise KeyboardInterrupt(
                        f"Stopped after step {done} of {self.steps}; a checkpoint is in {self.out}."
                    )
                done += 1
                values["tokens_per_second"] = self.totals.speed
                if self.config.evaluate_every and (done % self.config.evaluate_every == 0 or done == self.steps):
                    values |= self._evaluated(done, watch)
                if log:
                    log.write(done, values)
                self.accelerator.log(values, step=done)
                progress.update(done, values["loss"], self.totals.speed)
                if self.config.save_every and done % self.config.save_every == 0:
                    self.save(done)
        if self.config.trackers:
            self.accelerator.end_training()
        curves = _curves(log.rows) if log else {}
        if log:
            log.close()
        return self._result(done, curves)

    def _evaluated(self, done: int, watch: Watch | None) -> dict[str, float]:
        loss = self.evaluate()
        if loss < self.best.loss:
            self.best = _Best(loss, done)
            if self.config.keep == "best" and self.main:
                with checkpoints.saving(self.out / "checkpoints" / "best") as fresh:
                    torch.save(self._trained(), fresh / checkpoints.STATE)
        else:
            self.best.bad += 1
        return {"validation/loss": loss, **(watch(done) if watch else {})}

    def _patience_is_over(self) -> bool:
        return self.config.patience is not None and self.best.bad >= self.config.patience

    def _trained(self) -> dict[str, Tensor]:
        """Every trained parameter of the model, held ones as they stand."""
        return {name: p.detach() for name, p in self.bare.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _set_trained(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.bare.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])

    def save(self, step: int) -> None:
        """Write a checkpoint after ``step`` optimizer steps."""
        states = gather_object([checkpoints.rng_state()])
        if self.main:
            state = {
                "step": step,
                "fingerprint": self.fingerprint,
                "weights": self._trained(),
                "held": self.shadows.state(),
                "optimizer": self.optimizer.state_dict(),
                "best": (self.best.loss, self.best.step, self.best.bad),
                "rng": states,
            }
            checkpoints.save(self.out / "checkpoints", step, state)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the number of steps done."""
        path = checkpoints.latest(self.out / "checkpoints")
        if path is None:
            return 0
        state = checkpoints.load(path, self.fingerprint, self.world)
        self._set_trained(state["weights"])
        self.shadows.restore(state["held"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = _Best(*state["best"])
        checkpoints.set_rng_state(state["rng"][self.accelerator.process_index])
        return int(state["step"])

    def clear(self) -> int:
        """Remove what an earlier run left in ``out``; returns 0, the number of steps done."""
        if self.main:
            checkpoints.remove(self.out / "checkpoints")
        self.accelerator.wait_for_everyone()
        return 0

    def _result(self, done: int, curves: dict[str, list[tuple[float, float]]]) -> TrainResult:
        if self.config.keep == "best":
            self._set_trained(checkpoints.load_best(self.out / "checkpoints" / "best"))
            self.notes.append(
                f"The result is step {self.best.step}, with the best validation loss {self.best.loss:.4f}."
            )
        self.accelerator.wait_for_everyone()
        self.bare.eval()
        folder = self.out / ("model" if self.config.params == "full" else "adapter")
        if self.config.params == "full":
            self.bare.to(self.dtype)
        if self.main:
            with checkpoints.saving(folder) as fresh:
                self.bare.save_pretrained(fresh)  # type: ignore[operator]
                self.loaded.tokenizer.save_pretrained(fresh)
        self.accelerator.wait_for_everyone()
        fingerprint = hashlib.sha256(f"{self.loaded.fingerprint}/{self.fingerprint}/{done}".encode()).hexdigest()
        model = replace(self.loaded, model=self.bare, source=str(folder), fingerprint=fingerprint)
        speed, peak = self.totals.speed, peak_bytes()
        return TrainResult(model, curves, done, speed, peak, folder, tuple(self.notes))


def _fingerprint(config: TrainConfig, rows: Sequence[Encoded], model: str) -> str:
    digest = hashlib.sha256(f"{model}/{config.model_dump_json()}".encode())
    for row in rows:
        digest.update(repr((row.id, row.ids, row.response)).encode())
    return digest.hexdigest()


def _flat(config: TrainConfig) -> dict[str, str | int | float | bool]:
    """Trackers take flat, plain values."""
    values = config.model_dump()
    values |= {f"lora.{key}": value for key, value in values.pop("lora").items()}
    return {key: value if isinstance(value, str | int | float | bool) else str(value) for key, value in values.items()}


def _curves(rows: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                curves.setdefault(name, []).append((row["step"], value))
    return curves
