"""Do the steps of a recipe name each other rightly? Asked of the raw mapping, beside the problems of the fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.core.errors import did_you_mean

RESERVED_IDS = ("lab", "new")
"""Words that mean a model source and therefore cannot name a step."""

STEP_ID = r"^[a-z][a-z0-9_-]*$"
PLAN_HEADER, PLAN_MASK = "plan.json", "mask.safetensors"
"""What every plan's folder holds."""
MODEL_KEYS = (".model", ".unaligned", ".adapter", ".tuned", ".against", ".reference", ".degraded", ".utility")
"""Keys that may name a step, and as well a model from elsewhere."""


def as_list(value: Any) -> Any:
    """One id is a list of one."""
    return [value] if isinstance(value, str) else value


def reference_problems(document: Mapping[str, Any], kinds: Mapping[str, type]) -> list[str]:
    """Problems between steps, found on the raw mapping so that they are reported beside those of the fields."""
    steps = document.get("steps")
    if not isinstance(steps, dict):
        return []
    problems = []
    order = [str(step_id) for step_id in steps]
    default = document.get("model")
    for position, (step_id, step) in enumerate(steps.items()):
        where = f"steps.{step_id}"
        if not re.fullmatch(STEP_ID, str(step_id)) or step_id in RESERVED_IDS:
            problems.append(f"{where}: not a step id: use small letters, digits, '-' and '_', and not 'lab' or 'new'")
        if not isinstance(step, dict) or not isinstance(step.get("do"), str) or step["do"] not in kinds:
            continue
        for place, named, wanted in _names(step, kinds[step["do"]], default):
            problems += _reference_problem(f"{where}.{place}", named, wanted, order[:position], steps, kinds)
    return problems


def _names(step: Mapping[str, Any], kind: type, default: Any) -> Iterator[tuple[str, Any, Sequence[str]]]:
    """Every place of a step that names another, what stands there, and the kinds of step that may be named."""
    for key, wanted in getattr(kind, "refers", {}).items():
        yield key, step.get(key, default if key == "model" else None), wanted
    for key, wanted in getattr(kind, "keyed", {}).items():
        given = step.get(key)
        for named in given if isinstance(given, dict) else as_list(given) if isinstance(given, str) else ():
            yield key, named, wanted
    for key, (inner, wanted) in getattr(kind, "items", {}).items():
        for place, item in enumerate(step[key] if isinstance(step.get(key), list) else ()):
            yield f"{key}.{place}.{inner}", item.get(inner) if isinstance(item, dict) else item, wanted
    for key, wanted in getattr(kind, "lists", {}).items():
        for label, ids in step[key].items() if isinstance(step.get(key), dict) else ():
            for place, named in enumerate(as_list(ids) if isinstance(ids, str | list) else ()):
                yield f"{key}.{label}.{place}", named, wanted


def _reference_problem(
    where: str,
    named: Any,
    wanted: Sequence[str],
    earlier: list[str],
    steps: Mapping[str, Any],
    kinds: Mapping[str, type],
) -> list[str]:
    plain = isinstance(named, str)
    target = named.get("source") if isinstance(named, dict) else named
    if target is None:
        return [f"{where}: missing, and the recipe has no 'model' either"] if where.endswith(".model") else []
    if not isinstance(target, str):
        return []  # its field says what it should be
    if target not in steps:
        if where.endswith(".constraint") and "\0" not in target and _is_path(target):
            return _plan_problem(where, target)
        free = where.endswith(MODEL_KEYS) and (not plain or _is_model_source(target))
        return [] if free else [f"{where}: no step {target!r}. {did_you_mean(target, earlier)}"]
    if target not in earlier:
        return [f"{where}: step {target!r} does not run before this step. Put it above"]
    found = steps[target].get("do") if isinstance(steps[target], dict) else None
    if not isinstance(found, str) or found not in kinds or found in wanted:
        return []  # a step without a kind is told where it stands
    return [f"{where}: step {target!r} is {_a(found)} step, expected {' or '.join(map(_a, wanted))} step"]


def _a(word: str) -> str:
    """The word in quotes with its article.

    >>> _a("evaluate"), _a("train")
    ("an 'evaluate'", "a 'train'")
    """
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word!r}"


def _plan_problem(where: str, target: str) -> list[str]:
    for file in (PLAN_HEADER, PLAN_MASK):
        if not (Path(target).expanduser() / file).is_file():
            return [f"{where}: {target} is no plan: got no {file} there, expected the folder 'plan' of a mask step"]
    return []


def _is_path(name: str) -> bool:
    return "/" in name or ("\0" not in name and Path(name).exists())


def _is_model_source(name: str) -> bool:
    return name in RESERVED_IDS or _is_path(name)
