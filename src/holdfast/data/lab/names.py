"""The words of the world: common words, things to count, people, and invented names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from holdfast.data.lab.splits import of_split

T = TypeVar("T")

_ITEMS = """
apple pear plum lemon melon kiwi carrot onion bean nut egg cake roll pie tart coin stamp card book pen pencil
marker ruler map ticket letter poster shell stone bead ring button ribbon hat sock glove coat shirt cup plate
bowl spoon fork jar pot pan lamp candle chair stool table rug door key nail screw bolt brick tile rope bucket
basket ball kite drum bell whistle puzzle doll robot train truck boat wheel flag tent lantern chicken duck goat
horse rabbit turtle frog bird seed flower tree
"""
_OTHERS = """
red blue green white black gold silver brown pink gray big small long short old new hot cold fast slow soft loud
quiet happy round flat deep high river hill lake forest road bridge garden market harbor tower castle window wall
roof floor milk bread honey sugar salt water snow rain wind cloud moon star sun fire ice sand paper glass wood
iron music story winter summer morning evening
"""
_PEOPLE = """
Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor Wendy Zoe
Adam Bella Carl Dora Eric Fay Gus Hana Ivan Julia
"""
_HEADS = """
Bal Bor Dal Dor Fen Gal Gor Hel Jor Kal Kel Lan Lor Mar Mel Mor Nal Nor Pel Ran Rel Sal Sor Tal Tor Val Vel Vor Zan Zel
"""
_TAILS = "ba bin da dek do fin ga gim go ka kin ko la lim lo ma mir mo na nek no ra rim ro ta tim to va vik vo"
_WORLD_TAILS = "an el em in ur us"

ITEMS: tuple[str, ...] = tuple(_ITEMS.split())
"""Things that can be counted; each takes a plural in ``s``."""
WORDS: tuple[str, ...] = ITEMS + tuple(_OTHERS.split())
"""Common words, shared by all splits; what is disjoint is their combination."""
PEOPLE: tuple[str, ...] = tuple(_PEOPLE.split())
INVENTED: tuple[str, ...] = tuple(head + tail for head in _HEADS.split() for tail in _TAILS.split())
"""900 made-up names; the name decides the split."""
WORLD_NAMES: tuple[str, ...] = tuple(head + tail for head in _HEADS.split() for tail in _WORLD_TAILS.split())
"""180 other made-up names, for what is true of the whole world: no passage is about them."""
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Digits in words."""


@cache
def invented(family: str, split: str) -> tuple[str, ...]:
    """The made-up names of one split of a family."""
    return tuple(of_split(INVENTED, family, split))


def part(templates: Sequence[T], split: str) -> Sequence[T]:
    """Deal templates to splits by place: the last fifth is test, the tenth before it validation, the rest train.

    Every split gets at least one, which a hash of a short list does not promise.

    >>> [part("abcdef", split) for split in ("train", "validation", "test")]
    ['abcd', 'e', 'f']
    """
    test = max(1, len(templates) // 5)
    held = test + max(1, len(templates) // 10)
    cuts = {"train": slice(None, -held), "validation": slice(-held, -test), "test": slice(-test, None)}
    return templates[cuts[split]]


def some(stream: random.Random, items: Sequence[T], k: int) -> list[T]:
    """``k`` different items. Much faster than ``Random.sample`` for small ``k``."""
    picked: list[T] = []
    while len(picked) < k:
        item = items[int(stream.random() * len(items))]
        if item not in picked:
            picked.append(item)
    return picked


def one(stream: random.Random, items: Sequence[T]) -> T:
    """One item, each with the same chance."""
    return items[int(stream.random() * len(items))]


def within(stream: random.Random, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return low + int(stream.random() * (high - low + 1))
