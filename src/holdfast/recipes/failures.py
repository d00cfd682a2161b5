"""What can stop a step from outside, as a sentence: no memory left, or another process gone."""

from holdfast.core.errors import HoldfastError

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch's allocators (CUDA, MPS, CPU) say it, in small letters."""
PEER_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
"""How torch's process groups (gloo, NCCL) say that another process ended."""
LOWER = {
    "train": "lower batch_size and raise accumulate by as much (the result stays the same), lower max_length, "
    "or set gradient_checkpointing: true",
    "evaluate": "lower batch_size",
    "attack": "lower batch_size",
}
"""What needs less memory, by kind of step."""


class StepStopped(HoldfastError):  # noqa: N818 - nothing was wrong with the step itself
    """The machine could not go on with a step."""


def stopped(problem: BaseException, step_id: str, do: str) -> StepStopped | None:
    """The sentence for a failure of the machine; ``None`` where ``problem`` is something else.

    >>> print(stopped(MemoryError(), "tuned", "evaluate"))
    Step tuned (evaluate) ran out of memory. Do: lower batch_size, then go on with --resume.
    """
    said = str(problem).lower()
    if isinstance(problem, MemoryError) or (isinstance(problem, RuntimeError) and _says(said, NO_MEMORY)):
        first = str(problem).partition("\n")[0].partition(". ")[0].strip().rstrip(".")
        what = f": {first}" if first else ""
        advice = LOWER.get(do, "close other programs")
        return StepStopped(f"Step {step_id} ({do}) ran out of memory{what}. Do: {advice}, then go on with --resume.")
    if isinstance(problem, RuntimeError) and _says(said, PEER_GONE):
        return StepStopped(
            f"Step {step_id} ({do}) lost another process of this run, which ended or was killed. "
            "Do: see what that process said, then go on with --resume."
        )
    return None


def _says(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)
