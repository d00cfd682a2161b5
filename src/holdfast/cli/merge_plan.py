"""What ``holdfast merge --plan`` prints: memory, time and disk of a merge that the same checks let through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli.output import print_json, print_table, say, size
from holdfast.core.wording import counted

if TYPE_CHECKING:
    from holdfast.methods.merging.config import MergingConfig
    from holdfast.methods.merging.plan import Expert
    from holdfast.models.describe import Description


def print_plan(
    configs: Mapping[str, MergingConfig],
    folders: Mapping[str, int],
    experts: Sequence[Expert],
    base: str,
    as_json: bool,
) -> None:
    """What each rule takes, after the checks that the merge itself makes; no weight of the base is loaded.

    Args:
        folders: By rule, how many it will write.
        experts: The adapters, with rows where a rule reads some.
        base: Its name, or empty.
    Raises:
        HoldfastError: a rule cannot merge these adapters, on this base, by these rows.
    """
    from holdfast.methods.merging.cost import cost, shapes_of
    from holdfast.models.config import ModelConfig
    from holdfast.models.describe import describe
    from holdfast.recipes.estimate import RUNTIME_BYTES
    from holdfast.recipes.merge_needs import base_of

    model = describe(ModelConfig(source=base)) if base else None
    shapes = shapes_of([expert.adapter for expert in experts])
    counts = [len(expert.rows) for expert in experts if expert.rows]
    needs: list[dict[str, Any]] = []
    for rule, names in _checked(configs, experts, model, base).items():
        chosen = {name: shapes[name] for name in names}
        found = cost(configs[rule], chosen, counts, None if model is None else base_of(model))
        needs.append(
            {
                "rule": rule,
                "layers": len(chosen),
                "folders": folders[rule],
                "memory_bytes": RUNTIME_BYTES + found.memory_bytes,
                "disk_bytes": folders[rule] * found.disk_bytes,
                "scratch_bytes": found.scratch_bytes,
                "time": found.time,
            }
        )
    ranks = sorted({rank for shape in shapes.values() for rank in shape.ranks})
    if as_json:
        print_json({"adapters": len(experts), "ranks": ranks, "rows": counts, "rules": needs})
        return
    on = "no base" if model is None else f"{base}, {model.parameters:,} parameters"
    typer.echo(
        f"{counted(len(experts), 'adapter')} of ranks {ranks[0]} to {ranks[-1]} on {on}; rows: {counts or 'none'}"
    )
    print_table(
        ("rule", "layers", "folders", "memory", "disk", "disk at work", "time"),
        [
            (
                n["rule"],
                str(n["layers"]),
                str(n["folders"]),
                *(size(n[f"{what}_bytes"]) for what in ("memory", "disk", "scratch")),
                n["time"],
            )
            for n in needs
        ],
    )
    say("Nothing was written: estimates from shapes alone.")


def _checked(
    configs: Mapping[str, MergingConfig], experts: Sequence[Expert], model: Description | None, base: str
) -> dict[str, list[str]]:
    """By rule, the layers that it merges."""
    from holdfast.layers.adapters import check_fit
    from holdfast.layers.address import LayerMap
    from holdfast.methods.merging.apply import settled
    from holdfast.methods.merging.plan import encoded, joined
    from holdfast.methods.merging.rules import RULES
    from holdfast.models.config import ModelConfig
    from holdfast.models.load import load_chat

    if model is not None:
        layers = LayerMap.of(model.skeleton)
        for expert in experts:
            check_fit(layers, expert.adapter)
    names = {}
    for rule, config in configs.items():
        found = joined(config, experts)
        if rule in RULES:
            settled(config, len(experts))
        else:
            encoded(config, load_chat(ModelConfig(source=base)), experts, found)
        names[rule] = list(found.deltas)
    return names
