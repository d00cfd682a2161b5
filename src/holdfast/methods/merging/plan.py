"""Look at adapters and their rows: what is merged, in which coordinates, on which evidence. Nothing is changed."""

from __future__ import annotations

from collections import Counter
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
from holdfast.methods.merging.curved import PARTS, check_k, with_parts
from holdfast.methods.merging.evidence import Evidence, gather
from holdfast.methods.merging.rules import missing
from holdfast.models.adapter import own_name
from holdfast.models.chat import ChatFormat
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
    shared: tuple[int, ...] = ()
    """How many of each adapter's rows another adapter has too; empty where none were needed."""


@dataclass(frozen=True, eq=False, slots=True)
class Joined:
    """What is merged, as far as the adapters alone tell: they fit each other, and the settings fit them."""

    base: str
    """What the adapters call their base."""
    deltas: Mapping[str, tuple[LowRank, ...]]
    """As `MergePlan.deltas`."""
    paths: Mapping[str, str]
    """As `MergePlan.paths`."""


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
        """What is merged, which layers some adapters do not touch, and what makes evidence weak: few or shared rows."""
        ranks = sorted({delta.rank for each in self.deltas.values() for delta in each if _changes(delta)} or {0})
        made = (
            f"{counted(len(self.origin.names), 'adapter')}, {counted(len(self.deltas), 'layer')}, "
            f"ranks {ranks[0]} to {ranks[-1]}."
        )
        absent = {
            name: sum(not _changes(each[t]) for each in self.deltas.values())
            for t, name in enumerate(self.origin.names)
        }
        return (
            made,
            *(f"The change of {name} is 0 in {count} of them." for name, count in absent.items() if count),
            *(() if ranks[-1] else ("Every change is 0, so the merge changes nothing.",)),
            *self._shared_rows(),
            *self._few_rows(),
        )

    def _shared_rows(self) -> tuple[str, ...]:
        origin = self.origin
        told = [
            f"{count} of {own} of {name}"
            for name, own, count in zip(origin.names, origin.n_rows, origin.shared, strict=False)
            if count
        ]
        if not told:
            return ()
        return (
            f"Rows that another adapter has too: {', '.join(told)}. They speak for both, where the merge weighs what "
            "each needs against the other: give each adapter rows of its own task.",
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
    rank = sum(delta.rank for delta in deltas if _changes(delta)) or 1
    return min(deltas[0].shape[0], rank) * min(deltas[0].shape[1], rank)


def _changes(delta: LowRank) -> bool:
    """Training starts with ``B`` 0, and either factor may be."""
    return bool(delta.A.any()) and bool(delta.B.any())


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
    found = joined(config, experts)
    if config.rule not in WITH_ROWS:
        return MergePlan(found.deltas, {}, {}, found.paths, config, origin_of(None, experts, (), found.base))
    if loaded is None:
        raise ConfigError(f"rule {config.rule} reads rows on the base model: got no model. Do: give the base.")
    rows = encoded(config, loaded.chat, experts, found)
    spaces = {name: CoreSpace.of(each) for name, each in found.deltas.items()}
    evidence = gather(config, loaded, [e.adapter for e in experts], rows, spaces)
    if config.rule in PARTS:
        cores = {name: cores_of(spaces[name], each) for name, each in found.deltas.items()}
        evidence = with_parts(config, [(name, M_tpq, evidence[name]) for name, M_tpq in cores.items()])
    origin = origin_of(loaded, experts, rows, found.base)
    return MergePlan(found.deltas, evidence, spaces, found.paths, config, origin)


def joined(config: MergingConfig, experts: Sequence[Expert]) -> Joined:
    """The adapters beside each other, refused where they cannot be merged; no model and no rows are looked at.

    Raises:
        ConfigError: weights or another number of adapters than the rule takes.
        AdapterError: adapters of different bases or shapes, or none.
        LayerError: a pattern matches no layer.
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
    return Joined(base, deltas, paths)


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
        shared=shared(rows),
    )


def contents(rows: Sequence[Encoded]) -> frozenset[tuple[Sequence[int], Sequence[bool]]]:
    """What rows say, whatever they are called and in whatever order."""
    return frozenset((row.ids, row.response) for row in rows)


def shared(rows: Sequence[Sequence[Encoded]]) -> tuple[int, ...]:
    """Of each adapter's rows, how many say what a row of another's says."""
    adapters = Counter(said for own in rows for said in contents(own))
    return tuple(sum(adapters[row.ids, row.response] > 1 for row in own) for own in rows)


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


def encoded(
    config: MergingConfig, chat: ChatFormat, experts: Sequence[Expert], adapters: Joined
) -> list[list[Encoded]]:
    """The rows that a rule reads of each adapter, refused where they cannot decide the merge.

    Raises:
        ConfigError: ``k`` is larger than the directions that the safety rows can use in a layer.
        DataError: an adapter has fewer than two rows, a row without an answer, or the rows of another.
    """
    found = []
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
        found.append([chat.training(row) for row in rows])
    seen: dict[frozenset[tuple[Sequence[int], Sequence[bool]]], int] = {}
    for number, own in enumerate(found):
        other = seen.setdefault(contents(own), number)
        if other != number:
            raise DataError(
                f"{experts[other].name} and {experts[number].name} have the same rows, expected different ones: the "
                "merge weighs what each needs against the other. Do: give each adapter rows of its own task."
            )
    if config.k is not None:
        for name, deltas in adapters.deltas.items():
            check_k(config.k, min(len(found[-1]), _coordinates(deltas)), name)
    return found
