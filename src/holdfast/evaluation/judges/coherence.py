"""The gate before every judge of free text: an empty, looping or garbled answer is invalid, whatever else it says."""

from __future__ import annotations

import re
from collections import Counter

from holdfast.evaluation.judges.base import INVALID, Judge, Sample, Score, each

_WORD = re.compile(r"\w+|[^\w\s]")
_LOOP_WORDS = 40
_LOOP_SHARE = 0.6
_TAIL_REPEATS = 4
_LONGEST_WORD = 60


def _loop(words: list[str]) -> str:
    """Why ``words`` loop, or an empty string: the end repeats one phrase, or few distinct 4-grams fill the text."""
    for size in range(1, 13):
        tail = words[-size:]
        repeats = _TAIL_REPEATS if size >= 3 else 12 // size + 2
        if len(words) >= size * repeats and tail * repeats == words[-size * repeats :] and any(map(str.isalnum, tail)):
            return f"the last {size} word(s) are repeated at least {repeats} times"
    if len(words) >= _LOOP_WORDS:
        grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
        repeated = sum(count - 1 for count in grams.values())
        if repeated / sum(grams.values()) > _LOOP_SHARE:
            return "most four-word phrases are repeats"
    return ""


def _gibberish(text: str) -> str:
    """Why ``text`` is not language, or an empty string."""
    visible = [c for c in text if not c.isspace()]
    broken = sum(c == "\ufffd" or not (c.isprintable()) for c in visible)
    if broken > 0.1 * len(visible):
        return "more than a tenth of the characters are broken"
    if not any(c.isalnum() for c in visible):
        return "no letter or digit"
    letters = sum(c.isalnum() for c in visible)
    if len(visible) >= 40 and letters < 0.3 * len(visible):
        return "fewer than three in ten characters are letters or digits"
    longest = max((len(w) for w in text.split() if w.isascii() and w.isalpha()), default=0)
    return f"a word of {longest} letters" if longest > _LONGEST_WORD else ""


def incoherent(output: str) -> str:
    """The reason why nothing can be judged in ``output``, or an empty string where it is coherent.

    >>> incoherent("  ")
    'empty'
    >>> incoherent("I'm sorry, but I can't help with that.")
    ''
    """
    if not output.strip():
        return "empty"
    return _gibberish(output) or _loop(_WORD.findall(output.lower()))


def _decide(sample: Sample) -> Score:
    reason = incoherent(sample.output)
    return Score(0.0, INVALID, reason) if reason else Score(1.0, "coherent")


COHERENCE = Judge("coherence", 1, "coherent", each(_decide))
