"""The weights of a model as its modules store them: what an adapter changes, fused layers whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from holdfast.core.errors import LayerError, did_you_mean
from holdfast.layers.address import LayerMap, layer_name, stored_transposed
from holdfast.models.targets import is_target


def module_names(layers: LayerMap, targets: Sequence[str] = ()) -> list[str]:
    """Names of the modules that hold the layers, in model order, a fused one once; of ``targets`` alone, if any.

    A target is a module's path or the end of it, as PEFT matches them.

    Raises:
        LayerError: a target matches no linear layer, or one outside the decoder's blocks.
    """
    if not targets:
        return [str(layer_name(path)) for path in dict.fromkeys(layer.path for layer in layers)]
    linear = [path for path, module in layers.base.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    found = [path for path in linear if is_target(path, targets)]
    for path in found:
        if layer_name(path) is None:
            raise LayerError(
                f"cannot name the layer {path}: expected attention or MLP projections of a decoder block. "
                "Do: leave it out of lora.targets."
            )
    if not found:
        known = {layer.path.rsplit(".", 1)[-1] for layer in layers}
        raise LayerError(f"no layer matches lora.targets {list(targets)}. {did_you_mean(targets[0], known)}")
    return [str(layer_name(path)) for path in found]


@dataclass(frozen=True, slots=True)
class Factors:
    """The trained factors of one module: its change is ``scaling * B A``."""

    A: nn.Parameter
    B: nn.Parameter
    scaling: float


def factors(model: Any) -> dict[str, Factors]:
    """The LoRA factors of a PEFT model by module name, of layers that `module_names` has checked."""
    found = {}
    for path, module in model.get_base_model().named_modules():
        pair = getattr(module, "lora_A", None)
        if not pair:
            continue
        key = next(iter(pair))
        found[str(layer_name(path))] = Factors(pair[key].weight, module.lora_B[key].weight, float(module.scaling[key]))
    return found


def weight_of(layers: LayerMap, name: str) -> Tensor:
    """The trained parameter of a module as ``(o, i)``, with its gradient."""
    parameter = layers.parameter(name)
    return parameter.T if stored_transposed(layers[name].path) else parameter
