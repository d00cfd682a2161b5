"""What a merge takes, from the shapes of the adapters alone: memory, disk, and about how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.layers.adapters import Adapter
from holdfast.methods.merging.config import WITH_ROWS, MergingConfig
from holdfast.methods.merging.curved import DENSE
from holdfast.methods.merging.rules import RULES

FLOAT, DOUBLE = 4, 8
ROW_TOKENS = 256
"""Tokens a row is taken to have."""
GRADIENT_BATCH = 16
"""Rows of one forward and backward."""
FLOPS = {"cpu": 2e10, "cuda": 1e13}
"""Products and sums a second, of two cores and of one GPU: enough to tell seconds from hours."""
LAYER_SECONDS = 0.01
STEPS = 300
"""Products that conjugate gradients take, about."""
TIMES = ((60.0, "seconds"), (3600.0, "minutes"), (float("inf"), "hours"))


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer, and the ranks of the deltas that adapters have there."""

    out_features: int
    in_features: int
    ranks: tuple[int, ...]

    @property
    def core(self) -> tuple[int, int]:
        """``p`` and ``q``, at most."""
        return min(self.out_features, sum(self.ranks)), min(self.in_features, sum(self.ranks))

    @property
    def coordinates(self) -> int:
        """``d = p q``."""
        return self.core[0] * self.core[1]

    @property
    def entries(self) -> int:
        """Of the dense weight."""
        return self.out_features * self.in_features

    def factors(self, rank: int) -> int:
        """Entries of two factors of this rank."""
        return rank * (self.out_features + self.in_features)


@dataclass(frozen=True, slots=True)
class Base:
    """The model on which rows are read and answers compared."""

    parameters: int
    weight_bytes: int
    pass_bytes: int
    """One forward and backward of `GRADIENT_BATCH` rows, the weights included."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate."""

    memory_bytes: int
    disk_bytes: int
    seconds: float

    @property
    def time(self) -> str:
        """``seconds``, ``minutes`` or ``hours``."""
        return next(word for most, word in TIMES if self.seconds < most)


def shapes_of(adapters: Sequence[Adapter]) -> dict[str, Shape]:
    """Of every layer that an adapter touches."""
    found: dict[str, Shape] = {}
    for adapter in adapters:
        for name, delta in adapter.deltas.items():
            ranks = (*found[name].ranks, delta.rank) if name in found else (delta.rank,)
            found[name] = Shape(*delta.shape, ranks)
    return found


def cost(config: MergingConfig, shapes: Mapping[str, Shape], rows: Sequence[int], base: Base | None) -> Cost:
    """What one rule takes.

    Args:
        shapes: Of the layers that are merged.
        rows: Of each adapter; for a rule that reads none they have no say.
        base: ``None`` where there is none.
    """
    layers = list(shapes.values())
    counts = [min(count, config.samples or count) for count in rows] if config.rule in WITH_ROWS else []
    given = sum(shape.factors(sum(shape.ranks)) for shape in layers)
    made = sum(shape.factors(result_rank(config, shape)) for shape in layers)
    spaces = sum(shape.out_features * shape.core[0] + shape.in_features * shape.core[1] for shape in layers)
    held = FLOAT * (given + spaces + made) + sum(_evidence_bytes(config, shape, counts) for shape in layers)
    working = max((_working_bytes(config, shape, counts) for shape in layers), default=0)
    looking, flops = 0, float(sum(_flops(config, shape, counts) for shape in layers))
    if base is not None:
        changed = base.weight_bytes * sum(shape.entries for shape in layers) // max(base.parameters, 1)
        looking = changed + (base.pass_bytes if counts else base.weight_bytes)
        flops += 6 * base.parameters * ROW_TOKENS * sum(counts)
    seconds = flops / FLOPS[base.device if base else "cpu"] + LAYER_SECONDS * len(layers)
    return Cost(held + working + looking, FLOAT * made, seconds)


def result_rank(config: MergingConfig, shape: Shape) -> int:
    """The most that the merged delta has."""
    whole = min(shape.core)
    return whole if config.rank is None else min(config.rank, whole)


def _factored(config: MergingConfig) -> bool:
    return config.rule == "regmean" or (config.rule == "sst" and config.fisher == "kfac")


def _evidence_bytes(config: MergingConfig, shape: Shape, counts: Sequence[int]) -> int:
    """Held until the merge is made."""
    p, q = shape.core
    if not counts:
        return 0
    if _factored(config):
        return FLOAT * len(counts) * (p * p + q * q)
    part = DOUBLE * shape.coordinates if config.rule == "sst_projection" else 0
    return FLOAT * sum(counts) * shape.coordinates + part


def _working_bytes(config: MergingConfig, shape: Shape, counts: Sequence[int]) -> int:
    """While one layer is merged."""
    (p, q), d, n = shape.core, shape.coordinates, sum(counts)
    if config.rule in RULES:
        return 3 * FLOAT * shape.entries if RULES[config.rule].space == "dense" else 4 * DOUBLE * d * len(shape.ranks)
    if _factored(config):
        return DOUBLE * 8 * (d + len(counts) * (p * p + q * q))
    if config.rule == "sst_projection":
        return DOUBLE * 10 * d * d
    if config.rule == "sst" and config.fisher == "global":
        return DOUBLE * (3 * n * n + n * d)
    if config.rule == "sst" and config.fisher == "block":
        return 2 * DOUBLE * len(counts) * p * q * q
    if config.rule == "sst" and config.fisher == "full" and d <= DENSE:
        return (FLOAT * len(counts) + 4 * DOUBLE) * d * d
    return 2 * DOUBLE * max(counts) * d


def _flops(config: MergingConfig, shape: Shape, counts: Sequence[int]) -> float:
    """Of one layer, beside the passes over the rows."""
    (p, q), d, n, rank = shape.core, shape.coordinates, sum(counts), sum(shape.ranks)
    found = 6.0 * (shape.out_features + shape.in_features) * rank**2 + 40.0 * rank**3
    if config.rule in RULES:
        dense = RULES[config.rule].space == "dense"
        return found + (shape.entries * (20.0 * rank + 100.0 * len(shape.ranks)) if dense else 0.0)
    if _factored(config):
        return found + STEPS * 4.0 * d * (p + q)
    spectrum = 2.0 * n * n * d + 25.0 * n**3 if len(counts) == 2 else 0.0
    if config.rule == "sst_projection":
        return found + spectrum + 2.0 * n * d * d + 30.0 * d**3
    if config.rule == "sst" and config.fisher == "full":
        solve = 2.0 * n * d * d + 2.0 * d**3 if d <= DENSE else STEPS * 4.0 * n * d
        return found + spectrum + solve
    if config.rule == "sst" and config.fisher == "global":
        return found + spectrum + 2.0 * n * n * d
    blocks = 2.0 * n * p * q * q + p * q**3 if config.rule == "sst" and config.fisher == "block" else 0.0
    return found + spectrum + blocks
