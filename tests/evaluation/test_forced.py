"""The model's first choice at each digit of a result, while it reads the right answer."""

from pathlib import Path

import pytest
import torch
from tests.zoo import tiny

from holdfast.core.errors import DataError
from holdfast.data.examples import Example, Message
from holdfast.evaluation.forced import counted, read_answers
from holdfast.evaluation.judges import JUDGES, Sample
from holdfast.evaluation.suite import evaluate, rescore
from holdfast.evaluation.tasks import TaskConfig


def row(i: int, answer: str) -> Example:
    return Example(f"r{i}", (Message("user", f"Add {i}?"),), answer)


def test_only_digits_of_results_count() -> None:
    loaded = tiny("llama")
    marked = counted(loaded, row(0, "12 + 7 = 19. 19 * 2 = 38. #### 38"))
    said = "".join(loaded.chat.decode([i]) for i, mark in zip(marked.ids, marked.response, strict=True) if mark)
    assert said == "193838"
    with pytest.raises(DataError, match="Row 'r1' has no digits of a result"):
        counted(loaded, row(1, "I do not know 5."))


def test_each_token_is_compared_with_the_largest_logit_before_it_one_row_at_a_time() -> None:
    loaded = tiny("llama")
    given = [row(i, f"{i} + 4 = {i + 4}. #### {i + 4}") for i in range(7)]
    samples = read_answers(loaded, given, batch_size=3)
    for example, sample in zip(given, samples, strict=True):
        marked = counted(loaded, example)
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([marked.ids])).logits[0].double()
        at = [place for place, mark in enumerate(marked.response) if mark]
        assert [first for _, first in sample.option_scores] == [
            int(logits[place - 1].argmax() == marked.ids[place]) for place in at
        ]
        wanted = [float(logits[place - 1].log_softmax(-1)[marked.ids[place]]) for place in at]
        assert [value for value, _ in sample.option_scores] == pytest.approx(wanted, abs=1e-4)


def test_the_error_of_a_row_is_its_share_of_tokens_that_are_not_the_first_choice(tmp_path: Path) -> None:
    (score,) = JUDGES["digits"].judge([Sample(row(0, "1"), option_scores=((-0.1, 1), (-3.0, 0), (-0.2, 1), (-0.3, 1)))])
    assert (score.value, score.outcome) == (0.25, "wrong")
    log = tmp_path / "log.jsonl"
    found = evaluate(tiny("llama"), [TaskConfig(name="lab/arithmetic/digits")], limit=3, log=log).metrics
    assert rescore(log) == found
    assert (found[0].name, found[0].higher_is_better) == ("utility/lab/arithmetic/digits/token_error", False)
