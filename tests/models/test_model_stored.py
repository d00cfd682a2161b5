from pathlib import Path
from typing import Any

import pytest
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.errors import ConfigError, DataError, LayerError
from holdfast.models.build import new_model
from holdfast.models.config import ModelConfig
from holdfast.models.describe import describe
from holdfast.models.stored import check_output_head, tensor_names


def saved(folder: Path, *, tied: bool = False, head: bool = True, **options: Any) -> Path:
    """A tiny Llama, whole or without its output head."""
    model = new_model({**CONFIGS["llama"], "tie_word_embeddings": tied}, byte_tokenizer(), seed=0)
    (model if head else model.model).save_pretrained(folder, **options)
    return folder


def check(folder: Path) -> None:
    check_output_head(describe(ModelConfig(source=str(folder))).skeleton, folder)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_names_are_those_of_all_files_and_a_model_without_its_head_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    whole, headless = saved(tmp_path / "whole", **options), saved(tmp_path / "headless", head=False, **options)
    assert (tmp_path / "whole" / "model.safetensors.index.json").exists() == bool(options)
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"} <= tensor_names(whole)
    check(whole)
    with pytest.raises(LayerError, match=r"headless: got a LlamaModel without lm_head.weight, expected .*ForCausalLM"):
        check(headless)


def test_embeddings_that_are_the_head_are_enough(tmp_path: Path) -> None:
    check(saved(tmp_path / "tied", tied=True, head=False))


def test_damaged_names_are_an_error(tmp_path: Path) -> None:
    assert tensor_names(tmp_path) == frozenset()
    (tmp_path / "model.safetensors").write_bytes(b"12345678{")
    with pytest.raises(DataError, match=r"Cannot read .*model.safetensors: "):
        tensor_names(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConfigError, match="no list of weights"):
        tensor_names(tmp_path)
