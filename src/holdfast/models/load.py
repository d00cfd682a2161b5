"""Load a model that is anywhere: the lab's, a folder, the hub, or new; with an adapter on top where asked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from holdfast.core.errors import ConfigError
from holdfast.models.build import new_model
from holdfast.models.chat import ChatFormat
from holdfast.models.config import ModelConfig


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
