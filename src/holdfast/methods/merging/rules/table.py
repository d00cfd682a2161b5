"""The rules that need no data, each with its paper."""

from __future__ import annotations

from holdfast.core.registry import Registry
from holdfast.methods.merging.rules.base import Rule, Semantics
from holdfast.methods.merging.rules.dense import dense_rule, elected, weighted_sum
from holdfast.methods.merging.rules.linear import average
from holdfast.methods.merging.rules.linear import weighted_sum as core_sum
from holdfast.methods.merging.rules.sparse import keep_largest, keep_middle, keep_random, keep_random_by_rank
from holdfast.methods.merging.rules.spectral import core_space_ties, safe_merge, tsv

_NONE: frozenset[str] = frozenset()
_TRIM = frozenset({"density", "semantics"})
_DROP = _TRIM | {"rescale", "seed"}
_ELECT = frozenset({"election"})
_ALL: tuple[Semantics, ...] = ("paper", "peft", "mergekit")
_NOT_PEFT: tuple[Semantics, ...] = ("paper", "mergekit")

# Where a density that is left out comes from:
# - ties, knots, core_space_ties, magnitude_prune: .2, the top 20 % of the TIES paper (2306.01708, section 4).
# - dare_*: .8, the drop rate of .2 at which DARE's authors merge language models (README of yule-BUAA/MergeLM); one
#   model alone bears .9 to .99 in their paper. PEFT has no value of its own, mergekit's drops nothing.
# - della: .7, the drop rate of .3 in the example of its authors (README of declare-lab/della; its window of .14 is
#   `RuleSettings.epsilon` in paper semantics). epsilon, .15: mergekit's own.
# - breadcrumbs: .9 with gamma .01, what mergekit's README recommends and its guide explains.
_LINEAR = (
    Rule("average", "core", average, _NONE, "Model Soups, 2203.05482", True, "weighted mean", exact=True),
    Rule("task_arithmetic", "core", core_sum, _NONE, "2212.04089", True, "weighted sum", exact=True),
    Rule("cat", "core", core_sum, _NONE, "PEFT", True, "weighted sum, under PEFT's name for it", exact=True),
    Rule("svd", "core", core_sum, _NONE, "PEFT", True, "weighted sum, cut back to the largest rank of the inputs"),
)

_DENSE = (
    Rule(
        name="ties",
        space="dense",
        merge=dense_rule(keep_largest, elected(divide=_ALL)),
        settings=_TRIM | _ELECT,
        paper="TIES-Merging, 2306.01708",
        linear=False,
        summary="trim each by magnitude, elect a sign for every entry, average those that have it",
        density=0.2,
        semantics=_ALL,
    ),
    Rule(
        name="dare_linear",
        space="dense",
        merge=dense_rule(keep_random, weighted_sum),
        settings=_DROP,
        paper="DARE, 2311.03099",
        linear=True,
        summary="drop entries at random, rescale the rest, add",
        density=0.8,
        semantics=_ALL,
    ),
    Rule(
        name="dare_ties",
        space="dense",
        merge=dense_rule(keep_random, elected(divide=("paper", "peft"))),
        settings=_DROP | _ELECT,
        paper="DARE, 2311.03099",
        linear=False,
        summary="drop entries at random, rescale the rest, elect signs as in ties",
        density=0.8,
        semantics=_ALL,
    ),
    Rule(
        name="magnitude_prune",
        space="dense",
        merge=dense_rule(keep_largest, weighted_sum),
        settings=_TRIM,
        paper="PEFT",
        linear=False,
        summary="trim each by magnitude, add",
        density=0.2,
        semantics=("paper", "peft"),
    ),
    Rule(
        name="breadcrumbs",
        space="dense",
        merge=dense_rule(keep_middle, weighted_sum),
        settings=_TRIM | {"gamma"},
        paper="Model Breadcrumbs, 2312.06795",
        linear=False,
        summary="drop the smallest and the very largest entries, add",
        density=0.9,
        semantics=_NOT_PEFT,
    ),
    Rule(
        name="della",
        space="dense",
        merge=dense_rule(keep_random_by_rank, elected(divide=_NOT_PEFT)),
        settings=_DROP | _ELECT | {"epsilon"},
        paper="DELLA-Merging, 2406.11617",
        linear=False,
        summary="drop small entries more often, rescale the rest, elect signs as in ties",
        density=0.7,
        semantics=_NOT_PEFT,
    ),
    Rule(
        name="knots",
        space="dense",
        merge=dense_rule(keep_largest, elected(divide=_ALL)),
        settings=_TRIM | _ELECT,
        paper="KnOTS, 2410.19735",
        linear=False,
        summary="ties on rows turned into the deltas' common left singular vectors",
        density=0.2,
        semantics=("paper",),
        turned=True,
    ),
)

_SPECTRAL = (
    Rule(
        name="core_space_ties",
        space="core",
        merge=core_space_ties,
        settings=_TRIM | _ELECT,
        paper="Core Space, 2509.17786",
        linear=False,
        summary="ties on core coordinates",
        exact=True,
        density=0.2,
        semantics=("paper",),
    ),
    Rule(
        name="tsv",
        space="core",
        merge=tsv,
        settings=_NONE,
        paper="TSV-Merge, 2412.00081",
        linear=False,
        summary="make the singular vectors of all adapters orthogonal, add",
        exact=True,
    ),
    Rule(
        name="iso_c",
        space="core",
        merge=core_sum,
        settings=_NONE,
        paper="Iso-C, 2502.04959",
        linear=False,
        summary="weighted sum with a flat spectrum",
        exact=True,
        isotropic=True,
    ),
    Rule(
        name="safe_merge",
        space="core",
        merge=safe_merge,
        settings=frozenset({"tau"}),
        paper="SafeMERGE, 2503.17239",
        linear=False,
        summary="keep the utility delta where it lies along the safety delta, else the weighted sum",
        exact=True,
        pair=True,
    ),
)

RULES: Registry[Rule] = Registry("rule", {rule.name: rule for rule in (*_LINEAR, *_DENSE, *_SPECTRAL)})
