"""Look at adapters and their rows: what is merged, in which coordinates, on which evidence. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from holdfast.core.errors import AdapterError, ConfigError, DataError, LayerError, did_you_mean
from holdfast.core.wording import counted
from holdfast.curvature.passes import digest
from holdfast.data.batches import Encoded
from holdfast.data.examples import Example
from holdfast.layers.adapters import Adapter, LowRank
from holdfast.layers.core_space import CoreSpace
from holdfast.methods.merging.config import PAIRS, WITH_ROWS, MergingConfig
from holdfast.methods.merging.curved import PARTS, with_parts
from holdfast.methods.merging.evidence import Evidence, gather
from holdfast.methods.merging.rules import missing
from holdfast.models.adapter import own_name
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, eq=False, slots=True)
class Expert:
    """An adapter, and rows of what it was trained for."""

    name: str
    adapter: Adapter
    rows: Sequence[Example] = ()
    notes: tuple[str, ...] = ()
    """What a record should say of it: that it was made for another base, say."""
    sha256: str = ""
    """Of its folder; empty where it comes from none."""
    base_weights: str = ""
    """SHA-256 of its base's weights, as recorded beside it; empty where nothing is."""
    any_base: bool = False
    """It was asked to take it whatever base it was made for."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made from."""

    model: str
    """Fingerprint of the base; empty where none was needed."""
    template: str
    names: tuple[str, ...]
    """Of the adapters, in order."""
    rows: tuple[str, ...]
    """SHA-256 of each adapter's tokenised rows, whatever they are called; empty where none were needed."""
    n_rows: tuple[int, ...]
    base: str
    """What the adapters call their base."""
    adapters: tuple[str, ...] = ()
    """SHA-256 of each adapter's folder, empty where it comes from none."""
    bases: tuple[str, ...] = ()
    """SHA-256 of the weights of each adapter's base, empty where none is recorded."""


@dataclass(frozen=True, eq=False, slots=True)
class MergePlan:
    """What is merged: by layer, each adapter's delta, and what its rows say about it in core coordinates."""

    deltas: Mapping[str, tuple[LowRank, ...]]
    """An adapter that does not touch a layer has a zero delta there."""
    evidence: Mapping[str, Sequence[Evidence]]
    spaces: Mapping[str, CoreSpace]
    """By layer, the bases in which the evidence is; empty where there is none. They belong to it: the same deltas give
    the same axes up to signs alone, and those are the linear algebra library's."""
    paths: Mapping[str, str]
    """By layer, the module path that PEFT files use."""
    config: MergingConfig
    origin: Origin

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each adapter."""
        return self.config.weights_of(len(self.origin.names))

    def with_last(self, weight: float) -> MergePlan:
        """The same plan with another weight of the last adapter: what was looked at does not depend on it.

        Raises:
            ConfigError: the rule cannot work with that weight.
        """
        return replace(self, config=self.config.with_last(weight, len(self.origin.names)))

    def notes(self) -> tuple[str, ...]:
        """What is merged, which layers some adapters do not touch, and whether full matrices have few rows."""
        ranks = sorted({delta.rank for each in self.deltas.values() for delta in each if bool(delta.B.any())} or {0})
        made = (
            f"{counted(len(self.origin.names), 'adapter')}, {counted(len(self.deltas), 'layer')}, "
            f"ranks {ranks[0]} to {ranks[-1]}."
        )
        absent = {
            name: sum(not bool(each[t].B.any()) for each in self.deltas.values())
            for t, name in enumerate(self.origin.names)
        }
        return (
            made,
            *(f"The change of {name} is 0 in {count} of them." for name, count in absent.items() if count),
            *self._few_rows(),
        )

    def _few_rows(self) -> tuple[str, ...]:
        if self.config.rule != "sst" or self.config.fisher != "full":
            return ()
        size, rows = max(map(_coordinates, self.deltas.values())), min(self.origin.n_rows)
        if rows >= size:
            return ()
        return (
            f"Full Fisher matrices of up to {size} coordinates see {rows} rows of an adapter, so at most as many "
            "directions: more rows, or fisher: block, which needs fewer, may keep more.",
        )


def _coordinates(deltas: Sequence[LowRank]) -> int:
    """Most core coordinates that a layer can have."""
    rank = sum(delta.rank for delta in deltas if bool(delta.B.any()))
    return min(deltas[0].shape[0], rank) * min(deltas[0].shape[1], rank)


def plan(config: MergingConfig, loaded: LoadedModel | None, experts: Sequence[Expert]) -> MergePlan:
    """Look at ``experts``, for rules that read rows on the model that they were trained from.

    Args:
        loaded: The base model; ``None`` for rules that read the adapters alone.
    Raises:
        ConfigError: weights that do not fit, or no model for a rule that reads rows.
        AdapterError: adapters of different bases, or none.
        LayerError: a pattern matches no layer.
        DataError: an adapter has no rows, or two have the same.
        NumericsError: a gradient is not finite.
    """
    if not experts:
        raise AdapterError("cannot merge: got no adapters, expected at least 1.")
    try:
        config.weights_of(len(experts))
    except ValueError as problem:
        raise ConfigError(f"Cannot merge: {problem}. Do: change weights.") from problem
    if config.rule in PAIRS and len(experts) != 2:
        raise ConfigError(
            f"rule {config.rule} takes two adapters, utility and then safety: got {len(experts)}. Do: merge others "
            "first."
        )
    base = _base(experts)
    names = chosen(config.layers, experts)
    deltas = {name: _beside(name, experts) for name in names}
    paths = {name: next(e.adapter.paths[name] for e in experts if name in e.adapter.deltas) for name in names}
    if config.rule not in WITH_ROWS:
        return MergePlan(deltas, {}, {}, paths, config, origin_of(None, experts, (), base))
    if loaded is None:
        raise ConfigError(f"rule {config.rule} reads rows on the base model: got no model. Do: give the base.")
    rows = _encoded(config, loaded, experts)
    spaces = {name: CoreSpace.of(each) for name, each in deltas.items()}
    evidence = gather(config, loaded, [e.adapter for e in experts], rows, spaces)
    if config.rule in PARTS:
        evidence = with_parts(config, [(name, cores_of(spaces[name], deltas[name]), evidence[name]) for name in names])
    return MergePlan(deltas, evidence, spaces, paths, config, origin_of(loaded, experts, rows, base))


def origin_of(
    loaded: LoadedModel | None, experts: Sequence[Expert], rows: Sequence[Sequence[Encoded]], base: str
) -> Origin:
    """What is remembered of what a plan was made from."""
    return Origin(
        model="" if loaded is None else loaded.fingerprint,
        template="" if loaded is None else loaded.chat.fingerprint,
        names=tuple(expert.name for expert in experts),
        rows=tuple(digest([replace(row, id="") for row in own]) for own in rows),
        n_rows=tuple(len(own) for own in rows),
        base=base,
        adapters=tuple(expert.sha256 for expert in experts),
        bases=tuple(expert.base_weights for expert in experts),
    )


def contents(rows: Sequence[Encoded]) -> frozenset[tuple[Sequence[int], Sequence[bool]]]:
    """What rows say, whatever they are called and in whatever order."""
    return frozenset((row.ids, row.response) for row in rows)


def cores_of(space: CoreSpace, deltas: Sequence[LowRank]) -> Tensor:
    """The deltas of one layer in its core space, ``(t, p, q)``."""
    return torch.stack([space.core(delta) for delta in deltas])


def _base(experts: Sequence[Expert]) -> str:
    """What the adapters call their base: the same for all that name one, wherever it lay when they were trained.

    Where a hash of the base's weights is recorded beside every adapter, that says whether it is the same one; names
    do where it is not.
    """
    bound = [expert for expert in experts if not expert.any_base]
    hashes = {expert.base_weights for expert in bound}
    names = {own_name(expert.adapter.base) for expert in bound if expert.adapter.base}
    if len(hashes - {""}) > 1 or ("" in hashes and len(names) > 1):
        told = ", ".join(f"{e.name}: {_told_base(e)}" for e in experts)
        raise AdapterError(
            f"cannot merge adapters of different bases: got {told}, expected one base. Do: merge adapters of one base "
            "model, or take them all the same with --any-base (in a recipe any_base: true)."
        )
    return next((expert.adapter.base for expert in experts if expert.adapter.base), "")


def _told_base(expert: Expert) -> str:
    known = f" (weights {expert.base_weights[:12]})" if expert.base_weights else ""
    return f"{expert.adapter.base or 'unnamed'}{known}"


def chosen(patterns: Sequence[str], experts: Sequence[Expert]) -> list[str]:
    """Names of the layers that any adapter touches and a pattern matches."""
    return matching(patterns, list(dict.fromkeys(name for expert in experts for name in expert.adapter.deltas)))


def matching(patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known names that a pattern matches, all of them without one.

    Raises:
        LayerError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in known):
            kinds = dict.fromkeys(name.rpartition(".")[2] for name in known)
            raise LayerError(f"no layer matches {pattern!r} in the adapters. {did_you_mean(pattern, kinds)}")
    return [name for name in known if not patterns or any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return pattern in (name, name.rpartition(".")[2]) or fnmatchcase(name, pattern)


def _beside(name: str, experts: Sequence[Expert]) -> tuple[LowRank, ...]:
    """Every adapter's delta of one layer, zero where it has none."""
    found = [expert.adapter.deltas.get(name) for expert in experts]
    like = next(delta for delta in found if delta is not None)
    shapes = {delta.shape for delta in found if delta is not None}
    if len(shapes) > 1:
        raise AdapterError(
            f"cannot merge {name}: got deltas of {' and '.join(map(str, sorted(shapes)))}, expected one shape. Do: "
            "merge adapters of one base model."
        )
    return tuple(missing(like.shape, like) if delta is None else delta for delta in found)


def _encoded(config: MergingConfig, loaded: LoadedModel, experts: Sequence[Expert]) -> list[list[Encoded]]:
    encoded = []
    for expert in experts:
        rows = expert.rows[: config.samples]
        if len(rows) < 2:
            raise DataError(
                f"Cannot weigh {expert.name}: got {counted(len(rows), 'row')}, expected at least 2. Do: give it "
                "rows of its task."
            )
        silent = [row.id for row in rows if row.messages and not row.answer.strip()]
        if silent:
            raise DataError(
                f"Cannot weigh {expert.name}: got no answer in {len(silent)} of {len(rows)} rows, the first is "
                f"{silent[0]!r}, expected one to learn in each. Do: give rows with answers."
            )
        encoded.append([loaded.chat.training(row) for row in rows])
    seen: dict[frozenset[tuple[Sequence[int], Sequence[bool]]], int] = {}
    for number, own in enumerate(encoded):
        other = seen.setdefault(contents(own), number)
        if other != number:
            raise DataError(
                f"{experts[other].name} and {experts[number].name} have the same rows, expected different ones: the "
                "merge weighs what each needs against the other. Do: give each adapter rows of its own task."
            )
    return encoded
