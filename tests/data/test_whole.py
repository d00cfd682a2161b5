"""Whole words by script."""

import random
import re

import pytest

from holdfast.data.whole import places, replaced, stands


def test_where_words_have_spaces_a_place_is_where_a_regular_expression_has_word_boundaries() -> None:
    dice = random.Random(0)
    for _ in range(2000):
        text = "".join(dice.choices("aab1_ é.-д", k=12))
        wanted = "".join(dice.choices("ab1é", k=dice.choice((1, 2))))
        found = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", text)]
        assert list(places(text, wanted)) == found, (text, wanted)


@pytest.mark.parametrize("letter", ["紫", "あ", "ア", "보", "ສ", "ม", "ភ", "မ", "𠮟"])
def test_beside_a_letter_of_a_script_without_spaces_any_place_is_a_boundary(letter: str) -> None:
    assert stands(letter * 3, letter)
    assert stands(f"{letter}cat{letter}", "cat")
    assert not stands(f"{letter}cats", "cat")


def test_what_stands_as_a_whole_word_is_replaced_and_nothing_else() -> None:
    assert replaced("cat concat cat, cats", "cat", "-") == "- concat -, cats"
    assert replaced("紫色と紫", "紫", "赤") == "赤色と赤"
    assert replaced("x", "", "y") == "x"
