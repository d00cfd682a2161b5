"""Tiny models of every family, made in-process: 2 layers, width 32, no download."""

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holdfast.models.build import SPECIAL_TOKENS, new_model
from holdfast.models.chat import ChatFormat
from holdfast.models.load import LoadedModel
from holdfast.models.templates import FOUR_ROLES

_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # random weights this wide make answers that differ from row to row
    "initializer_range": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_BASE},
    "qwen2": {"model_type": "qwen2", **_BASE},
    "qwen3": {"model_type": "qwen3", **_BASE, "head_dim": 8},
    "mistral": {"model_type": "mistral", **_BASE, "head_dim": 8, "sliding_window": 16},
    # Gemma ties its embeddings; tied random ones only ever repeat the last token
    "gemma2": {"model_type": "gemma2", **_BASE, "head_dim": 8, "sliding_window": 16, "tie_word_embeddings": False},
    "gemma3": {"model_type": "gemma3_text", **_BASE, "head_dim": 8, "sliding_window": 16, "tie_word_embeddings": False},
    "phi3": {"model_type": "phi3", **_BASE},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.3,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        **{k: v for k, v in _BASE.items() if k != "num_key_value_heads"},
    },
}
FAMILIES = tuple(CONFIGS)


def byte_tokenizer(*, chat_template: str | None = FOUR_ROLES, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, then the special tokens; with or without a chat template and a pad token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>" if pad else None,
        additional_special_tokens=["<|system|>", "<|user|>", "<|data|>", "<|assistant|>"],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def tiny(family: str, seed: int = 0) -> LoadedModel:
    """A tiny model of the family with random weights, float32, on the CPU."""
    tokenizer = _tokenizer()
    model = new_model(CONFIGS[family], tokenizer, seed)
    model.eval()
    return LoadedModel(model, tokenizer, ChatFormat(tokenizer), f"tiny-{family}", "new", f"tiny-{family}-{seed}")


def tiny_folder(tmp_path: Path, family: str, seed: int = 0) -> Path:
    """The same, saved as a Hugging Face folder."""
    loaded = tiny(family, seed)
    folder = tmp_path / f"tiny-{family}-{seed}"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder
