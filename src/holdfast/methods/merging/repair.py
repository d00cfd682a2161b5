r"""Repair: the harm is taken out of one fine-tuning without training.

The fine-tuned change ``phi_u`` is good for utility rows and the base, change 0, for safety rows. With a quadratic model
of the loss on each, the best compromise of a layer is

.. math:: \phi = (F_u + \mu F_s)^{-1} F_u \phi_u,

which is the merge `sst` with a second adapter that is zero, in the core space of the first. ``F_u`` is taken at the
fine-tuned model; ``F_s`` half way to it, where the model has begun to comply (`RepairConfig.point`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.data.batches import Encoded
from holdfast.data.examples import Example
from holdfast.layers.adapters import Adapter, LowRank
from holdfast.layers.address import LayerMap, layer_name
from holdfast.layers.core_space import CoreSpace, truncation_error
from holdfast.methods.merging import rivals
from holdfast.methods.merging.apply import Merged
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.curved import merged_cores
from holdfast.methods.merging.evidence import Evidence, Lazily, gather
from holdfast.methods.merging.plan import Expert, MergePlan, chosen, contents, origin_of
from holdfast.methods.merging.repair_config import READS, WITH_ROWS, RepairConfig
from holdfast.methods.merging.rivals import RIVALS, Seen
from holdfast.methods.merging.rules import missing
from holdfast.methods.merging.rules.truncate import truncated
from holdfast.models.load import LoadedModel

__all__ = ["RepairConfig", "RepairPlan", "delta_of", "repair", "repair_plan"]
BASE = "the base"
"""What stands beside the adapter: no change at all."""


@dataclass(frozen=True, eq=False, slots=True)
class RepairPlan:
    """What is repaired, and what rows or models say about its layers."""

    adapter: Adapter
    pair: MergePlan
    """The chosen layers of the adapter beside zero, as a merge; with evidence for method ``repair``."""
    seen: Mapping[str, Seen]
    """By layer, for the other methods."""
    config: RepairConfig

    def at(self, value: float) -> RepairPlan:
        """The same plan with the method's dial at another value."""
        return replace(self, config=self.config.at(value))

    def notes(self) -> tuple[str, ...]:
        """What is repaired, and on how many rows."""
        count, whole = len(self.pair.deltas), len(self.adapter.deltas)
        layers = f"{count} layers" if count == whole else f"{count} of {whole} layers; the others keep their change"
        rows = self.pair.origin.n_rows
        read = f", {rows[0]} utility and {rows[1]} safety rows" if rows else ", no rows"
        both = self.pair.origin.shared[-1:]
        return (
            f"Method {self.config.method}: {layers}{read}.",
            *(f"{count} of the safety rows are utility rows too: they speak for both." for count in both if count),
        )


def repair_plan(
    config: RepairConfig,
    loaded: LoadedModel,
    expert: Expert,
    safety_rows: Sequence[Example] = (),
    unaligned: LoadedModel | None = None,
) -> RepairPlan:
    """Look at a fine-tuning, its rows, safety rows and, for some rivals, the base before its alignment.

    Args:
        loaded: The base; left as it was.
        expert: The adapter, and rows of what it must still do.
        safety_rows: Requests with the answers that must come back: refusals of harmful ones, answers to others. Methods
            that read weights alone look at no rows.
    Raises:
        AdapterError: the adapter does not fit the base.
        ConfigError: the method needs an unaligned model, or has no use for one.
        DataError: too few rows, a row without an answer, or safety rows that are the utility rows.
        LayerError: a pattern matches no layer of the adapter.
        NumericsError: a gradient is not finite.
    """
    adapter = expert.adapter
    names = chosen(config.layers, [expert])
    rows = _encoded(config, loaded, expert, safety_rows)
    pairs = {name: (adapter.deltas[name], missing(adapter.deltas[name].shape, adapter.deltas[name])) for name in names}
    spaces: Mapping[str, CoreSpace] = {}
    evidence: Mapping[str, Sequence[Evidence]] = {}
    seen: dict[str, Seen] = {}
    if config.method == "repair":
        spaces = {name: CoreSpace.of(pair) for name, pair in pairs.items()}
        evidence = _evidence(config, loaded, adapter, rows, spaces)
    else:
        seen = rivals.gather(config, loaded, adapter, names, rows, unaligned)
    read = rows if config.method in WITH_ROWS else ()
    origin = origin_of(loaded, (expert, Expert(BASE, adapter)), read, adapter.base)
    paths = {name: adapter.paths[name] for name in names}
    return RepairPlan(adapter, MergePlan(pairs, evidence, spaces, paths, _as_merge(config), origin), seen, config)


def _as_merge(config: RepairConfig) -> MergingConfig:
    """The merge that repair is: with a zero adapter of weight ``mu``."""
    return MergingConfig(
        rule="sst",
        weights=(1.0, config.mu),
        fisher=config.fisher,
        damping=config.damping,
        rank=config.rank,
        seed=config.seed,
    )


def _evidence(
    config: RepairConfig,
    loaded: LoadedModel,
    adapter: Adapter,
    rows: tuple[list[Encoded], list[Encoded]],
    spaces: Mapping[str, CoreSpace],
) -> dict[str, Sequence[Evidence]]:
    """Gradients of utility rows at the adapter and of safety rows at a share of it, in its core spaces."""
    partly = replace(adapter, deltas={n: LowRank(d.A, config.point * d.B) for n, d in adapter.deltas.items()})
    merge = _as_merge(config)
    use = gather(merge.model_copy(update={"labels": config.labels}), loaded, [adapter], rows[:1], spaces)
    harm = gather(merge, loaded, [partly], rows[1:], spaces)
    return {name: Lazily.of(use[name], harm[name]) for name in spaces}


def _encoded(
    config: RepairConfig, loaded: LoadedModel, expert: Expert, safety_rows: Sequence[Example]
) -> tuple[list[Encoded], list[Encoded]]:
    if config.method not in WITH_ROWS:
        return [], []
    found = []
    for what, rows in (("utility", expert.rows), ("safety", safety_rows)):
        if len(rows[: config.samples]) < 2:
            raise DataError(f"Cannot repair {expert.name}: got {len(rows)} {what} rows, expected at least 2.")
        found.append([loaded.chat.training(row) for row in rows[: config.samples]])
    use, harm = found
    if contents(use) == contents(harm):
        raise DataError(
            "utility and safety rows are the same, expected different ones: repair weighs what each needs against the "
            "other. Do: give rows of the task as utility, and requests with safe answers as safety."
        )
    return use, harm


def repair(plan: RepairPlan) -> Merged:
    """The repaired adapter; no model is needed. Layers that were not chosen are as before.

    Raises:
        NumericsError: the evidence does not decide the repair, or something is not finite.
    """
    act = partial(_compromise if plan.config.method == "repair" else _rival, plan)
    made, lost = {}, {}
    for name, pair in plan.pair.deltas.items():
        made[name], lost[name] = act(name, *pair)
    read = {"method", "layers", "rank", *READS[plan.config.method]}
    metadata = {
        "method": "repair",
        "config": plan.config.model_dump(mode="json", include=read),
        "dial": {plan.config.dial.key: plan.config.strength},
        "origin": asdict(plan.pair.origin),
        "adapter": dict(plan.adapter.metadata),
    }
    return Merged(replace(plan.adapter, deltas={**plan.adapter.deltas, **made}, metadata=metadata), lost)


def _compromise(plan: RepairPlan, name: str, delta: LowRank, zero: LowRank) -> tuple[LowRank, float]:
    """One layer by both Fisher matrices."""
    config, seen = _as_merge(plan.config), plan.pair.evidence[name]
    space = plan.pair.spaces[name]
    M_tpq = torch.stack([space.core(delta), space.core(zero)])
    M_pq = merged_cores(config, config.weights, [(name, M_tpq, seen)])[name]
    lost = 0.0 if config.rank is None else truncation_error(M_pq, config.rank)
    return space.lift(M_pq.to(space.left_op), config.rank), lost


def _rival(plan: RepairPlan, name: str, delta: LowRank, _zero: LowRank) -> tuple[LowRank, float]:
    return _cut(RIVALS[plan.config.method].act(delta, plan.seen[name], plan.config), plan.config.rank)


def _cut(acted: LowRank | Tensor, rank: int | None) -> tuple[LowRank, float]:
    """As factors, of at most this rank, and the relative Frobenius norm of what was cut off."""
    if isinstance(acted, Tensor):
        U_ok, s_k, Wt_ki = torch.linalg.svd(acted.double(), full_matrices=False)
        kept = max(1, int((s_k > max(acted.shape) * torch.finfo(torch.float32).eps * s_k[0]).sum()))
        root_r = s_k[:kept].sqrt()
        acted = LowRank((root_r[:, None] * Wt_ki[:kept]).float(), (U_ok[:, :kept] * root_r).float())
    if rank is None:
        return acted, 0.0
    space = CoreSpace.of([acted])
    M_pq = space.core(acted)
    return space.lift(M_pq, rank), truncation_error(M_pq, rank)


@torch.no_grad()
def delta_of(base: LoadedModel, tuned: LoadedModel, rank: int) -> Adapter:
    """A full fine-tuning as an adapter of its base: each linear layer's change cut to ``rank``.

    What the cut leaves out is dropped, and so are changes of embeddings, norms and biases: the result stands on the
    base alone, and a remainder that nobody looked at could carry the harm. ``metadata`` says how much that is:
    ``truncation``, by layer the relative Frobenius norm of what was cut off, and ``dropped``, the names of other
    weights that changed.

    Raises:
        ConfigError: the models are of different kinds or shapes, or do not differ.
    """
    here, there = LayerMap.of(base.model), LayerMap.of(tuned.model)
    names = [str(layer_name(path)) for path in dict.fromkeys(layer.path for layer in here)]
    deltas, lost = {}, {}
    for name in names:
        weight = here.read(name).float()
        other = there.read(name).float().to(weight.device) if name in there else None
        if other is None or other.shape != weight.shape:
            got = "no such layer" if other is None else f"shape {tuple(other.shape)}"
            raise ConfigError(
                f"{tuned.name} is no fine-tuning of {base.name}: got {got} for {name}, expected shape "
                f"{tuple(weight.shape)}. Do: give the model that it was fine-tuned from."
            )
        change = other - weight
        if change.any():
            deltas[name], lost[name] = truncated(change, rank)
    if not deltas:
        raise ConfigError(
            f"{tuned.name} and {base.name} have the same linear layers: nothing to repair. Do: give the fine-tuned "
            "model."
        )
    metadata: dict[str, Any] = {"of": tuned.name, "truncation": lost, "dropped": _others(base, tuned, here)}
    return Adapter.of(here, deltas, metadata)


def _others(base: LoadedModel, tuned: LoadedModel, layers: LayerMap) -> list[str]:
    """Names of weights outside the linear layers that changed."""
    held = {id(layers.parameter(layer.name)) for layer in layers}
    after = dict(tuned.model.named_parameters())
    return [
        name
        for name, parameter in base.model.named_parameters()
        if id(parameter) not in held and name in after and not torch.equal(parameter, after[name].to(parameter))
    ]
