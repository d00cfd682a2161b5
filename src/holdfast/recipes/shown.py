"""What of an answer a report may print."""

from __future__ import annotations

from holdfast.core.results import Sample
from holdfast.core.wording import HARMFUL_CHARACTERS, SHOWN_CHARACTERS, cut
from holdfast.evaluation.tasks import TASKS


def shown(sample: Sample) -> Sample:
    """A sample as a report may print it: the prompt of a harmful request only as far as its topic."""
    harmful = sample.task in TASKS and TASKS[sample.task].kind in {"harmful", "labelled"}
    return sample.model_copy(
        update={
            "prompt": cut(sample.prompt, HARMFUL_CHARACTERS if harmful else SHOWN_CHARACTERS),
            "output": cut(sample.output, SHOWN_CHARACTERS),
        }
    )
