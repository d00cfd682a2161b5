"""One sentence about a run: what happened, in numbers with intervals."""

from collections.abc import Sequence

from holdfast.core.results import StepRecord


def summarise(steps: Sequence[StepRecord]) -> str:
    """What the finished steps found, or which step stopped the run."""
    stopped = [step for step in steps if step.status != "done"]
    if stopped:
        return f"Step {stopped[0].id} {stopped[0].status}: {' '.join(stopped[0].notes)}"
    return ""
