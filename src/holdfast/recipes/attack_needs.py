"""What an attack will ask, before any model loads."""

from __future__ import annotations

from holdfast.recipes.attack_step import AttackStep
from holdfast.recipes.checks import Checks, on_hub


def attack_rows(checks: Checks, step_id: str, step: AttackStep) -> dict[str, int | None]:
    """How many rows each part asks, attackers with a budget left out; a set on the hub is not read."""
    from holdfast.evaluation.attacks.material import read_material

    if any(on_hub(source) for source in step.cases):
        return {source.source: None for source in step.cases}
    found = checks.tried(step_id, lambda: read_material(step.cases, step.settings()))
    return {} if found is None else {name: len(rows) for name, rows in found.parts.items()}
