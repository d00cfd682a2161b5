"""Ten steps of every training: what passes, what fails, and that nothing is left behind."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.causal.made_cases import case
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.models.build import new_model
from holdfast.recipes.dry_run import STEPS, dry_run, table
from holdfast.recipes.schema import parse_recipe
from holdfast.training import checkpoints

TRAIN = {"do": "train", "epochs": 3, "batch_size": 4, "max_length": 128, "learning_rate": 1e-2}
LORA = {"params": "lora", "lora": {"rank": 2}}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A full training, then counterfactual training of an adapter on it, chosen by what it answers."""
    folder = tmp_path_factory.mktemp("places")
    tokenizer = byte_tokenizer()
    new_model(CONFIGS["llama"], tokenizer, seed=0).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    cases = [case(n, "train" if n < 12 else "validation") for n in range(16)]
    (folder / "cases.jsonl").write_text("\n".join(json.dumps(each.as_dict()) for each in cases) + "\n")
    rows = [{"prompt": f"Add {i}?", "answer": f"It is {i * 11}."} for i in range(24)]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, plain = str(folder / "cases.jsonl"), str(folder / "plain.jsonl")
    chosen = {"evaluate_every": 2, "keep": "best", "best_by": {"cases": [{"source": source, "split": "validation"}]}}
    steps = {
        "before": {"do": "evaluate", "tasks": ["lab/arithmetic"], "limit": 2},
        "base": {**TRAIN, "data": [plain]},
        "plan": {
            "do": "causal",
            "model": "base",
            "cases": [{"source": source, "split": "train"}],
            "samples": 8,
            "force": True,
        },
        "tuned": {**TRAIN, **LORA, **chosen, "model": "base", "objective": "plan"},
        "after": {"do": "evaluate", "model": "tuned", "tasks": ["lab/arithmetic"], "limit": 2},
        "change": {"do": "compare", "before": "before", "after": "after"},
    }
    return {"name": "dry", "model": str(folder / "tiny"), "steps": steps}


def tried(document: dict[str, Any], *only: str, **keys: Any) -> Any:
    steps = {name: document["steps"][name] for name in only or document["steps"]}
    said: list[str] = []
    found = dry_run(parse_recipe({**document, "steps": steps, **keys}, "dry"), said.append)
    return found, said


def test_every_training_is_tried_on_what_it_stands_on_and_nothing_is_left(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found, said = tried(document, budget="64GB")
    assert said == ["[1/3] base (train)", "[2/3] plan (causal)", "[3/3] tuned (train)"], "no evaluation is run"
    assert [each.id for each in found] == ["base", "tuned"]
    assert all(each.passes for each in found)
    assert all(each.last < each.first and 0 < each.peak_bytes < 64e9 for each in found)
    assert list(tmp_path.iterdir()) == []
    assert [row[0] for row in table(found)] == ["base", "tuned"]


def test_a_loss_that_does_not_fall_and_a_peak_over_the_budget_are_told(document: dict[str, Any]) -> None:
    still = {**document, "steps": {"base": {**document["steps"]["base"], "learning_rate": 1e-30}}}
    (found,), _ = tried(still, budget="1MB")
    assert (found.falls, found.fits, found.reloads, found.passes) == (False, False, True, False)
    (row,) = table([found])
    assert "OVER THE BUDGET of 0.00 GB" in row[1]
    assert row[2].startswith("DOES NOT FALL")


def test_a_checkpoint_that_comes_back_changed_is_told(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoints.load

    def one_bit_off(*given: Any) -> dict[str, Any]:
        state = plain(*given)
        assert state["step"] == STEPS
        name, weight = next(iter(state["weights"].items()))
        state["weights"][name] = torch.nextafter(weight, torch.full_like(weight, 9.0))
        return state

    monkeypatch.setattr(checkpoints, "load", one_bit_off)
    (found,), _ = tried(document, "base")
    assert (found.falls, found.reloads, found.passes) == (True, False, False)
    (row,) = table([found])
    assert row[3] == "DIFFERS"


def test_what_cannot_be_tried_is_a_sentence(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no train step, so --dry-run has nothing to try"):
        tried(document, "before")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("holdfast.training.step.Stepper.step", full)
    with pytest.raises(HoldfastError, match="Step base \\(train\\) ran out of memory"):
        tried(document, "base")
