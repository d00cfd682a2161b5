"""Which split a thing belongs to, and the random stream of a family: both depend on names only, never on order."""

import hashlib
import random
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(thing: str, family: str) -> Split:
    """Assign a thing to a split by a stable hash: 70 % train, 10 % validation, 20 % test.

    >>> split_of("bake bread", "requests") == split_of("bake bread", "requests")
    True
    """
    share = int.from_bytes(hashlib.sha256(f"{family}\0{thing}".encode()).digest()[:8], "big") / 2**64
    if share < 0.7:
        return "train"
    return "validation" if share < 0.8 else "test"


def of_split(things: Iterable[str], family: str, split: str) -> list[str]:
    """The things of one split, in the given order."""
    return [thing for thing in things if split_of(thing, family) == split]


def rng(family: str, split: str, seed: int) -> random.Random:
    """An independent random stream for one family, split and seed."""
    return random.Random(f"{family}/{split}/{seed}")
