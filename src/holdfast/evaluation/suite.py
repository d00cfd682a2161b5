"""Measure a model on tasks, keep every answer, and make the same figures again from what was kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from holdfast.core.config import problems_of
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.results import Metric
from holdfast.core.results import Sample as ReportSample
from holdfast.core.wording import WORDS
from holdfast.data.examples import Example
from holdfast.data.sources import Loaded, SourceConfig, read_source
from holdfast.evaluation.answers import Question, answer, ask, ask_plainly, check_questions
from holdfast.evaluation.attacks.figures import across
from holdfast.evaluation.attacks.tasks import ATTACK_TASKS, AttackTask
from holdfast.evaluation.harness import check_harness, run_harness
from holdfast.evaluation.judges import JUDGES, Judge
from holdfast.evaluation.judges.config import build_judge
from holdfast.evaluation.labels import check_judge
from holdfast.evaluation.log import Header, Part, Parts, Record, TaskHead, read_log, write_log
from holdfast.evaluation.measures import measure
from holdfast.evaluation.metrics import Provenance
from holdfast.evaluation.plain import LAYOUTS
from holdfast.evaluation.tasks import Task, TaskConfig
from holdfast.models.load import LoadedModel

Say = Callable[[str, int, int], None]
"""Called with task, answered rows and rows in all."""
REPORT_SAMPLES = 4
"""Answers a task that are kept for the report."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What an evaluation leaves."""

    metrics: tuple[Metric, ...]
    samples: tuple[ReportSample, ...]
    """A few answers of each task, for the report; all of them are in the log."""
    log: Path | None


def evaluate(  # noqa: PLR0913 - the one door to evaluation; all but two are optional keywords
    loaded: LoadedModel,
    tasks: Sequence[TaskConfig],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    log: Path | None = None,
    say: Say | None = None,
    resume: bool = False,
) -> EvaluationResult:
    """Run ``tasks`` on a model, greedily.

    Whatever can be known to stop a task (sources, judges, prompts too long for the model) stops all of it before the
    first answer. Finished tasks are kept in ``<log>.unfinished`` until the log is written.

    Args:
        limit: At most this many rows a task, drawn by ``seed``. Default: all; for lab tasks `tasks.LAB_LIMIT`.
        seed: Draws rows and bootstrap.
        log: File for the per-sample log.
        say: Progress.
        resume: Go on after the tasks that an interrupted evaluation with the same ``log`` finished; figures and log
            are then those of an uninterrupted one, to the byte. Tasks whose model, rows or settings changed run again.
    Raises:
        HoldfastError: a source cannot be read, a row does not fit, a judge is unknown. Nothing becomes 0.
    """
    chat = loaded.chat
    header = Header(loaded.name, loaded.fingerprint, chat.fingerprint, tuple(chat.stop_ids), seed, limit, ())
    parts = Parts(log, header, resume=resume)
    planned = [_planned(loaded, config, limit, seed, parts, place) for place, config in enumerate(tasks)]
    heads: list[TaskHead] = []
    records: list[Record] = []
    for place, plan in enumerate(planned):
        head, answered = plan.kept or _done(loaded, plan, limit, batch_size, say)
        if plan.kept is None:
            parts.keep(place, head, answered)
        heads.append(head)
        records += answered
    header = replace(header, tasks=tuple(heads))
    if log is not None:
        write_log(log, header, records)
        parts.remove()
    return result_of(header, records, log)


def rescore(log: Path, *, judges: Mapping[str, Judge] | None = None) -> tuple[Metric, ...]:
    """The figures of a log, made again without a model.

    Judges that read text judge again, so a better judge can be tried on old answers; what needed a model, an endpoint
    or a sandbox (`STORED`) is taken from the log. With the judges that wrote it, the result is the same to the last
    bit.

    Args:
        judges: Judges by id that replace known ones.
    Raises:
        DataError: not a log, damaged, or from tasks that no longer exist.
    """
    header, records = read_log(log)
    known = {**JUDGES, **(judges or {})}
    fresh: list[Record] = []
    heads = []
    for head in header.tasks:
        of_task = [record for record in records if record.task == head.name]
        again = [known[_id(name)] for name in head.judges if _id(name) in known and _id(name) not in STORED]
        again += [judge for judge in _plain_judges(head) if judge.name in head.judges]
        fresh += judged(of_task, again)
        renamed = {judge.id: judge.name for judge in again}
        heads.append(replace(head, judges=tuple(renamed.get(_id(name), name) for name in head.judges)))
    return result_of(replace(header, tasks=tuple(heads)), fresh, log).metrics


STORED = frozenset({"code"})
"""Judges whose word is kept from the log when rescoring, beside those with settings and those of a harness."""


def _id(name: str) -> str:
    return name.partition("@")[0]


def judged(records: Sequence[Record], judges: Sequence[Judge]) -> list[Record]:
    """The records with the word of each of ``judges``, in place of what the same judges said before."""
    ids = {judge.id for judge in judges}
    samples = [record.sample for record in records]
    words = {judge.name: judge.judge(samples) for judge in judges}
    return [
        replace(
            record,
            scores={name: score for name, score in record.scores.items() if _id(name) not in ids}
            | {name: scores[i] for name, scores in words.items()},
        )
        for i, record in enumerate(records)
    ]


def _plain_judges(head: TaskHead) -> tuple[Judge, ...]:
    config, task = _stored(head)
    return LAYOUTS[task.plain].judges if _is_native(config) and config.plain else ()


def _stored(head: TaskHead) -> tuple[TaskConfig, Task]:
    """A log's task as it ran.

    Raises:
        DataError: its settings mean nothing to this version.
    """
    try:
        kind = AttackTask if head.name in ATTACK_TASKS else TaskConfig
        config = kind.model_validate(head.config)
        return config, config.task
    except ValidationError as problem:
        reason = "; ".join(problems_of(problem, TaskConfig))
    except ConfigError as problem:
        reason = str(problem).partition(" Do: ")[0].rstrip(".")
    raise DataError(
        f"The log's settings of task {head.name!r} cannot be used: {reason}. "
        "Do: evaluate again, or use the version of Holdfast that wrote the log."
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """A task before the model answers; of a harness' task only its configuration is known then."""

    config: TaskConfig
    head: TaskHead | None = None
    judges: Sequence[Judge] = ()
    questions: Sequence[Question] = ()
    kept: Part | None = None
    """What an interrupted evaluation left of it."""


def _planned(loaded: LoadedModel, config: TaskConfig, limit: int | None, seed: int, parts: Parts, place: int) -> _Plan:
    """Everything about a task that can fail before the model answers."""
    settings = config.model_dump(mode="json")
    if not _is_native(config):
        check_harness(config)
        return _Plan(config, kept=parts.kept(place, settings, None))
    judges, source = _judges_of(config), _read(config, limit, seed)
    head = replace(_head(config, source, judges), labels=check_judge(config, judges[0]))
    kept = parts.kept(place, settings, head)
    if kept is not None:
        return _Plan(config, kept=kept)
    questions = _questions(loaded, config, source.examples)
    check_questions(loaded, config.task, questions)
    return _Plan(config, head, judges, questions)


def _read(config: TaskConfig, limit: int | None, seed: int) -> Loaded:
    """At most ``limit`` rows of a task's source, in order."""
    source = read_source(config.rows(limit, seed))
    examples = source.examples
    if limit is not None and len(examples) > limit:
        chosen = sorted(random.Random(f"limit/{seed}").sample(range(len(examples)), limit))
        examples = [examples[i] for i in chosen]
    return Loaded(examples, replace(source.provenance, rows=len(examples)))


def _judges_of(config: TaskConfig) -> list[Judge]:
    """The judge that makes the figures, then the readings that a plain layout adds."""
    task = config.task
    return [
        build_judge(config.judge or task.judge),
        *(LAYOUTS[task.plain].judges if config.plain else ()),
    ]


def _is_native(config: TaskConfig) -> bool:
    return config.harness == "native"


def _head(config: TaskConfig, source: Loaded, judges: Sequence[Judge]) -> TaskHead:
    task = config.task
    asked = {"choice": "likelihood of each option", "forced": "first choice at each token of the right answer"}
    decoding = asked.get(task.answer, f"greedy, max_new_tokens={task.max_new_tokens}")
    return TaskHead(
        task.name,
        config.model_dump(mode="json"),
        tuple(judge.name for judge in judges),
        f"{decoding}, {config.few_shot or 0}-shot plain text" if config.plain else decoding,
        asdict(source.provenance),
    )


def _questions(loaded: LoadedModel, config: TaskConfig, rows: Sequence[Example]) -> list[Question]:
    task = config.task
    if not config.plain:
        return ask(loaded, rows)
    pool = _shots(config, task) if config.few_shot else []
    return ask_plainly(loaded, rows, task.plain, pool, config.few_shot or 0)


def _done(loaded: LoadedModel, plan: _Plan, limit: int | None, batch_size: int, say: Say | None) -> Part:
    """A task's answers, judged, and how it was run."""
    if plan.head is None:
        return run_harness(loaded, plan.config, limit=limit, batch_size=batch_size)
    return plan.head, judged(_answered(loaded, plan, batch_size, say), plan.judges)


def _answered(loaded: LoadedModel, plan: _Plan, batch_size: int, say: Say | None) -> list[Record]:
    task = plan.config.task
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if say is not None:
            say(task.name, done, len(plan.questions))

    samples = answer(loaded, task, plan.questions, batch_size, progress)
    return [Record(task.name, q.text, sample) for q, sample in zip(plan.questions, samples, strict=True)]


def _shots(config: TaskConfig, task: Task) -> list[Example]:
    if config.shots is not None:
        own = config.shots if config.shots.format else config.shots.model_copy(update={"format": task.format})
        return read_source(own).examples
    return read_source(SourceConfig(source=task.format, split=_SHOT_SPLITS[task.plain])).examples


_SHOT_SPLITS = {"gsm8k": "train", "mmlu": "dev"}


def result_of(header: Header, records: Sequence[Record], log: Path | None) -> EvaluationResult:
    """The figures of a log's records, and a few answers of each task."""
    metrics: list[Metric] = []
    samples: list[ReportSample] = []
    for head in header.tasks:
        of_task = [record for record in records if record.task == head.name]
        if not of_task:
            raise DataError(f"Task {head.name!r} has no answers, expected at least one. Do: evaluate again.")
        for judge in head.judges:
            origin = Provenance(judge, head.decoding, header.seed)
            labels = head.labels if judge == head.judges[0] else None
            metrics += measure(shown_task(head, judge), judge, of_task, origin, labels)
        samples += [_for_report(head, record) for record in of_task[:REPORT_SAMPLES]]
    metrics += across(header, records)
    return EvaluationResult(tuple(metrics), tuple(samples), log)


def shown_task(head: TaskHead, judge: str) -> Task:
    """The task as one of its judges shows it: the first makes its own figure, others are named after the judge."""
    _, task = _stored(head)
    if not task.judge:
        return replace(task, metric=_id(judge), higher_is_better=judge not in head.lower_is_better)
    return task if judge == head.judges[0] else replace(task, metric=_id(judge), breakdown=())


def _for_report(head: TaskHead, record: Record) -> ReportSample:
    """An answer with what its judge said of it: in a word, or by its value where that is a degree."""
    score, task = record.scores[head.judges[0]], shown_task(head, head.judges[0])
    outcome = score.outcome
    if score.value is not None and not task.binary:
        outcome = f"{WORDS.get(task.metric, task.metric)} {score.value:.2f}"
    example = record.sample.example
    prompt = "\n\n".join(message.content for message in example.messages if message.role != "system")
    return ReportSample(
        task=record.task,
        prompt=prompt,
        output=record.sample.output,
        outcome=outcome,
        group=example.attack or example.risk_area,
    )
