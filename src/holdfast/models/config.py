"""The keys that say which model. Torch-free, so that a recipe can be read without loading anything."""

from __future__ import annotations

from typing import Any, Literal

from holdfast.core.config import Config


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
