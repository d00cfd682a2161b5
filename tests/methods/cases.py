"""What `test_contract.py` must know about each method: one record a method, and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from tests.methods.causal.made_cases import cases as injections
from tests.methods.merging.expert_plans import experts
from tests.methods.token_weighting.weighted_cases import column_of
from tests.training.helpers import config, examples
from tests.zoo import tiny
from torch import nn

from holdfast.core.config import Config
from holdfast.data.batches import collate
from holdfast.layers.adapters import Adapter, added, write_peft
from holdfast.layers.address import LayerMap, layer_name
from holdfast.methods.causal import store as causal_store
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.objective import CausalObjective
from holdfast.methods.causal.plan import CausalPlan, training_rows
from holdfast.methods.merging import store as merging_store
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.plan import MergePlan
from holdfast.methods.rotation.config import RotationConfig
from holdfast.methods.rotation.plan import RotationPlan
from holdfast.methods.rotation.store import load_plan, save_plan
from holdfast.methods.token_weighting import store as token_store
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.objective import WeightedObjective
from holdfast.methods.token_weighting.plan import TokenWeightingPlan
from holdfast.models.load import LoadedModel
from holdfast.training.constraint import Shadows
from holdfast.training.loop import train


@dataclass(frozen=True)
class Case:
    """One method, small enough for a test."""

    settings: Callable[..., Config]
    """The configuration of a tiny plan; called with ``layers`` and the keys of a variant."""
    variants: Mapping[str, Mapping[str, Any]]
    """Keys that make plans of different kinds, by a name for people; the first is planned on every family."""
    rows: Callable[[LoadedModel], Sequence[Any]]
    """What planning looks at, beside the model."""
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]
    content: Callable[[Any], Mapping[str, Any]]
    """All that a plan says, by name: tensors and plain values."""
    begin: Callable[[nn.Module, Any], None]
    """Make of a model what it is before the first step, with what ``apply`` gave."""
    work: Callable[[LoadedModel, Any, Path], nn.Module]
    """Put to use what ``apply`` gave, for a step or two: the model after."""
    whole: bool = False
    """Whether the parts of a fused module are planned together, under its own name."""
    sources: Callable[[Any, LoadedModel], Mapping[str, Any]] = lambda *_: {}
    """What planning needs beside rows, by keyword; of the configuration and the model."""
    layered: bool = True
    """Whether a plan is of chosen layers; otherwise it is of rows alone."""

    def layers(self, loaded: LoadedModel, wanted: Sequence[str]) -> tuple[str, ...]:
        """The wanted layers under the names that a plan of this model has for them."""
        layers = LayerMap.of(loaded.model)
        chosen = layers.select(wanted)
        if not self.whole:
            return tuple(layer.name for layer in chosen)
        return tuple(dict.fromkeys(name for layer in chosen if (name := layer_name(layer.path))))


def _rotation_content(made: RotationPlan) -> dict[str, Any]:
    """Its tensors and its figures."""
    kinds = {kind: getattr(made.basis, kind) for kind in ("vectors", "energies", "moments")}
    tensors = {f"{kind}/{name}": t for kind, each in kinds.items() for name, t in each.items()}
    plain = {"config": dict(made.config), "groups": dict(made.basis.groups), "origin": asdict(made.basis.origin)}
    figures = {"stability": made.stability, "by chance": made.stability_by_chance, "tokens": made.basis.tokens}
    return tensors | {f"frozen/{name}": t for name, t in made.frozen.items()} | plain | figures


def _rotation_work(loaded: LoadedModel, hold: Any, out: Path) -> nn.Module:
    """Two steps with a rate that moves whatever may move."""
    settings = config(steps=2, batch_size=2, learning_rate=0.01, weight_decay=0.1)
    return train(loaded, examples(4), settings, out=out, constraint=hold).model.model


def _rotation_begin(model: nn.Module, hold: Any) -> None:
    """The weights are written once from coordinates that are all 0."""
    Shadows(model.requires_grad_(True), hold).push()


def _merging_content(made: MergePlan) -> dict[str, Any]:
    """Its tensors and where they come from."""
    deltas = {
        f"{name}/{t}/{side}": getattr(delta, side)
        for name, each in made.deltas.items()
        for t, delta in enumerate(each)
        for side in "AB"
    }
    seen = {
        f"{name}/{t}/{kind}": getattr(evidence, kind)
        for name, each in made.evidence.items()
        for t, evidence in enumerate(each)
        for kind in merging_store.KINDS
        if getattr(evidence, kind) is not None
    }
    return deltas | seen | {"config": made.config, "origin": made.origin, "paths": dict(made.paths)}


def _merging_begin(model: nn.Module, merged: Adapter) -> None:
    """The adapter is put on, and nothing is asked before it is taken off."""
    with added(model, merged):
        pass


def _merging_work(loaded: LoadedModel, merged: Adapter, out: Path) -> nn.Module:
    """Stock PEFT puts it into the weights."""
    write_peft(merged, out / "adapter")
    worn: nn.Module = PeftModel.from_pretrained(loaded.model, out / "adapter").merge_and_unload()
    return worn


def _causal_content(made: CausalPlan) -> dict[str, Any]:
    """Its tensors, by the names of the layers that they are inputs of, and its rows."""
    tensors = {
        f"{kind}/{layer}/{where}": getattr(made.nulls[f"{group}/{where}"], kind)
        for layer, group in made.groups.items()
        for where in made.config.kinds
        for kind in ("scale_d", "draws_n")
    }
    nulls = {name: (null.stability, null.separation, null.rank) for name, null in made.nulls.items()}
    rows = {view: [each[n] for n in range(len(each))] for view, each in made.cases.views.items()}
    told = {"attacks": made.cases.attacks, "positions": made.cases.positions, "n_train": made.cases.n_train}
    start = {} if made.start is None else {"start": made.start}
    plain = {"config": made.config, "origin": made.origin, "window": made.window}
    # the spans of a row serve no batch and are not kept
    bare = {view: [(row.id, row.ids, row.response) for row in each] for view, each in rows.items()}
    return tensors | nulls | bare | told | start | plain | {"partners": made.partners, "groups": dict(made.groups)}


def _causal_begin(model: nn.Module, objective: CausalObjective) -> None:
    """The loss of two cases is computed, and no step made."""
    rows = [objective.plan.cases.views["benign"][n] for n in range(2)]
    terms = objective(model, collate(rows, 0))
    sum(term.sum / term.weight for term in terms.values()).backward()  # type: ignore[union-attr]


def _causal_work(loaded: LoadedModel, objective: CausalObjective, out: Path) -> nn.Module:
    """Two steps of an adapter on the layers that the plan names."""
    layers = LayerMap.of(loaded.model)
    targets = [layers[name].path for name in objective.plan.groups]
    settings = config(steps=2, batch_size=2, learning_rate=0.01, params="lora", lora={"targets": targets})
    result = train(loaded, training_rows(injections(10)), settings, out=out, objective=objective)
    merged: nn.Module = result.model.model.merge_and_unload()
    return merged


def _token_sources(settings: TokenWeightingConfig, loaded: LoadedModel) -> dict[str, Any]:
    """What the scorer needs: other random models of the family, or weights that differ from token to token."""
    family = loaded.name.removeprefix("tiny-")
    if settings.base == "column":
        return {"column": column_of(loaded, examples(8))}
    wanted = {"rho1": ("reference",), "contrast": ("degraded", "utility")}.get(settings.base, ())
    return {"references": {name: tiny(family, seed) for seed, name in enumerate(wanted, start=1)}}


def _token_content(made: TokenWeightingPlan) -> dict[str, Any]:
    """All of it."""
    tensors = {"values": made.values_n, "ends": made.ends}
    return tensors | {"keys": made.keys, "statistics": made.statistics, "config": made.config, "origin": made.origin}


def _token_begin(model: nn.Module, objective: WeightedObjective) -> None:
    """The loss of the planned rows is computed, and no step made."""
    loaded = tiny(model.config.model_type.removesuffix("_text"))  # type: ignore[union-attr, operator]
    batch = collate([loaded.chat.training(row) for row in examples(8)], loaded.chat.pad_id)
    model.train()
    objective.begin(0, 1)
    terms = objective(model, batch)
    sum(term.sum / term.weight for term in terms.values()).backward()  # type: ignore[union-attr]


def _token_work(loaded: LoadedModel, objective: WeightedObjective, out: Path) -> nn.Module:
    """Two steps of an adapter on the layers of the contract: the objective itself chooses none."""
    layers = LayerMap.of(loaded.model).select(("q_proj", "layers.1.down_proj"))
    lora = {"targets": [layer.path for layer in layers]}
    settings = config(steps=2, batch_size=4, learning_rate=0.01, params="lora", lora=lora)
    result = train(loaded, examples(8), settings, out=out, objective=objective)
    merged: nn.Module = result.model.model.merge_and_unload()
    return merged


CASES: dict[str, Case] = {
    "rotation": Case(
        settings=lambda **keys: RotationConfig(**({"frozen_share": 0.25} | keys)),
        variants={
            "directions": {},
            "elements": {"unit": "element", "importance": "abs"},
            "random": {"choose": "random", "space": "random", "scope": "global", "seed": 3},
        },
        rows=lambda _: examples(4, seed=7),
        save=save_plan,
        load=load_plan,
        content=_rotation_content,
        begin=_rotation_begin,
        work=_rotation_work,
    ),
    "merging": Case(
        settings=MergingConfig,
        variants={
            "gradients": {},
            "factors": {"fisher": "kfac", "labels": "sampled", "point": "mean", "weights": (1.0, 3.0)},
            "inputs": {"rule": "regmean", "samples": 3},
            "projection": {"rule": "sst_projection", "directions": "random", "k": 3, "seed": 3, "rank": 2},
            "guarded": {"rule": "alignguard", "k": 2, "labels": "sampled", "seed": 3},
            "adapters alone": {"rule": "dare_ties", "density": 0.9},
        },
        rows=experts,
        save=merging_store.save_plan,
        load=merging_store.load_plan,
        content=_merging_content,
        begin=_merging_begin,
        work=_merging_work,
        whole=True,
    ),
    "causal": Case(
        # before the first attention the last token of every prompt is the same, so that is not where it is read
        settings=lambda **keys: CausalConfig(**({"samples": 8, "tokens": "response"} | keys)),
        variants={
            "three terms": {},
            "all terms": {"lambda_preference": 0.5, "twin": True, "partners": 2, "gradient": "both"},
            "invariance alone": {"lambda_task": 0, "lambda_spurious": 0},
        },
        rows=lambda _: injections(10),
        save=causal_store.save_plan,
        load=causal_store.load_plan,
        content=_causal_content,
        begin=_causal_begin,
        work=_causal_work,
    ),
    "token_weighting": Case(
        settings=lambda layers, **keys: TokenWeightingConfig(**keys),
        variants={
            "excess": {},
            "contrast": {"scorer": "contrast", "soft": 1.0},
            "dataset": {"scope": "dataset", "keep": 0.5},
            "column": {"scorer": "column", "clip": (0.0, 2.0)},
            "heads": {"scorer": "entropy", "horizon": 3, "heads": "medusa", "warmup": 0.0, "ramp": 0.0},
            "shuffled": {"scorer": "shuffled", "seed": 3},
        },
        rows=lambda _: examples(8),
        save=token_store.save_plan,
        load=token_store.load_plan,
        content=_token_content,
        begin=_token_begin,
        work=_token_work,
        sources=_token_sources,
        layered=False,
    ),
}
"""By the name of the method."""
