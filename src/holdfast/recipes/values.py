"""A recipe's ``values``: a text or a number that stands in many places of it, set once at the top."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.core.errors import did_you_mean

NAME = r"[a-z][a-z0-9_]*"
RESERVED = ("seed",)
"""``{seed}`` is the seed of a step that is made once a seed."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A recipe in which no value's name is left."""

    document: dict[str, Any]
    problems: list[str]


def fill_values(document: Mapping[str, Any], written: Mapping[str, Any] | None = None) -> Filled:
    """Put each value in the place of its name in braces, in all texts of the recipe.

    A text that is nothing but ``{name}`` becomes the value as it is: a number, a list or null as well. Braces round any
    other word stay.

    >>> fill_values({"values": {"rows": 8, "file": "a.csv"}, "data": "{rows} of {file}", "rows": "{rows}"}).document
    {'data': '8 of a.csv', 'rows': 8}

    Args:
        document: The recipe, overrides applied.
        written: The recipe as its file has it. A value that stands there may stand nowhere once a step is replaced.
    Returns:
        The recipe without ``values``, and what is wrong with them.
    """
    if document.get("values") is None:
        return Filled(dict(document), [])
    values = document["values"]
    rest = {key: value for key, value in document.items() if key != "values"}
    if not isinstance(values, dict):
        return Filled(rest, [f"values: should be a mapping of 'key: value' lines (got {values!r})"])
    problems, used = _wrong(values), set[str]()
    filled = {key: _filled(value, values, used) for key, value in rest.items()}
    _filled({key: value for key, value in (written or {}).items() if key != "values"}, values, used)
    for name in values:
        if name not in used and not any(problem.startswith(f"values.{name}:") for problem in problems):
            problems.append(
                f"values.{name}: has no effect: {{{name}}} stands nowhere in the recipe. {did_you_mean(name, used)}"
            )
    return Filled(filled, problems)


def _wrong(values: Mapping[Any, Any]) -> list[str]:
    """Names that cannot stand in braces."""
    return [
        f"values.{name}: not a name: use small letters, digits and '_', and not {' or '.join(map(repr, RESERVED))}"
        for name in values
        if not isinstance(name, str) or not re.fullmatch(NAME, name) or name in RESERVED
    ]


def _filled(value: Any, values: Mapping[Any, Any], used: set[str]) -> Any:
    """The same with the values put in; ``used`` gets the names that stood there."""
    if isinstance(value, dict):
        return {key: _filled(inner, values, used) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, used) for inner in value]
    if not isinstance(value, str):
        return value
    if value[:1] == "{" and value[-1:] == "}" and value[1:-1] in values:
        used.add(value[1:-1])
        return copy.deepcopy(values[value[1:-1]])

    def put(found: re.Match[str]) -> str:
        name = found[1]
        if name not in values:
            return found[0]
        used.add(name)
        return str(values[name])

    return re.sub(rf"\{{({NAME})\}}", put, value)
