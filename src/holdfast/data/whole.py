"""Whole words in a text, also of languages that put no spaces between them.

Between two letters of a script that separates words by spaces a word may not begin or end. Chinese, Japanese, Thai,
Lao, Khmer, Burmese and Tibetan do not separate words, and Korean joins its particles to them: beside such a letter any
place is as good as a boundary, so "紫" stands in "答えは紫です" while "cat" does not stand in "concatenate".
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator

_JOINED = (
    (0x0E00, 0x10A0),  # Thai, Lao, Tibetan, Burmese
    (0x1100, 0x1200),  # Hangul, decomposed
    (0x1780, 0x1800),  # Khmer
    (0x19E0, 0x1A00),
    (0x2E80, 0x3000),  # Han radicals
    (0x3005, 0x3008),
    (0x3021, 0x3200),  # kana, bopomofo, Hangul compatibility letters
    (0x3400, 0x4DC0),  # Han
    (0x4E00, 0xA000),
    (0xA960, 0xA980),
    (0xA9E0, 0xAA00),
    (0xAA60, 0xAA80),
    (0xAC00, 0xD800),  # Hangul
    (0xF900, 0xFB00),
    (0xFF66, 0xFFE0),  # narrow kana and Hangul
    (0x1AFF0, 0x1B170),
    (0x20000, 0x40000),
)
"""Ranges of letters, the end excluded."""
_STARTS = tuple(start for start, _ in _JOINED)


def _joined(letter: str) -> bool:
    """Whether a letter is of a script that leaves words unseparated."""
    place = bisect_right(_STARTS, ord(letter)) - 1
    return place >= 0 and ord(letter) < _JOINED[place][1]


def of_word(letter: str) -> bool:
    """Whether a character is part of a word: a letter, a digit, a mark on one, or an underscore."""
    return letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")


def _bound(edge: str, neighbour: str) -> bool:
    """Whether a word may end at ``edge``, which ``neighbour`` stands beside."""
    return not neighbour or not of_word(neighbour) or _joined(edge) or _joined(neighbour)


def places(text: str, wanted: str) -> Iterator[int]:
    """Where ``wanted`` begins in ``text`` as whole words, letter by letter as it is; places do not overlap."""
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        whole = _bound(wanted[0], text[start - 1 : start]) and _bound(wanted[-1], text[end : end + 1])
        if whole:
            yield start
        start = text.find(wanted, end if whole else start + 1)


def stands(text: str, wanted: str) -> bool:
    """Whether ``wanted`` stands in ``text`` as whole words; nothing stands nowhere.

    >>> stands("a cat", "cat"), stands("concatenate", "cat"), stands("答えは紫です", "紫")
    (True, False, True)
    """
    return next(places(text, wanted), None) is not None


def replaced(text: str, wanted: str, by: str) -> str:
    """The text with ``by`` wherever ``wanted`` stands in it as whole words."""
    parts, end = [], 0
    for start in places(text, wanted):
        parts += [text[end:start], by]
        end = start + len(wanted)
    return "".join([*parts, text[end:]])
