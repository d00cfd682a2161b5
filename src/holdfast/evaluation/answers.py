"""Ask the model: prompts to tokens, tokens to answers; text greedily, options by likelihood."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from holdfast.core.errors import DataError
from holdfast.data.batches import Encoded
from holdfast.data.examples import Example
from holdfast.evaluation.forced import counted, read_answers
from holdfast.evaluation.judges.base import Sample
from holdfast.evaluation.plain import LAYOUTS
from holdfast.evaluation.tasks import Task
from holdfast.models.generate import check_context, generate, log_likelihoods
from holdfast.models.load import LoadedModel

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """One row as the model is asked it."""

    example: Example
    text: str
    """What the model sees, for the log."""
    tokens: Encoded
    plain: bool
    """Bare text without a chat template."""


def ask(loaded: LoadedModel, rows: Sequence[Example]) -> list[Question]:
    """Rows as conversations, template applied once."""
    return [
        Question(row, loaded.chat.text(row.messages), loaded.chat.prompt(row.messages, id=row.id), plain=False)
        for row in rows
    ]


def ask_plainly(
    loaded: LoadedModel, rows: Sequence[Example], layout: str, pool: Sequence[Example], shots: int
) -> list[Question]:
    """Rows as bare text for completion, after ``shots`` solved examples; BOS as the tokenizer itself adds it."""
    texts = LAYOUTS[layout].prompts(rows, pool, shots)
    return [
        Question(row, text, _bare_tokens(loaded, text, row.id), plain=True)
        for row, text in zip(rows, texts, strict=True)
    ]


def _bare_tokens(loaded: LoadedModel, text: str, ident: str) -> Encoded:
    ids = tuple(loaded.tokenizer(text)["input_ids"])
    return Encoded(ident, ids, (False,) * len(ids))


def check_questions(loaded: LoadedModel, task: Task, questions: Sequence[Question]) -> None:
    """Find what would stop `answer`, before the model is asked anything.

    Raises:
        DataError: a question does not fit the model's context, or a choice row has no options.
    """
    if task.answer == "choice":
        check_context(loaded, _options(loaded, questions), 0)
    elif task.answer == "forced":
        check_context(loaded, [counted(loaded, question.example) for question in questions], 0)
    else:
        check_context(loaded, [question.tokens for question in questions], task.max_new_tokens)


def answer(
    loaded: LoadedModel, task: Task, questions: Sequence[Question], batch_size: int, progress: Progress | None
) -> list[Sample]:
    """One sample a question, in order.

    Raises:
        DataError: as `check_questions`.
    """
    if task.answer == "choice":
        return _choose(loaded, questions, batch_size, progress)
    if task.answer == "forced":
        return read_answers(loaded, [question.example for question in questions], batch_size, progress)
    made = generate(
        loaded,
        [question.tokens for question in questions],
        max_new_tokens=task.max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    samples = []
    for question, completion in zip(questions, made, strict=True):
        text = LAYOUTS[task.plain].cut(completion.text) if question.plain else loaded.chat.said(completion.text)
        finish = "stop" if question.plain and text != completion.text else completion.finish
        samples.append(Sample(question.example, text, finish))
    return samples


def _choose(
    loaded: LoadedModel, questions: Sequence[Question], batch_size: int, progress: Progress | None
) -> list[Sample]:
    scores = log_likelihoods(loaded, _options(loaded, questions), batch_size)
    samples, at = [], 0
    for question in questions:
        count = len(question.example.options)
        samples.append(_chosen(question.example, tuple(scores[at : at + count])))
        at += count
    if progress is not None:
        progress(len(questions))
    return samples


def _options(loaded: LoadedModel, questions: Sequence[Question]) -> list[Encoded]:
    """Every question once an option, in order."""
    rows: list[Encoded] = []
    for question in questions:
        if not question.example.options:
            raise DataError(f"Row {question.example.id!r} has no options, expected a multiple-choice row.")
        rows += [_option(loaded, question, letter) for letter, _ in _lettered(question.example)]
    return rows


def _lettered(example: Example) -> list[tuple[str, str]]:
    return list(zip(string.ascii_uppercase, example.options, strict=False))


def _chosen(example: Example, scores: tuple[tuple[float, int], ...]) -> Sample:
    """The sample whose output is the letter that a reader of the log expects: the likeliest one."""
    best = max(range(len(scores)), key=lambda i: scores[i][0] / scores[i][1])
    return Sample(example, string.ascii_uppercase[best], "stop", scores)


def _option(loaded: LoadedModel, question: Question, letter: str) -> Encoded:
    """The question answered with ``letter``; only the answer's tokens are scored."""
    if not question.plain:
        return loaded.chat.training(replace(question.example, answer=letter))
    known = len(question.tokens)
    ids = tuple(loaded.tokenizer(f"{question.text} {letter}")["input_ids"])
    return Encoded(question.example.id, ids, tuple(i >= known for i in range(len(ids))))
