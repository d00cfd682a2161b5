"""What the step ``do: train`` does: everything is read and planned first, then the loop runs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.files import folder_atomically
from holdfast.core.results import Metric
from holdfast.recipes import best_by, causal, objectives, processes, rotation
from holdfast.recipes.context import TOKENIZER_FOLDER, Context, Outcome, artifact, name_of, resolve_model, write_base
from holdfast.recipes.rows import Rows
from holdfast.recipes.train_step import NewTokenizer, TrainStep

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.methods.rotation.apply import RotationHold
    from holdfast.models.load import LoadedModel
    from holdfast.training.best import Rule
    from holdfast.training.loop import TrainResult
    from holdfast.training.objective import Objective

CURVES = ("loss", "validation/loss", "learning_rate", "gradient_norm", "tokens_per_second")
"""Series of every training's log that go into `run.json`; the whole log stays beside it."""
TOGETHER = "Trained in {n} processes: batch_size counts for each, memory is that of the main one."


@dataclass(frozen=True, slots=True)
class Ready:
    """A training that only has to run."""

    step: TrainStep
    loaded: LoadedModel
    rows: Rows
    objective: Objective | None
    constraint: RotationHold | None
    best: Rule | None


def train(context: Context) -> Outcome:
    """Train, and say what came of it."""
    ready = prepare(context)
    result = run(context, ready, ready.rows.validation)
    return processes.on_main(lambda: _trained(context, ready, result))


def prepare(context: Context) -> Ready:
    """Read the rows, load the model, and plan what is held and what is loss."""
    from holdfast.data.sources import load_all
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, TrainStep)
    own = Rows(load_all(step.data), load_all(step.validation))
    best = None if step.best_by is None else best_by.rule(step.best_by, causal.read(step.best_by.cases))
    config = resolve_model(context.recipe, context.step_id, context.out)
    if (wanted := step.tokenizer) is not None:
        processes.on_main(lambda: _new_tokenizer(context, wanted, own.train))
    loaded = load_model(config)
    if (config.adapter is not None and step.params != "full") or rotation.starts_in_no_folder(step, config):
        processes.on_main(lambda: write_base(context, loaded))
    objective, rows = objectives.goal(context, step, loaded, own)
    held = None if step.constraint is None else rotation.hold(context, step, loaded)
    return Ready(step, loaded, rows, objective, held, best)


def run(context: Context, ready: Ready, validation: Sequence[Example]) -> TrainResult:
    """Train as the step says, or as the baseline that it names does."""
    from holdfast.training.best import BY_LOSS
    from holdfast.training.loop import train as loop

    held_out = list(validation) or None
    if ready.step.baseline is not None and ready.constraint is None:
        return rotation.baseline(context, ready.step, ready.loaded, list(ready.rows.train), held_out)
    return loop(
        ready.loaded,
        ready.rows.train,
        ready.step.training(),
        out=context.folder,
        validation=held_out,
        objective=ready.objective,
        constraint=ready.constraint,
        best=ready.best or BY_LOSS,
        resume=context.resume,
    )


def _trained(context: Context, ready: Ready, result: TrainResult) -> Outcome:
    """What a finished training leaves in the record; its checkpoints are no longer needed."""
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
    rate = Metric(name="training/tokens_per_second", value=round(result.tokens_per_second, 1), n=result.steps)
    launched = (TOGETHER.format(n=processes.count()),) if processes.count() > 1 else ()
    proof = rotation.certify(context, ready.step, result.folder) if ready.step.constraint else Outcome()
    return Outcome(
        metrics=(rate, *proof.metrics),
        verdicts=proof.verdicts,
        artifacts=(artifact(context, result.folder), *proof.artifacts),
        curves={name: thinned(curve) for name, curve in result.curves.items() if _shown(ready, name)},
        notes=(*ready.loaded.notes, *result.notes, *launched),
        said=result.said,
        model_name=name_of(context, ready.loaded),
        peak_bytes=result.peak_bytes,
    )


def _shown(ready: Ready, name: str) -> bool:
    """Of an objective that a step plans every term and figure counts, and what the best evaluation was chosen by."""
    return ready.objective is not None or name in CURVES or (ready.best is not None and name.startswith("validation/"))


def _new_tokenizer(context: Context, settings: NewTokenizer, rows: Sequence[Example]) -> None:
    """Train the tokenizer of a new model on the step's own rows; a resumed step keeps the one it has."""
    from holdfast.models.build import train_tokenizer

    folder = context.folder / TOKENIZER_FOLDER
    if not folder.exists():
        made = train_tokenizer(_texts(rows), settings.vocab_size, min_frequency=settings.min_frequency)
        with folder_atomically(folder) as fresh:
            made.save_pretrained(fresh)


def _texts(rows: Sequence[Example]) -> Iterator[str]:
    for row in rows:
        yield from (message.content for message in row.messages)
        yield row.answer


def thinned(curve: Sequence[tuple[float, float]], points: int = 300) -> list[tuple[float, float]]:
    """A curve of at most ``points`` points, each the mean of a stretch, so that `run.json` stays small.

    >>> thinned([(1, 4.0), (2, 2.0), (3, 1.0)], points=2)
    [(2, 3.0), (3, 1.0)]
    """
    width = math.ceil(len(curve) / points)
    if width <= 1:
        return list(curve)
    stretches = [curve[start : start + width] for start in range(0, len(curve), width)]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]
