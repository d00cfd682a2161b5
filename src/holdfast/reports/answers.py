"""Sample answers, before and after on the same prompt. Harmful prompts and answers are shown only in part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from holdfast.core.results import Sample, StepRecord
from holdfast.core.wording import HARMFUL_CHARACTERS, SHOWN_CHARACTERS, cut
from holdfast.reports.names import plain
from holdfast.reports.view import Answer, Exchange, Talk

HARMFUL_OUTPUT = 160
"""Characters shown of an answer to a harmful prompt."""


def talks(sides: Sequence[tuple[str, StepRecord]]) -> tuple[Talk, ...]:
    """Exchanges by task, those whose outcome changed first. ``sides`` are (``before``, step), (``after``, step)."""
    harmful = {
        metric.name.split("/", 1)[1].rpartition("/attack_success_rate")[0]
        for _, step in sides
        for metric in step.metrics
        if metric.name.endswith("/attack_success_rate")
    }
    found: dict[tuple[str, str, int], list[tuple[str, Sample]]] = {}
    for side, step in sides:
        seen: dict[tuple[str, str], int] = defaultdict(int)
        for sample in step.samples:
            key = (sample.task, sample.prompt)
            found.setdefault((*key, seen[key]), []).append((side, sample))
            seen[key] += 1
    by_task: dict[str, list[Exchange]] = {}
    for (task, _, _), answers in found.items():
        by_task.setdefault(task, []).append(_exchange(answers, task in harmful))
    return tuple(
        Talk(task, tuple(sorted(exchanges, key=lambda e: (not e.changed, -len(e.answers)))))
        for task, exchanges in by_task.items()
    )


def _exchange(answers: Sequence[tuple[str, Sample]], harmful: bool) -> Exchange:
    first = answers[0][1]
    length = HARMFUL_CHARACTERS if harmful else SHOWN_CHARACTERS
    prompt = cut(first.prompt, length)
    return Exchange(
        task=first.task,
        group=plain(first.group),
        prompt=prompt,
        shortened=prompt.endswith("…"),
        answers=tuple(
            Answer(side, cut(sample.output, HARMFUL_OUTPUT if harmful else SHOWN_CHARACTERS), plain(sample.outcome))
            for side, sample in answers
        ),
    )
