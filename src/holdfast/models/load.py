"""Load a model that is anywhere: the lab's, a folder, the hub, or new; with an adapter on top where asked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from holdfast.core.config import Config
from holdfast.core.errors import ConfigError
from holdfast.models.build import new_model
from holdfast.models.chat import ChatFormat


class ModelConfig(Config):
    """Which model, and how it is held in memory."""

    source: str = "lab"
    """``lab``, a Hugging Face folder, a hub name such as ``org/name``, or ``new`` (random weights from ``config``)."""
    config: dict[str, Any] | None = None
    """For ``new``: ``model_type`` and its keys."""
    tokenizer: str | None = None
    """For ``new``: the folder or hub name of the tokenizer; otherwise the model's own is used."""
    adapter: str | None = None
    """Folder of a PEFT adapter to put on top."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` is the type the weights are stored in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is CUDA where there is one."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Hold the weights in fewer bits (extra ``quant``)."""
    chat_template: str | None = None
    """``plain`` or a .jinja file, in place of the tokenizer's own template."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Only for models you have read."""
    seed: int = 0
    """For ``new``: seed of the random weights."""


@dataclass
class LoadedModel:
    """A model in memory with everything needed to talk to it."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    name: str
    source: str
    fingerprint: str


def load_model(config: ModelConfig) -> LoadedModel:
    """Load what ``config`` describes."""
    if config.source == "new":
        if config.config is None or config.tokenizer is None:
            raise ConfigError("model.source is 'new': expected model.config and model.tokenizer. Do: give both.")
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        model = new_model(config.config, tokenizer, config.seed)
    else:
        source = str(lab_folder()) if config.source == "lab" else config.source
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=config.dtype)
    model.eval()
    return LoadedModel(model, tokenizer, ChatFormat(tokenizer, config.chat_template), config.source, config.source, "")


def lab_folder() -> Path:
    """Folder of the model that ships with the package."""
    return Path(str(resources.files("holdfast.assets"))) / "lab-model"
