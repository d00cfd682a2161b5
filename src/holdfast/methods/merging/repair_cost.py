"""What a repair takes, from shapes alone: memory, disk, and about how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.core.sizes import DOUBLE_BYTES, FLOAT_BYTES, ROW_TOKENS
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.cost import FLOPS, LAYER_SECONDS, Base, Cost, Shape, cost
from holdfast.methods.merging.repair_config import WITH_ROWS, RepairConfig, RepairMethod

Shapes = Mapping[str, tuple[int, int, int]]
"""By layer, ``(o, i)`` and the rank of the change."""
DENSE: Mapping[RepairMethod, int] = {"safe_lora": 1, "lox": 1, "csulora": 1, "irr": 2, "prune": 2}
"""Float32 matrices as large as the weight that a method holds of every layer: the alignment, mean squared gradients."""
WORKING = 4
"""Float64 matrices as large as the weight while one layer is decomposed."""
DECOMPOSED = 20.0
"""Products and sums of a singular value decomposition, over ``o i min(o, i)``."""


def repaired_rank(config: RepairConfig, o: int, i: int, rank: int) -> int:
    """The most that the repaired change of a layer has."""
    whole = min(o, i)
    made = {"lox": rank + config.directions, "csulora": 2 * rank, "irr": whole, "prune": whole}.get(config.method, rank)
    return min(made, whole, config.rank or whole)


def repair_cost(
    config: RepairConfig,
    shapes: Shapes,
    names: Sequence[str],
    rows: Sequence[int],
    base: Base,
    *,
    models: int = 0,
) -> Cost:
    """What one repair takes.

    Args:
        shapes: Of every layer of what is repaired.
        names: The layers that are repaired; the others keep their change.
        rows: Utility and safety.
        models: Others of the base's size that are loaded beside it.
    """
    chosen = {name: shapes[name] for name in names}
    made = {n: repaired_rank(config, *shape) if n in chosen else shape[2] for n, shape in shapes.items()}
    disk = FLOAT_BYTES * sum(made[n] * (o + i) for n, (o, i, _) in shapes.items())
    if config.method == "repair":
        found = _compromise(config, chosen, rows, base)
    else:
        given = FLOAT_BYTES * sum(rank * (o + i) for o, i, rank in shapes.values())
        found = _rival(config, chosen, rows, base, given + disk)
    return Cost(found.memory_bytes + models * base.weight_bytes, disk, found.scratch_bytes, found.seconds)


def _compromise(config: RepairConfig, chosen: Shapes, rows: Sequence[int], base: Base) -> Cost:
    """As the merge with a zero adapter that it is."""
    merge = MergingConfig(rule="sst", fisher=config.fisher, rank=config.rank, samples=config.samples)
    return cost(merge, {name: Shape(o, i, (rank, 0)) for name, (o, i, rank) in chosen.items()}, rows, base)


def _rival(config: RepairConfig, chosen: Shapes, rows: Sequence[int], base: Base, factors: int) -> Cost:
    """Beside the bytes of both adapters: matrices as large as the weights, and the passes over rows."""
    counts = [min(count, config.samples or count) for count in rows] if config.method in WITH_ROWS else []
    entries, matrices = [o * i for o, i, _ in chosen.values()], DENSE.get(config.method, 0)
    held = FLOAT_BYTES * matrices * sum(entries)
    if config.method == "irr":
        held += FLOAT_BYTES * sum(i * i for _, i, _ in chosen.values())
    working = DOUBLE_BYTES * WORKING * max(entries, default=0) if matrices else 0
    flops = DECOMPOSED * sum(o * i * min(o, i) for o, i, _ in chosen.values()) if matrices else 0.0
    flops += 6.0 * base.parameters * ROW_TOKENS * sum(counts)
    looking = base.pass_bytes if counts else base.weight_bytes
    return Cost(factors + held + working + looking, 0, 0, flops / FLOPS[base.device] + LAYER_SECONDS * len(chosen))
