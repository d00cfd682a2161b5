"""Batches through one decoder block at a time, each with the inputs that it has in a whole forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.data.batches import Batch


@contextmanager
def block_by_block(model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch]) -> Iterator[BlockWalk]:
    """Walk ``batches`` through ``model``; its blocks are whole again at the end, however it ends.

    Args:
        blocks: All decoder blocks, in the order in which the model runs them; all of one class.
        batches: On any device. The hidden states between two blocks are held for all of them, padding included, on the
            CPU and in the model's type: tokens times hidden size.
    """
    walk = BlockWalk(model, batches)
    with ExitStack() as handles:
        for number, block in enumerate(blocks):
            handles.enter_context(_forward_by(block, partial(walk.turn, number, block.forward)))
        yield walk


class BlockWalk:
    """Where each batch has come to.

    The model's own forward runs for every batch and block, with all blocks but one passing their input by: so each gets
    the mask and the positions of its kind, in any architecture, and what is run in vain costs little beside a block.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches
        self._states: list[Tensor | None] = [None] * len(batches)
        self._block, self._batch, self._in_tuples = 0, 0, False

    def run(self, block: int, batch: int) -> None:
        """Put the batch of this number through the block of this number. It has been through those before, in order."""
        self._block, self._batch = block, batch
        device = next(self._model.parameters()).device
        with torch.no_grad():
            self._model(**self._batches[batch].to(device).model_inputs(), logits_to_keep=1)

    def turn(self, block: int, forward: Callable[..., Any], hidden_bti: Tensor, *args: Any, **options: Any) -> Any:
        """What a block does in place of its ``forward``."""
        if block != self._block:
            return (hidden_bti,) if self._in_tuples else hidden_bti
        reached = self._states[self._batch]
        output = forward(hidden_bti if reached is None else reached.to(hidden_bti.device), *args, **options)
        self._in_tuples = isinstance(output, tuple)  # learnt from the first block, before any other is passed by
        self._states[self._batch] = (output[0] if self._in_tuples else output).cpu()
        return output


@contextmanager
def _forward_by(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's ``forward``, which another library may have replaced before."""
    before = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if before is None:
            del block.forward
        else:
            block.forward = before
