"""Inputs and output gradients of layers, seen by hooks while an ordinary forward and backward run.

For a layer ``y = W h`` with input ``a_bti`` and output gradient ``g_bto``, the weight's gradient is
``sum over b, t of g a^T``; so the two captures give per-sample gradients without touching a parameter. Weights may be
frozen: where nothing below needs a gradient, the layer's output becomes a leaf, so that its gradient exists.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from holdfast.core.errors import LayerError
from holdfast.layers.address import Layer, LayerMap

Consumer = Callable[[Layer, Tensor], None]
PairConsumer = Callable[[Layer, Tensor, Tensor], None]


@dataclass
class Captured:
    """What the last forward and backward left, detached and not copied.

    Attributes:
        inputs: By group, ``(b, t, i)``: layers that share an input share the entry.
        output_gradients: By layer name, ``(b, t, o)``; filled during backward.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    output_gradients: dict[str, Tensor] = field(default_factory=dict)

    def input_of(self, layer: Layer) -> Tensor:
        """The input of a captured layer, ``(b, t, i)``."""
        return self.inputs[layer.group]


@contextmanager
def capture(
    layers: LayerMap, *, inputs: bool = True, output_gradients: bool = False, consume: Consumer | None = None
) -> Iterator[Captured]:
    """Capture the selected layers' inputs, output gradients, or both, for forwards inside the block.

    A second forward replaces what the first one left. With ``consume`` nothing is kept: it is called with each tensor
    as it appears, once a group (with the group's first layer) for inputs, once a layer for output gradients. Hooks go
    away at the end of the block, however it ends; the backward must run inside it.

    Raises:
        LayerError: Nothing is asked for, both kinds are asked for with one ``consume`` (use `stream_pairs`), gradient
            checkpointing would run forwards twice, or gradients are asked for while autograd is off.
    """
    if inputs == output_gradients and (consume or not inputs):
        asked = "both inputs and output gradients" if inputs else "neither inputs nor output gradients"
        raise LayerError(f"cannot capture: got a request for {asked}, expected one kind. To stream both, stream_pairs.")
    kept = Captured()

    def keep_input(layer: Layer, a_bti: Tensor) -> None:
        kept.inputs[layer.group] = a_bti

    def keep_gradient(layer: Layer, g_bto: Tensor) -> None:
        kept.output_gradients[layer.name] = g_bto

    with _hooks(layers) as hooks:
        if inputs:
            hooks.on_input(consume or keep_input)
        if output_gradients:
            hooks.on_gradient(consume or keep_gradient)
        yield kept


@contextmanager
def stream_pairs(layers: LayerMap, consume: PairConsumer) -> Iterator[None]:
    """Call ``consume(layer, a_bti, g_bto)`` for each selected layer as its output gradient appears in backward.

    Of each layer only the input is held between forward and backward, and let go once consumed.

    Raises:
        LayerError: Gradient checkpointing would run forwards twice, autograd is off in a forward, or a second backward
            runs through one forward.
    """
    with _hooks(layers) as hooks:
        hooks.on_pair(consume)
        yield


@contextmanager
def _hooks(layers: LayerMap) -> Iterator["_Hooks"]:
    if any(module.training and getattr(module, "gradient_checkpointing", False) for module in layers.base.modules()):
        raise LayerError(
            "cannot capture: got gradient checkpointing, which runs each forward twice, expected it off. "
            "Call model.eval() or model.gradient_checkpointing_disable()."
        )
    hooks = _Hooks(layers)
    try:
        yield hooks
    finally:
        hooks.close()


class _Hooks:
    """Forward hooks on the stored modules, one per module; tensor hooks for gradients go quiet when closed."""

    def __init__(self, layers: LayerMap) -> None:
        self._layers = layers
        self._open = True
        self._handles = ExitStack()

    def close(self) -> None:
        self._open = False
        self._handles.close()

    def on_input(self, consume: Consumer) -> None:
        """Call ``consume`` with the input of each group, seen at the group's first layer."""
        for members in self._layers.groups().values():
            self._hook(members[0], partial(self._see_input, members[0], consume))

    def on_gradient(self, consume: Consumer) -> None:
        """Call ``consume`` with each layer's output gradient."""
        for members in self._by_module():
            self._hook(members[0], partial(self._see_output, members, consume))

    def on_pair(self, consume: PairConsumer) -> None:
        """Call ``consume`` with each layer's input and output gradient."""
        for members in self._by_module():
            self._hook(members[0], partial(self._see_pair, members, consume))

    @staticmethod
    def _see_input(first: Layer, consume: Consumer, a_bti: Tensor, output: Tensor) -> None:
        consume(first, a_bti)

    def _see_output(self, members: list[Layer], consume: Consumer, a_bti: Tensor, output: Tensor) -> Tensor:
        return self._watch(output, members, consume)

    def _see_pair(self, members: list[Layer], consume: PairConsumer, a_bti: Tensor, output: Tensor) -> Tensor:
        waiting = {layer.name: a_bti for layer in members}

        def join(layer: Layer, g_bto: Tensor) -> None:
            if layer.name not in waiting:
                raise LayerError(
                    f"cannot pair {layer.name}: got a second backward through one forward, expected one. "
                    "Run the forward again."
                )
            consume(layer, waiting.pop(layer.name), g_bto)

        return self._watch(output, members, join)

    def _watch(self, output: Tensor, members: list[Layer], consume: Consumer) -> Tensor:
        """The output itself, or a leaf in its place if it had no gradient, with a hook on its gradient."""
        if not torch.is_grad_enabled():
            raise LayerError(
                f"cannot capture the output gradient of {members[0].name}: got a forward without autograd, expected "
                "one with it. Leave torch.no_grad()."
            )
        watched = output if output.requires_grad else output.detach().requires_grad_()

        def arrived(g_bto: Tensor | None) -> None:
            if not self._open:
                return
            if g_bto is None:
                raise LayerError(
                    f"cannot capture the output gradient of {members[0].name}: got none from an operation above it, "
                    "expected a differentiable forward. For 4-bit weights on a CPU call model.train()."
                )
            for layer in members:
                g_part = g_bto.detach()
                if layer.rows is not None:
                    g_part = g_part.index_select(-1, layer.rows.index(g_part.device))
                consume(layer, g_part)

        cast(Any, watched).register_hook(arrived)
        return watched

    def _by_module(self) -> list[list[Layer]]:
        """The selected layers by the module that stores them."""
        members: dict[str, list[Layer]] = {}
        for layer in self._layers:
            members.setdefault(layer.path, []).append(layer)
        return list(members.values())

    def _hook(self, layer: Layer, see: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        def forward_hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return see(args[0].detach(), output)

        self._handles.callback(self._layers.module(layer.name).register_forward_hook(forward_hook).remove)
