"""Quantised weights: known by their type, read as floating point, never written."""

from typing import Any, cast

from torch import Tensor, nn

from holdfast.core.errors import LayerError

_BITSANDBYTES = ("Params4bit", "Int8Params")


def is_quantised(parameter: nn.Parameter) -> bool:
    """Whether the stored numbers are not the weight itself (bitsandbytes, torchao, or any integer storage)."""
    kind = type(parameter)
    return kind.__name__ in _BITSANDBYTES or kind.__module__.startswith("torchao.") or not parameter.is_floating_point()


def dequantised(name: str, module: nn.Module) -> Tensor:
    """The floating-point value, ``(o, i)``, of a bitsandbytes weight.

    PEFT has such a reader, but on a CPU it strips an 8-bit module of its scales, and the next forward fails.

    Raises:
        LayerError: The weight is quantised in another way, or bitsandbytes has repacked it for the CPU it runs on.
    """
    weight = cast(Any, module).weight
    kind = type(weight).__name__
    if kind not in _BITSANDBYTES:
        raise LayerError(
            f"cannot read {name}: got a weight of {kind} stored as {weight.dtype}, expected floating point or "
            "bitsandbytes. Load the model without this quantization."
        )
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise LayerError(
            f"cannot read {name}: got a 4-bit weight that its first forward repacked for this CPU, expected the plain "
            "layout. Read it before any forward, or keep the model in train mode."
        )
    from bitsandbytes import functional

    if kind == "Params4bit":
        return cast(Tensor, functional.dequantize_4bit(weight.data, weight.quant_state))
    scales = weight.SCB if weight.SCB is not None else cast(Any, module).state.SCB
    return cast(Tensor, functional.int8_vectorwise_dequant(weight.data, scales))
