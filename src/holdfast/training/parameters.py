"""Which numbers are trained (full, lora, qlora), by which optimizer, on which schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from holdfast.core.errors import ConfigError, LayerError, MissingExtra, did_you_mean
from holdfast.models.targets import is_target
from holdfast.training.muon import MuonAdamW

if TYPE_CHECKING:
    from holdfast.training.config import LoraConfig, TrainConfig


def make_trainable(model: Any, config: TrainConfig) -> nn.Module:
    """Choose the trained parameters and keep them in float32; returns the model, wrapped by PEFT for an adapter.

    Raises:
        ConfigError: ``qlora`` on a model that was not loaded in 4 bit, or ``full`` on one that was.
        MissingExtra: ``qlora`` without bitsandbytes.
    """
    bits = {f"{n}bit" for n in (4, 8) if getattr(model, f"is_loaded_in_{n}bit", False)}
    check_params(config.params, next(iter(bits), None))
    if config.params == "full":
        model.requires_grad_(True).float()
    else:
        if config.params == "qlora":
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = _with_lora(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model  # type: ignore[no-any-return]


def check_params(params: str, quantization: str | None) -> None:
    """What is trained fits how the weights are held, ``4bit``, ``8bit`` or ``None``.

    Raises:
        ConfigError: ``qlora`` on a model that is not in 4 bit, or ``full`` on a quantized one.
        MissingExtra: ``qlora`` without bitsandbytes.
    """
    if params == "full" and quantization is not None:
        raise ConfigError(
            "Cannot train all weights of a quantized model. Do: set params: qlora, or load it unquantized."
        )
    if params == "qlora" and quantization != "4bit":
        got = "an unquantized model" if quantization is None else f"one in {quantization}"
        raise ConfigError(
            f"params: qlora needs a 4-bit base: got {got}. Do: set quantization: 4bit on the model, or params: lora."
        )
    if params == "qlora" and find_spec("bitsandbytes") is None:
        raise MissingExtra("params: qlora", "quant")


def _with_lora(model: Any, lora: LoraConfig) -> Any:
    import peft

    if isinstance(model, peft.PeftModel):
        raise ConfigError(
            "Cannot add an adapter to a model that carries one. Do: merge the adapter first, or load the base."
        )
    check_targets(model, lora.targets)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    """Every target names at least one linear layer, in full or by the end of its name.

    Raises:
        LayerError: one does not, with the nearest name.
    """
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for target in targets:
        if not any(is_target(name, (target,)) for name in linear):
            kinds = {name.rsplit(".", 1)[-1] for name in linear}
            raise LayerError(f"no layer matches {target!r} in {type(model).__name__}. {did_you_mean(target, kinds)}")


def block_matrices(model: Any) -> frozenset[str]:
    """Names of the weight matrices of linear layers, the output head left out: what Muon is for."""
    head = model.get_output_embeddings()
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return frozenset(name for name, p in model.named_parameters() if name in linear and p.requires_grad)


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig, matrices: frozenset[str] = frozenset()
) -> torch.optim.Optimizer:
    """The optimizer over named parameters; weight decay on matrices only. ``matrices`` are the names Muon may take."""
    if config.optimizer == "muon":
        chosen = [p for name, p in parameters.items() if name in matrices]
        if not chosen:
            raise ConfigError("optimizer: muon needs weight matrices of linear layers: got none. Do: set adamw.")
        rest = [p for name, p in parameters.items() if name not in matrices]
        others = [{"params": rest, "weight_decay": 0.0}] if rest else []
        return MuonAdamW(
            chosen, others, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, config.beta2)
        )
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    plain = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, fused=True)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    amsgrad = config.optimizer == "amsgrad"
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), amsgrad=amsgrad, fused=True)


def learning_rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``steps``, as a share of the peak."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = (step - warm) / max(1, steps - warm)
    if config.schedule == "linear":
        return 1.0 - progress
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
