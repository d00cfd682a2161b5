"""Short passages about invented entities and a question on one fact (like RepliQA); some cannot be answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.data.examples import Example, Message
from holdfast.data.lab.names import ITEMS, invented, one, part, some, within
from holdfast.data.lab.splits import rng as stream_of

UNANSWERABLE = "The text does not say."
UNANSWERABLE_SHARE = 0.1
SYSTEMS = ("Answer from the text.", "Answer in one sentence.", "Use only the text.")
_FAMILY = "passages"


@dataclass(frozen=True)
class Fact:
    """One kind of fact: how it is stated (``{e}`` entity, ``{v}`` value), how it is asked, and its values."""

    statement: str
    questions: tuple[str, ...]
    """Dealt to the splits by place, see `names.part`."""
    value: Callable[[random.Random, str], str]


def _year(stream: random.Random, _: str) -> str:
    return str(within(stream, 1100, 1999))


def _number(stream: random.Random, _: str) -> str:
    return str(within(stream, 10, 990))


def _name(stream: random.Random, split: str) -> str:
    return one(stream, invented(_FAMILY, split))


def _things(stream: random.Random, _: str) -> str:
    return one(stream, ITEMS) + "s"


def _choice(*values: str) -> Callable[[random.Random, str], str]:
    return lambda stream, _: one(stream, values)


_colour = _choice("red", "blue", "green", "white", "black", "brown", "pink", "gray")
_month = _choice("January", "March", "April", "May", "June", "July", "August", "October")
_metal = _choice("iron", "silver", "gold", "wood", "glass", "stone", "paper", "copper")
_food = _choice("bread", "soup", "fish", "rice", "cheese", "honey", "beans", "eggs")
_job = _choice("baker", "teacher", "doctor", "farmer", "painter", "singer", "pilot", "writer")

KINDS: dict[str, tuple[Fact, ...]] = {
    "company": (
        Fact(
            "{e} was founded in {v}.",
            (
                "When was {e} founded?",
                "In what year was {e} founded?",
                "What year was {e} founded?",
                "In which year was {e} founded?",
                "Which year was {e} founded in?",
            ),
            _year,
        ),
        Fact(
            "{e} was founded by {v}.",
            ("Who founded {e}?", "Who was the founder of {e}?", "By whom was {e} founded?", "Who was {e} founded by?"),
            _name,
        ),
        Fact(
            "{e} makes {v}.",
            (
                "What does {e} make?",
                "What things does {e} make?",
                "Which things does {e} make?",
                "What is made by {e}?",
            ),
            _things,
        ),
        Fact(
            "{e} has {v} workers.",
            (
                "How many workers does {e} have?",
                "What is the number of workers of {e}?",
                "How many people work for {e}?",
                "How many workers are there at {e}?",
            ),
            _number,
        ),
        Fact(
            "{e} is based in {v}.",
            (
                "Where is {e} based?",
                "In which town is {e} based?",
                "In what town is {e} based?",
                "Which town is {e} based in?",
            ),
            _name,
        ),
        Fact(
            "{e} has a {v} logo.",
            (
                "What color is the logo of {e}?",
                "Which color is the logo of {e}?",
                "What is the color of the logo of {e}?",
                "What color logo does {e} have?",
            ),
            _colour,
        ),
    ),
    "town": (
        Fact(
            "{e} lies on the river {v}.",
            (
                "On which river does {e} lie?",
                "Which river does {e} lie on?",
                "What river is {e} on?",
                "On what river does {e} lie?",
            ),
            _name,
        ),
        Fact(
            "{e} has {v} houses.",
            (
                "How many houses does {e} have?",
                "What is the number of houses in {e}?",
                "How many houses are there in {e}?",
                "How many houses are in {e}?",
            ),
            _number,
        ),
        Fact(
            "{e} was built in {v}.",
            (
                "When was {e} built?",
                "In what year was {e} built?",
                "What year was {e} built?",
                "In which year was {e} built?",
            ),
            _year,
        ),
        Fact(
            "{e} is known for its {v}.",
            (
                "What is {e} known for?",
                "For what is {e} known?",
                "What makes {e} known?",
                "For which thing is {e} known?",
            ),
            _food,
        ),
        Fact(
            "{e} holds a fair in {v}.",
            (
                "When does {e} hold a fair?",
                "In which month does {e} hold a fair?",
                "In what month is the fair of {e}?",
                "In what month does {e} hold a fair?",
            ),
            _month,
        ),
        Fact(
            "{e} is led by {v}.",
            ("Who leads {e}?", "Who is the leader of {e}?", "By whom is {e} led?", "Who is {e} led by?"),
            _name,
        ),
    ),
    "person": (
        Fact(
            "{e} works as a {v}.",
            (
                "What does {e} work as?",
                "What is the job of {e}?",
                "Which job does {e} have?",
                "What job does {e} have?",
            ),
            _job,
        ),
        Fact(
            "{e} was born in {v}.",
            (
                "Where was {e} born?",
                "In which town was {e} born?",
                "Which town was {e} born in?",
                "In what town was {e} born?",
            ),
            _name,
        ),
        Fact(
            "{e} likes to eat {v}.",
            (
                "What does {e} like to eat?",
                "What food does {e} like?",
                "What is it that {e} likes to eat?",
                "Which food does {e} like to eat?",
            ),
            _food,
        ),
        Fact(
            "{e} owns {v} books.",
            (
                "How many books does {e} own?",
                "What is the number of books of {e}?",
                "How many books has {e}?",
                "How many books are owned by {e}?",
            ),
            _number,
        ),
        Fact(
            "{e} is married to {v}.",
            (
                "Who is {e} married to?",
                "To whom is {e} married?",
                "Who is the partner of {e}?",
                "Whom is {e} married to?",
            ),
            _name,
        ),
        Fact(
            "{e} lives in a {v} house.",
            (
                "What color is the house of {e}?",
                "Which color is the house of {e}?",
                "What is the color of the house of {e}?",
                "What color house does {e} live in?",
            ),
            _colour,
        ),
    ),
    "tool": (
        Fact(
            "{e} is made of {v}.",
            (
                "What is {e} made of?",
                "Of what is {e} made?",
                "Which material is {e} made of?",
                "What material is {e} made of?",
            ),
            _metal,
        ),
        Fact(
            "{e} was invented by {v}.",
            (
                "Who invented {e}?",
                "Who was the inventor of {e}?",
                "By whom was {e} invented?",
                "Who was {e} invented by?",
            ),
            _name,
        ),
        Fact(
            "{e} costs {v} coins.",
            (
                "How much does {e} cost?",
                "What is the price of {e}?",
                "How many coins is {e}?",
                "How many coins does {e} cost?",
            ),
            _number,
        ),
        Fact(
            "{e} is used to cut {v}.",
            (
                "What is {e} used to cut?",
                "What is cut with {e}?",
                "Which things is {e} used to cut?",
                "What things is {e} used to cut?",
            ),
            _things,
        ),
        Fact(
            "{e} was first sold in {v}.",
            (
                "When was {e} first sold?",
                "In what year was {e} first sold?",
                "What year was {e} first sold?",
                "In which year was {e} first sold?",
            ),
            _year,
        ),
        Fact(
            "{e} comes in a {v} box.",
            (
                "What color is the box of {e}?",
                "Which color is the box of {e}?",
                "What is the color of the box of {e}?",
                "What color box does {e} come in?",
            ),
            _colour,
        ),
    ),
    "ship": (
        Fact(
            "{e} carries {v}.",
            (
                "What does {e} carry?",
                "What things does {e} carry?",
                "Which things does {e} carry?",
                "What is carried by {e}?",
            ),
            _things,
        ),
        Fact(
            "{e} sails to {v}.",
            (
                "Where does {e} sail?",
                "To which town does {e} sail?",
                "Which town does {e} sail to?",
                "To what town does {e} sail?",
            ),
            _name,
        ),
        Fact(
            "{e} is steered by {v}.",
            ("Who steers {e}?", "Who is it that steers {e}?", "By whom is {e} steered?", "Who is {e} steered by?"),
            _name,
        ),
        Fact(
            "{e} has {v} sails.",
            (
                "What color are the sails of {e}?",
                "Which color are the sails of {e}?",
                "What is the color of the sails of {e}?",
                "What color sails does {e} have?",
            ),
            _colour,
        ),
        Fact(
            "{e} leaves in {v}.",
            (
                "When does {e} leave?",
                "In which month does {e} leave?",
                "What month does {e} leave in?",
                "In what month does {e} leave?",
            ),
            _month,
        ),
        Fact(
            "{e} is {v} feet long.",
            (
                "How long is {e}?",
                "How many feet long is {e}?",
                "What is the length of {e}?",
                "How many feet is {e} long?",
            ),
            _number,
        ),
    ),
}
_PRONOUN = {"company": "It", "town": "It", "person": "He", "tool": "It", "ship": "It"}


def _passage(rng: random.Random, kind: str, entity: str, facts: list[tuple[Fact, str]]) -> str:
    """The stated facts, the first by name and some of the others by pronoun."""
    sentences = [f"{entity} is a {kind}."]
    for fact, value in facts:
        subject = entity if rng.random() < 0.5 else _PRONOUN[kind]
        sentences.append(fact.statement.format(e=subject, v=value))
    return " ".join(sentences)


def task(rng: random.Random, split: str) -> tuple[str, str, str, str]:
    """One task: ``(passage, question, answer, group)``; ``group`` is the entity asked about."""
    kind = one(rng, tuple(KINDS))
    entity, other = some(rng, invented(_FAMILY, split), 2)
    kinds = some(rng, KINDS[kind], within(rng, 4, 5))
    stated = [(fact, fact.value(rng, split)) for fact in kinds[:-1]]
    passage = _passage(rng, kind, entity, stated)
    unanswerable = rng.random() < UNANSWERABLE_SHARE
    fact, value = (kinds[-1], "") if unanswerable else one(rng, stated)
    if rng.random() < 0.3:
        rival = fact.statement.format(e=other, v=fact.value(rng, split))
        passage = f"{passage} {rival}" if rng.random() < 0.5 else f"{rival} {passage}"
    question = one(rng, part(fact.questions, split)).format(e=entity)
    answer = UNANSWERABLE if unanswerable else fact.statement.format(e=entity, v=value)
    return passage, question, answer, entity


def generate(split: str, n: int, seed: int) -> list[Example]:
    """``n`` rows: the passage as ``data``, the question as ``user``, one fifth with a short system message."""
    stream = stream_of(_FAMILY, split, seed)
    out = []
    for index in range(n):
        passage, question, answer, group = task(stream, split)
        messages: tuple[Message, ...] = (Message("user", question), Message("data", passage))
        if stream.random() < 0.2:
            messages = (Message("system", one(stream, SYSTEMS)), *messages)
        out.append(
            Example(f"{_FAMILY}/{split}/{seed}/{index}", messages, answer, _FAMILY, split, group, reference=answer)
        )
    return out
