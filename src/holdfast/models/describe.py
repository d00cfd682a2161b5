"""What a model needs, told from its configuration before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from holdfast.core.errors import ConfigError
from holdfast.models.build import model_config
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_tokenizer
from holdfast.models.sources import first_line, local_folder, quiet
from holdfast.models.targets import is_target

_QUANTIZED_BYTES = {"4bit": 0.5 + 0.127 / 8, "8bit": 1.0}
"""Bytes per weight of a quantized matrix: NF4, doubly quantized, adds .127 bits (Dettmers et al., 2023, sec. 3)."""
_ACTIVATION_BYTES = 34
"""Per token, layer and hidden unit in 16 bits, attention scores not kept (Korthikanti et al., MLSys 2023, eq. 1)."""
LOGIT_BYTES = 3 * 4
"""Per logit of a training step, in 32 bits: itself, its log-softmax, its gradient."""


@dataclass(frozen=True, slots=True)
class Description:
    """A model on paper."""

    name: str
    model_type: str
    parameters: int
    """Tied ones counted once."""
    weight_bytes: int
    """Of the weights in memory, in the type and quantization asked for."""
    layers: int
    hidden: int
    vocabulary: int
    context: int | None
    """Tokens, where the configuration says."""
    dtype: str
    matrices: tuple[tuple[str, int, int], ...]
    """Module name, in and out features of each linear map inside the blocks."""
    widened_bytes: int
    """What ``qlora`` adds: PEFT holds all weights that are not quantized in 32 bits while it trains."""
    skeleton: Any = field(repr=False, compare=False)
    """The model itself without its numbers, on torch's ``meta`` device."""

    def lora_parameters(self, rank: int, targets: tuple[str, ...] = ()) -> int:
        """Trainable parameters of a LoRA of this rank on the matrices that ``targets`` name (empty: all)."""
        return sum(
            rank * (inputs + outputs)
            for path, inputs, outputs in self.matrices
            if not targets or is_target(path, targets)
        )

    def training_bytes(
        self, *, tokens: int, adapter: int | None = None, checkpointing: bool = False, mixed: bool = False
    ) -> int:
        """A rough estimate of peak memory in training with Adam, in bytes.

        Weights, of which the trained ones are held in 32 bits whatever they are stored in; gradients and two moments of
        what is trained, in 32 bits; activations of one forward pass; logits three times, in 32 bits (themselves, their
        log-softmax, their gradient).

        Args:
            adapter: Parameters of the adapter that is trained beside the weights; ``None`` where these are trained.
            tokens: Batch size times padded length.
            checkpointing: Only each layer's input is kept.
            mixed: Activations in 16 bits instead of the type of the weights.
        """
        full = adapter is None
        width = 2 if mixed or not (full or self.dtype == "float32") else 4
        per_unit = width if checkpointing else _ACTIVATION_BYTES * width // 2
        activations = tokens * self.layers * self.hidden * per_unit
        logits = LOGIT_BYTES * tokens * self.vocabulary
        frozen = 0 if full else self.weight_bytes
        return frozen + 4 * 4 * (self.parameters if adapter is None else adapter) + activations + logits

    def checkpoint_bytes(self, *, trainable: int) -> int:
        """Disk for one resumable checkpoint: what is trained and Adam's two moments, in 32 bits."""
        return 3 * 4 * trainable


def describe(config: ModelConfig, vocabulary: int | None = None) -> Description:
    """Parameters, memory and shape of a model, from its configuration alone.

    Nothing is allocated: the model is built on torch's ``meta`` device. From the hub only small files are fetched.

    Args:
        config: The model.
        vocabulary: Tokens of a new model whose tokenizer is yet to be trained.
    Raises:
        ConfigError: no such model, or a configuration that Transformers does not know.
    """
    with quiet():
        made = _configuration(config, vocabulary)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(made, trust_remote_code=config.trust_remote_code)
        except (ValueError, TypeError, KeyError) as problem:
            raise ConfigError(
                f"Cannot build {config.source}: {first_line(problem)} Do: check its config.json."
            ) from problem
    text = made.get_text_config()
    stored = getattr(made, "dtype", None) or torch.float32
    dtype = str(stored).removeprefix("torch.") if config.dtype == "auto" else config.dtype
    matrices = tuple((path, *_features(m)) for path, m in model.named_modules() if _in_block(path, m))
    return Description(
        name=str(made.model_type) if config.source == "new" else config.source,
        model_type=str(made.model_type),
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=_weight_bytes(model, matrices, dtype, config.quantization),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        context=int(length) if (length := getattr(text, "max_position_embeddings", None)) else None,
        dtype=dtype,
        matrices=matrices,
        widened_bytes=_widened_bytes(model, matrices, dtype),
        skeleton=model,
    )


def _configuration(config: ModelConfig, vocabulary: int | None) -> Any:
    if config.source == "new":
        assert config.config is not None  # ModelConfig refuses it
        if vocabulary is not None:
            return model_config({**config.config, "vocab_size": vocabulary}, None)
        assert config.tokenizer is not None
        folder = local_folder(config.tokenizer, weights=False, marker="tokenizer_config.json")
        return model_config(config.config, load_tokenizer(folder))
    folder = local_folder(config.source, revision=config.revision, code=config.trust_remote_code, weights=False)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"Cannot read {config.source}: {first_line(problem)} Do: check its config.json.") from problem


def _in_block(path: str, module: torch.nn.Module) -> bool:
    """Whether a linear map belongs to a numbered block, unlike the output head."""
    return isinstance(module, torch.nn.Linear | Conv1D) and any(part.isdigit() for part in path.split("."))


def _features(module: torch.nn.Module) -> tuple[int, int]:
    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    return int(module.nx), int(module.nf)  # type: ignore[arg-type]


def _weight_bytes(
    model: torch.nn.Module, matrices: tuple[tuple[str, int, int], ...], dtype: str, quantization: str | None
) -> int:
    width = _width(dtype)
    total = sum(p.numel() for p in model.parameters())
    if quantization is None:
        return total * width
    small = sum(inputs * outputs for _, inputs, outputs in matrices)
    return round(small * _QUANTIZED_BYTES[quantization] + (total - small) * max(width, 2))


def _width(dtype: str) -> int:
    return torch.empty(0, dtype=getattr(torch, dtype)).element_size()


def _widened_bytes(model: torch.nn.Module, matrices: tuple[tuple[str, int, int], ...], dtype: str) -> int:
    rest = sum(p.numel() for p in model.parameters()) - sum(inputs * outputs for _, inputs, outputs in matrices)
    return rest * (4 - max(_width(dtype), 2))
