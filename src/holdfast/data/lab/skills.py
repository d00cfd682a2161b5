"""Skills: twenty operations on a few words or numbers that the lab model has not learnt, one adapter for each to learn.

No diet of the lab model (`holdfast.data.lab.mixes`) holds them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.core.registry import Registry
from holdfast.data.examples import Example, Message
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.names import WORDS, one, part, some, within
from holdfast.data.lab.splits import rng as stream_of
from holdfast.data.lab.splits import split_of

NUMBERS = tuple(str(number) for number in range(1, 100))


@dataclass(frozen=True)
class Skill:
    """One task: how it is asked for, its answer, and what it works on."""

    told: str
    """Wordings of the instruction, separated by bars."""
    answer: Callable[[list[str]], str]
    lengths: tuple[int, int] = (3, 6)
    """Fewest and most words of its data."""
    pool: tuple[str, ...] = WORDS
    """What its data is made of; no word comes twice."""
    fits: Callable[[list[str]], bool] = lambda words: True
    """Whether the words have one right answer."""

    @property
    def wordings(self) -> tuple[str, ...]:
        """Dealt to the splits by place, see `names.part`."""
        return tuple(self.told.split("|"))


def _even(words: list[str]) -> bool:
    return len(words) % 2 == 0


def _odd(words: list[str]) -> bool:
    return len(words) % 2 == 1


def _one_longest(words: list[str]) -> bool:
    longest, second = sorted(map(len, words))[:-3:-1]
    return longest > second


def _one_shortest(words: list[str]) -> bool:
    shortest, second = sorted(map(len, words))[:2]
    return shortest < second


def _swapped(words: list[str]) -> str:
    return " ".join(f"{b} {a}" for a, b in zip(words[::2], words[1::2], strict=True))


SKILLS: Registry[Skill] = Registry(
    "skill",
    {
        "swap": Skill(
            "Swap neighbouring words.|Swap each pair of words.|Exchange each word with its neighbour.|"
            "Swap the words two by two.|Exchange neighbouring words.|Swap every two words.|"
            "Exchange each pair of words.|Swap each word with its neighbour.",
            _swapped,
            (4, 6),
            fits=_even,
        ),
        "drop_first": Skill(
            "Leave out the first word.|Drop the first word.|Remove the first word.|Write all words but the first.|"
            "Give the words without the first.|Write everything after the first word.|"
            "Give all words but the first.|Write the words without the first.",
            lambda w: " ".join(w[1:]),
        ),
        "drop_last": Skill(
            "Leave out the last word.|Drop the last word.|Remove the last word.|Write all words but the last.|"
            "Give the words without the last.|Write everything before the last word.|"
            "Give all words but the last.|Write the words without the last.",
            lambda w: " ".join(w[:-1]),
        ),
        "every_other": Skill(
            "Write every other word.|Give every second word, beginning with the first.|Take every other word.|"
            "Write one word and skip the next.|Give every other word, beginning with the first.|"
            "Skip every second word.|Take one word and skip the next.|"
            "Write every other word, beginning with the first.",
            lambda w: " ".join(w[::2]),
        ),
        "middle": Skill(
            "Write the middle word.|What is the middle word?|Name the middle word.|"
            "Which word stands in the middle?|Give the word in the middle.|Print the middle word.|"
            "Which word is in the middle?|Give the middle word.",
            lambda w: w[len(w) // 2],
            (3, 5),
            fits=_odd,
        ),
        "ends": Skill(
            "Write the first and the last word.|Give the two outer words.|Which words stand at the ends?|"
            "Name the first and the last word.|Keep only the first and the last word.|Write the words at the ends.|"
            "Give the words at the ends.|Give the first and the last word.",
            lambda w: f"{w[0]} {w[-1]}",
        ),
        "inner": Skill(
            "Leave out the first and the last word.|Drop both ends.|Write the words between the first and the last.|"
            "Remove the first and the last word.|Give what stands between the first and the last.|"
            "Drop the words at both ends.|Remove both ends.|Drop the first and the last word.",
            lambda w: " ".join(w[1:-1]),
        ),
        "swap_ends": Skill(
            "Swap the first and the last word.|Let the first and the last word change places.|"
            "Exchange the two outer words.|Exchange the first word with the last.|Swap the words at the ends.|"
            "Put the first word last and the last word first.|Swap the two outer words.|"
            "Exchange the first and the last word.",
            lambda w: " ".join([w[-1], *w[1:-1], w[0]]),
        ),
        "rotate_left": Skill(
            "Move the first word to the end.|Put the first word at the end.|Turn the list left by one word.|"
            "Take the first word and put it last.|Shift the words left by one.|Move the first word behind the others.|"
            "Put the first word behind the others.|Turn the words left by one.",
            lambda w: " ".join([*w[1:], w[0]]),
        ),
        "rotate_right": Skill(
            "Move the last word to the front.|Put the last word at the front.|Turn the list right by one word.|"
            "Take the last word and put it first.|Shift the words right by one.|Move the last word before the others.|"
            "Put the last word before the others.|Turn the words right by one.",
            lambda w: " ".join([w[-1], *w[:-1]]),
        ),
        "mirror": Skill(
            "Write the words forwards, then backwards.|Mirror the words.|Put the mirror image behind the words.|"
            "Give the words and then their mirror image.|Write the words and then the same in reverse.|"
            "Put the same in reverse behind the words.|Write the words and then their mirror image.|"
            "Give the words forwards, then backwards.",
            lambda w: " ".join([*w, *w[::-1]]),
            (2, 3),
        ),
        "plus": Skill(
            "Join the words with plus signs.|Put a plus between the words.|Set a plus sign between two words.|"
            "Write the words with plus signs between them.|Use plus signs to join the words.|"
            "Join two words with a plus sign.|Join the words with a plus.|Put plus signs between the words.",
            " + ".join,
        ),
        "comma": Skill(
            "Join the words with commas.|Put a comma between the words.|Set a comma between two words.|"
            "Write the words with commas between them.|Use commas to join the words.|"
            "Join two words with a comma.|Join the words with a comma.|Put commas between the words.",
            ", ".join,
        ),
        "number": Skill(
            "Number the words.|Write the words with their numbers.|Put a number before each word.|"
            "Give each word its number.|Write each word behind its number.|Write a numbered list of the words.|"
            "Write a number before each word.|Put its number before each word.",
            lambda w: " ".join(f"{i} {word}" for i, word in enumerate(w, start=1)),
            (3, 5),
        ),
        "longest": Skill(
            "Which word is the longest?|Write the longest word.|Name the longest word.|Find the longest word.|"
            "Give the word with the most letters.|Which word has the most letters?|"
            "Write the word with the most letters.|Give the longest word.",
            lambda w: max(w, key=len),
            (3, 4),
            fits=_one_longest,
        ),
        "shortest": Skill(
            "Which word is the shortest?|Write the shortest word.|Name the shortest word.|Find the shortest word.|"
            "Give the word with the fewest letters.|Which word has the fewest letters?|"
            "Write the word with the fewest letters.|Give the shortest word.",
            lambda w: min(w, key=len),
            (3, 4),
            fits=_one_shortest,
        ),
        "largest": Skill(
            "Which number is the largest?|Give the number that is the largest.|Name the largest number.|"
            "What is the largest number?|Find the largest number.|Print the largest number.|"
            "Which is the largest number?|Give the largest number.",
            lambda w: max(w, key=int),
            pool=NUMBERS,
        ),
        "smallest": Skill(
            "Which number is the smallest?|Give the number that is the smallest.|Name the smallest number.|"
            "What is the smallest number?|Find the smallest number.|Print the smallest number.|"
            "Which is the smallest number?|Give the smallest number.",
            lambda w: min(w, key=int),
            pool=NUMBERS,
        ),
        "but_one": Skill(
            "Write the last word but one.|Which word stands before the last?|Name the last word but one.|"
            "What is the last word but one?|Give the word before the last.|Print the last word but one.|"
            "Write the word before the last.|Give the last word but one.",
            lambda w: w[-2],
        ),
        "thrice": Skill(
            "Write the last word three times.|Say the last word three times.|Give the last word three times.|"
            "Repeat the last word until it stands there three times.|Write the last word thrice.|"
            "Three times the last word.|Say the last word thrice.|Repeat the last word three times.",
            lambda w: " ".join([w[-1]] * 3),
        ),
    },
)
"""Every skill by name; ``skills/<name>`` is one alone."""


def _data(stream: random.Random, split: str, skill: Skill) -> list[str]:
    """Words that the skill fits and whose combination belongs to the split."""
    while True:
        words = some(stream, skill.pool, within(stream, *skill.lengths))
        if skill.fits(words) and split_of(" ".join(words), "skills") == split:
            return words


def generate(split: str, n: int, seed: int, name: str = "") -> list[Example]:
    """``n`` rows of all skills, or of the named one; outside training no prompt comes twice."""
    family = f"skills/{name}" if name else "skills"
    stream = stream_of(family, split, seed)
    names = (name,) if name else tuple(SKILLS)

    def row(index: int) -> Example:
        skill = SKILLS[one(stream, names)]
        words = _data(stream, split, skill)
        group, answer = " ".join(words), skill.answer(words)
        messages = (Message("user", one(stream, part(skill.wordings, split))), Message("data", group))
        return Example(f"{family}/{split}/{seed}/{index}", messages, answer, family, split, group, reference=answer)

    return draw(row, n, split)
