"""The one training loop: data in order, steps, evaluations, checkpoints, the saved result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.core.files import remove_folder
from holdfast.core.runtime import peak_bytes, seed_everything
from holdfast.data.batches import Alternation, Batches, Rows, check_lengths
from holdfast.models.adapter import record_base
from holdfast.models.load import weights_of
from holdfast.models.sources import quiet
from holdfast.training import checkpoints, gates
from holdfast.training.best import BY_LOSS, Rule, Values
from holdfast.training.companion import Companion
from holdfast.training.config import TrainConfig
from holdfast.training.constraint import Constraint
from holdfast.training.interrupts import Interrupts
from holdfast.training.objective import NextToken, Objective
from holdfast.training.parameters import make_trainable
from holdfast.training.step import Stepper, make_accelerator
from holdfast.training.trackers import Log, Progress, curves_of, require, tracking

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.models.load import LoadedModel

Watch = Callable[[int], Mapping[str, float]]
"""Called with the step at every evaluation; what it returns is logged beside the validation loss."""
CHECKPOINTS = "checkpoints"
HELD, HELD_FILE = "held", "coordinates.safetensors"
"""Where what rebuilds the held parameters is kept, under ``out``."""


@dataclass(frozen=True, slots=True)
class Guide:
    """Rows whose steps alternate with those of the task: ``steps`` on these, then ``task_steps`` on the task's."""

    rows: Sequence[Example]
    steps: int
    task_steps: int


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training step leaves behind."""

    model: LoadedModel
    """The trained model; for an adapter, the PEFT model around the base."""
    curves: dict[str, list[tuple[float, float]]]
    """Named series of (step, value); empty on processes other than the first."""
    steps: int
    """Optimizer steps done, over all resumed parts."""
    tokens_per_second: float
    """Tokens without padding, over all processes; time for evaluation and saving not counted."""
    peak_bytes: int
    folder: Path
    """A plain Hugging Face folder (``model``) or PEFT adapter folder (``adapter``)."""
    notes: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    """Those of the notes that standard error has had at once: a tracker is off."""


def train(  # noqa: PLR0913 - the one door to training; all but three are optional keywords
    loaded: LoadedModel,
    rows: Sequence[Example],
    config: TrainConfig,
    *,
    out: Path,
    validation: Sequence[Example] | None = None,
    objective: Objective | None = None,
    constraint: Constraint | None = None,
    guide: Guide | None = None,
    companion: Companion | None = None,
    watch: Watch | None = None,
    best: Rule = BY_LOSS,
    resume: bool = False,
) -> TrainResult:
    """Train ``loaded.model`` in place on ``rows`` and save the result under ``out``.

    ``out`` receives ``log.jsonl``, ``checkpoints/`` and the result, ``model/`` or ``adapter/``. With ``resume`` the
    newest checkpoint there is continued; the end is bit for bit that of an uninterrupted run (CPU). Ctrl-C finishes the
    step, saves a checkpoint and raises KeyboardInterrupt. ``best`` says which evaluation ``keep: best`` and
    ``patience`` go by; one that measures the model itself needs no validation rows.

    Raises:
        DataError: no rows, a row that is too long, a step with nothing to learn, or a full disk.
        NumericsError: a loss or gradient is not finite; raised before the weights change.
        ConfigError: the configuration does not fit the model, the data or the checkpoint.
        MissingExtra: a tracker or the quantization is not installed.
    """
    require(config.trackers)
    seed_everything(config.seed)
    run = _Run(loaded, rows, config, out, validation, guide, best)
    run.prepare(objective or NextToken(over=config.loss_over), constraint, companion or Companion())
    start = run.resume() if resume else run.clear()
    return run.to_the_end(start, watch)


def encode(loaded: LoadedModel, rows: Sequence[Example], config: TrainConfig, notes: list[str]) -> Rows:
    """Tokenise ``rows`` and apply ``max_length``; dropped rows are noted.

    Raises:
        DataError: a row has no answer, or is longer than ``max_length`` and ``too_long`` is ``error``.
    """
    if empty := [row.id for row in rows if not row.answer.strip()]:
        raise DataError(
            f"No answer to learn in {len(empty)} of {len(rows)} rows, the first is row {empty[0]!r}: its 'answer' is "
            "empty, expected text. Do: fill it in, or name the column that holds it, columns: {answer: <its name>}."
        )
    kept = Rows()
    lengths: list[tuple[str, int]] = []
    for row in map(loaded.chat.training, rows):
        lengths.append((row.id, len(row)))
        if len(row) <= config.max_length:
            kept.append(row)
    if config.too_long == "error":
        check_lengths(lengths, config.max_length)
    if dropped := len(lengths) - len(kept):
        notes.append(f"{dropped} of {len(lengths)} rows are longer than {config.max_length} tokens: dropped.")
    return kept


@dataclass
class _Best:
    """The best evaluation so far."""

    rank: tuple[float, ...] = ()
    step: int = 0
    bad: int = 0
    """Evaluations since then."""
    values: Values = field(default_factory=dict)
    before: Values = field(default_factory=dict)
    """What the rule measured before the first step."""


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[Example],
        config: TrainConfig,
        out: Path,
        validation: Sequence[Example] | None,
        guide: Guide | None,
        rule: Rule,
    ) -> None:
        self.loaded, self.config, self.out, self.rule = loaded, config, out, rule
        self.notes: list[str] = []
        self.said: list[str] = []
        self.best = _Best()
        gates.check_setup(loaded.model, config, validation is not None or rule.measure is not None)
        self.accelerator = make_accelerator(next(loaded.model.parameters()).device, config.trackers, out)
        self.main = self.accelerator.is_main_process
        encoded = encode(loaded, rows, config, self.notes)
        task = self._batches(encoded, config.accumulate, shuffle=True)
        self.data: Batches | Alternation = task
        guiding = Rows()
        if guide is not None:
            guiding = encode(loaded, guide.rows, config, self.notes)
            guides = self._batches(guiding, config.accumulate, shuffle=True)
            self.data = Alternation(guides, guide.steps, task, guide.task_steps)
        self.held_out: Batches | None = None
        if validation is not None:
            self.held_out = self._batches(encode(loaded, validation, config, self.notes), 1, shuffle=False)
        self.steps = config.steps_of(self.data.steps_per_epoch)
        self.fingerprint = _fingerprint(config, encoded, guiding, loaded.fingerprint)

    def _batches(self, rows: Rows, accumulate: int, *, shuffle: bool) -> Batches:
        config = self.config
        return Batches(
            rows,
            config.batch_size,
            config.seed,
            pad_id=self.loaded.chat.pad_id,
            accumulate=accumulate,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            pack_to=config.max_length if config.packing else None,
            shuffle=shuffle,
        )

    def prepare(self, objective: Objective, constraint: Constraint | None, companion: Companion) -> None:
        """Choose the trained parameters and make the optimizer."""
        self.companion = companion
        self.dtype = next(self.loaded.model.parameters()).dtype
        if self.config.params == "full" and self.dtype != torch.float32:
            stored = str(self.dtype).removeprefix("torch.")
            self.notes.append(f"The weights are {stored}: trained in float32, then cast back.")
        self.bare: Any = make_trainable(self.loaded.model, self.config)
        self.objective = objective
        self.stepper = Stepper(self.accelerator, self.bare, self.config, objective, constraint, self.steps)

    def to_the_end(self, start: int, watch: Watch | None) -> TrainResult:
        """Train from step ``start`` on, save and return the result."""
        done = start
        with ExitStack() as stack:
            log = stack.enter_context(Log(self.out / "log.jsonl", start)) if self.main else None
            stack.enter_context(tracking(self.accelerator, self.config, self.said))
            interrupts = stack.enter_context(Interrupts())
            progress = stack.enter_context(Progress(self.steps, start, show=self.main))
            if start == 0 and self.config.evaluate_every:
                self.best.before = self._measured()
                if log and self.best.before:
                    log.write(0, self.best.before)
            while done < self.steps and not self._patience_is_over():
                self.companion.begin(done, self.steps, self.bare)
                values = self.stepper.step(done, self.data.step(done), interrupts.wanted)
                if values is None:
                    self._stop(done)
                done += 1
                values["tokens_per_second"] = self.stepper.speed
                if self._is_due(self.config.evaluate_every, done):
                    values |= self._evaluated(done, watch)
                if log:
                    log.write(done, values)
                self.accelerator.log(values, step=done)
                progress.update(done, values["loss"], self.stepper.speed)
                if self.config.save_every and done % self.config.save_every == 0:
                    self.save(done)
            if self.stepper.agreed(interrupts.wanted):
                self._stop(done)
        return self._result(done, curves_of(log.rows) if log else {})

    def _stop(self, done: int) -> NoReturn:
        self.save(done)
        raise KeyboardInterrupt(f"Stopped after step {done} of {self.steps}; a checkpoint is in {self.out}.")

    def _is_due(self, every: int | None, done: int) -> bool:
        return every is not None and (done % every == 0 or done == self.steps)

    def _evaluated(self, done: int, watch: Watch | None) -> dict[str, float]:
        values = {} if self.held_out is None else {"validation/loss": self.stepper.evaluate(self.held_out)}
        values |= self._measured()
        rank = self.rule.rank(values, self.best.before)
        if rank > self.best.rank:
            self.best = _Best(rank, done, 0, dict(values), self.best.before)
            if self.config.keep == "best" and self.main:
                with checkpoints.saving(self.out / CHECKPOINTS / checkpoints.BEST) as fresh:
                    state = {"weights": self._trained(), "held": self.stepper.shadows.state()}
                    torch.save(state, fresh / checkpoints.STATE)
        else:
            self.best.bad += 1
        return values | dict(watch(done) if watch else {})

    def _measured(self) -> dict[str, float]:
        """What the rule asks the model besides; the same on every process."""
        if self.rule.measure is None:
            return {}
        return dict(self.rule.measure(replace(self.loaded, model=self.bare)))

    def _patience_is_over(self) -> bool:
        return self.config.patience is not None and self.best.bad >= self.config.patience

    def _trained(self) -> dict[str, Tensor]:
        """Every trained parameter of the model, held ones as they stand."""
        return {name: p.detach() for name, p in self.bare.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Any]) -> None:
        """Put back the trained parameters and the coordinates of the held ones."""
        for name, parameter in self.bare.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["weights"][name])
        self.stepper.shadows.restore(state["held"])

    def save(self, step: int) -> None:
        """Write a checkpoint after ``step`` optimizer steps."""
        generators = gather_object([checkpoints.rng_state()])
        if self.main:
            state = {
                "step": step,
                "fingerprint": self.fingerprint,
                "weights": self._trained(),
                "held": self.stepper.shadows.state(),
                "companion": self.companion.state(),
                "optimizer": self.stepper.optimizer.state_dict(),
                "best": asdict(self.best),
                "rng": generators,
            }
            checkpoints.save(self.out / CHECKPOINTS, step, state)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the number of steps done."""
        path = checkpoints.latest(self.out / CHECKPOINTS)
        if path is None:
            return self.clear()
        state = checkpoints.load(path, self.fingerprint, self.accelerator.num_processes)
        self._restore(state)
        self.companion.restore(state["companion"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.best = _Best(**state["best"])
        checkpoints.set_rng_state(state["rng"][self.accelerator.process_index])
        return int(state["step"])

    def clear(self) -> int:
        """Remove the checkpoints of an earlier run; returns 0, the number of steps done.

        Raises:
            DataError: one stays, which a later resume would take for this run's.
        """
        if self.main:
            remove_folder(self.out / CHECKPOINTS)
        self.accelerator.wait_for_everyone()
        return 0

    def _result(self, done: int, curves: dict[str, list[tuple[float, float]]]) -> TrainResult:
        self.accelerator.wait_for_everyone()
        if self.config.keep == "best":
            self._restore(checkpoints.load_best(self.out / CHECKPOINTS))
            said = self.rule.said(self.best.values, self.best.before)
            self.notes.append(f"The result is step {self.best.step}, {said}.")
        self.stepper.detach()
        self.notes += self.companion.finish(self.bare)
        self.bare.eval()
        if self.config.gradient_checkpointing:
            self.bare.gradient_checkpointing_disable()
        full = self.config.params == "full"
        if full:
            self.bare.to(self.dtype)
        folder = self.out / ("model" if full else "adapter")
        if self.main:
            with checkpoints.saving(folder) as fresh, quiet():
                self.bare.save_pretrained(fresh)
                self.loaded.save_tokenizer(fresh)
                if not full and self.loaded.weights:
                    record_base(fresh, self.loaded.source, self.loaded.weights)
            self._save_held()
            self.objective.save(self.bare, folder)
        self.accelerator.wait_for_everyone()
        fingerprint = hashlib.sha256(f"{self.fingerprint}/{done}".encode()).hexdigest()
        weights = weights_of(folder) if full and self.main else ""
        model = replace(self.loaded, model=self.bare, source=str(folder), fingerprint=fingerprint, weights=weights)
        notes, told = (*self.notes, *self.said), tuple(self.said)
        return TrainResult(model, curves, done, self.stepper.speed, peak_bytes(), folder, notes, told)

    def _save_held(self) -> None:
        """Keep what rebuilds the held parameters: their coordinates, and an adapter's random start."""
        state = self.stepper.shadows.state()
        kinds = ("coordinates",) if self.config.params == "full" else ("coordinates", "start")
        held = {f"{kind}/{name}": tensor for kind in kinds for name, tensor in state[kind].items()}
        if held:
            with checkpoints.saving(self.out / HELD) as fresh:
                save_file({name: t.contiguous().cpu() for name, t in held.items()}, fresh / HELD_FILE)


def _fingerprint(config: TrainConfig, rows: Rows, guiding: Rows, model: str) -> str:
    digest = hashlib.sha256(f"{model}/{config.model_dump_json()}".encode())
    for part in (rows, guiding):
        for index in range(len(part)):
            row = part[index]
            digest.update(repr((row.id, row.ids, row.response)).encode())
    return digest.hexdigest()
