"""Near duplicates: what MinHash finds is what comparing every pair finds."""

import random

from holdfast.data.near import NearTexts, jaccard, repeats, shared, shingles

WORDS = [f"w{i}" for i in range(300)]


def _texts(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=60)) for _ in range(n)]


def _changed(text: str, times: int, draw: random.Random) -> str:
    words = text.split()
    for at in draw.sample(range(len(words)), times):
        words[at] = "new"
    return " ".join(words)


def test_pairs_beyond_the_similarity_are_found_as_by_comparing_all() -> None:
    draw = random.Random(1)
    known = _texts(150, 0)
    asked = [_changed(text, i % 8, draw) for i, text in enumerate(known)] + _texts(50, 2)
    kept, wanted = ([shingles(text) for text in texts] for texts in (known, asked))
    slow = [i for i, found in enumerate(wanted) if any(jaccard(found, other) >= 0.8 for other in kept)]
    assert 30 < len(slow) < 100
    assert shared(asked, known, 0.8) == slow


def test_a_copy_in_other_letters_and_punctuation_counts_and_a_different_text_does_not() -> None:
    assert repeats(["One two, three four.", "one TWO three -- four", "five six seven eight"], 0.8) == 1
    assert repeats(["one", "one", "two"], 0.8) == 1


def test_what_is_found_is_the_number_of_the_kept_text() -> None:
    texts = NearTexts(0.8)
    for text in _texts(20, 5):
        texts.add(text)
    assert [texts.find(text) for text in _texts(20, 5)] == list(range(20))
    assert texts.find("nothing of the kind") is None
