from pathlib import Path

import peft
import pytest
from tests.zoo import CONFIGS, FAMILIES, tiny, tiny_folder

from holdfast.core.errors import ConfigError
from holdfast.models.config import ModelConfig
from holdfast.models.describe import describe


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_bytes_are_those_of_the_loaded_model(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path, family)
    (folder / "model.safetensors").unlink()
    model = tiny(family).model
    found = describe(ModelConfig(source=str(folder)))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.weight_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert (found.layers, found.hidden, found.context, found.dtype) == (2, 32, 256, "float32")
    assert found.vocabulary == 263


def test_a_lora_has_as_many_parameters_as_peft_makes(tmp_path: Path) -> None:
    found = describe(ModelConfig(source=str(tiny_folder(tmp_path, "llama"))))
    for targets in (("q_proj", "down_proj"), ("self_attn.q_proj",), ("model.layers.1.mlp.up_proj",)):
        tuned = peft.get_peft_model(tiny("llama").model, peft.LoraConfig(r=4, target_modules=[*targets]))
        made = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        assert found.lora_parameters(4, targets) == made > 0
        assert found.lora_parameters(4) > made


def test_a_new_model_is_described_from_its_config(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    found = describe(ModelConfig(source="new", config=CONFIGS["gpt2"], tokenizer=str(folder)))
    assert found.parameters == sum(p.numel() for p in tiny("gpt2").model.parameters())
    assert found.name == "gpt2"


def test_bytes_follow_dtype_and_quantization(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "llama"))
    whole, half = describe(ModelConfig(source=folder)), describe(ModelConfig(source=folder, dtype="bfloat16"))
    four, eight = (describe(ModelConfig(source=folder, quantization=bits)) for bits in ("4bit", "8bit"))
    assert half.weight_bytes * 2 == whole.weight_bytes
    assert four.weight_bytes < eight.weight_bytes < whole.weight_bytes


def test_training_memory_grows_with_what_is_trained_and_with_tokens(tmp_path: Path) -> None:
    found = describe(ModelConfig(source=str(tiny_folder(tmp_path, "llama"))))
    least = found.training_bytes(adapter=100, tokens=64)
    assert least > found.weight_bytes
    assert found.training_bytes(adapter=200, tokens=64) - least == 100 * 16
    assert found.training_bytes(adapter=100, tokens=128) > least
    assert found.training_bytes(adapter=100, tokens=64, checkpointing=True) < least
    assert found.training_bytes(adapter=100, tokens=64, mixed=True) < least
    assert found.checkpoint_bytes(trainable=100) == 1200


def test_all_weights_are_trained_in_float32_whatever_they_are_stored_in(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "llama"))
    whole, half = (describe(ModelConfig(source=folder, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert half.training_bytes(tokens=64) == whole.training_bytes(tokens=64)
    assert whole.training_bytes(tokens=0) == 16 * whole.parameters
    assert half.training_bytes(adapter=10, tokens=0) == 2 * half.parameters + 160


def test_a_broken_configuration_is_one_sentence(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    (folder / "config.json").write_text('{"model_type": "llamma"}')
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json"):
        describe(ModelConfig(source=str(folder)))
