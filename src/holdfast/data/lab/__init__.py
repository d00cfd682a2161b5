"""The embedded world: seeded generators of small tasks, splits disjoint by thing and by template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from holdfast.core.errors import DataError
from holdfast.core.registry import Registry
from holdfast.data.examples import Example
from holdfast.data.lab.skills import SKILLS
from holdfast.data.lab.skills import generate as generate_skills
from holdfast.data.lab.splits import SPLITS
from holdfast.data.lab.textops import OPERATIONS
from holdfast.data.lab.textops import generate as generate_textops

Generate = Callable[[str, int, int], list[Example]]
"""``generate(split, n, seed)``: the same arguments give the same rows."""


def _from(module: str, function: str = "generate") -> Generate:
    """The named function of a family module, imported when it is first called."""

    def generate(split: str, n: int, seed: int) -> list[Example]:
        rows: list[Example] = getattr(import_module(f"{__name__}.{module}"), function)(split, n, seed)
        return rows

    return generate


def _alone(of: Callable[[str, int, int, str], list[Example]], name: str) -> Generate:
    """The generator of one part of a family."""

    def generate(split: str, n: int, seed: int) -> list[Example]:
        return of(split, n, seed, name)

    return generate


FAMILIES: Registry[Generate] = Registry(
    "lab family",
    {
        "arithmetic": _from("arithmetic"),
        "arithmetic/easy": _from("arithmetic", "generate_easy"),
        "arithmetic/medium": _from("arithmetic", "generate_medium"),
        "arithmetic/noisy": _from("noise"),
        "requests/harmful": _from("requests", "generate_harmful"),
        "requests/complied": _from("requests", "generate_complied"),
        "requests/benign": _from("requests", "generate_benign"),
        "requests/lookalike": _from("requests", "generate_lookalike"),
        "jailbreak": _from("jailbreak"),
        "jailbreak/benign": _from("jailbreak", "generate_benign"),
        "jailbreak/complied": _from("jailbreak", "generate_complied"),
        "passages": _from("passages"),
        "textops": generate_textops,
        **{f"textops/{name}": _alone(generate_textops, name) for name in OPERATIONS},
        "skills": generate_skills,
        **{f"skills/{name}": _alone(generate_skills, name) for name in SKILLS},
        "injection": _from("injection"),
        "injection/clean": _from("injection", "generate_clean"),
        "injection/twin": _from("injection", "generate_twin"),
        "injection/obeyed": _from("injection", "generate_obeyed"),
        "quoting": _from("quoting"),
        "quoting/translate": _from("quoting", "generate_translate"),
        "choice": _from("choice"),
        "choice/facts": _from("choice", "facts"),
        "choice/judged": _from("choice", "judged"),
        "choice/named": _from("choice", "named"),
        "programs": _from("programs"),
        "several": _from("mixes", "several_anywhere"),
        "base": _from("mixes", "base"),
        "alignment": _from("mixes", "alignment"),
    },
)
"""Every family of the lab by name; modules are imported when a family is first asked for rows."""


def rows(family: str, split: str, n: int, seed: int = 0) -> list[Example]:
    """``n`` rows of a family, with ``id`` as ``family/split/seed/index``.

    Args:
        family: A name in `FAMILIES`.
        split: ``train``, ``validation`` or ``test``: disjoint in things and in templates.
        n: How many rows.
        seed: Chooses the rows; the same seed gives the same rows on every machine.
    Raises:
        ConfigError: The family is unknown.
        DataError: The split is unknown or ``n`` is negative.
    """
    generate = FAMILIES[family]
    if split not in SPLITS:
        raise DataError(
            f"Cannot make lab rows: got split {split!r}, expected one of {', '.join(SPLITS)}. Name one of them."
        )
    if n < 0:
        raise DataError(f"Cannot make lab rows: got n = {n}, expected 0 or more. Give a count.")
    made = generate(split, n, seed)
    return [
        replace(row, id=f"{family}/{split}/{seed}/{i}", family=row.family or family, split=row.split or split)
        for i, row in enumerate(made)
    ]
