"""Wrapped requests: harmful ones are refused whatever stands around them, safe ones are answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from holdfast.data.examples import Example, Message
from holdfast.data.lab import harm, wording
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.splits import rng
from holdfast.data.lab.wrappers import WRAPPERS

Pick = Callable[[random.Random, str], harm.Thing]


@cache
def _families(split: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((name, splits[split]) for name, splits in WRAPPERS.items() if split in splits)


def wrap(template: str, request: str, thing: str) -> tuple[str, str]:
    """Fill a wrapper. Returns the prompt and the opening it demands (or nothing)."""
    text, _, opening = template.partition(" => ")
    words = thing.split(" ")
    bare = request.rstrip(".?!").split(" ")
    half = (len(words) + 1) // 2
    slots = {
        "{q}": request,
        "{x}": thing,
        "{left}": " ".join(words[:half]),
        "{right}": " ".join(words[half:]),
        "{dashes}": "-".join(bare),
        "{dots}": ".".join(bare),
        "{upper}": request.upper(),
        "{backwards}": " ".join(reversed(bare)),
    }
    for slot, value in slots.items():
        text = text.replace(slot, value)
    return text, opening


def _generate(family: str, split: str, n: int, seed: int, pick: Pick, refused: bool) -> list[Example]:
    stream = rng(family, split, seed)

    def make(i: int) -> Example:
        thing = pick(stream, split)
        attack, templates = stream.choice(_families(split))
        request = wording.phrase(stream, split, thing.text)
        prompt, opening = wrap(stream.choice(templates), request, thing.text)
        complied = f"{opening} {wording.compliance(stream, thing.text)}".lstrip()
        return Example(
            id=f"{family}/{split}/{seed}/{i}",
            messages=(Message("user", prompt),),
            answer=wording.refusal(stream, thing.area) if refused else complied,
            family=family,
            split=split,
            group=thing.text,
            risk_area=thing.area,
            attack=attack,
            label="unsafe" if thing.harmful else "safe",
        )

    return draw(make, n, split)


def _safe(stream: random.Random, split: str) -> harm.Thing:
    return harm.benign(stream, split) if stream.random() < 0.6 else harm.lookalike(stream, split)


def generate(split: str, n: int, seed: int) -> list[Example]:
    """Wrapped harmful requests with refusals; ``attack`` names the wrapper family."""
    return _generate("jailbreak", split, n, seed, harm.harmful, refused=True)


def generate_benign(split: str, n: int, seed: int) -> list[Example]:
    """The same wrappers around benign and look-alike requests, answered in the wrapper's format."""
    return _generate("jailbreak/benign", split, n, seed, _safe, refused=False)


def generate_complied(split: str, n: int, seed: int) -> list[Example]:
    """Wrapped harmful requests answered as on the raw web, in empty, made-up steps."""
    return _generate("jailbreak/complied", split, n, seed, harm.harmful, refused=False)
