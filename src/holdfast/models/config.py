"""The keys that say which model. Torch-free, so that a recipe can be read without loading anything."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from holdfast.core.config import Config


class ModelConfig(Config):
    """Which model, and how it is held in memory."""

    source: str = "lab"
    """``lab``, a Hugging Face folder, a hub name such as ``org/name``, or ``new`` (random weights from ``config``)."""
    config: dict[str, Any] | None = None
    """For ``new``: ``model_type`` and its keys."""
    tokenizer: str | None = None
    """For ``new``: ``lab``, or the folder or hub name of the tokenizer. Any other model uses its own."""
    adapter: str | None = None
    """Folder or hub name of a PEFT adapter. It is merged into the weights, or put on top of quantized ones."""
    adapter_base: Literal["same", "any"] = "same"
    """``same`` refuses an adapter of another model, told by hash or else by name; ``any`` takes what fits in shape."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` is the type the weights are stored in; float32 for ``new``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is CUDA where there is one."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel; ``auto`` is Transformers' choice. On a CPU ``eager`` trains short rows up to twice as fast."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Hold the weights in fewer bits (extra ``quant``; needs CUDA)."""
    chat_template: str | None = None
    """``plain`` or a .jinja file, in place of the tokenizer's own template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    seed: int = 0
    """For ``new``: seed of the random weights."""

    @model_validator(mode="after")
    def _keys_fit_source(self) -> Self:
        if self.source == "new":
            if self.config is None or self.tokenizer is None:
                raise ValueError("source 'new' needs both config and tokenizer")
            unused = [key for key in ("revision", "quantization") if getattr(self, key) is not None]
        else:
            unused = [key for key in ("config", "tokenizer", "seed") if key in self.model_fields_set]
        if "adapter_base" in self.model_fields_set and self.adapter is None:
            raise ValueError("adapter_base has no effect without adapter; remove it")
        if unused:
            raise ValueError(f"{unused[0]} has no effect on source {self.source!r}; remove it")
        return self
