"""New models and tokenizers, made here: the lab's own, and tiny ones for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from holdfast.core.errors import ConfigError, did_you_mean
from holdfast.models.sources import first_line
from holdfast.models.templates import FOUR_ROLES

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|data|>", "<|assistant|>")
"""Ids 0 to 6 of a tokenizer trained here."""

_WORDS = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Single digits; a word or a run of signs with the space before it; white space."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, the four roles as special tokens and the four-role chat template.

    Any text can be encoded and decoded back byte for byte. EOS is ``<|end|>``, the end of every turn.

    Args:
        vocab_size: Tokens in all, at least 263: 256 bytes and 7 special tokens.
    """
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ConfigError(
            f"tokenizer vocab_size is too small: got {vocab_size}, expected at least {least}. Do: raise it."
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|data|>", "<|assistant|>"],
        chat_template=FOUR_ROLES,
        clean_up_tokenization_spaces=False,
    )


def new_model(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    """A model with random weights from a Transformers configuration; vocabulary and special ids follow the tokenizer.

    Args:
        config: ``model_type`` and that type's own keys, e.g. ``{"model_type": "llama", "hidden_size": 192, ...}``.
        seed: Same seed, same weights, whatever was drawn before.

    Raises:
        ConfigError: unknown ``model_type`` or a key that this type does not have.
    """
    made = model_config(config, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModelForCausalLM.from_config(made, dtype=torch.float32)
        except (ValueError, TypeError, KeyError, RuntimeError) as problem:
            raise ConfigError(
                f"Cannot build a {made.model_type} from model.config: {type(problem).__name__}: {first_line(problem)} "
                "Do: correct model.config."
            ) from problem


def model_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast | None) -> Any:
    """The Transformers configuration that `new_model` builds from."""
    keys = dict(config)
    kind = keys.pop("model_type", None)
    if kind is None:
        raise ConfigError("model.config has no model_type: expected one such as 'llama'. Do: add it.")
    try:
        default = AutoConfig.for_model(kind)
    except ValueError as problem:
        raise ConfigError(
            f"model.config.model_type {kind!r} is unknown to Transformers. Do: use e.g. 'llama'."
        ) from problem
    unknown = [key for key in keys if not hasattr(default, key)]
    if unknown:
        known = set(default.to_dict()) - set(PretrainedConfig().to_dict())
        raise ConfigError(f"model.config: {kind} has no {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
    if tokenizer is not None:
        keys |= _vocabulary(keys, tokenizer)
    try:
        return AutoConfig.for_model(kind, **keys)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as problem:
        raise ConfigError(f"model.config is not a {kind}: {first_line(problem)} Do: correct it.") from problem


def _vocabulary(keys: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Vocabulary size and special ids: the tokenizer's, or larger where the user asks for a larger one."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for key, value in ids.items():
        if key in keys and keys[key] != value:
            raise ConfigError(f"model.config.{key}: got {keys[key]}, expected the tokenizer's {value}. Do: remove it.")
    size = keys.get("vocab_size", len(tokenizer))
    if isinstance(size, int) and size < len(tokenizer):
        raise ConfigError(
            f"model.config.vocab_size: got {size}, expected at least the tokenizer's {len(tokenizer)}. Do: remove it."
        )
    return {**ids, "vocab_size": size}
