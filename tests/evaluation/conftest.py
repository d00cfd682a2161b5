"""What tests of attacks share: answers without a model."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.evaluation.attack_cases import Say

from holdfast.evaluation.judges.base import Sample


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Say], None]:
    """Replace the model's answers by a function of the row."""

    def use(say: Say) -> None:
        def answer(loaded: Any, task: Any, questions: Sequence[Any], batch_size: int, progress: Any) -> list[Sample]:
            return [Sample(question.example, say(question.example), "stop") for question in questions]

        monkeypatch.setattr("holdfast.evaluation.attacks.guard.answer", answer)

    return use
