"""What a hold did to each layer, measured from stored files in float64: one layer at a time, an adapter in its factors.

Letters in names: ``o`` out, ``i`` in, ``k`` the rank of an adapter, ``f`` frozen directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.layers.adapters import Adapter, read_peft
from holdfast.layers.address import LayerMap
from holdfast.methods.rotation import maths
from holdfast.methods.rotation.apply import RotationHold
from holdfast.methods.rotation.plan import RotationPlan
from holdfast.methods.rotation.store import load_plan
from holdfast.models.load import ModelConfig, load_model
from holdfast.models.sources import quiet

Parameters = Mapping[str, Tensor]
"""By parameter name."""


@dataclass(frozen=True, slots=True)
class LayerProof:
    """What happened to one layer, measured in float64 from the stored weights."""

    layer: str
    frozen: int
    of: int
    frozen_moved: float | None
    """Largest coordinate of a frozen element after training: 0, or the hold is broken. ``None`` for directions, which
    have no coordinate that could move; for them `leak` tells."""
    leak: float
    """Largest entry of the change's part in the frozen space, after folding into the stored type."""
    change: float
    """Largest entry of the change."""
    drift: float
    """Relative change of outputs on the safety rows, see `maths.output_drift`."""
    moved_share: float
    """Share of the weight's entries whose stored value changed: low where steps are finer than the stored type."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One statement of a certificate that the files do not bear out."""

    what: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.what}: got {self.got}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Files:
    """What a certificate hangs on."""

    base: Path
    """Folder of the model before."""
    plan: Path
    coordinates: Path
    """What the optimizer moved; for an adapter, its start too."""
    result: Path
    """Folder of the model or the adapter after."""


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one weight, ``X A``, float64; without ``A`` it is ``X (o, i)`` itself."""

    X_ok: Tensor
    A_ki: Tensor | None = None

    def read(self, S_if: Tensor) -> Tensor:
        """What it makes of some directions, ``(o, f)``."""
        return self.X_ok @ (S_if if self.A_ki is None else self.A_ki @ S_if)

    def dense(self) -> Tensor:
        """``(o, i)``."""
        return self.X_ok if self.A_ki is None else self.X_ok @ self.A_ki


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished training: how each layer changed, and what is stored beside what the rule gives."""

    change: Callable[[str], Change]
    """By layer name; each is made when it is asked for."""
    stored: Parameters
    rebuilt: Iterator[tuple[str, Tensor]]
    """Parameters made from base, plan and coordinates, one after the other."""


def examine(files: Files) -> tuple[list[LayerProof], list[Problem]]:
    """Measure every layer from the files, and rebuild the result from base, plan and coordinates.

    Above the models, the tensors of one layer are in memory.

    Returns:
        A proof a layer, and what contradicts it: frozen coordinates that are not 0, and every parameter that does not
        come out of the rule bit for bit.
    Raises:
        ConfigError: the base is stored in another type than the result.
    """
    plan = load_plan(files.plan)
    base = load_model(ModelConfig(source=str(files.base))).model
    held = load_coordinates(files.coordinates)
    adapted = (files.result / "adapter_config.json").is_file()
    ended = (_adapter if adapted else _full)(plan, base, files.result, held)
    layers = LayerMap.of(base)
    proofs = [_proof(plan, name, layers, ended.change(name), held["coordinates"]) for name in plan.frozen]
    problems = [
        Problem(f"frozen coordinates of {proof.layer}", f"a largest one of {proof.frozen_moved:g}", "exactly 0")
        for proof in proofs
        if proof.frozen_moved
    ]
    problems += [
        Problem(name, "other bits", "the bits that the rule gives")
        for name, tensor in ended.rebuilt
        if not torch.equal(tensor, ended.stored[name].detach())
    ]
    return proofs, problems


def _proof(plan: RotationPlan, name: str, layers: LayerMap, change: Change, coordinates: Parameters) -> LayerProof:
    group = plan.basis.groups[name]
    frozen, U_ii = plan.frozen[name].cpu(), plan.basis.vectors[group].cpu().double()
    if frozen.ndim == 1:
        held, moved = change.read(U_ii[:, frozen]), None
    else:
        held, moved = change.read(U_ii)[frozen], _largest(_coordinates(layers, name, coordinates)[frozen])
    whole_oi, C_ii = change.dense(), plan.basis.second_moment(group)
    return LayerProof(
        layer=name,
        frozen=int(frozen.sum()),
        of=frozen.numel(),
        frozen_moved=moved,
        leak=_largest(held),
        change=_largest(whole_oi),
        drift=maths.output_drift(change.X_ok, layers.read(name).cpu(), C_ii, change.A_ki),
        moved_share=float((whole_oi != 0).double().mean()),
    )


def _largest(entries: Tensor) -> float:
    """Largest absolute value; 0 where nothing is frozen."""
    return float(entries.abs().max()) if entries.numel() else 0.0


def _coordinates(layers: LayerMap, name: str, coordinates: Parameters) -> Tensor:
    D_oi = coordinates[f"{layers[name].path}.weight"]
    rows = layers[name].rows
    return D_oi if rows is None else D_oi[rows.index()]


def _full(plan: RotationPlan, base: nn.Module, result: Path, held: Mapping[str, Parameters]) -> Ended:
    tuned = load_model(ModelConfig(source=str(result))).model
    before, after = LayerMap.of(base), LayerMap.of(tuned)

    def change(name: str) -> Change:
        return Change(after.read(name).cpu().double() - before.read(name).cpu().double())

    stored, start = dict(tuned.named_parameters()), dict(base.named_parameters())
    for name in sorted(stored.keys() & start.keys()):
        if stored[name].dtype != start[name].dtype:
            raise ConfigError(
                f"Cannot compare {result} with its base: got {stored[name].dtype} for {name}, expected the base's "
                f"{start[name].dtype}. Do: save the model in that type first, and train it from there."
            )
    base.requires_grad_(True)
    return Ended(change, stored, rebuilt(plan, base, start, held["coordinates"]))


def _adapter(plan: RotationPlan, base: nn.Module, result: Path, held: Mapping[str, Parameters]) -> Ended:
    """The held factors ``A`` come out of the rule, untrained ``B`` are as they began: 0."""
    change = _by_factors(read_peft(result), LayerMap.of(base))
    with quiet():
        tuned = PeftModel.from_pretrained(base, str(result), is_trainable=True)
    stored = {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}
    start = {name: torch.zeros_like(p) for name, p in stored.items() if ".lora_B." in name} | dict(held["start"])
    return Ended(change, stored, rebuilt(plan, tuned, start, held["coordinates"]))


def _by_factors(adapter: Adapter, layers: LayerMap) -> Callable[[str], Change]:
    """What an adapter adds; a layer that is part of a module takes its rows of the module's ``B``."""
    owner = {path: name for name, path in adapter.paths.items()}

    def change(name: str) -> Change:
        pair, rows = adapter.deltas[owner[layers[name].path]], layers[name].rows
        B_ok = pair.B if rows is None else pair.B[rows.index()]
        return Change(B_ok.double(), pair.A.double())

    return change


@torch.no_grad()
def rebuilt(
    plan: RotationPlan, model: nn.Module, start: Parameters, coordinates: Parameters
) -> Iterator[tuple[str, Tensor]]:
    """The held parameters made again from their start and their coordinates; those that stay, as they were.

    In float32, cast to the stored type.
    """
    for name, hold in RotationHold(plan).each(model):
        if hold is not None:
            before = start[name]
            yield name, (before.float() + hold.expand(coordinates[name].to(before.device))).to(before.dtype)
        elif name in start:
            yield name, start[name]


def load_coordinates(path: Path) -> dict[str, dict[str, Tensor]]:
    """Coordinates (and an adapter's start) by kind and parameter name."""
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        kind, _, parameter = name.partition("/")
        kinds.setdefault(kind, {})[parameter] = tensor
    return kinds
