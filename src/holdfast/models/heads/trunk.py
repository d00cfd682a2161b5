"""What extra heads read of a causal model: its hidden states, how its blocks are called, its output head.

Everything is taken by hooks from the model's own forward pass. So it works under wrappers (PEFT, DDP), and a new block
gets the very mask, positions and rotary angles that the model made for its last block, whatever the architecture.

Shapes: ``b`` lines, ``t`` tokens, ``d`` width, ``v`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from holdfast.core.errors import LayerError

if TYPE_CHECKING:
    from holdfast.data.batches import Batch


@dataclass(frozen=True)
class Unembedding:
    """From the states that the output head reads to logits."""

    weight_vd: Tensor
    bias_v: Tensor | None
    softcap: float | None = None
    """Logits are ``softcap * tanh(logits / softcap)``, as in Gemma 2."""
    scale: float = 1.0
    """Multiply the states by this first (Granite, Cohere); the bias is scaled already."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of a few states ``(..., d)``, as the model makes them."""
        out = linear(self.scale * hidden if self.scale != 1 else hidden, self.weight_vd, self.bias_v)
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def detached(self) -> Unembedding:
        """The same without a gradient."""
        bias_v = None if self.bias_v is None else self.bias_v.detach()
        return Unembedding(self.weight_vd.detach(), bias_v, self.softcap, self.scale)


@dataclass(frozen=True)
class Decoder:
    """The parts of a model that blocks of heads are made from."""

    blocks: nn.ModuleList
    norm: nn.Module
    """After the last block, before the output head."""
    config: Any


@dataclass
class Trunk:
    """One forward pass of the model, without its logits."""

    final: Tensor = field(init=False)
    """What the output head reads, ``(b, t, d)``: after the final norm."""
    stream: Tensor = field(init=False)
    """What the final norm reads, ``(b, t, d)``; only with a decoder."""
    args: tuple[Any, ...] = ()
    """How the last block was called, behind the hidden states: masks, positions, rotary angles."""
    kwargs: dict[str, Any] = field(default_factory=dict)


def bare_of(model: nn.Module) -> Any:
    """The Hugging Face model inside data-parallel and PEFT wrappers."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return cast(Any, inner).get_base_model() if hasattr(inner, "get_base_model") else inner


def decoder_of(model: nn.Module) -> Decoder:
    """The blocks and the final norm.

    Raises:
        LayerError: the model is not one stack of blocks with one norm behind it.
    """
    bare = bare_of(model)
    core = bare.base_model
    count = bare.config.get_text_config().num_hidden_layers
    stacks = [m for m in core.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    norms = [m for m in core.children() if type(m).__name__.endswith("Norm")]
    if len(stacks) != 1 or len(norms) != 1:
        raise LayerError(
            f"Cannot build a block for {type(bare).__name__}: got {len(stacks)} stacks of {count} blocks and "
            f"{len(norms)} norms behind them, expected one of each. Do: use heads of kind medusa, which need no block."
        )
    return Decoder(stacks[0], norms[0], core.config)


def output_head(model: nn.Module) -> nn.Module:
    """The module that makes logits.

    Raises:
        LayerError: there is none, or its weight is quantized or carries an adapter.
    """
    bare = bare_of(model)
    head = bare.get_output_embeddings()
    name = type(bare).__name__
    if not isinstance(head, nn.Module):
        raise LayerError(f"Cannot put heads on {name}: it has no output head. Do: use a causal language model.")
    weight = getattr(head, "weight", None)
    if hasattr(head, "base_layer") or not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise LayerError(
            f"Cannot read the output head of {name}: got {type(head).__name__}, expected a plain weight. "
            "Do: leave the output head out of the adapter's targets and out of quantization."
        )
    return head


def unembedding(model: nn.Module) -> Unembedding:
    """The model's own way from states to logits.

    Raises:
        LayerError: the model has no output head that can be read.
    """
    head, config = cast(Any, output_head(model)), bare_of(model).config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    bias_v = getattr(head, "bias", None)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Unembedding(head.weight, None if bias_v is None else scale * bias_v, softcap, scale)


def read_trunk(model: nn.Module, batch: Batch, decoder: Decoder | None = None) -> Trunk:
    """Run ``model`` on ``batch`` up to its output head, which sees a single position only.

    Args:
        model: A causal language model, wrapped or not.
        batch: The lines.
        decoder: The model's `decoder_of`, to get also what its blocks read; not needed for medusa heads.
    Raises:
        LayerError: the model has no output head.
    """
    with watched(model, decoder, (slice(1), slice(1))) as trunk:
        model(**batch.model_inputs())
    return trunk


@contextmanager
def watched(model: nn.Module, decoder: Decoder | None, seen: tuple[slice, slice]) -> Iterator[Trunk]:
    """The trunk of the newest forward pass of ``model``, however it is called inside.

    Args:
        model: A causal language model, wrapped or not.
        decoder: As for `read_trunk`.
        seen: The lines and tokens that the output head sees, and so makes logits of.
    Raises:
        LayerError: the model has no output head.
    """
    trunk, head = Trunk(), output_head(model)

    def at_head(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        trunk.final = inputs[0]
        return (inputs[0][seen], *inputs[1:])

    def at_norm(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        trunk.stream = inputs[0]

    def at_block(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        trunk.args = inputs[1:]
        trunk.kwargs = {name: value for name, value in keywords.items() if name != "hidden_states"}

    with ExitStack() as hooks:
        hooks.callback(head.register_forward_pre_hook(at_head).remove)
        if decoder is not None:
            hooks.callback(decoder.norm.register_forward_pre_hook(at_norm).remove)
            hooks.callback(decoder.blocks[-1].register_forward_pre_hook(at_block, with_kwargs=True).remove)
        yield trunk
