"""Attack a model: every part asked, judged and logged, then the attackers with a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.data.examples import Example
from holdfast.evaluation.answers import Question
from holdfast.evaluation.attacks.config import AttackConfig
from holdfast.evaluation.attacks.gcg import gcg
from holdfast.evaluation.attacks.guard import Guard, answered, questions
from holdfast.evaluation.attacks.material import Material, draw
from holdfast.evaluation.attacks.perplexity import build_guard
from holdfast.evaluation.attacks.tasks import ATTACK_TASKS, JUDGE, PREFIX, AttackTask
from holdfast.evaluation.attacks.wordings import best_of
from holdfast.evaluation.judges import JUDGES
from holdfast.evaluation.log import Header, Part, Parts, Record, TaskHead, write_log
from holdfast.evaluation.suite import EvaluationResult, Say, judged, result_of
from holdfast.evaluation.tasks import Task
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class _Plan:
    """One part before the model answers."""

    head: TaskHead
    rows: tuple[Example, ...] = ()
    asked: Sequence[Question | None] = ()
    kept: Part | None = None


def attack(
    loaded: LoadedModel,
    material: Material,
    config: AttackConfig,
    *,
    log: Path | None = None,
    say: Say | None = None,
    resume: bool = False,
) -> EvaluationResult:
    """Ask every part of ``material``, then search where the settings give a budget; greedy answers throughout.

    Prompts too long for the model stop all of it before the first answer. Finished parts are kept in
    ``<log>.unfinished`` until the log is written, as `suite.evaluate` does.

    Args:
        resume: Go on after the parts that an interrupted attack with the same ``log`` finished.
    Raises:
        HoldfastError: a prompt does not fit, or a filter cannot be set. Nothing becomes 0.
    """
    guard = build_guard(config.defence, loaded, material.clean, config.false_positives, config.batch_size)
    header = Header(
        loaded.name, loaded.fingerprint, loaded.chat.fingerprint, tuple(loaded.chat.stop_ids), config.seed,
        config.limit, (),
    )  # fmt: skip
    parts = Parts(log, header, resume=resume)
    heads = [_head(name, config, material) for name in _names(material, config)]
    plans = [_planned(loaded, guard, material, head, parts.kept(i, head.config, head)) for i, head in enumerate(heads)]
    records: list[Record] = []
    for place, plan in enumerate(plans):
        made = plan.kept[1] if plan.kept is not None else _done(loaded, guard, material, config, plan, say)
        if plan.kept is None:
            parts.keep(place, plan.head, made)
        records += made
    header = replace(header, tasks=tuple(heads))
    if log is not None:
        write_log(log, header, records)
        parts.remove()
    return result_of(header, records, log)


def _names(material: Material, config: AttackConfig) -> list[str]:
    budgets = [name for name, budget in (("best_of", config.best_of), ("gcg", config.gcg)) if budget is not None]
    return [PREFIX + name for name in (*material.parts, *budgets)]


def _head(name: str, config: AttackConfig, material: Material) -> TaskHead:
    settings = AttackTask(name=name, max_new_tokens=config.max_new_tokens)
    decoding = f"greedy, max_new_tokens={config.max_new_tokens}"
    if name == f"{PREFIX}best_of":
        decoding += f", any of {config.best_of} wordings"
    if name == f"{PREFIX}gcg" and config.gcg is not None:
        decoding += ", " + ", ".join(f"{key}={value}" for key, value in config.gcg.model_dump().items())
    defence = {"name": config.defence, **({"false_positives": config.false_positives} if material.clean else {})}
    return TaskHead(
        name,
        settings.model_dump(mode="json"),
        (JUDGES[JUDGE].name,),
        decoding,
        {**material.provenance, "defence": defence, "probes": config.probes},
    )


def _planned(loaded: LoadedModel, guard: Guard, material: Material, head: TaskHead, kept: Part | None) -> _Plan:
    rows = material.parts.get(head.name.removeprefix(PREFIX), ())
    if kept is not None or not rows:
        return _Plan(head, rows, kept=kept)
    return _Plan(head, rows, questions(loaded, guard, _task(head), rows))


def _task(head: TaskHead) -> Task:
    return AttackTask.model_validate(head.config).task


def _done(
    loaded: LoadedModel, guard: Guard, material: Material, config: AttackConfig, plan: _Plan, say: Say | None
) -> list[Record]:
    """A part's records, judged."""
    task, judge, done = _task(plan.head), JUDGES[JUDGE], 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if say is not None:
            say(task.name, done, of)

    if plan.rows:
        of = len({question.tokens.ids for question in plan.asked if question is not None})
        return judged(answered(loaded, task, plan.rows, plan.asked, config.batch_size, progress), [judge])
    if config.gcg is not None and task.name == ATTACK_TASKS[f"{PREFIX}gcg"].name:
        cases = draw(material.searched, config.gcg.cases, config.seed, "gcg")
        of = len(cases)
        return gcg(
            loaded, guard, task, judge, cases, config.gcg,
            batch_size=config.batch_size, seed=config.seed, progress=progress,
        )  # fmt: skip
    cases = draw(material.searched, config.probes, config.seed, "best_of")
    return best_of(
        loaded, guard, task, judge, cases,
        tries=config.best_of or 1, batch_size=config.batch_size, seed=config.seed,
    )  # fmt: skip
