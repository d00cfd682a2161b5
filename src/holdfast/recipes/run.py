"""Run a recipe step by step. `run.json` is rewritten after each step, so that a crash leaves a readable run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import holdfast
from holdfast.core import runtime
from holdfast.core.errors import ConfigError, HoldfastError, did_you_mean
from holdfast.core.files import put_back, remove_folder
from holdfast.core.results import RunRecord, StepRecord
from holdfast.recipes import processes
from holdfast.recipes.context import SHARED_FOLDER, Context, Outcome, Progress, resolve_model
from holdfast.recipes.failures import stopped
from holdfast.recipes.fingerprint import step_fingerprint
from holdfast.recipes.schema import Recipe
from holdfast.recipes.steps import EXECUTORS, SHARED
from holdfast.recipes.summary import summarise

RUN_FILE = "run.json"
UNFINISHED = "Started and not finished. 'holdfast run --resume', or the same 'holdfast eval', goes on from there."


@dataclass(frozen=True, slots=True)
class Choice:
    """Which steps of a recipe to run."""

    resume: bool = False
    """Reuse finished steps that are unchanged, and continue a half-finished one."""
    only: str = ""
    """Run this step alone; it uses what earlier runs left in the folder."""
    start_from: str = ""
    """Run from this step on; the steps before it must be finished in the folder."""


def run_recipe(
    recipe: Recipe,
    out: Path,
    choice: Choice | None = None,
    *,
    quick: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Run the steps of ``recipe`` in order and leave ``run.json`` in ``out``.

    Under a launcher, every process makes the same call. They train together; all else is done by the main one.

    Args:
        recipe: Validated; with ``quick`` already applied where it was asked for.
        out: Folder of the run. Each step writes into ``out/<step id>``.
        choice: Which steps to run; all of them, from the start, by default.
        quick: Label the record as made from fewer rows.
        say: Called with a line at the start and the end of each step.
        progress: Called within a step with what is done, how many are done and how many there are.
    Returns:
        The record, as it stands in ``run.json``.
    Raises:
        ConfigError: ``out`` holds another run, or one of this recipe that ``choice`` would wipe; an earlier step that
            is needed is missing; a launcher started processes that have nothing to share or would shard the weights.
        HoldfastError: A step failed; ``run.json`` says which, and why.
    """
    choice = choice or Choice()
    if say is None or not processes.is_main():
        say = _mute
    start = processes.on_main(lambda: _start(recipe, out, choice, quick))
    _check_launch(recipe, out)
    record = start.record
    records = {step_id: start.previous[step_id] for step_id in recipe.steps if step_id in start.reused}
    for number, step_id in enumerate(recipe.steps, start=1):
        head = f"[{number}/{len(recipe.steps)}] {step_id} ({recipe.steps[step_id].do})"
        fingerprint = start.fingerprints[step_id]
        if step_id in start.reused:
            say(f"{head}: kept, unchanged")
        elif choice.only in {"", step_id}:
            say(head)
            going_on = choice.resume and _half_done(start.previous.get(step_id), fingerprint)
            context = Context(recipe, step_id, out, records, going_on, progress or _silent)
            record, said = _run_step(context, fingerprint, record)
            records[step_id] = next(step for step in record.steps if step.id == step_id)
            say(f"{head}: done in {records[step_id].seconds:.0f} s")
            for note in records[step_id].notes:
                if note not in said:
                    say(f"  {note}")
    if processes.is_main():
        record.save(out / RUN_FILE)  # where nothing ran, the recipe may still have lost a step
        shutil.rmtree(out / SHARED_FOLDER, ignore_errors=True)
    return record


def _check_launch(recipe: Recipe, out: Path) -> None:
    """Several processes need something to share, and weights that are whole; found now and not after an evaluation."""
    if processes.count() == 1:
        return
    shared = [step_id for step_id, step in recipe.steps.items() if step.do in SHARED]
    if not shared:
        raise ConfigError(
            f"Cannot run {recipe.name} in {processes.count()} processes: got no train step, and only training is "
            "shared. Do: start it without a launcher."
        )
    from holdfast.models.load import device_of
    from holdfast.training.step import make_accelerator

    make_accelerator(device_of(resolve_model(recipe, shared[0], out)), (), out)


def _mute(line: str) -> None:
    """Nothing is said."""


def _silent(what: str, done: int, of: int) -> None:
    """No progress is shown."""


def _run_step(context: Context, fingerprint: str, record: RunRecord) -> tuple[RunRecord, tuple[str, ...]]:
    """Run one step, with a record of it before, after, and on every way out; and those of its notes that were said."""
    step = context.recipe.steps[context.step_id]
    started = time.monotonic()
    runtime.forget_peak()

    def written(status: Literal["done", "failed", "interrupted"], outcome: Outcome) -> RunRecord:
        done = StepRecord(
            id=context.step_id,
            do=step.do,
            config=context.config(),
            status=status,
            fingerprint=fingerprint,
            seconds=round(time.monotonic() - started, 3),
            seed=getattr(step, "seed", context.recipe.seed),
            **outcome.as_fields(),
        )
        fresh = _with_step(record, done, context.recipe)
        if processes.is_main():
            fresh.save(context.out / RUN_FILE)
        return fresh

    def executed() -> Outcome:
        try:
            return EXECUTORS[step.do](context)
        except HoldfastError as problem:
            written("failed", Outcome(notes=(str(problem),)))
            raise
        except KeyboardInterrupt:
            written("interrupted", Outcome(notes=("Stopped with Ctrl-C. " + UNFINISHED,)))
            raise
        except BaseException as problem:
            sentence = stopped(problem, context.step_id, step.do)
            written("failed", Outcome(notes=(str(sentence or f"{type(problem).__name__}: {problem}"),)))
            if sentence is not None:
                raise sentence from problem
            raise

    def begun() -> RunRecord:
        if context.resume:
            put_back(context.folder)
        else:
            remove_folder(context.folder)
        return written("interrupted", Outcome(notes=(UNFINISHED,)))

    processes.on_main(begun)
    outcome = executed() if step.do in SHARED else processes.on_main(executed)
    return processes.on_main(lambda: written("done", outcome)), outcome.said


def _with_step(record: RunRecord, step: StepRecord, recipe: Recipe) -> RunRecord:
    """The record with ``step`` put in (recipe order) and the summary made again."""
    steps = {known.id: known for known in record.steps} | {step.id: step}
    ordered = tuple(steps[step_id] for step_id in recipe.steps if step_id in steps)
    return record.model_copy(update={"steps": ordered, "summary": summarise(ordered, len(recipe.steps))})


@dataclass(frozen=True, slots=True)
class _Start:
    """What is known before the first step."""

    record: RunRecord
    previous: dict[str, StepRecord]
    """Steps that the output folder has a record of."""
    fingerprints: dict[str, str]
    reused: set[str]
    """Ids of the steps whose earlier result stands."""


def _start(recipe: Recipe, out: Path, choice: Choice, quick: bool) -> _Start:
    previous = _previous(recipe, out, choice, quick)
    fingerprints = _fingerprints(recipe)
    reused = _reused(recipe, choice, previous, fingerprints)
    return _Start(_new_record(recipe, quick, previous, choice), previous, fingerprints, reused)


def _new_record(recipe: Recipe, quick: bool, previous: Mapping[str, StepRecord], choice: Choice) -> RunRecord:
    keep = choice.resume or choice.only or choice.start_from
    steps = tuple(previous[step_id] for step_id in recipe.steps if step_id in previous) if keep else ()
    return RunRecord(
        name=recipe.name,
        version=holdfast.__version__,
        git=runtime.git_commit(),
        packages=runtime.package_versions(),
        device=runtime.device_name(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        recipe=recipe.model_dump(mode="json"),
        steps=steps,
        summary=summarise(steps, len(recipe.steps)),
    )


def _fingerprints(recipe: Recipe) -> dict[str, str]:
    found: dict[str, str] = {}
    for step_id in recipe.steps:
        found[step_id] = step_fingerprint(recipe, step_id, found)
    return found


def _previous(recipe: Recipe, out: Path, choice: Choice, quick: bool) -> dict[str, StepRecord]:
    """Steps recorded in ``out``; refuses a folder that is not this recipe's, or whose results would be lost."""
    for wanted in filter(None, (choice.only, choice.start_from)):
        if wanted not in recipe.steps:
            raise ConfigError(f"Recipe {recipe.name} has no step {wanted!r}. {did_you_mean(wanted, recipe.steps)}")
    if not (out / RUN_FILE).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"Output folder {out} holds files that are not a run. Do: give another folder with -o.")
        return {}
    record = RunRecord.load(out)
    if record.name != recipe.name:
        raise ConfigError(
            f"Output folder {out} holds a run of {record.name!r}, expected {recipe.name!r}. "
            "Do: give another folder with -o."
        )
    if not (choice.resume or choice.only or choice.start_from):
        same = record.quick == quick and record.recipe == recipe.model_dump(mode="json")
        asked = "run the steps that are missing" if same else "rerun only the steps that changed"
        raise ConfigError(
            f"Output folder {out} holds a run of {record.name!r}{'' if same else ' with other settings'}, and starting "
            f"anew would wipe it. Do: add --resume to {asked}, or give another folder with -o, or remove it."
        )
    if record.quick != quick:
        was, now = ("with", "without") if record.quick else ("without", "with")
        raise ConfigError(
            f"Output folder {out} holds a run {was} --quick, and this one is {now} it: they share no step. "
            f"Do: {'add' if record.quick else 'take out'} --quick, or give another folder with -o."
        )
    return {step.id: step for step in record.steps}


def _reused(
    recipe: Recipe, choice: Choice, previous: Mapping[str, StepRecord], fingerprints: Mapping[str, str]
) -> set[str]:
    """Ids of the steps whose earlier result stands."""
    fresh = {
        step_id
        for step_id in recipe.steps
        if step_id in previous
        and previous[step_id].status == "done"
        and previous[step_id].fingerprint == fingerprints[step_id]
    }
    order = list(recipe.steps)
    if choice.only:
        needed = _needed(recipe, choice.only)
    elif choice.start_from:
        needed = order[: order.index(choice.start_from)]
    else:
        return fresh if choice.resume else set()
    stale = [step_id for step_id in needed if step_id not in fresh]
    if stale:
        state = "changed since it ran" if stale[0] in previous else "not in the output folder"
        asked = choice.only or choice.start_from
        raise ConfigError(
            f"Cannot start at step {asked!r}: step {stale[0]!r}, which comes before it, is {state}. "
            f"Do: run it first with --only {stale[0]}, or use --resume."
        )
    return set(needed)


def _needed(recipe: Recipe, step_id: str) -> list[str]:
    """The steps whose results ``step_id`` uses, directly or through others, in recipe order."""
    found: set[str] = set()
    waiting = [step_id]
    while waiting:
        inputs = set(recipe.inputs_of(waiting.pop())) - found
        found |= inputs
        waiting += inputs
    return [name for name in recipe.steps if name in found]


def _half_done(step: StepRecord | None, fingerprint: str) -> bool:
    return step is not None and step.status != "done" and step.fingerprint == fingerprint
