"""Ten steps of every training of a recipe, in a folder that is gone afterwards: does it fit, learn and come back?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError
from holdfast.core.files import sha256_of
from holdfast.core.results import StepRecord
from holdfast.recipes import fitting, processes
from holdfast.recipes.context import Context
from holdfast.recipes.failures import stopped
from holdfast.recipes.fields import bytes_of
from holdfast.recipes.schema import Recipe
from holdfast.recipes.steps import EXECUTORS
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.data.examples import Example

STEPS = 10
PROBED = 16
"""Rows, of those that are trained on, on which the loss is measured."""
TRIMMED: Mapping[str, Any] = {
    "steps": STEPS,
    "epochs": None,
    "evaluate_every": 1,
    "patience": None,
    "keep": "last",
    "save_every": STEPS,
    "best_by": None,
    "trackers": (),
}
"""What ten steps have in place of a step's own settings."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What ten steps of one training showed."""

    id: str
    peak_bytes: int
    budget: int | None
    first: float
    """Loss on the probed rows after the first step; ``last`` after the last one."""
    last: float
    reloads: bool
    """A run that goes on from the checkpoint of the last step saves the same bytes."""

    @property
    def fits(self) -> bool:
        """Within the budget; without one always."""
        return self.budget is None or self.peak_bytes <= self.budget

    @property
    def falls(self) -> bool:
        """The loss on the same rows, in evaluation mode: not noise of other rows or of dropout."""
        return self.last < self.first

    @property
    def passes(self) -> bool:
        """All of it."""
        return self.fits and self.falls and self.reloads


def dry_run(recipe: Recipe, say: Callable[[str], None]) -> tuple[Tried, ...]:
    """Try every train step, with the steps that it stands on; evaluations are left out.

    Args:
        say: Called with a line at the start of each step.
    Raises:
        ConfigError: the recipe trains nothing, or a launcher started several processes.
        HoldfastError: a step failed.
    """
    if processes.count() > 1:
        raise ConfigError("--dry-run works in one process: got several. Do: start it without a launcher.")
    wanted = _wanted(recipe)
    if not wanted:
        raise ConfigError(f"Recipe {recipe.name} has no train step, so --dry-run has nothing to try. Do: run it.")
    short = recipe.model_copy(update={"steps": {name: _shortened(step) for name, step in recipe.steps.items()}})
    tried = []
    with tempfile.TemporaryDirectory(prefix="holdfast-") as place:
        done: dict[str, StepRecord] = {}
        for number, step_id in enumerate(wanted, start=1):
            say(f"[{number}/{len(wanted)}] {step_id} ({recipe.steps[step_id].do})")
            context = Context(short, step_id, Path(place), done, False, lambda *_: None)
            do = recipe.steps[step_id].do
            try:
                if do == "train":
                    tried.append(_tried(context))
                else:
                    EXECUTORS[do](context)
            except (MemoryError, RuntimeError) as problem:
                if (sentence := stopped(problem, step_id, do)) is not None:
                    raise sentence from problem
                raise
    return tuple(tried)


def _wanted(recipe: Recipe) -> list[str]:
    """The train steps and all that they stand on, in order."""
    found = {name for name, step in recipe.steps.items() if isinstance(step, TrainStep)}
    waiting = list(found)
    while waiting:
        more = set(recipe.inputs_of(waiting.pop())) - found
        found |= more
        waiting += more
    return [name for name in recipe.steps if name in found]


def _shortened(step: Any) -> Any:
    return step.model_copy(update=dict(TRIMMED)) if isinstance(step, TrainStep) else step


def _tried(context: Context) -> Tried:
    from holdfast.core import runtime

    runtime.forget_peak()
    ready = fitting.prepare(context)
    probed = _probed(ready.rows.train)
    result = fitting.run(context, ready, probed)
    losses = [loss for _, loss in result.curves["validation/loss"]]
    saved = _weights(result.folder)
    del ready
    again = replace(context, resume=True)
    reloads = _weights(fitting.run(again, fitting.prepare(again), probed).folder) == saved
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
    budget = context.recipe.budget and bytes_of(context.recipe.budget)
    return Tried(context.step_id, result.peak_bytes, budget or None, losses[0], losses[-1], reloads)


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def _probed(rows: Sequence[Example]) -> list[Example]:
    """Rows spread over the shorter half, so that those which are too long and dropped are not among them."""
    by_length = sorted(rows, key=lambda row: len(row.answer) + sum(len(m.content) for m in row.messages))
    shorter = by_length[: max(PROBED, len(rows) // 2)]
    return shorter[:: max(1, len(shorter) // PROBED)][:PROBED]


def table(tried: Sequence[Tried]) -> Iterator[tuple[str, ...]]:
    """A line a training, for people."""
    for each in tried:
        peak = f"{each.peak_bytes / 1e9:.2f} GB"
        over = "" if each.fits else f", OVER THE BUDGET of {(each.budget or 0) / 1e9:.2f} GB"
        falls = "falls" if each.falls else "DOES NOT FALL"
        reloads = "bit-equal" if each.reloads else "DIFFERS"
        yield each.id, peak + over, f"{falls}, {each.first:.4f} to {each.last:.4f}", reloads
