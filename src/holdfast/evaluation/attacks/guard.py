"""Asking a model behind a defence: every answer of an attack comes from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from holdfast.data.examples import Example
from holdfast.evaluation.answers import Progress, Question, answer, ask, check_questions
from holdfast.evaluation.attacks.defences import BLOCKED
from holdfast.evaluation.judges.base import Sample
from holdfast.evaluation.log import Record
from holdfast.evaluation.tasks import Task
from holdfast.models.load import LoadedModel

Guard = Callable[[Sequence[Example]], list[Example | None]]
"""Rows as they are asked under a defence; ``None`` for those it blocks."""


def questions(loaded: LoadedModel, guard: Guard, task: Task, rows: Sequence[Example]) -> list[Question | None]:
    """Each row as the guarded model is asked it; ``None`` where it is blocked.

    Raises:
        DataError: a prompt and its answer do not fit the model's context.
    """
    shown = guard(rows)
    asked = iter(ask(loaded, [row for row in shown if row is not None]))
    found = [None if row is None else next(asked) for row in shown]
    check_questions(loaded, task, [question for question in found if question is not None])
    return found


def answered(
    loaded: LoadedModel,
    task: Task,
    rows: Sequence[Example],
    asked: Sequence[Question | None],
    batch_size: int,
    progress: Progress | None = None,
) -> list[Record]:
    """The answer to each row, not yet judged; a prompt that stands twice is asked once.

    A record has the row as it was before the defence, so that logs under several defences are about the same rows.
    """
    distinct = {question.tokens.ids: question for question in asked if question is not None}
    made = answer(loaded, task, list(distinct.values()), batch_size, progress)
    samples = dict(zip(distinct, made, strict=True))
    records = []
    for row, question in zip(rows, asked, strict=True):
        if question is None:
            records.append(Record(task.name, loaded.chat.text(row.messages), Sample(row, BLOCKED, "stop")))
        else:
            sample = replace(samples[question.tokens.ids], example=row)
            records.append(Record(task.name, question.text, sample))
    return records
