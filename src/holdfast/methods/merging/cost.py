"""What a merge takes, from the shapes of the adapters alone: memory, disk, and about how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.sizes import DOUBLE_BYTES, FLOAT_BYTES, ROW_TOKENS
from holdfast.layers.adapters import Adapter
from holdfast.methods.merging.config import WITH_ROWS, MergingConfig
from holdfast.methods.merging.evidence import HELD_BYTES, gradient_bytes
from holdfast.methods.merging.maths import COLUMNS
from holdfast.methods.merging.rules import RULES

"""Tokens a row is taken to have."""
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
    """One forward and backward of `GRADIENT_ROWS` rows, the weights included."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate."""

    memory_bytes: int
    disk_bytes: int
    """Of the adapter that is written."""
    scratch_bytes: int
    """Of gradients that memory does not hold, in a temporary file while the merge is made."""
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
    cores = sum(len(shape.ranks) * shape.coordinates for shape in layers) if counts else 0
    evidence, scratch = _evidence_bytes(config, layers, counts)
    held = FLOAT_BYTES * (given + spaces + made + cores) + evidence
    working = max((_working_bytes(config, shape, counts, mapped=scratch > 0) for shape in layers), default=0)
    looking, flops = 0, float(sum(_flops(config, shape, counts) for shape in layers))
    if base is not None:
        changed = base.weight_bytes * sum(shape.entries for shape in layers) // max(base.parameters, 1)
        looking = changed + (base.pass_bytes if counts else base.weight_bytes)
        flops += 6 * base.parameters * ROW_TOKENS * sum(counts)
    seconds = flops / FLOPS[base.device if base else "cpu"] + LAYER_SECONDS * len(layers)
    return Cost(held + working + looking, FLOAT_BYTES * made, scratch, seconds)


def result_rank(config: MergingConfig, shape: Shape) -> int:
    """The most that the merged delta has."""
    whole = min(shape.core)
    usual = max(shape.ranks) if config.rule == "svd" else whole
    return min(usual if config.rank is None else config.rank, whole)


def _evidence_bytes(config: MergingConfig, layers: Sequence[Shape], counts: Sequence[int]) -> tuple[int, int]:
    """Held until the merge is made, in memory and on disk."""
    if not counts:
        return 0, 0
    if config.factored:
        return FLOAT_BYTES * len(counts) * sum(p * p + q * q for p, q in (shape.core for shape in layers)), 0
    coordinates = sum(shape.coordinates for shape in layers)
    parts = sum(_parts_bytes(config, shape, counts[-1]) for shape in layers)
    gradients = gradient_bytes(sum(counts), coordinates)
    return (parts, gradients) if gradients > HELD_BYTES else (parts + gradients, 0)


def _parts_bytes(config: MergingConfig, shape: Shape, rows: int) -> int:
    """What a rule finds in a layer's evidence once for every weight."""
    (p, q), d = shape.core, shape.coordinates
    if config.rule == "sst_projection":
        return DOUBLE_BYTES * d
    if config.rule != "alignguard":
        return 0
    task = d - ((min(rows, d) + 1) // 2 if config.k is None else config.k)
    return DOUBLE_BYTES * (d * d + task * task + p * p + q * q)


def _working_bytes(config: MergingConfig, shape: Shape, counts: Sequence[int], *, mapped: bool) -> int:
    """While one layer is merged, its mapped gradients included."""
    layer = gradient_bytes(sum(counts), shape.coordinates) if mapped else 0
    return layer + _solving_bytes(config, shape, counts)


def _solving_bytes(config: MergingConfig, shape: Shape, counts: Sequence[int]) -> int:
    (p, q), d, n = shape.core, shape.coordinates, sum(counts)
    if config.rule in RULES:
        return (
            3 * FLOAT_BYTES * shape.entries
            if RULES[config.rule].space == "dense"
            else 4 * DOUBLE_BYTES * d * len(shape.ranks)
        )
    if config.factored:
        return DOUBLE_BYTES * 8 * (d + len(counts) * (p * p + q * q))
    if config.rule in ("alignguard", "sst_projection"):
        return DOUBLE_BYTES * (10 * d * d + n * d)
    some = min(d, max(COLUMNS, q))
    if config.rule == "sst" and config.fisher == "block":
        return DOUBLE_BYTES * (3 * n * some + 3 * some * q + 4 * len(counts) * d)
    if _in_span(config, d, n):
        return DOUBLE_BYTES * (6 * n * n + 2 * n * some + 4 * d)
    if config.rule == "sst" and config.fisher == "full":
        count = len(counts)
        return DOUBLE_BYTES * (max(2 * count, count + 4) * d * d + max(counts) * d)
    return 2 * DOUBLE_BYTES * (max(counts) + 3 * len(counts)) * d


def _in_span(config: MergingConfig, d: int, n: int) -> bool:
    """Whether the products of samples are solved, in place of a matrix of coordinates."""
    return config.rule == "sst" and (config.fisher == "global" or (config.fisher == "full" and n < d))


def _flops(config: MergingConfig, shape: Shape, counts: Sequence[int]) -> float:
    """Of one layer, beside the passes over the rows."""
    (p, q), d, n, rank = shape.core, shape.coordinates, sum(counts), sum(shape.ranks)
    found = 6.0 * (shape.out_features + shape.in_features) * rank**2 + 40.0 * rank**3
    if config.rule in RULES:
        dense = RULES[config.rule].space == "dense"
        return found + (shape.entries * (20.0 * rank + 100.0 * len(shape.ranks)) if dense else 0.0)
    if config.rule == "regmean":
        return found + 2.0 * len(counts) * d * q + q**3
    if config.factored:
        return found + STEPS * 2.0 * len(counts) * d * (p + q)
    spectrum = 2.0 * n * n * d + 25.0 * n**3 if len(counts) == 2 else 0.0
    if config.rule in ("alignguard", "sst_projection"):
        return found + spectrum + 2.0 * n * d * d + 30.0 * d**3
    if _in_span(config, d, n):
        return found + spectrum + 2.0 * n * n * d + 4.0 * n * d + 3.0 * n**3
    if config.rule == "sst" and config.fisher == "full":
        return found + spectrum + 2.0 * n * d * d + 2.0 * d**3
    blocks = 2.0 * n * p * q * q + p * q**3 if config.rule == "sst" and config.fisher == "block" else 0.0
    return found + spectrum + blocks
