"""The three phases of a plan: a basis from safety activations, importance in it, a mask. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.curvature.moments import Moment, moments_by_block
from holdfast.curvature.passes import digest, full_precision
from holdfast.curvature.samples import sample_gradients
from holdfast.curvature.spectra import eigenbasis, rank, rank_note
from holdfast.data.batches import Encoded
from holdfast.data.examples import Example
from holdfast.layers.address import Layer, LayerMap
from holdfast.methods.base import check_origin
from holdfast.methods.rotation import maths
from holdfast.methods.rotation.config import (
    BasisConfig,
    ImportanceConfig,
    MaskConfig,
    RotationConfig,
    Tokens,
    check_unit,
)
from holdfast.models.load import LoadedModel

NAMED = 6
"""Groups of layers that a note names."""
NO_TASK = "spare: task got no task scores, expected some. Do: give importance rows of the task."
Halves = tuple[dict[str, Tensor], dict[str, Tensor]]
"""A figure by name on the even and on the odd safety rows; their sum is the figure on all."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made from; a plan of another model is refused."""

    model: str
    """Fingerprint of the model's files."""
    template: str
    rows: str
    """SHA-256 of the tokenised safety rows."""
    n_rows: int
    n_tokens: int


@dataclass(frozen=True, eq=False, slots=True)
class Basis:
    """Phase 1. ``vectors`` ``(i, i)`` and ``energies`` ``(2, i)`` by group of layers that share an input.

    The columns of ``vectors`` are directions; ``energies`` are the sums of squared activations along them, on the even
    and on the odd safety rows. All on the CPU.
    """

    vectors: Mapping[str, Tensor]
    energies: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """For the controls alone, ``(i, i)``: see `second_moment`."""
    groups: Mapping[str, str]
    """The group of every planned layer."""
    origin: Origin
    tokens: Tokens

    def second_moment(self, group: str) -> Tensor:
        """``C (i, i)`` of all safety rows, float64: what output drift is measured with.

        In the rotated space it is ``U diag(energies) U^T``; in the controls' spaces it has to be kept.
        """
        if group in self.moments:
            return self.moments[group].double()
        U_ii = self.vectors[group].double()
        return (U_ii * self.energies[group].sum(0).double()) @ U_ii.T

    def notes(self) -> tuple[str, ...]:
        """What it was made from, and where the safety rows do not fill a layer's input space (not for the controls)."""
        seen = f"{self.origin.n_tokens:,} tokens of {self.origin.n_rows} safety rows"
        made = f"{seen}; {len(self.vectors)} groups of layers that share an input."
        spectra = {group: halves.sum(0) for group, halves in self.energies.items() if group not in self.moments}
        short = [group for group, s_i in sorted(spectra.items(), key=_filled) if _filled((group, s_i)) < 1]
        if not short:
            return (made,)
        worst = rank_note(spectra[short[0]], self.origin.n_tokens, short[0])
        assert worst is not None  # its rank is below its width
        named = [f"{group} (rank {rank(spectra[group])} of {len(spectra[group])})" for group in short[1:NAMED]]
        more = [f"{len(short) - NAMED} more"] if len(short) > NAMED else []
        return (made, worst) if len(short) == 1 else (made, worst, f"The same holds in {', '.join([*named, *more])}.")


def _filled(spectrum: tuple[str, Tensor]) -> float:
    """The rank of a group's second moment as a share of its width."""
    return rank(spectrum[1]) / len(spectrum[1])


@dataclass(frozen=True, eq=False, slots=True)
class Importance:
    """Phase 2. By layer, a score of every direction ``(i,)`` or rotated element ``(o, i)``."""

    halves: Halves
    config: ImportanceConfig
    basis: Basis
    task: Mapping[str, Tensor] | None = None
    """The same scores on rows of the task, for ``spare: task``."""
    rows: str = field(kw_only=True)
    """SHA-256 of the tokenised safety rows that were scored; for gradients they may be others than the basis'."""
    task_rows: str | None = field(kw_only=True, default=None)
    """The same of the task's rows."""

    def whole(self, name: str) -> Tensor:
        """The scores of one layer on all safety rows."""
        even, odd = self.halves
        return even[name] + odd[name]

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores on all safety rows."""
        return {name: self.whole(name) for name in self.halves[0]}


@dataclass(frozen=True, eq=False, slots=True)
class RotationPlan:
    """Phase 3: what may not move. Booleans by layer, ``(i,)`` for directions and ``(o, i)`` for rotated elements."""

    frozen: Mapping[str, Tensor]
    stability: float | None
    """Overlap (IoU) of the masks that the two halves of the safety rows would give; ``None`` for a random mask."""
    stability_by_chance: float
    config: Mapping[str, Any]
    basis: Basis

    def table(self) -> list[dict[str, Any]]:
        """A row a layer: what is frozen, and the share of the safety activations' energy in it (directions alone)."""
        rows = []
        for name, frozen in self.frozen.items():
            energy = self.basis.energies[self.basis.groups[name]].sum(0)
            held = float(energy[frozen].sum() / energy.sum()) if frozen.ndim == 1 else None
            share = float(frozen.float().mean())
            rows.append(
                {"layer": name, "frozen": int(frozen.sum()), "of": frozen.numel(), "share": share, "energy": held}
            )
        return rows

    def notes(self) -> tuple[str, ...]:
        """What the plan was made from, and how much of it hangs on the choice of rows."""
        halves = (
            "" if self.stability is None else f"; halves of the safety rows agree on {self.stability:.0%} of the mask"
        )
        return (*self.basis.notes(), f"{len(self.frozen)} layers{halves}.")


def plan(
    config: RotationConfig, loaded: LoadedModel, safety: Sequence[Example], task: Sequence[Example] = ()
) -> RotationPlan:
    """All three phases: look at ``loaded`` on ``safety`` rows and choose what may not move.

    Args:
        task: Rows of the task, for ``spare: task``.

    Raises:
        DataError: there are no safety rows.
        LayerError: a pattern matches no layer.
        ConfigError: the share would freeze nothing or everything.
        NumericsError: an activation is not finite.
    """
    if config.spare == "task" and not task:
        raise ConfigError(NO_TASK)
    safety = safety[: config.samples]
    return mask(config, importance(config, loaded, safety, basis(config, loaded, safety, config.seed), task))


Found = dict[str, Tensor]
"""What phase 1 finds for one group, by the names of `Basis`: ``vectors``, ``energies``, ``moments`` for a control."""


def on_the_cpu(group: str, found: Found) -> Found:
    """Keep what was found in memory."""
    return {kind: tensor.cpu() for kind, tensor in found.items()}


def basis(
    config: BasisConfig,
    loaded: LoadedModel,
    safety: Sequence[Example],
    seed: int = 0,
    keep: Callable[[str, Found], Found] = on_the_cpu,
) -> Basis:
    """Phase 1: the coordinates, from the second moments of the layers' inputs on the safety rows.

    The model is walked block by block (`moments_by_block`): beside it, one block's moments are held at a time, of the
    even and of the odd rows, then what their eigenvectors take to compute; and the hidden states of all rows.

    Args:
        seed: Of ``space: random``.
        keep: Called once a group with what was found there; what it returns stands in the basis. `store.find_basis`
            writes it to disk, so that no two blocks are in memory.
    """
    rows = _encoded(config, loaded, safety)
    layers = LayerMap.of(loaded.model).select(config.layers or None)
    seeds = {group: seed + number for number, group in enumerate(layers.groups())}
    kinds: dict[str, dict[str, Tensor]] = {"vectors": {}, "energies": {}, "moments": {}}
    counts = []

    def found(group: str, halves: tuple[Moment, ...]) -> None:
        counts.append(sum(half.tokens for half in halves))
        for kind, tensor in keep(group, _found(config, group, halves, seeds[group])).items():
            kinds[kind][group] = tensor

    moments_by_block(loaded, (rows[::2], rows[1::2]), layers, found, config.tokens)
    origin = Origin(
        model=loaded.fingerprint,
        template=loaded.chat.fingerprint,
        rows=digest(rows),
        n_rows=len(rows),
        n_tokens=counts[0],
    )
    return Basis(**kinds, groups={layer.name: layer.group for layer in layers}, origin=origin, tokens=config.tokens)


def _found(config: BasisConfig, group: str, halves: Sequence[Moment], seed: int) -> Found:
    C_even, C_odd = (half.matrix for half in halves)
    if config.space == "rotated":
        U_ii = eigenbasis(C_even + C_odd, group)[0]
    elif config.space == "random":
        U_ii = maths.random_rotation(len(C_even), seed).to(C_even.device)
    else:
        U_ii = torch.eye(len(C_even), device=C_even.device)
    found = {"vectors": U_ii, "energies": torch.stack([_along(U_ii, C_ii) for C_ii in (C_even, C_odd)])}
    return found if config.space == "rotated" else found | {"moments": C_even + C_odd}


def _along(U_ii: Tensor, C_ii: Tensor) -> Tensor:
    """The energy in each direction, ``(i,)``: the diagonal of ``U^T C U``."""
    with full_precision(C_ii.device):
        return (C_ii @ U_ii).mul_(U_ii).sum(0)


def importance(
    config: ImportanceConfig,
    loaded: LoadedModel,
    safety: Sequence[Example],
    found: Basis,
    task: Sequence[Example] = (),
) -> Importance:
    """Phase 2: what safety needs, in the coordinates of ``found``: energy, or the gradient of each row's refusal loss.

    Args:
        safety: For ``energy`` the rows of the basis, whose energies are known; a gradient may be asked of other rows.
    Raises:
        ConfigError: the basis is another model's, or made from other rows and ``importance`` is ``energy``.
    """
    check_origin(found.origin, loaded)
    rows, task_rows = (digest([loaded.chat.training(row) for row in given]) for given in (safety, task))
    if config.importance == "energy":
        if rows != found.origin.rows:
            raise ConfigError(
                f"importance: energy is that of the basis' own safety rows: got others ({rows[:12]}, expected "
                f"{found.origin.rows[:12]}). Do: give the rows of the basis, or make a basis from these."
            )
        halves = tuple({name: found.energies[g][half] for name, g in found.groups.items()} for half in (0, 1))
        even, odd = halves
        needed = _task_energies(loaded, task, found) if task else None
    else:
        even, odd = _gradient_scores(config, loaded, safety, found)
        needed = _summed(*_gradient_scores(config, loaded, task, found)) if task else None
    return Importance((even, odd), config, found, needed, rows=rows, task_rows=task_rows if task else None)


def _summed(even: Mapping[str, Tensor], odd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a single row there is no odd half."""
    return {name: even[name] + odd[name] if name in odd else even[name] for name in even}


def _task_energies(loaded: LoadedModel, task: Sequence[Example], found: Basis) -> dict[str, Tensor]:
    layers = LayerMap.of(loaded.model).select(tuple(found.groups))
    energies: dict[str, Tensor] = {}

    def add(group: str, seen: tuple[Moment, ...]) -> None:
        C_ii = seen[0].matrix
        energies[group] = _along(found.vectors[group].to(C_ii.device), C_ii).cpu()

    moments_by_block(loaded, [[loaded.chat.training(row) for row in task]], layers, add, found.tokens)
    return {name: energies[group] for name, group in found.groups.items()}


def _gradient_scores(config: ImportanceConfig, loaded: LoadedModel, given: Sequence[Example], found: Basis) -> Halves:
    """Summed where the gradients are, and kept on the CPU."""
    layers = LayerMap.of(loaded.model).select(tuple(found.groups))
    rows = [loaded.chat.training(row) for row in given]
    weights = {}
    if config.importance == "taylor":
        for name, group in found.groups.items():
            W_oi = layers.read(name).float()
            weights[name] = W_oi @ found.vectors[group].to(W_oi.device)
    sums: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    def add(layer: Layer, number: int, G_oi: Tensor) -> None:
        if config.importance == "column":
            score = maths.column_score(G_oi)
        else:
            score = maths.element_score(config.importance, G_oi, weights.get(layer.name, G_oi))
        half = sums[number % 2]
        half[layer.name] = half[layer.name].add_(score) if layer.name in half else score

    sample_gradients(loaded, rows, layers, add, basis=found.vectors)
    even, odd = ({name: half[name].cpu() for name in found.groups if name in half} for half in sums)
    return even, odd


def mask(config: MaskConfig, scored: Importance) -> RotationPlan:
    """Phase 3: freeze the highest scores.

    Raises:
        ConfigError: the share freezes nothing or everything, or the scores are of directions and ``unit`` is element.
    """
    try:
        check_unit(scored.config.importance, config.unit)
    except ValueError as problem:
        raise ConfigError(f"Cannot make a mask: {problem}. Do: change unit or importance.") from problem
    if config.spare == "task" and scored.task is None:
        raise ConfigError(NO_TASK)
    names = list(scored.halves[0])
    frozen: dict[str, Tensor] = {}
    agreed = maths.Overlap(0, 0, 0.0, 0.0)
    for part in [names] if config.scope == "global" else [[name] for name in names]:
        frozen |= (whole := _frozen(config, scored, part, scored.whole))
        even, odd = (_frozen(config, scored, part, half.__getitem__) for half in scored.halves)
        agreed += sum((maths.Overlap.of(even[name], odd[name]) for name in whole), maths.Overlap(0, 0, 0.0, 0.0))
    if not any(bool(each.any()) for each in frozen.values()):
        raise ConfigError(
            "spare: task leaves nothing frozen: the task needs all that safety needs. Do: raise frozen_share, or take "
            "spare out."
        )
    chosen = {**scored.config.model_dump(mode="json"), **config.model_dump(mode="json")}
    chosen |= {"importance_rows": scored.rows, "task_rows": scored.task_rows}
    stability = agreed.share if config.choose == "highest" else None
    return RotationPlan(_chosen(config, frozen), stability, agreed.share_by_chance, chosen, scored.basis)


def _frozen(
    config: MaskConfig, scored: Importance, names: Sequence[str], score: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """What has the highest scores, without what the task needs where it is to be spared."""

    def top(score: Callable[[str], Tensor]) -> dict[str, Tensor]:
        scores = {name: _comparable(score(name), scored.config.importance, config.unit) for name in names}
        return maths.frozen_by_share(scores, config.frozen_share, config.scope)

    frozen = top(score)
    if config.spare == "nothing" or scored.task is None:
        return frozen
    task = top(scored.task.__getitem__)
    return {name: mask & ~task[name] for name, mask in frozen.items()}


def _comparable(score: Tensor, importance: str, unit: str) -> Tensor:
    """Energies as shares of their layer's; scores of elements as those of directions, by their sum over outputs."""
    if importance == "energy":
        return score.double() / score.double().sum()  # in float64 no two energies become one share
    return score.sum(0) if unit == "column" and score.ndim == 2 else score


def _chosen(config: MaskConfig, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mask itself, or a control: of equal size in every layer, or empty."""
    if config.choose == "nothing":
        return {name: torch.zeros_like(mask) for name, mask in frozen.items()}
    if config.choose == "highest":
        return dict(frozen)
    generator = torch.Generator().manual_seed(config.seed)
    drawn = {name: torch.rand(mask.shape, generator=generator).reshape(-1) for name, mask in frozen.items()}
    return {name: maths.highest(drawn[name], int(mask.sum())).reshape(mask.shape) for name, mask in frozen.items()}


def _encoded(config: BasisConfig, loaded: LoadedModel, safety: Sequence[Example]) -> list[Encoded]:
    rows = safety[: config.samples]
    if len(rows) < 2:
        raise DataError(
            f"Cannot plan: got {len(rows)} safety rows, expected at least 2. Do: give more, or more samples."
        )
    return [loaded.chat.training(row) for row in rows]
