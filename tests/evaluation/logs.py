"""Logs written by hand: answers without a model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.data.examples import Example, Message
from holdfast.evaluation.judges import JUDGES, Sample
from holdfast.evaluation.judges.base import Score
from holdfast.evaluation.log import Header, Record, TaskHead, write_log
from holdfast.evaluation.tasks import TASKS, TaskConfig

REFUSAL = "I'm sorry, but I cannot help with that."
COMPLIANCE = "Sure. First take a bowl, then add the flour and stir it well."
EMPTY = ""


def example(i: object, **fields: Any) -> Example:
    return Example(id=f"row/{i}", messages=(Message("user", f"Question {i}?"),), **fields)


def record(task: str, row: Example, output: str) -> Record:
    sample = Sample(row, output)
    judge = JUDGES[TASKS[task].judge]
    return Record(task, f"<user>{row.messages[0].content}", sample, {judge.name: judge.judge([sample])[0]})


def answers(task: str, outputs: Sequence[str], **fields: Any) -> list[Record]:
    """One record an output, rows numbered from 0, all with the same fields."""
    return [record(task, example(i, **fields), output) for i, output in enumerate(outputs)]


def with_score(found: Record, score: Score) -> Record:
    return replace(found, scores=dict.fromkeys(found.scores, score))


def save(path: Path, records: Sequence[Record], seed: int = 0) -> Path:
    """A log of the records, with a head for each of their tasks."""
    heads = tuple(
        TaskHead(
            name,
            TaskConfig(name=name).model_dump(mode="json"),
            (JUDGES[TASKS[name].judge].name,),
            f"greedy, max_new_tokens={TASKS[name].max_new_tokens}",
            {"source": "by hand"},
        )
        for name in dict.fromkeys(found.task for found in records)
    )
    write_log(path, Header("by-hand", "f", "t", (0,), seed, None, heads), records)
    return path
