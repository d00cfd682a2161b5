"""Short passages about invented entities and a question on one fact (like RepliQA); some cannot be answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.data.examples import Example, Message
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.names import ITEMS, invented, one, part, some, within
from holdfast.data.lab.splits import rng as stream_of

UNANSWERABLE = "The text does not say."
UNANSWERABLE_SHARE = 0.1
RIVAL_SHARE = 0.3
"""Share of passages that also state the asked fact of another entity."""
SYSTEM_SHARE = 0.2
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


_color = _choice("red", "blue", "green", "white", "black", "brown", "pink", "gray")
_month = _choice("January", "March", "April", "May", "June", "July", "August", "October")
_material = _choice("iron", "silver", "gold", "wood", "glass", "stone", "paper", "copper")
_food = _choice("bread", "soup", "fish", "rice", "cheese", "honey", "beans", "eggs")
_job = _choice("baker", "teacher", "doctor", "farmer", "painter", "singer", "pilot", "writer")


def _fact(statement: str, questions: str, value: Callable[[random.Random, str], str]) -> Fact:
    """A fact whose questions are given as one text, separated by bars."""
    return Fact(statement, tuple(questions.split("|")), value)


KINDS: dict[str, tuple[Fact, ...]] = {
    "company": (
        _fact(
            "{e} was founded in {v}.",
            "When was {e} founded?|In what year was {e} founded?|What is the year in which {e} was founded?|"
            "What year was {e} founded?|In which year was {e} founded?",
            _year,
        ),
        _fact(
            "{e} was founded by {v}.",
            "Who founded {e}?|By whom was {e} founded?|Who was the founder of {e}?|Who was it that founded {e}?|"
            "Who was {e} founded by?",
            _name,
        ),
        _fact(
            "{e} makes {v}.",
            "What does {e} make?|Which things does {e} make?|What is made by {e}?|Which things are made by {e}?|"
            "What things does {e} make?",
            _things,
        ),
        _fact(
            "{e} has {v} workers.",
            "How many workers does {e} have?|What is the number of workers of {e}?|How many workers has {e}?|"
            "How many workers are there in {e}?|What number of workers does {e} have?",
            _number,
        ),
        _fact(
            "{e} is based in {v}.",
            "Where is {e} based?|In which town is {e} based?|What town is {e} based in?|Which town is {e} based in?|"
            "In what town is {e} based?",
            _name,
        ),
        _fact(
            "{e} has a {v} logo.",
            "What color is the logo of {e}?|Which color is the logo of {e}?|What color logo does {e} have?|"
            "Which color logo does {e} have?|What is the color of the logo of {e}?",
            _color,
        ),
    ),
    "town": (
        _fact(
            "{e} lies on the river {v}.",
            "On which river does {e} lie?|Which river does {e} lie on?|On which river is {e}?|"
            "What river does {e} lie on?|On what river does {e} lie?",
            _name,
        ),
        _fact(
            "{e} has {v} houses.",
            "How many houses does {e} have?|What is the number of houses in {e}?|How many houses are there in {e}?|"
            "How many houses has {e}?|What number of houses does {e} have?",
            _number,
        ),
        _fact(
            "{e} was built in {v}.",
            "When was {e} built?|In what year was {e} built?|What is the year in which {e} was built?|"
            "What year was {e} built?|In which year was {e} built?",
            _year,
        ),
        _fact(
            "{e} is known for its {v}.",
            "What is {e} known for?|For what is {e} known?|What food is {e} known for?|Which food is {e} known for?|"
            "For what food is {e} known?",
            _food,
        ),
        _fact(
            "{e} holds a fair in {v}.",
            "When does {e} hold a fair?|In which month does {e} hold a fair?|When is the fair of {e}?|"
            "Which month does {e} hold a fair in?|In what month does {e} hold a fair?",
            _month,
        ),
        _fact(
            "{e} is led by {v}.",
            "Who leads {e}?|Who is the leader of {e}?|Who is it that leads {e}?|Who is {e} led by?|By whom is {e} led?",
            _name,
        ),
    ),
    "person": (
        _fact(
            "{e} works as a {v}.",
            "What does {e} work as?|What is the job of {e}?|What job does {e} have?|Which job does {e} have?|"
            "What is the work of {e}?",
            _job,
        ),
        _fact(
            "{e} was born in {v}.",
            "Where was {e} born?|In which town was {e} born?|What town was {e} born in?|Which town was {e} born in?|"
            "In what town was {e} born?",
            _name,
        ),
        _fact(
            "{e} likes to eat {v}.",
            "What does {e} like to eat?|What food does {e} like?|What is it that {e} likes to eat?|"
            "Which food does {e} like?|What food does {e} like to eat?",
            _food,
        ),
        _fact(
            "{e} owns {v} books.",
            "How many books does {e} own?|What is the number of books that {e} owns?|How many books are owned by {e}?|"
            "How many books has {e}?|What number of books does {e} own?",
            _number,
        ),
        _fact(
            "{e} is married to {v}.",
            "Who is {e} married to?|Who is married to {e}?|Who is it that {e} is married to?|Whom is {e} married to?|"
            "To whom is {e} married?",
            _name,
        ),
        _fact(
            "{e} lives in a {v} house.",
            "What color is the house of {e}?|Which color is the house of {e}?|What color house does {e} live in?|"
            "Which color house does {e} live in?|What is the color of the house of {e}?",
            _color,
        ),
    ),
    "tool": (
        _fact(
            "{e} is made of {v}.",
            "What is {e} made of?|Of what is {e} made?|Which material is {e} made of?|What material is {e} made of?|"
            "Of which material is {e} made?",
            _material,
        ),
        _fact(
            "{e} was invented by {v}.",
            "Who invented {e}?|By whom was {e} invented?|Who was it that invented {e}?|Who was {e} invented by?|"
            "Who was the inventor of {e}?",
            _name,
        ),
        _fact(
            "{e} costs {v} coins.",
            "How much does {e} cost?|How many coins does {e} cost?|What is the cost of {e}?|What does {e} cost?|"
            "What number of coins does {e} cost?",
            _number,
        ),
        _fact(
            "{e} is used to cut {v}.",
            "What is {e} used to cut?|Which things is {e} used to cut?|What do people cut with {e}?|"
            "What is {e} used for?|What things is {e} used to cut?",
            _things,
        ),
        _fact(
            "{e} was first sold in {v}.",
            "When was {e} first sold?|In what year was {e} first sold?|What is the year in which {e} was first sold?|"
            "What year was {e} first sold?|In which year was {e} first sold?",
            _year,
        ),
        _fact(
            "{e} comes in a {v} box.",
            "What color is the box of {e}?|Which color is the box of {e}?|What color box does {e} come in?|"
            "Which color box does {e} come in?|What is the color of the box of {e}?",
            _color,
        ),
    ),
    "ship": (
        _fact(
            "{e} carries {v}.",
            "What does {e} carry?|What is carried by {e}?|Which things are carried by {e}?|What things does {e} carry?|"
            "Which things does {e} carry?",
            _things,
        ),
        _fact(
            "{e} sails to {v}.",
            "Where does {e} sail?|To which town does {e} sail?|What town does {e} sail to?|"
            "Which town does {e} sail to?|To what town does {e} sail?",
            _name,
        ),
        _fact(
            "{e} is steered by {v}.",
            "Who steers {e}?|By whom is {e} steered?|Who is it that steers {e}?|Who is {e} steered by?|"
            "Who is the one that steers {e}?",
            _name,
        ),
        _fact(
            "{e} has a {v} flag.",
            "What color is the flag of {e}?|Which color is the flag of {e}?|What color flag does {e} have?|"
            "Which color flag does {e} have?|What is the color of the flag of {e}?",
            _color,
        ),
        _fact(
            "{e} leaves in {v}.",
            "When does {e} leave?|In which month does {e} leave?|When is it that {e} leaves?|"
            "Which month does {e} leave in?|In what month does {e} leave?",
            _month,
        ),
        _fact(
            "{e} is {v} feet long.",
            "How long is {e}?|How many feet long is {e}?|What is the length of {e} in feet?|What is the length of {e}?|"
            "How many feet is the length of {e}?",
            _number,
        ),
    ),
}
"""Kinds of entity and the facts that each can have."""
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
    if rng.random() < RIVAL_SHARE:
        rival = fact.statement.format(e=other, v=fact.value(rng, split))
        passage = f"{passage} {rival}" if rng.random() < 0.5 else f"{rival} {passage}"
    question = one(rng, part(fact.questions, split)).format(e=entity)
    answer = UNANSWERABLE if unanswerable else fact.statement.format(e=entity, v=value)
    return passage, question, answer, entity


def generate(split: str, n: int, seed: int) -> list[Example]:
    """``n`` rows: the question as ``user``, the passage as ``data``; one in five has a short system message."""
    stream = stream_of(_FAMILY, split, seed)

    def row(index: int) -> Example:
        passage, question, answer, group = task(stream, split)
        messages: tuple[Message, ...] = (Message("user", question), Message("data", passage))
        if stream.random() < SYSTEM_SHARE:
            messages = (Message("system", one(stream, SYSTEMS)), *messages)
        row_id = f"{_FAMILY}/{split}/{seed}/{index}"
        return Example(row_id, messages, answer, _FAMILY, split, group, reference=answer)

    return draw(row, n, split)
