"""Where curves go: a JSONL file always, other trackers by name, a bar or a line for the person who waits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import MissingExtra
from holdfast.core.files import write_atomically

if TYPE_CHECKING:
    from accelerate import Accelerator

    from holdfast.training.config import TrainConfig

LINE_EVERY = 30.0
"""Seconds between progress lines where standard error is not a terminal."""
_FAILURES = {"mlflow": ("mlflow.exceptions", "MlflowException"), "wandb": ("wandb.errors", "Error")}
"""What a tracker raises when its server is away or refuses."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Seconds for an answer of MLflow's server, and how often to ask again."""


class Log:
    """``log.jsonl``: one object a line, ``{"step": ..., name: value, ...}``. On resume, later lines are cut off."""

    def __init__(self, path: Path, start: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(path) if row["step"] <= start] if start else []
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.rows: list[dict[str, float]] = kept
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line and flush it."""
        row = {"step": step, **values}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def curves_of(rows: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """The log by column: named series of (step, value)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                curves.setdefault(name, []).append((row["step"], value))
    return curves


class Tracker:
    """One tracker of Accelerate's. When what it talks to fails, it is off from then on, said once; the run goes on."""

    def __init__(self, name: str, folder: Path, said: list[str]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        own: dict[str, tuple[str, dict[str, str]]] = {
            "tensorboard": ("tracking", {"logging_dir": str(folder)}),
            "mlflow": ("holdfast", {"run_name": folder.name}),
            "wandb": ("holdfast", {"name": folder.name, "dir": str(folder)}),
        }
        project, keywords = own[name]
        self.name, self._said = name, said
        self._tracker = LOGGER_TYPE_TO_CLASS[name](project, **keywords)
        self._failure: tuple[type[Exception], ...] = ()
        if name in _FAILURES:
            module, kind = _FAILURES[name]
            self._failure = (getattr(import_module(module), kind),)
        self._on, self._started = True, False

    def start(self, settings: Mapping[str, object]) -> None:
        """Begin a run there, with the settings as its parameters."""

        def begin() -> None:
            self._tracker.start()
            self._started = True
            self._tracker.store_init_configuration(settings)

        self._tried(begin, 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Pass the figures of one step on, names as they are."""
        self._tried(lambda: self._tracker.log(values, step=step), step)

    def finish(self) -> None:
        """End the run there, also one that is off."""
        if self._started:
            with suppress(*self._failure):
                self._tracker.finish()

    def _tried(self, action: Callable[[], object], step: int) -> None:
        from holdfast.models.sources import first_line

        if not self._on:
            return
        try:
            action()
        except self._failure as problem:
            self._on = False
            sentence = (
                f"Tracker {self.name!r} is off from step {step} on: {first_line(problem)} "
                "The run goes on, and log.jsonl has every figure."
            )
            self._said.append(sentence)
            sys.stderr.write(sentence + "\n")


@contextmanager
def tracking(accelerator: Accelerator, config: TrainConfig, said: list[str]) -> Iterator[None]:
    """Start the trackers of ``accelerator``, whose ``log`` then reaches them, and finish them, whatever happens.

    TensorBoard and W&B write beside the log; MLflow where ``MLFLOW_TRACKING_URI`` says, else where it does by itself
    (``mlflow.db`` in the working folder). A tracker whose server fails is off from then on: a line on standard error
    and the same sentence in ``said``.
    """
    if not config.trackers or not accelerator.is_main_process:
        yield
        return
    values = config.model_dump(mode="json")
    values |= {f"lora.{key}": value for key, value in values.pop("lora").items()}
    flat = {key: value if isinstance(value, str | int | float | bool) else str(value) for key, value in values.items()}
    folder = Path(str(accelerator.project_dir))
    with _impatient():
        trackers = [Tracker(str(name), folder, said) for name in accelerator.log_with]
        for tracker in trackers:
            tracker.start(flat)
        accelerator.trackers = trackers
        try:
            yield
        finally:
            for tracker in trackers:
                tracker.finish()


@contextmanager
def _impatient() -> Iterator[None]:
    """Let MLflow wait seconds for its server, where it would wait minutes; what the user has set stays."""
    added = {key: value for key, value in _PATIENCE.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def require(trackers: tuple[str, ...]) -> None:
    """Raise MissingExtra for a tracker whose package is not installed."""
    for name in trackers:
        if find_spec(name) is None:
            raise MissingExtra(f"Tracker {name!r}", name)


class Progress:
    """Steps, loss, tokens/s and time left on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int, start: int, *, show: bool) -> None:
        self._total, self._show, self._bar, self._task = total, show, None, None
        self._start, self._began = start, time.monotonic()
        self._last_line = self._began
        if show and sys.stderr.isatty():
            self._bar, self._task = _bar(total, start)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Step ``step`` is done."""
        if self._bar:
            self._bar.update(self._task, completed=step, loss=loss, speed=tokens_per_second)
            return
        now = time.monotonic()
        if self._show and (now - self._last_line >= LINE_EVERY or step == self._total):
            self._last_line = now
            left = (now - self._began) / max(1, step - self._start) * (self._total - step)
            text = f"step {step}/{self._total}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left:,.0f} s left"
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def _bar(total: int, start: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task("training", total=total, completed=start, loss=float("nan"), speed=0.0)
