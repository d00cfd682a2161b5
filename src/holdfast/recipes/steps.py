"""What each kind of step does. Everything heavy is imported inside the functions."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.recipes import (
    adapting,
    attacking,
    causal,
    fitting,
    front,
    merging,
    repairing,
    retention,
    rotation,
    table,
    token_weighting,
    verifying,
)
from holdfast.recipes.context import LOG_FILE, Context, Outcome, artifact, name_of, resolve_model
from holdfast.recipes.schema import CompareStep, EvaluateStep
from holdfast.recipes.shown import shown


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
        samples=tuple(shown(sample) for sample in result.samples),
        notes=loaded.notes,
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _compare(context: Context) -> Outcome:
    from holdfast.evaluation.compare import compare

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, CompareStep)
    result = compare(context.out / step.before / LOG_FILE, context.out / step.after / LOG_FILE)
    return Outcome(metrics=result.metrics, verdicts=result.verdicts, notes=result.notes)


EXECUTORS: dict[str, Callable[[Context], Outcome]] = {
    "train": fitting.train,
    "causal": causal.plan,
    "token_weighting": token_weighting.plan,
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
    "attack": attacking.attack,
    "verify": verifying.verify,
}
"""How each kind of step runs, by the word that ``do`` has for it."""
SHARED = frozenset({"train"})
"""Kinds of step that every process of a launch takes part in; the main one does the others."""
