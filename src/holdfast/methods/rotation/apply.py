"""From a plan to a `Constraint`: which coordinates of which parameters the optimizer may move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import LayerError
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.quantised import is_quantised
from holdfast.methods.base import check_origin
from holdfast.methods.rotation.maths import free_of_directions, free_of_elements, onto_directions
from holdfast.methods.rotation.plan import RotationPlan
from holdfast.models.load import LoadedModel
from holdfast.training.constraint import Hold


@dataclass(frozen=True, slots=True)
class HeldDirections:
    """``W = W0 + D (I - S S^T)``: every output's dependence on the frozen directions ``S`` stays."""

    side_ik: Tensor
    """The frozen directions or the free ones, whichever are fewer: the work grows with them."""
    frozen: bool
    """Which of the two."""

    @classmethod
    def of(cls, U_ii: Tensor, frozen_i: Tensor) -> HeldDirections:
        """The hold of the frozen columns of ``U``."""
        frozen = 2 * int(frozen_i.sum()) <= len(frozen_i)
        return cls(U_ii[:, frozen_i if frozen else ~frozen_i].contiguous(), frozen)

    def free(self, D_oi: Tensor) -> Tensor:
        """The part of ``D`` that may change the weight; its own adjoint."""
        return (free_of_directions if self.frozen else onto_directions)(D_oi, self.side_ik)

    back = free

    def settle(self, D_oi: Tensor) -> None:
        """Nothing: a held direction has no coordinate of its own."""


@dataclass(frozen=True, slots=True)
class HeldElements:
    """``W = W0 + ((1 - M) * D) U^T``: the frozen coefficients in the rotated frame stay; outputs need not."""

    frozen_oi: Tensor
    U_ii: Tensor

    def free(self, D_oi: Tensor) -> Tensor:
        """The change of the weight."""
        return free_of_elements(D_oi, self.frozen_oi, self.U_ii)

    def back(self, G_oi: Tensor) -> Tensor:
        """Its adjoint."""
        return (G_oi @ self.U_ii).mul_(~self.frozen_oi)

    def settle(self, D_oi: Tensor) -> None:
        """Frozen coefficients are 0, whatever an optimizer that mixes elements wrote there; in place."""
        D_oi.mul_(~self.frozen_oi)


@dataclass(frozen=True, slots=True)
class StoredHold:
    """The hold of one stored parameter: of a whole matrix, or of the parts of a fused one.

    ``parts`` are pairs of rows (``None``: all) and what holds them; rows of no part move freely. ``transposed`` says
    that the parameter is stored ``(i, o)``.
    """

    parts: Sequence[tuple[Tensor | None, HeldDirections | HeldElements]]
    transposed: bool = False

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        """Coordinates are ``(o, i)`` whatever the storage."""
        return tuple(reversed(weight.shape)) if self.transposed else tuple(weight.shape)

    def expand(self, coordinates: Tensor) -> Tensor:
        """The change of the stored parameter."""
        change_oi = self._each(coordinates, "free")
        return change_oi.T if self.transposed else change_oi

    def contract(self, gradient: Tensor) -> Tensor:
        """The gradient of the coordinates."""
        return self._each(gradient.T if self.transposed else gradient, "back")

    def settle(self, coordinates: Tensor) -> None:
        """Frozen coordinates are 0, in place."""
        for rows, held in self.parts:
            if rows is None or isinstance(held, HeldDirections):
                held.settle(coordinates)
            else:
                kept = coordinates[rows]
                held.settle(kept)
                coordinates[rows] = kept

    def _each(self, X_oi: Tensor, way: str) -> Tensor:
        if len(self.parts) == 1 and self.parts[0][0] is None:
            whole: Tensor = getattr(self.parts[0][1], way)(X_oi)
            return whole
        made = X_oi.clone()
        for rows, held in self.parts:
            assert rows is not None  # a whole matrix has one part
            made[rows] = getattr(held, way)(X_oi[rows])
        return made


class _Made:
    """The holds of a plan: layers that share an input share its basis, and with the same mask the hold itself.

    Asked for in the order of the model, in which layers of one input follow each other: only the last input's are kept.
    """

    def __init__(self, plan: RotationPlan) -> None:
        self._plan = plan
        self._at: tuple[str, torch.device] | None = None
        self._basis = torch.empty(0)
        self._directions: list[tuple[Tensor, HeldDirections]] = []

    def hold(self, layer: Layer, device: torch.device) -> HeldDirections | HeldElements:
        """The hold of ``layer`` on ``device``."""
        if self._at != (layer.group, device):
            self._at, self._directions = (layer.group, device), []
            self._basis = self._plan.basis.vectors[layer.group].to(device)
        frozen = self._plan.frozen[layer.name].to(device)
        if frozen.ndim == 2:
            return HeldElements(frozen, self._basis)
        for mask, held in self._directions:
            if torch.equal(mask, frozen):
                return held
        self._directions.append((frozen, HeldDirections.of(self._basis, frozen)))
        return self._directions[-1][1]


@dataclass(frozen=True, slots=True)
class RotationHold:
    """The constraint of a plan, for full fine-tuning and, with ``unit: column``, for LoRA."""

    plan: RotationPlan

    def holds(self, model: nn.Module) -> Mapping[str, Hold | None]:
        """A hold for every planned layer, by the name of its trained parameter; ``None`` for what stays as it is.

        Under LoRA the parameter is ``A``; its random start is put into the free space here, which changes no output
        because ``B`` starts at 0. It is not rescaled: with a share ``s`` held its norm is about ``sqrt(1 - s)`` of that
        of plain LoRA.

        Raises:
            LayerError: a planned layer is quantised or not trained, or elements are to be held under LoRA.
        """
        return dict(self.each(model))

    def each(self, model: nn.Module) -> Iterator[tuple[str, Hold | None]]:
        """`holds`, one after the other: what was given before is not kept."""
        layers = LayerMap.of(model)
        by_module: dict[str, list[Layer]] = {}
        for layer in layers.select(tuple(self.plan.frozen)):
            by_module.setdefault(layer.path, []).append(layer)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        made = _Made(self.plan)
        held = {id(p) for members in by_module.values() for p in _factors_of(model, members[0], "lora_B")}
        for members in by_module.values():
            parameter, hold = self._hold(model, layers, members, made)
            held.add(id(parameter))
            yield names[id(parameter)], hold
        if self.plan.config["rest"] == "frozen":
            for name, p in model.named_parameters():
                if p.requires_grad and id(p) not in held:
                    yield name, None

    def _hold(
        self, model: nn.Module, layers: LayerMap, members: list[Layer], made: _Made
    ) -> tuple[nn.Parameter, StoredHold]:
        parameter = layers.parameter(members[0].name)
        if (adapter := _adapter_of(model, members[0])) is not None:
            return adapter, self._adapter_hold(adapter, members, made)
        if is_quantised(parameter):
            raise LayerError(
                f"Cannot hold {members[0].name}: its weight is quantised, expected a plain one or an adapter. "
                "Do: set params: qlora, or load the model without quantization."
            )
        parts = [(self._rows(layer, parameter), made.hold(layer, parameter.device)) for layer in members]
        transposed = type(layers.module(members[0].name)).__name__ == "Conv1D"
        return parameter, StoredHold(parts, transposed)

    def _adapter_hold(self, A: nn.Parameter, members: list[Layer], made: _Made) -> StoredHold:
        held = [made.hold(layer, A.device) for layer in members]
        first = held[0]
        same = isinstance(first, HeldDirections) and all(each is first for each in held)
        if not same:
            raise LayerError(
                f"Cannot hold the adapter of {members[0].name}: an adapter reads one set of directions for the whole "
                "module, expected unit: column with one mask for its parts. Do: set unit: column and importance: "
                "energy, or params: full."
            )
        with torch.no_grad():
            A.copy_(first.free(A.float()))
        return StoredHold([(None, first)])

    @staticmethod
    def _rows(layer: Layer, parameter: nn.Parameter) -> Tensor | None:
        return None if layer.rows is None else layer.rows.index(parameter.device)


def _adapter_of(model: nn.Module, layer: Layer) -> nn.Parameter | None:
    """The trained LoRA ``A`` of the layer's module, if PEFT has put one there."""
    return next(iter(_factors_of(model, layer, "lora_A")), None)


def _factors_of(model: nn.Module, layer: Layer, which: str) -> list[nn.Parameter]:
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    factors = getattr(base.get_submodule(layer.path), which, None)
    return [] if not factors else [factor.weight for factor in factors.values()]


def apply(loaded: LoadedModel, plan: RotationPlan) -> RotationHold:
    """The constraint that keeps what ``plan`` froze, for `holdfast.training.loop.train` on ``loaded``.

    Raises:
        ConfigError: the plan is of another model or chat template.
    """
    check_origin(plan.basis.origin, loaded)
    return RotationHold(plan)
