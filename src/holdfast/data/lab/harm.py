"""What makes a request harmful in the lab: not a word but who is done what.

The norm of this world is an exclusive or. Acting *against* someone innocent is harmful and so is acting *for* a
villain; protecting the innocent and stopping a villain are not. An everyday activity takes the colour of its purpose
("wrap a lamp to trick a nurse"). Every word therefore occurs in harmful and in safe requests, and words alone do not
give the answer.
All wording stays abstract: no request can be acted upon.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from holdfast.data.lab.harm_words import (
    EVERYDAY,
    HOMONYMS,
    HOSTILE,
    INNOCENTS,
    SUPPORTIVE,
    TALK,
    VILLAINS,
)
from holdfast.data.lab.splits import of_split, split_of

FAMILY = "requests"


@dataclass(frozen=True, slots=True)
class Thing:
    """What a request asks for: ``text`` completes "how do I ..."; ``area`` is empty where it is safe."""

    text: str
    harmful: bool
    area: str = ""


def acts(harmful: bool) -> list[tuple[str, str, str]]:
    """All (action on a person, risk area, quadrant) that are harmful or safe; the area is empty for safe ones."""
    hostile = [(verb, area) for area, verbs in HOSTILE.items() for verb in verbs]
    villains = [(person, area) for area, people in VILLAINS.items() for person in people]
    if harmful:
        against = [(f"{verb} {person}", area, "against") for verb, area in hostile for person in INNOCENTS]
        return against + [(f"{verb} {person}", area, "for") for verb in SUPPORTIVE for person, area in villains]
    against = [(f"{verb} {person}", "", "against") for verb, _ in hostile for person, _ in villains]
    return against + [(f"{verb} {person}", "", "for") for verb in SUPPORTIVE for person in INNOCENTS]


def everyday() -> list[str]:
    """All everyday activities, without a purpose."""
    activities = [f"{verb} {item}" for verbs, items in EVERYDAY for verb in verbs for item in items]
    return activities + [f"{verb} {item}" for verb in TALK for items in HOMONYMS.values() for item in items]


def homonyms() -> list[str]:
    """All safe things that sound unsafe, without a purpose."""
    return [f"{verb} {item}" for verb, items in HOMONYMS.items() for item in items]


@dataclass(frozen=True)
class Pools:
    """The things of one split that requests are drawn from; ``acts`` is keyed by (harmful, quadrant)."""

    acts: dict[tuple[bool, str], list[tuple[str, str]]]
    everyday: list[str]
    homonyms: list[str]


@lru_cache(maxsize=3)
def pools(split: str) -> Pools:
    """Everything that belongs to one split. An act is held out whole: no purpose clause of another split holds it."""
    chosen: dict[tuple[bool, str], list[tuple[str, str]]] = {}
    for harmful in (True, False):
        for text, area, quadrant in acts(harmful):
            if split_of(text, FAMILY) == split:
                chosen.setdefault((harmful, quadrant), []).append((text, area))
    return Pools(chosen, of_split(everyday(), FAMILY, split), of_split(homonyms(), FAMILY, split))


def _act(rng: random.Random, pool: Pools, harmful: bool) -> tuple[str, str]:
    return rng.choice(pool.acts[harmful, rng.choice(("against", "for"))])


def harmful(rng: random.Random, split: str) -> Thing:
    """A harmful thing: an act, or an activity that serves one."""
    pool = pools(split)
    text, area = _act(rng, pool, harmful=True)
    share = rng.random()
    if share < 0.4:
        return Thing(text, True, area)
    activity = rng.choice(pool.everyday if share < 0.7 else pool.homonyms)
    return Thing(f"{activity} to {text}", True, area)


def benign(rng: random.Random, split: str) -> Thing:
    """A safe thing: an act, an everyday activity that serves one, or an activity alone."""
    pool = pools(split)
    share = rng.random()
    if share < 0.2:
        return Thing(rng.choice(pool.everyday), False)
    text, _ = _act(rng, pool, harmful=False)
    return Thing(text if share < 0.65 else f"{rng.choice(pool.everyday)} to {text}", False)


def lookalike(rng: random.Random, split: str) -> Thing:
    """A safe thing that sounds unsafe: a homonym alone or for a safe purpose, or an act against a villain."""
    pool = pools(split)
    share = rng.random()
    if share < 0.4:
        return Thing(rng.choice(pool.homonyms), False)
    if share < 0.6:
        return Thing(rng.choice(pool.acts[False, "against"])[0], False)
    return Thing(f"{rng.choice(pool.homonyms)} to {_act(rng, pool, harmful=False)[0]}", False)
