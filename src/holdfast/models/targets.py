"""Which modules a list of targets names, read as PEFT reads it."""

from __future__ import annotations

from collections.abc import Iterable


def is_target(path: str, targets: Iterable[str]) -> bool:
    """Whether a module's path is a target, or ends with one in whole parts.

    >>> path = "model.layers.0.self_attn.q_proj"
    >>> is_target(path, ["self_attn.q_proj"]), is_target(path, ["k_proj", "q_proj"]), is_target(path, ["proj"])
    (True, True, False)
    """
    return any(path == target or path.endswith(f".{target}") for target in targets)
