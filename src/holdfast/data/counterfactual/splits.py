"""Which split a case belongs to: its file's word for it, else a hash of its group, with attack families held out.

A group is everything that shares a scenario, a template or a goal, so that nothing of a test case was trained on. Of
families that a source names itself, a fifth is held out: they are tested only, and the cases that would have trained on
them are ``unused``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from holdfast.core.errors import DataError
from holdfast.data.counterfactual.row import Counterfactual
from holdfast.data.formats import Row
from holdfast.data.lab.splits import SPLITS, split_of

FAMILY = "counterfactual"
"""Salt of the hash."""
UNUSED = "unused"
HELD_OUT_SHARE = 0.2
NAMES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
"""Other words for the three splits."""


def own_split(row: Row) -> str:
    """What the row says itself in a column ``split``, else its file's name where that is one; else nothing."""
    said = row.optional("split")
    stem = NAMES.get(row.stem.lower(), row.stem.lower())
    return NAMES.get(said, said) or (stem if stem in SPLITS else "")


def hashed(group: str) -> str:
    """70 % of groups train, 10 % validate, 20 % test; the same group always falls to the same split."""
    return split_of(group, FAMILY)


def connected(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """A group for each row: rows that share a key are in one group, named by its smallest key.

    >>> connected([("a", "x"), ("b", "x"), ("b", "y"), ("c", "z")])
    ['a', 'a', 'a', 'c']
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    for first, *others in keys:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(first) for first, *_ in keys]


def held_out(families: Sequence[str]) -> frozenset[str]:
    """A fifth of the families, at least one of two or more, by their hashes."""
    names = sorted(set(families), key=lambda name: hashlib.sha256(f"{FAMILY}\0{name}".encode()).digest())
    return frozenset(names[: max(1, round(HELD_OUT_SHARE * len(names)))] if len(names) > 1 else ())


def with_splits(cases: Sequence[Counterfactual]) -> list[Counterfactual]:
    """The cases as they are where any has a split, else split by group with families held out."""
    if any(case.split for case in cases):
        return list(cases)
    held = held_out([case.attack for case in cases])

    def split(case: Counterfactual) -> str:
        by_group = hashed(case.group)
        return UNUSED if case.attack in held and by_group != "test" else by_group

    return [replace(case, split=split(case)) for case in cases]


def check_held_out(cases: Sequence[Counterfactual], where: str) -> None:
    """A test split must hold a family of attacks that no training case has.

    Raises:
        DataError: it holds none, while there are training cases.
    """
    trained = {case.attack for case in cases if case.split == "train"}
    tested = {case.attack for case in cases if case.split == "test"}
    if trained and tested and tested <= trained:
        raise DataError(
            f"{where}: no held-out family, got the attacks {', '.join(sorted(tested))} in test, all of them in train "
            "too, expected one that is only tested. Do: move every row of one attack out of train."
        )
