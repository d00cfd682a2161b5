"""From a plan to an `Adapter`: one low-rank change of each layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from holdfast.layers.adapters import Adapter, LowRank
from holdfast.layers.core_space import truncation_error
from holdfast.methods.base import check_origin
from holdfast.methods.merging.config import READ_BY_ALL, READS, WITH_ROWS, MergingConfig
from holdfast.methods.merging.curved import merged_cores
from holdfast.methods.merging.evidence import usual_point
from holdfast.methods.merging.plan import MergePlan, cores_of
from holdfast.methods.merging.rules import RULES, RuleSettings, merge_layer
from holdfast.methods.merging.rules.base import finite, resolve
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, eq=False, slots=True)
class Merged:
    """A merged adapter, and by layer the relative Frobenius norm of what cutting it to its rank lost."""

    adapter: Adapter
    truncation: dict[str, float]


def apply(loaded: LoadedModel, plan: MergePlan) -> Adapter:
    """The adapter that a plan makes, for ``loaded``.

    Raises:
        ConfigError: the plan looked at another model or chat template.
        AdapterError: it does not fit the model.
    """
    if plan.origin.model:  # one that no model was needed for fits every base
        check_origin(plan.origin, loaded)
    return merge(plan).adapter


def merge(plan: MergePlan) -> Merged:
    """The adapter that a plan makes; no model is needed.

    Raises:
        ConfigError: settings that the rule cannot work with.
        NumericsError: the evidence does not decide the merge, or something is not finite.
    """
    made = _with_rows(plan) if plan.config.rule in WITH_ROWS else _data_free(plan)
    deltas = {name: delta for name, (delta, _) in made.items()}
    adapter = Adapter(deltas, plan.origin.base, {name: plan.paths[name] for name in deltas}, _metadata(plan))
    return Merged(adapter, {name: lost for name, (_, lost) in made.items()})


def _data_free(plan: MergePlan) -> dict[str, tuple[LowRank, float]]:
    config, settings = plan.config, rule_settings(plan.config)
    made = {}
    for name, deltas in plan.deltas.items():
        made[name] = merge_layer(name, deltas, plan.weights, config.rule, settings, config.rank)
    return made


def settled(config: MergingConfig, adapters: int) -> RuleSettings:
    """What a rule that reads the adapters alone works with, the rule's own values included.

    Raises:
        ConfigError: settings that the rule cannot work with.
    """
    return resolve(RULES[config.rule], rule_settings(config), adapters)


def rule_settings(config: MergingConfig) -> RuleSettings:
    """What a rule that reads the adapters alone is told; what was left out is the rule's own."""
    given = {key: getattr(config, key) for key in config.model_fields_set & set(RuleSettings.__slots__)}
    return RuleSettings(**{key: value for key, value in given.items() if value is not None})


def _with_rows(plan: MergePlan) -> dict[str, tuple[LowRank, float]]:
    cores = [(name, cores_of(plan.spaces[name], deltas), plan.evidence[name]) for name, deltas in plan.deltas.items()]
    made = {}
    for name, M_pq in merged_cores(plan.config, plan.weights, cores).items():
        lost = 0.0 if plan.config.rank is None else truncation_error(M_pq, plan.config.rank)
        space = plan.spaces[name]
        made[name] = space.lift(finite(M_pq.to(space.left_op), name, plan.config.rule), plan.config.rank), lost
    return made


def _metadata(plan: MergePlan) -> dict[str, Any]:
    """What travels beside the weights; what was left out of the settings has the value that was used."""
    config = plan.config
    used = config.model_dump(mode="json", include=set(READ_BY_ALL | READS[config.rule]))
    if config.rule not in WITH_ROWS:
        settings = asdict(settled(config, len(plan.weights)))
        used |= {key: value for key, value in settings.items() if key in used}
    else:
        used["point"] = config.point or usual_point(config)
    if config.fisher != "topk":
        used.pop("share", None)
    return {
        "method": "merging",
        "config": used | {"weights": list(plan.weights)},
        "weights": list(plan.weights),
        "origin": asdict(plan.origin),
    }
