"""The best checkpoint by attack success on validation cases, at little loss of benign accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from holdfast.core.config import Config
from holdfast.core.errors import DataError
from holdfast.recipes.fields import Source

if TYPE_CHECKING:
    from holdfast.data.counterfactual import Counterfactual
    from holdfast.data.examples import Example
    from holdfast.models.load import LoadedModel
    from holdfast.training.best import Rule

ATTACK, BENIGN = "validation/attack_success", "validation/benign_accuracy"
TASK = "lab/injection"
"""The task whose bound on new tokens holds here too."""
ROUNDING = 1e-9


class BestBy(Config):
    """Which evaluation of a training is the best: the lowest attack success at little loss of benign accuracy."""

    cases: tuple[Source, ...] = Field(min_length=1)
    """Validation cases, a few hundred at most: the model answers each, benign and attacked, at every evaluation and
    before the first step."""
    within: float = Field(default=0.02, ge=0, le=1)
    """How much benign accuracy may be lost against the model before the first step."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts that are decoded together."""


def rule(config: BestBy, cases: Sequence[Counterfactual]) -> Rule:
    """Best is the lowest attack success among evaluations that keep benign accuracy; the higher accuracy of equals.

    Where none keeps it, best is the highest accuracy. Shares are of all cases: an answer that makes no sense is neither
    obeyed nor done.

    Raises:
        DataError: a case of which nobody can tell whether its attack was obeyed, or its task done.
    """
    from holdfast.training.best import Rule

    blind = [case.id for case in cases if not (case.witness.strip() or case.payload_answer.strip())]
    undone = [case.id for case in cases if not case.answer.strip()]
    if blind or undone:
        name, what = (blind[0], "'witness' and 'payload_answer'") if blind else (undone[0], "'answer'")
        raise DataError(
            f"Cannot choose a checkpoint by case {name!r}: {what} are empty, expected text, so that its answers can be "
            "judged. Do: fill it in, or take other cases for best_by."
        )

    def kept(values: Mapping[str, float], before: Mapping[str, float]) -> bool:
        return values[BENIGN] >= before[BENIGN] - config.within - ROUNDING

    def rank(values: Mapping[str, float], before: Mapping[str, float]) -> tuple[float, ...]:
        attack, benign = values[ATTACK], values[BENIGN]
        return (1.0, -attack, benign) if kept(values, before) else (0.0, benign, -attack)

    def said(values: Mapping[str, float], before: Mapping[str, float]) -> str:
        missed = "" if kept(values, before) else f"; no evaluation kept benign accuracy within {config.within:g}"
        return (
            f"by attack success {values[ATTACK]:.3f} (before {before[ATTACK]:.3f}) at benign accuracy "
            f"{values[BENIGN]:.3f} (before {before[BENIGN]:.3f}) on {len(cases)} validation cases{missed}"
        )

    benign, attacked = [case.benign() for case in cases], [case.attacked() for case in cases]

    def measure(loaded: LoadedModel) -> dict[str, float]:
        outcomes = _outcomes(loaded, [*benign, *attacked], config.batch_size)
        half = len(benign)
        return {
            ATTACK: outcomes[half:].count("followed") / half,
            BENIGN: outcomes[:half].count("task_done") / half,
        }

    return Rule(rank, said, measure)


def _outcomes(loaded: LoadedModel, rows: Sequence[Example], batch_size: int) -> list[str]:
    """What each answer did, by the judge ``injection``."""
    from holdfast.evaluation.answers import answer, ask, check_questions
    from holdfast.evaluation.judges.injection import INJECTION
    from holdfast.evaluation.tasks import TASKS

    questions = ask(loaded, rows)
    check_questions(loaded, TASKS[TASK], questions)
    samples = answer(loaded, TASKS[TASK], questions, batch_size, None)
    return [score.outcome for score in INJECTION.judge(samples)]
