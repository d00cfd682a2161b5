"""What may move: the optimizer works on coordinates of the change, never on the held weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from holdfast.core.errors import LayerError, did_you_mean


class Hold(Protocol):
    """A linear map from free coordinates ``D`` to the change of one weight, ``W = W0 + expand(D)``.

    A frozen entry of the weight is one that ``expand`` can only leave at exactly 0.
    """

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        """Shape of the coordinates for this weight."""
        ...

    def expand(self, coordinates: Tensor) -> Tensor:
        """The change of the weight, in the weight's shape."""
        ...

    def contract(self, gradient: Tensor) -> Tensor:
        """The adjoint of ``expand``: the gradient with respect to the coordinates."""
        ...

    def settle(self, coordinates: Tensor) -> None:
        """Put frozen coordinates back to exactly 0, in place, after a step of an optimizer that mixes entries (Muon).

        It changes nothing that ``expand`` would give.
        """
        ...


class Constraint(Protocol):
    """Which weights are held, and how."""

    def holds(self, model: nn.Module) -> Mapping[str, Hold | None]:
        """By parameter name of ``model``, as ``model.named_parameters()`` calls it (after PEFT has wrapped it).

        ``None`` for a parameter that is not trained at all.
        """
        ...


class Shadows:
    """The coordinates that stand in for the held weights while training.

    After each backward pass `pull` moves gradients from weights to coordinates; after each optimizer step `push` writes
    ``W = W0 + expand(D)`` from ``W0``, so nothing accumulates. Frozen coordinates are absent or exactly 0: momentum,
    Adam's division and weight decay cannot reach them, and what an optimizer that mixes entries writes there is put
    back to 0. Weight decay pulls the *change* to 0, not the weight.
    """

    def __init__(self, model: nn.Module, constraint: Constraint | None) -> None:
        known = dict(model.named_parameters())
        wanted = dict(constraint.holds(model)) if constraint else {}
        for name, hold in wanted.items():
            if name not in known:
                raise LayerError(f"Cannot hold {name!r}: no such parameter. {did_you_mean(name, known)}")
            if not known[name].requires_grad:
                raise LayerError(f"Cannot hold {name!r}: it is not trained. Do: hold only trained parameters.")
            if hold is None:
                known[name].requires_grad_(False)
        self._holds = {name: hold for name, hold in wanted.items() if hold is not None}
        self._weights = {name: known[name] for name in self._holds}
        self._start = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.coordinates = {
            name: nn.Parameter(
                torch.zeros(hold.shape(self._weights[name]), dtype=torch.float32, device=known[name].device)
            )
            for name, hold in self._holds.items()
        }

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What the optimizer is given: coordinates where held, the trained parameters themselves elsewhere."""
        free = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in self._holds}
        return free | self.coordinates

    def pull(self) -> None:
        """Turn the gradients of the held weights into gradients of their coordinates."""
        for name, hold in self._holds.items():
            gradient = self._weights[name].grad
            self.coordinates[name].grad = None if gradient is None else hold.contract(gradient.float())
            self._weights[name].grad = None

    @torch.no_grad()
    def push(self) -> None:
        """Write the held weights from their start and their coordinates."""
        for name, hold in self._holds.items():
            hold.settle(self.coordinates[name])
            change = hold.expand(self.coordinates[name])
            torch.add(self._start[name].float(), change, out=self._weights[name].detach())

    def state(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint: the starts and the coordinates."""
        return {"start": self._start, "coordinates": {n: p.detach() for n, p in self.coordinates.items()}}

    @torch.no_grad()
    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Inverse of `state`; the held weights are written from it."""
        for name, values in state["coordinates"].items():
            self._start[name].copy_(state["start"][name])
            self.coordinates[name].copy_(values)
        self.push()
