"""What each kind of step does. Everything heavy is imported inside the functions."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from holdfast.core.files import folder_atomically
from holdfast.core.results import Metric, Sample
from holdfast.evaluation.tasks import TASKS
from holdfast.recipes import adapting, front, merging, processes, repairing, retention, rotation, table
from holdfast.recipes.context import (
    LOG_FILE,
    TOKENIZER_FOLDER,
    Context,
    Outcome,
    artifact,
    name_of,
    resolve_model,
    write_base,
)
from holdfast.recipes.schema import CompareStep, EvaluateStep, NewTokenizer, TrainStep

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.models.load import LoadedModel
    from holdfast.training.loop import TrainResult

HARMFUL_CHARACTERS, SHOWN_CHARACTERS = 60, 600
"""How much of a harmful prompt, and of any other text, a report may show."""
CURVES = ("loss", "validation/loss", "learning_rate", "gradient_norm", "tokens_per_second")
"""Series of the training log that go into `run.json`; the whole log stays beside it."""
TOGETHER = "Trained in {n} processes: batch_size counts for each, memory is that of the main one."


def _train(context: Context) -> Outcome:
    from holdfast.data.sources import load_examples
    from holdfast.models.load import load_model
    from holdfast.training.loop import train

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, TrainStep)
    rows = [row for source in step.data for row in load_examples(source)]
    validation = [row for source in step.validation for row in load_examples(source)]
    config = resolve_model(context.recipe, context.step_id, context.out)
    if (wanted := step.tokenizer) is not None:
        processes.on_main(lambda: _new_tokenizer(context, wanted, rows))
    loaded = load_model(config)
    if (config.adapter is not None and step.params != "full") or rotation.starts_in_no_folder(step, config):
        processes.on_main(lambda: write_base(context, loaded))
    if step.baseline is not None and step.constraint is None:
        result = rotation.baseline(context, step, loaded, rows, validation or None)
    else:
        result = train(
            loaded,
            rows,
            step.training(),
            out=context.folder,
            validation=validation or None,
            constraint=None if step.constraint is None else rotation.hold(context, step, loaded),
            resume=context.resume,
        )
    return processes.on_main(lambda: _trained(context, loaded, result))


def _trained(context: Context, loaded: LoadedModel, result: TrainResult) -> Outcome:
    """What a finished training leaves in the record; its checkpoints are no longer needed."""
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
    rate = Metric(name="training/tokens_per_second", value=round(result.tokens_per_second, 1), n=result.steps)
    launched = (TOGETHER.format(n=processes.count()),) if processes.count() > 1 else ()
    step = context.recipe.steps[context.step_id]
    assert isinstance(step, TrainStep)
    proof = rotation.certify(context, step, result.folder) if step.constraint else Outcome()
    return Outcome(
        metrics=(rate, *proof.metrics),
        verdicts=proof.verdicts,
        artifacts=(artifact(context, result.folder), *proof.artifacts),
        curves={name: thinned(curve) for name, curve in result.curves.items() if name in CURVES},
        notes=(*loaded.notes, *result.notes, *launched),
        model_name=name_of(context, loaded),
        peak_bytes=result.peak_bytes,
    )


def _new_tokenizer(context: Context, settings: NewTokenizer, rows: list[Example]) -> None:
    """Train the tokenizer of a new model on the step's own rows; a resumed step keeps the one it has."""
    from holdfast.models.build import train_tokenizer

    folder = context.folder / TOKENIZER_FOLDER
    if not folder.exists():
        made = train_tokenizer(_texts(rows), settings.vocab_size, min_frequency=settings.min_frequency)
        with folder_atomically(folder) as fresh:
            made.save_pretrained(fresh)


def _texts(rows: list[Example]) -> Iterator[str]:
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


def _evaluate(context: Context) -> Outcome:
    from holdfast.core.runtime import peak_bytes
    from holdfast.evaluation.suite import evaluate
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, EvaluateStep)
    config = resolve_model(context.recipe, context.step_id, context.out)
    log = context.folder / LOG_FILE
    loaded = load_model(config)
    result = evaluate(
        loaded,
        step.chosen(),
        limit=step.limit,
        batch_size=step.batch_size,
        seed=step.seed,
        log=log,
        say=context.progress,
        resume=context.resume,
    )
    return Outcome(
        metrics=result.metrics,
        artifacts=(artifact(context, log),),
        samples=tuple(_shown(sample) for sample in result.samples),
        notes=loaded.notes,
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _shown(sample: Sample) -> Sample:
    """A sample as a report may print it: the prompt of a harmful request only as far as its topic."""
    harmful = sample.task in TASKS and TASKS[sample.task].kind in {"harmful", "labelled"}
    return sample.model_copy(
        update={
            "prompt": _cut(sample.prompt, HARMFUL_CHARACTERS if harmful else SHOWN_CHARACTERS),
            "output": _cut(sample.output, SHOWN_CHARACTERS),
        }
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _compare(context: Context) -> Outcome:
    from holdfast.evaluation.compare import compare

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, CompareStep)
    result = compare(context.out / step.before / LOG_FILE, context.out / step.after / LOG_FILE)
    return Outcome(metrics=result.metrics, verdicts=result.verdicts, notes=result.notes)


EXECUTORS: dict[str, Callable[[Context], Outcome]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "basis": rotation.find_basis,
    "importance": rotation.score,
    "mask": rotation.choose,
    "table": table.tabulate,
    "adapter": adapting.take,
    "merge": merging.merge,
    "front": front.compare,
    "retention": retention.measure,
    "repair": repairing.repair,
}
"""How each kind of step runs, by the word that ``do`` has for it."""
SHARED = frozenset({"train"})
"""Kinds of step that every process of a launch takes part in; the main one does the others."""
