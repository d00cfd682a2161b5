"""Which evaluation gives the result: by a rule that measures the model, from before the first step on."""

from pathlib import Path
from typing import Any

import pytest
from tests.training.helpers import config, examples, run, same_bits, weights
from tests.training.test_checkpoints import CrashError, crash_after

from holdfast.core.errors import ConfigError
from holdfast.models.load import LoadedModel
from holdfast.training.best import BY_LOSS, Rule

SETTINGS = config(steps=6, batch_size=4, evaluate_every=1, keep="best", save_every=2)


def norm_of(loaded: LoadedModel) -> float:
    """A number that every step changes, and that draws on no random generator."""
    return float(loaded.model.get_output_embeddings().weight.detach().double().norm())


class Scripted:
    """A rule whose best evaluation is known beforehand; it also measures the weights."""

    def __init__(self, values: dict[int, float], start: int = 0) -> None:
        self.values, self.calls = values, start

    def measure(self, loaded: LoadedModel) -> dict[str, float]:
        found = {"score": self.values[self.calls], "norm": norm_of(loaded)}
        self.calls += 1
        return found

    def rule(self) -> Rule:
        return Rule(
            rank=lambda values, before: (values["score"] - before["score"],),
            said=lambda values, before: f"by a score of {values['score']:g} (before {before['score']:g})",
            measure=self.measure,
        )


SCORES = {0: 5.0, 1: 1.0, 2: 4.0, 3: 2.0, 4: 4.0, 5: 3.0, 6: 0.0}


def test_the_result_is_the_first_evaluation_of_the_highest_rank_and_needs_no_validation_rows(tmp_path: Path) -> None:
    best = run(tmp_path / "a", SETTINGS, best=Scripted(SCORES).rule())
    assert best.notes == ("The result is step 2, by a score of 4 (before 5).",)
    norms = dict(best.curves["norm"])
    assert best.curves["score"] == [(float(step), score) for step, score in SCORES.items()]
    assert norm_of(best.model) == norms[2] != norms[6], "the weights are those of step 2"
    assert "validation/loss" not in best.curves


def test_measuring_changes_no_step(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", config(steps=6, batch_size=4))
    watched = run(tmp_path / "b", SETTINGS.model_copy(update={"keep": "last"}), best=Scripted(SCORES).rule())
    assert same_bits(weights(plain), weights(watched))


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_a_resumed_run_has_the_same_best_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    """Its rule still knows what was measured before the first step, and which evaluation was the best."""
    whole = run(tmp_path / "whole", SETTINGS, best=Scripted(SCORES).rule())
    with monkeypatch.context() as patch:
        crash_after(patch, stopped)
        with pytest.raises(CrashError):
            run(tmp_path / "parts", SETTINGS, best=Scripted(SCORES).rule())
    saved = stopped - stopped % 2
    again = Scripted(SCORES, start=saved + 1 if saved else 0)
    resumed = run(tmp_path / "parts", SETTINGS, best=again.rule(), resume=True)
    assert same_bits(weights(resumed), weights(whole))
    assert resumed.notes == whole.notes
    for name in ("score", "norm", "loss"):
        assert resumed.curves[name] == whole.curves[name]


def test_patience_goes_by_the_rule(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"patience": 2})
    stopped = run(tmp_path, settings, best=Scripted(SCORES).rule())
    assert stopped.steps == 4
    assert stopped.notes == ("The result is step 2, by a score of 4 (before 5).",)


def test_without_a_rule_the_loss_decides_and_validation_rows_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluate_every is set, but there are no validation rows"):
        run(tmp_path / "a", SETTINGS)
    result = run(tmp_path / "b", SETTINGS, validation=examples(4, seed=3))
    losses: list[Any] = result.curves["validation/loss"]
    step, loss = min(losses, key=lambda point: point[1])
    assert result.notes == (f"The result is step {step:.0f}, with the best validation loss {loss:.4f}.",)
    assert BY_LOSS.rank({"validation/loss": 1.0}, {}) > BY_LOSS.rank({"validation/loss": 1.5}, {})
