"""What of an answer a report may print."""

from __future__ import annotations

from holdfast.core.results import Sample
from holdfast.evaluation.tasks import TASKS

HARMFUL_CHARACTERS, SHOWN_CHARACTERS = 60, 600
"""How much of a harmful prompt, and of any other text, a report may show."""


def shown(sample: Sample) -> Sample:
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
