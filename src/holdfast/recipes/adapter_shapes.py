"""What adapters change, layer by layer, before they are made: read from folders, or told by steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from holdfast.core.errors import AdapterError, ConfigError
from holdfast.recipes.adapter_step import AdapterStep
from holdfast.recipes.checks import Checks
from holdfast.recipes.merge_step import MergeStep
from holdfast.recipes.repair_step import RepairStep
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.methods.merging.cost import Shape
    from holdfast.models.describe import Description

Shapes = Mapping[str, tuple[int, int, int]]
"""By layer, ``(o, i)`` and the rank of an adapter's delta."""


def adapter_shapes(checks: Checks, step_id: str, adapter: str, model: Description) -> Shapes | None:
    """Of an adapter, read from its folder or told by the step that will make it; ``checks`` gets the problems."""
    maker = checks.recipe.steps.get(adapter)
    if maker is None:
        return checks.tried(step_id, lambda: stored_shapes(adapter, model))
    if isinstance(maker, AdapterStep):
        return checks.tried(step_id, lambda: stored_shapes(maker.source, model))
    if isinstance(maker, TrainStep):
        rank, targets = maker.lora.rank, maker.lora.targets
        return checks.tried(step_id, lambda: target_shapes(model, rank, targets))
    if isinstance(maker, MergeStep):
        each = [adapter_shapes(checks, step_id, item.adapter, model) for item in maker.adapters]
        known = [found for found in each if found is not None]
        found = checks.tried(step_id, lambda: together(maker, known))
        return (
            None if found is None else {n: (s.out_features, s.in_features, _rank(maker, s)) for n, s in found.items()}
        )
    return _mended(checks, step_id, maker, model) if isinstance(maker, RepairStep) else None


def repaired_shapes(checks: Checks, step_id: str, step: RepairStep, model: Description) -> Shapes | None:
    """What a repair starts from: its adapter, or a fully fine-tuned model's change, cut to a rank."""
    if step.adapter is not None:
        return adapter_shapes(checks, step_id, step.adapter, model)
    return target_shapes(model, step.delta_rank, ())


def _mended(checks: Checks, step_id: str, maker: RepairStep, model: Description) -> Shapes | None:
    from holdfast.methods.merging.plan import matching
    from holdfast.methods.merging.repair_cost import repaired_rank

    whole = repaired_shapes(checks, step_id, maker, model)
    names = None if whole is None else checks.tried(step_id, lambda: set(matching(maker.layers, list(whole))))
    if whole is None or names is None:
        return None
    return {
        n: (o, i, repaired_rank(maker.repairing(), o, i, rank) if n in names else rank)
        for n, (o, i, rank) in whole.items()
    }


def _rank(maker: MergeStep, shape: Shape) -> int:
    from holdfast.methods.merging.cost import result_rank

    return result_rank(maker.merging(), shape)


def stored_shapes(adapter: str, model: Description) -> Shapes:
    """What an adapter from elsewhere changes, by layer.

    Raises:
        HoldfastError: it is not there, is no plain LoRA, or does not fit the base.
    """
    from holdfast.layers.adapters import check_fit, read_peft
    from holdfast.layers.address import LayerMap
    from holdfast.models.sources import is_here, local_folder

    if not is_here(adapter):
        return _told(adapter, model)
    found = read_peft(local_folder(adapter, marker="adapter_config.json"))
    check_fit(LayerMap.of(model.skeleton), found)
    return {name: (*delta.shape, delta.rank) for name, delta in found.deltas.items()}


def _told(adapter: str, model: Description) -> Shapes:
    """What the configuration of an adapter on the hub says, without its weights."""
    from holdfast.models.sources import local_folder

    folder = local_folder(adapter, weights=False, marker="adapter_config.json")
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, targets = int(config["r"]), config["target_modules"]
    except (ValueError, KeyError, TypeError) as problem:
        raise AdapterError(
            f"Cannot read the configuration of {adapter}: got no r and target_modules, expected a LoRA's."
        ) from problem
    return target_shapes(model, rank, tuple(targets) if isinstance(targets, list) else ())


def target_shapes(model: Description, rank: int, targets: Sequence[str]) -> Shapes:
    """Of a rank on the linear maps that ``targets`` name; empty means all."""
    from holdfast.layers.address import layer_name
    from holdfast.models.targets import is_target

    return {
        layer_name(path) or path: (outputs, inputs, min(rank, outputs, inputs))
        for path, inputs, outputs in model.matrices
        if not targets or is_target(path, targets)
    }


def together(step: MergeStep, each: Sequence[Shapes]) -> dict[str, Shape]:
    """The layers that are merged, with the ranks of all adapters there.

    Raises:
        ConfigError: adapters that do not fit each other.
        LayerError: a pattern matches no layer.
    """
    from holdfast.methods.merging.cost import Shape
    from holdfast.methods.merging.plan import matching

    found: dict[str, Shape] = {}
    for adapter in each:
        for name, (o, i, rank) in adapter.items():
            if name in found and (found[name].out_features, found[name].in_features) != (o, i):
                raise ConfigError(f"adapters have deltas of unlike shapes for {name}. Do: merge adapters of one base.")
            found[name] = Shape(o, i, (*found[name].ranks, rank) if name in found else (rank,))
    return {name: found[name] for name in matching(step.layers, list(found))} if found else {}
