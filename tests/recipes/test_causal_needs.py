"""What counterfactual training is said to take, at real size and on paper."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.zoo import byte_tokenizer
from transformers import Qwen2Config

from holdfast.core.errors import ConfigError
from holdfast.models.config import ModelConfig
from holdfast.models.describe import describe
from holdfast.recipes.causal_step import CausalStep
from holdfast.recipes.estimate import Needs, estimate
from holdfast.recipes.schema import load_recipe
from holdfast.recipes.train_step import TrainStep

RECIPE = Path(__file__).parents[2] / "recipes" / "causal.yaml"
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "dtype": torch.bfloat16,
}
"""The shape of Qwen2.5-3B."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of 3B parameters that is a configuration and a tokenizer alone, on a machine that is said to fit."""
    Qwen2Config(**LARGE).save_pretrained(tmp_path / "large")
    byte_tokenizer().save_pretrained(tmp_path / "large")
    monkeypatch.setattr("holdfast.models.load.device_of", lambda config: torch.device("cpu"))
    monkeypatch.setattr("holdfast.models.sources.check_weights", lambda *_: None)
    monkeypatch.setattr("holdfast.training.parameters.find_spec", lambda name: True)
    return tmp_path / "large"


def needs(folder: Path, *changes: str) -> Needs:
    return estimate(load_recipe(RECIPE, [f"model.source={folder}", *changes]), RECIPE.name)


def of(found: Needs, step: str) -> float:
    return next(each.memory_bytes for each in found.steps if each.id == step)


def test_the_real_recipe_fits_its_budget_and_says_what_does_not(folder: Path) -> None:
    found = needs(folder)
    assert 3e9 < of(found, "hardened") < 6e9
    assert of(found, "plan") < 6e9
    for change in ("steps.hardened.gradient_checkpointing=false", "steps.hardened.batch_size=4"):
        with pytest.raises(ConfigError, match=r"steps.hardened: needs about \d+\.\d+ GB, over the budget of 6.00 GB"):
            needs(folder, change)
        assert of(needs(folder, change, "budget=40GB"), "hardened") > of(found, "hardened")


def test_every_view_with_gradients_counts(folder: Path) -> None:
    """Three views of eight cases, with the preference's, take what two views of twelve do."""
    two, three = ("steps.hardened.batch_size=12",), ("steps.hardened.batch_size=8", "steps.plan.lambda_preference=0.1")
    found = [of(needs(folder, "budget=400GB", *changes), "hardened") for changes in (two, three)]
    assert found[0] == found[1]


def test_four_bit_training_holds_what_is_not_quantized_in_32_bits(folder: Path) -> None:
    """PEFT casts it so when it prepares a model (prepare_model_for_kbit_training)."""
    paper = describe(ModelConfig(source=str(folder), quantization="4bit"))
    inside = sum(rows * columns for _, rows, columns in paper.matrices)
    assert paper.widened_bytes == 2 * (paper.parameters - inside)
    full: dict[str, Any] = {"source": str(folder), "dtype": "float32", "quantization": "4bit"}
    assert describe(ModelConfig(**full)).widened_bytes == 0


@pytest.mark.parametrize("name", ["causal-lab", "causal-baselines", "story"])
def test_every_step_of_a_quick_training_sees_several_cases(name: str) -> None:
    """Else ten steps learn next to nothing of them, and a dry run tells nothing of the recipe."""
    recipe = load_recipe(RECIPE.with_name(f"{name}.yaml"), quick=True)
    trained = [step for step in recipe.steps.values() if isinstance(step, TrainStep)]
    planned = [(step, recipe.steps[plan]) for step in trained for plan in step.objective]
    seen = {step.batch_size * share_of_cases(step, plan) for step, plan in planned if isinstance(plan, CausalStep)}
    assert min(seen) >= 8


def share_of_cases(step: TrainStep, plan: CausalStep) -> float:
    cases, plain = (sum(source.rows or 0 for source in sources) for sources in (plan.cases, step.data))
    return cases / (cases + plain)
