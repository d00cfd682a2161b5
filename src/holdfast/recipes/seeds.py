"""Steps over seeds: ``plain-{seed}`` in a recipe stands for one step a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.core.config import Config
from holdfast.core.errors import did_you_mean

MARK = "{seed}"
BEFORE = "before"
"""Label of a table's row for the model before any change."""
SAME_PROMPTS = frozenset({"evaluate", "attack"})
"""Kinds of step that keep the recipe's seed: it draws the prompts, and every seed must be asked the same ones."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A step that was made of a pattern."""

    pattern: str
    """Its id in the recipe's file, e.g. ``plain-{seed}``."""
    first: bool
    """It is the first seed's."""


@dataclass(frozen=True, slots=True)
class Expanded:
    """A recipe in which no ``{seed}`` is left."""

    document: dict[str, Any]
    problems: list[str]
    copies: dict[str, Copy]
    """Steps that were made of a pattern, by id."""

    def told(self, problems: Iterable[str]) -> list[str]:
        """Problems under the ids that the file has, each once and not once a seed."""
        known: dict[str, bool] = {}
        lines: dict[str, bool] = {}
        for problem in problems:
            place, colon, sentence = problem.partition(": ")
            head, _, rest = place.partition(".")
            step_id, dot, key = rest.partition(".")
            made = self.copies.get(step_id) if head == "steps" else None
            if made is not None:
                place = f"{head}.{made.pattern}{dot}{key}"
                if not made.first and place in known:
                    continue
                known[place] = True
            lines[place + colon + sentence] = True
        return list(lines)


def expand_seeds(document: Mapping[str, Any], kinds: Mapping[str, type[Config]]) -> Expanded:
    """Make every step whose id holds ``{seed}`` once a seed, in the place where the pattern stands.

    ``{seed}`` is replaced in all its strings, and its ``seed`` is that seed, unless it sets one or its kind is in
    `SAME_PROMPTS`. In a step without ``{seed}`` in its id, an id in a list of steps (``rows`` of a table) becomes the
    list over all seeds.

    Args:
        document: The recipe as it was read, overrides applied.
        kinds: Kinds of step by the word that ``do`` has for them.
    Returns:
        The recipe without ``seeds``, and what is wrong with its seeds. Where they are, 0 stands in for them, so that
        all other problems can be found too.
    """
    rest = {key: value for key, value in document.items() if key != "seeds"}
    steps = document.get("steps")
    if not isinstance(steps, dict):
        return Expanded(dict(rest), [], {})
    seeds, problems = _seeds(document.get("seeds"), steps)
    made: dict[str, Any] = {}
    copies: dict[str, Copy] = {}
    for step_id, step in steps.items():
        if not _marked(step_id):
            made[step_id], found = _listed(step_id, step, seeds, kinds)
            problems += found
            continue
        for seed in seeds:
            one = _replaced(str(step_id), seed)
            if one in steps or one in made:
                problems.append(f"steps.{step_id}: {one!r} is the id of another step. Do: rename one of them")
            copies[one] = Copy(step_id, seed == seeds[0])
            copy = _replaced(step, seed)
            same = isinstance(copy, dict) and str(copy.get("do")) in SAME_PROMPTS
            made[one] = copy if same else _seeded(copy, seed, kinds)
    return Expanded({**rest, "steps": made}, problems, copies)


def with_seed(document: Mapping[str, Any], kinds: Mapping[str, type[Config]]) -> dict[str, Any]:
    """Hand the recipe's seed down to the steps that have a seed and do not set it."""
    steps, seed = document.get("steps"), document.get("seed", 0)
    if not isinstance(steps, dict) or not isinstance(seed, int):
        return dict(document)
    return {**document, "steps": {step_id: _seeded(step, seed, kinds) for step_id, step in steps.items()}}


def row_problems(rows: Mapping[str, tuple[str, ...]], reference: str) -> list[str]:
    """What is wrong with the rows of a table, taken together."""
    problems = []
    if reference not in rows:
        problems.append(f"reference {reference!r} is no row. {did_you_mean(reference, rows)}")
    if BEFORE in rows:
        problems.append(f"{BEFORE!r} is the row of what was before. Do: give the label another name")
    sizes = {label: len(ids) for label, ids in rows.items() if len(ids) > 1}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{label} {size}" for label, size in sizes.items())
        problems.append(f"rows have different numbers of seeds: {told}. Do: give each the same number, or one id")
    return problems + [f"row {label!r} names a step twice" for label, ids in rows.items() if len(set(ids)) < len(ids)]


def synergy_problems(rows: Mapping[str, tuple[str, ...]], reference: str, synergy: tuple[str, ...]) -> list[str]:
    """What is wrong with the labels of a row that combines others."""
    unknown = [label for label in synergy if label not in rows or label == reference]
    if unknown:
        other = "the reference" if unknown[0] == reference else f"no row. {did_you_mean(unknown[0], rows)}"
        return [f"synergy names {unknown[0]!r}, which is {other}"]
    if synergy and (len(synergy) < 3 or len(set(synergy)) < len(synergy)):
        return [f"synergy needs a row and at least two others that it combines, each once (got {', '.join(synergy)})"]
    return []


def _seeds(given: Any, steps: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """The seeds, and what is wrong with them."""
    marked = [str(step_id) for step_id in steps if _marked(step_id)]
    if given is None:
        told = [
            f"seeds: missing, and {name!r} is to be made once for each. Do: add e.g. seeds: [0, 1, 2]"
            for name in marked
        ]
        return [0], told[:1]
    problem = _wrong(given)
    if not problem and not marked:
        problem = f"has no effect: no step has {MARK} in its id. Do: take it out, or name a step e.g. plain-{MARK}"
    return ([0], [f"seeds: {problem}"]) if problem else (given, [])


def _wrong(given: Any) -> str:
    whole = isinstance(given, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in given)
    if not whole or any(seed < 0 for seed in given):
        return f"should be a list of whole numbers from 0 (got {given!r})"
    if not given:
        return "is empty. Do: give at least one, e.g. [0, 1, 2]"
    twice = [seed for seed in dict.fromkeys(given) if given.count(seed) > 1]
    return f"{twice[0]} stands there twice. Do: give each seed once" if twice else ""


def _marked(value: Any) -> bool:
    """``{seed}`` stands somewhere in it."""
    if isinstance(value, dict):
        return any(_marked(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_marked(inner) for inner in value)
    return isinstance(value, str) and MARK in value


def _replaced(value: Any, seed: int) -> Any:
    """The same with ``{seed}`` replaced in every string and key; a string that is nothing else becomes the number."""
    if isinstance(value, dict):
        return {_replaced(key, seed): _replaced(inner, seed) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, seed) for inner in value]
    if value == MARK:
        return seed
    return value.replace(MARK, str(seed)) if isinstance(value, str) else value


def _seeded(step: Any, seed: int, kinds: Mapping[str, type[Config]]) -> Any:
    kind = kinds.get(str(step.get("do"))) if isinstance(step, dict) else None
    return {"seed": seed, **step} if kind is not None and "seed" in kind.model_fields else step


def _listed(step_id: Any, step: Any, seeds: list[int], kinds: Mapping[str, type[Config]]) -> tuple[Any, list[str]]:
    """A step that is made once, with ``{seed}`` in its lists of steps written out; and where else it stands."""
    if not isinstance(step, dict):
        return step, []
    lists = getattr(kinds.get(str(step.get("do"))), "lists", {})
    written = {key: _written_out(value, seeds) if key in lists else value for key, value in step.items()}
    problems = [
        f"steps.{step_id}.{key}: holds {MARK}, and this step is made once. Do: put {MARK} into its id, or take it out"
        for key, value in written.items()
        if _marked(value)
    ]
    return written, problems


def _written_out(lists: Any, seeds: list[int]) -> Any:
    if not isinstance(lists, dict):
        return lists
    return {label: _over_seeds(named, seeds) if _marked(named) else named for label, named in lists.items()}


def _over_seeds(named: Any, seeds: list[int]) -> Any:
    """``plain-{seed}``, alone or in a list, as the list over all seeds."""
    given = named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in given):
        return named
    return [one for name in given for one in ([_replaced(name, s) for s in seeds] if MARK in name else [name])]
