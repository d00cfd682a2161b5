"""Near duplicates among many texts: MinHash finds who may be alike, and the shingles themselves decide."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BANDS, ROWS = 16, 4
"""A pair with Jaccard similarity s shares a band with chance 1 - (1 - s^4)^16: .9998 at .8, .64 at .5."""
WORDS = 3
"""Words of a shingle."""
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[str]:
    """Runs of `WORDS` words in small letters; a shorter text is one shingle.

    >>> sorted(shingles("One two, three FOUR."))
    ['one two three', 'two three four']
    """
    words = _WORD.findall(text.casefold())
    return frozenset(" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared share of two sets, in [0, 1]."""
    return len(a & b) / len(a | b)


class NearTexts:
    """Texts that can be asked for one that is alike.

    Reference:
        Broder, On the resemblance and containment of documents (1997); banding as in Leskovec, Rajaraman & Ullman,
        Mining of Massive Datasets, section 3.4.
    """

    def __init__(self, least: float, seed: int = 0) -> None:
        """``least``: the smallest Jaccard similarity of shingles that counts as alike."""
        draw = np.random.default_rng(seed)
        self._least = least
        self._scale, self._shift = draw.integers(1, _PRIME, size=(2, BANDS * ROWS, 1), dtype=np.int64)
        self._kept: list[frozenset[str]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str) -> None:
        """Keep one more text; texts are numbered from 0."""
        found = shingles(text)
        for key in self._keys(found):
            self._bands.setdefault(key, []).append(len(self._kept))
        self._kept.append(found)

    def find(self, text: str) -> int | None:
        """The number of a kept text that is alike, or ``None``."""
        wanted = shingles(text)
        tried: set[int] = set()
        for key in self._keys(wanted):
            for number in self._bands.get(key, ()):
                if number not in tried and jaccard(wanted, self._kept[number]) >= self._least:
                    return number
                tried.add(number)
        return None

    def _keys(self, found: frozenset[str]) -> list[tuple[int, bytes]]:
        """One key a band: its number and the smallest hashes of its rows."""
        codes = np.array([zlib.crc32(shingle.encode()) % _PRIME for shingle in found], dtype=np.int64)
        least: NDArray[np.int64] = ((self._scale * codes + self._shift) % _PRIME).min(axis=1)
        return [(band, least[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]


def repeats(texts: Sequence[str], least: float) -> int:
    """How many texts are alike to one before them."""
    seen = NearTexts(least)
    count = 0
    for text in texts:
        if seen.find(text) is None:
            seen.add(text)
        else:
            count += 1
    return count


def shared(texts: Sequence[str], others: Sequence[str], least: float) -> list[int]:
    """Which of ``texts``, by number, are alike to one of ``others``."""
    known = NearTexts(least)
    for text in dict.fromkeys(others):
        known.add(text)
    return [number for number, text in enumerate(texts) if known.find(text) is not None]
