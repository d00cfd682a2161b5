"""What is loss: named terms that are sums with known weights, so that a step is exact however it is divided."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from holdfast.core.errors import ConfigError, LayerError
from holdfast.data.batches import IGNORE, Batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the loss, **summed** (not averaged) over a batch, and the weight that the sum is to be divided by."""

    sum: Tensor
    """Scalar, float32, with a gradient."""
    weight: float
    """E.g. the number of learnt tokens. Equal to what ``weights(batch)`` said before the forward pass."""


@runtime_checkable
class Objective(Protocol):
    """The loss of a batch. The loop divides each term by its weight over the whole optimizer step and all processes."""

    def weights(self, batch: Batch) -> dict[str, float]:
        """The weight of every term on ``batch``, known before the forward pass."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """Run ``model`` on ``batch`` and return every term."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """What is trained beside the model, by name."""
        ...

    def begin(self, step: int, steps: int) -> None:
        """Called before optimizer step ``step`` (from 0) of ``steps``, on every process."""
        ...

    def figures(self) -> dict[str, float]:
        """What to log about the step beside its terms; see `Composable.figures`."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Called once ``model`` is saved in ``folder``, on the first process."""
        ...


class Composable:
    """Gives an objective ``a + b`` and ``0.3 * a``; equal names of terms in a sum are an error.

    Most objectives train nothing beside the model, look at no step and log no figures: so does this one.
    """

    def modules(self) -> dict[str, nn.Module]:
        """What is trained beside the model, by name.

        While it trains, the loop keeps these in the model, so that they are in the optimizer and in checkpoints, and
        takes them out before the model is saved. No constraint holds them.
        """
        return {}

    def begin(self, step: int, steps: int) -> None:
        """Called before optimizer step ``step`` (from 0) of ``steps``, on every process."""

    def figures(self) -> dict[str, float]:
        """What to log about the step beside its terms.

        Called on every process after the step's last backward pass and before the weights change, which an error
        raised here prevents.
        """
        return {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Called once ``model`` is saved in ``folder``, on the first process: the place to keep `modules`."""

    def __add__(self, other: Objective) -> Sum:
        return Sum(self, other)  # type: ignore[arg-type]

    def __rmul__(self, factor: float) -> Scaled:
        return Scaled(factor, self)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Sum(Composable):
    """Two objectives, each divided by its own weights."""

    left: Objective
    right: Objective

    @staticmethod
    def _merge(left: dict[str, Any], right: dict[str, Any], what: str = "term") -> dict[str, Any]:
        if both := left.keys() & right.keys():
            raise ConfigError(f"Cannot add two objectives: both have a {what} {min(both)!r}. Do: rename one of them.")
        return left | right

    def weights(self, batch: Batch) -> dict[str, float]:
        """The weights of both."""
        return self._merge(self.left.weights(batch), self.right.weights(batch))

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The terms of both."""
        return self._merge(self.left(model, batch), self.right(model, batch))

    def modules(self) -> dict[str, nn.Module]:
        """Those of both."""
        return self._merge(self.left.modules(), self.right.modules(), "module")

    def begin(self, step: int, steps: int) -> None:
        """Tell both."""
        self.left.begin(step, steps)
        self.right.begin(step, steps)

    def figures(self) -> dict[str, float]:
        """Those of both."""
        return self._merge(self.left.figures(), self.right.figures(), "figure")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Tell both."""
        self.left.save(model, folder)
        self.right.save(model, folder)


@dataclass(frozen=True, slots=True)
class Scaled(Composable):
    """An objective times a constant: sums are scaled, weights are not."""

    factor: float
    of: Objective

    def weights(self, batch: Batch) -> dict[str, float]:
        """The weights, unscaled."""
        return self.of.weights(batch)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The terms with scaled sums."""
        return {name: replace(term, sum=self.factor * term.sum) for name, term in self.of(model, batch).items()}

    def modules(self) -> dict[str, nn.Module]:
        """The same."""
        return self.of.modules()

    def begin(self, step: int, steps: int) -> None:
        """Tell it."""
        self.of.begin(step, steps)

    def figures(self) -> dict[str, float]:
        """The same, unscaled."""
        return self.of.figures()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Tell it."""
        self.of.save(model, folder)


@contextmanager
def _head_input(head: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let ``head`` see only the selected hidden states."""
    hook = head.register_forward_pre_hook(lambda _, inputs: (select(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data-parallel training, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def logits_at(model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
    """Logits ``(n, vocabulary)`` at the ``n`` positions where ``where`` ``(b, t)`` is true, see `logits_of`."""
    return logits_of(model, batch, lambda hidden: hidden[where])


def logits_of(model: nn.Module, batch: Batch, select: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits ``(n, vocabulary)`` of what ``select`` makes of the last hidden states, from ``(b, t, d)`` to ``(n, d)``.

    The hidden states are picked by a hook just before the output head, so whatever the model does to its logits
    afterwards (scale, soft-cap) still happens, under any wrapper (PEFT, DDP).

    Raises:
        LayerError: the model has no output head.
    """
    bare = unwrapped(model)
    head = bare.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise LayerError(f"Cannot train {type(bare).__name__}: it has no output head. Do: use a causal language model.")
    with _head_input(head, lambda hidden: select(hidden).unsqueeze(0)):
        logits = model(**batch.model_inputs()).logits
    selected: Tensor = logits.squeeze(0)
    return selected


@dataclass(frozen=True, slots=True)
class NextToken(Composable):
    """Cross-entropy of the next token over learnt tokens only, in float32.

    Averaged over learnt tokens, or over rows that are each averaged over their own: then a one-letter answer weighs as
    much as a page.
    """

    name: str = "loss"
    over: Literal["tokens", "rows"] = "tokens"

    def weights(self, batch: Batch) -> dict[str, float]:
        """The number of learnt tokens, or of rows that hold any."""
        targets, owner = targets_of(batch)
        learnt = targets != IGNORE
        return {self.name: float(learnt.sum() if self.over == "tokens" else owner[learnt].bincount().count_nonzero())}

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """Sum of the cross-entropies of the learnt tokens, each divided by its row's number of them for ``rows``."""
        targets, owner = targets_of(batch)
        where = targets != IGNORE
        logits = logits_at(model, batch, where)
        if self.over == "tokens":
            total = cross_entropy(logits.float(), targets[where], reduction="sum")
            return {self.name: Term(total, float(logits.shape[0]))}
        return {self.name: self.summed(cross_entropy(logits.float(), targets[where], reduction="none"), owner[where])}

    def summed(self, each_n: Tensor, row_n: Tensor) -> Term:
        """The term of losses ``each_n`` of the learnt tokens, of rows ``row_n``."""
        if self.over == "tokens":
            return Term(each_n.sum(), float(len(each_n)))
        count = row_n.bincount()
        return Term((each_n / count[row_n]).sum(), float(count.count_nonzero()))


def targets_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """The token that each position is to predict, and the row which that token belongs to, ``(b, t)``."""
    shifted = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    return shifted, torch.nn.functional.pad(batch.owner[:, 1:], (0, 1), value=-1)


@dataclass(frozen=True, slots=True)
class Penalty(Composable):
    """A term of the trained weights alone, added once per optimizer step; not part of a validation loss."""

    name: str
    of: Callable[[nn.Module], Tensor]
    """From the model to a scalar, with a gradient; called without autocast."""

    def weights(self, batch: Batch) -> dict[str, float]:
        """1: every batch of a step says the same value, and their mean is that value."""
        return {self.name: 1.0}

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """The value, or nothing in evaluation."""
        if not model.training:
            return {}
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            return {self.name: Term(self.of(unwrapped(model)), 1.0)}
