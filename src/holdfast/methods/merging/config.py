"""The keys of merging: which rule, what it reads, and on which evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from holdfast.core.config import Config, explain
from holdfast.core.errors import did_you_mean
from holdfast.core.wording import counted

WITH_ROWS = ("regmean", "fisher", "alignguard", "sst", "sst_projection")
"""Rules that read rows of each adapter; the others read the adapters alone (`holdfast.methods.merging.rules`)."""
PAIRS = ("safe_merge", "alignguard", "sst_projection")
"""Rules that take exactly two adapters: utility, then safety."""

RuleName = Literal[
    "average", "task_arithmetic", "svd", "cat", "ties", "dare_linear", "dare_ties", "magnitude_prune", "breadcrumbs",
    "della", "knots", "core_space_ties", "tsv", "iso_c", "safe_merge", "regmean", "fisher", "alignguard", "sst",
    "sst_projection",
]  # fmt: skip
Form = Literal["full", "global", "block", "kfac", "diagonal", "gradient_variance", "topk"]
Point = Literal["own", "base", "utility", "mean"]
WEIGH_LOSSES = ("regmean", "fisher", "alignguard", "sst")
"""Rules whose weights are those of losses, at least 0; those of the others may subtract."""
LAYER_WEIGHTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"), 2.0),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "gate_up_proj"), 1.5),
}
"""The field's weights of layers in `sst_projection`, by kind, of those that an adapter can have here."""

_EVIDENCE = frozenset({"labels", "point", "samples", "damping"})
_TRIM = frozenset({"density", "semantics"})
_ELECT = frozenset({"election"})
_DROP = _TRIM | {"rescale"}
READS: dict[str, frozenset[str]] = {
    "average": frozenset(),
    "task_arithmetic": frozenset(),
    "svd": frozenset(),
    "cat": frozenset(),
    "ties": _TRIM | _ELECT,
    "dare_linear": _DROP,
    "dare_ties": _DROP | _ELECT,
    "magnitude_prune": _TRIM,
    "breadcrumbs": _TRIM | {"gamma"},
    "della": _DROP | _ELECT | {"epsilon"},
    "knots": _TRIM | _ELECT,
    "core_space_ties": _TRIM | _ELECT,
    "tsv": frozenset(),
    "iso_c": frozenset(),
    "safe_merge": frozenset({"tau"}),
    "regmean": _EVIDENCE - {"labels"},
    "fisher": _EVIDENCE,
    "alignguard": (_EVIDENCE - {"damping"}) | {"k"},
    "sst": _EVIDENCE | {"fisher", "share"},
    "sst_projection": _EVIDENCE | {"k", "tau", "directions", "layer_weights", "raw_weights"},
}
"""The keys that each rule reads, beside those that all read; any other is refused."""
READ_BY_ALL = frozenset({"rule", "layers", "weights", "rank", "seed"})


class MergingConfig(Config):
    """How several adapters of one base become one."""

    rule: RuleName = "sst"
    """``sst``: the merge that loses least on every adapter's own rows, with full Fisher matrices. The others are the
    published rules (`docs/merging.md`)."""
    layers: tuple[str, ...] = ()
    """Kinds (``q_proj``), names (``layers.3.q_proj``) or globs; empty means every layer of the adapters. Layers that
    are left out get no change."""
    weights: tuple[float, ...] = ()
    """One for each adapter; all 1 where they are left out. What is summed is ``weight * delta``; in ``sst``, ``fisher``
    and ``regmean`` they weigh the losses, and in ``alignguard`` the last weighs its penalties too; in these four none
    is below 0."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the result. Left out: the largest rank of the adapters with ``svd``, the sum of their ranks with rules
    that work on single entries of the weights (``ties``, ``dare_linear``, ``dare_ties``, ``magnitude_prune``,
    ``breadcrumbs``, ``della``, ``knots``); with the others nothing is cut off."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of entries that is kept; the rule's own where it is left out."""
    semantics: Literal["paper", "peft", "mergekit"] = "paper"
    """Whose reading of the rule, where tools differ."""
    election: Literal["mass", "count"] = "mass"
    """A sign is elected by the sum of the entries, or by how many have it."""
    rescale: bool = True
    """Make up for randomly dropped entries."""
    gamma: float = Field(default=0.01, ge=0, lt=1)
    """Share of the largest entries that ``breadcrumbs`` drops."""
    epsilon: float = Field(default=0.15, ge=0)
    """How far ``della``'s keep probabilities spread."""
    tau: float | None = None
    """``safe_merge``: the cosine below which a layer counts as unsafe (.35). ``sst_projection``: weigh directions by
    ``lambda / (lambda + tau)`` in place of a hard ``k``."""
    seed: int = Field(default=0, ge=0)
    """Of random masks, random directions and drawn labels."""
    fisher: Form = "full"
    """The form of the Fisher matrices. ``full``: all entries of a layer; ``global``: all layers together, exact in the
    span of the rows; ``block``: a block for each output of the core; ``kfac``: a Kronecker product; the others are
    diagonal: its squares, their variance, or the ``share`` of largest squares."""
    share: float = Field(default=0.3, gt=0, le=1)
    """``fisher: topk``: the share of entries that count."""
    labels: Literal["empirical", "sampled"] = "empirical"
    """``empirical``: the rows' own answers. ``sampled``: answers drawn from the model, as the Fisher matrix is
    defined."""
    point: Point | None = None
    """Weights at which gradients are taken: the base with the adapter whose rows they are (``own``), as it is, with
    the first adapter, or with the mean. Left out: ``utility`` for ``sst_projection``, else ``own``."""
    samples: int | None = Field(default=None, ge=2)
    """At most this many rows of each adapter, the first ones; all of them where it is left out."""
    damping: float = Field(default=0.01, gt=0)
    """Added to every Fisher matrix, as a share of its mean eigenvalue."""
    k: int | None = Field(default=None, ge=1)
    """``sst_projection``: how many directions of a layer are kept. ``alignguard``: how many count as critical to
    safety. At most as many as the safety rows use; half of those where it is left out."""
    directions: Literal["efficient", "random", "utility"] = "efficient"
    """``sst_projection``: those of most safety per utility, or the controls: random ones, and those that utility uses
    most."""
    layer_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: dict(LAYER_WEIGHTS))
    """``sst_projection``: how much of the projection each kind of layer gets; others 1. Scaled to a mean of 1."""
    raw_weights: bool = False
    """Take ``layer_weights`` as they are."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Self:
        unread = sorted(self.model_fields_set & set(MergingConfig.model_fields) - READ_BY_ALL - READS[self.rule])
        if unread:
            raise ValueError(f"{unread[0]} has no effect with rule: {self.rule}; take it out")
        if "share" in self.model_fields_set and self.fisher != "topk":
            raise ValueError("share has no effect without fisher: topk; take it out")
        if self.tau is not None and (self.k is not None or self.directions != "efficient"):
            raise ValueError("tau weighs all directions, k and directions choose some; take one of them out")
        if self.rule == "sst_projection" and self.tau is not None and self.tau <= 0:
            raise ValueError(f"tau should be more than 0 with rule: sst_projection (got {self.tau:g})")
        unknown = [kind for kind in self.layer_weights if kind not in LAYER_WEIGHTS]
        if unknown:
            raise ValueError(
                f"layer_weights: no kind of layer {unknown[0]!r}. {did_you_mean(unknown[0], LAYER_WEIGHTS)}"
            )
        self.check_weights(self.weights)
        return self

    def check_weights(self, weights: Sequence[float]) -> None:
        """Do these weights make a merge under this rule?

        Raises:
            ValueError: they do not, whatever the adapters are.
        """
        if weights and not any(weights):
            raise ValueError("weights are all 0; give at least one other")
        if self.rule in WEIGH_LOSSES and min(weights, default=0.0) < 0:
            raise ValueError(
                f"rule {self.rule} weighs losses, so no weight may be below 0 (got {min(weights):g}); to subtract an "
                "adapter, take task_arithmetic"
            )
        if self.rule == "average" and weights and sum(weights) == 0:
            raise ValueError("rule average divides by the sum of the weights, and it is 0; take task_arithmetic")

    @property
    def factored(self) -> bool:
        """Whether rows are kept as two second moments a layer, in place of their gradients."""
        return self.rule == "regmean" or self.fisher == "kfac"

    def with_last(self, weight: float, adapters: int) -> MergingConfig:
        """The same settings, checked anew, with another weight of the last of so many adapters.

        Raises:
            ConfigError: the rule cannot work with that weight.
        """
        weights = (*self.weights_of(adapters)[:-1], weight)
        try:
            return self.only(MergingConfig, weights=weights)
        except ValidationError as problem:
            told = ", ".join(f"{each:g}" for each in weights)
            raise explain(problem, f"merge with weights {told}", MergingConfig) from problem

    def weights_of(self, adapters: int) -> tuple[float, ...]:
        """One weight for each adapter.

        Raises:
            ValueError: there are others.
        """
        if self.weights and len(self.weights) != adapters:
            raise ValueError(
                f"got {counted(len(self.weights), 'weight')} for {counted(adapters, 'adapter')}, expected one for each"
            )
        return self.weights or (1.0,) * adapters
