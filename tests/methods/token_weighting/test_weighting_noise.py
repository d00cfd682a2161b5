"""Planted noise: which tokens hold it, and how well scores tell it from the rest."""

from typing import Any

import pytest
import torch
from tests.zoo import tiny

from holdfast.core.errors import DataError
from holdfast.data.examples import Example, Message
from holdfast.data.lab import rows
from holdfast.methods.token_weighting import noise, plan
from holdfast.methods.token_weighting.config import TokenWeightingConfig


def row(i: int, answer: str, clean: str) -> Example:
    return Example(f"r{i}", (Message("user", f"Add {i}?"),), answer, without_noise=clean)


NOISY = [row(i, f"{i} + 1 = 9.", f"{i} + 1 = {i + 1}.") for i in range(9)]


def test_noise_stands_on_the_tokens_of_characters_that_differ() -> None:
    marks = noise.noise_of(tiny("llama").chat, row(0, "12 = 13.", "12 = 73."))
    assert [at for at, mark in enumerate(marks) if mark] == [1 + 5], "the template's space, then a character each"
    assert len(marks) == 1 + len("12 = 13.") + 1


def test_noise_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"The noise of row 'r0' cannot be placed: got 3 characters .* expected 4"):
        noise.noise_of(tiny("llama").chat, row(0, "1234", "123"))


@pytest.mark.parametrize("keys", [{"scorer": "rho1"}, {"scorer": "rho1", "scope": "dataset"}, {"scorer": "dft"}])
def test_the_area_is_the_share_of_pairs_in_which_noise_has_the_lower_score(keys: dict[str, Any]) -> None:
    loaded, config = tiny("llama"), TokenWeightingConfig(**keys)
    given = {"reference": tiny("llama", seed=1)} if config.base == "rho1" else {}
    made = plan.plan(config, loaded, NOISY, given)
    found = noise.planted(made, loaded, NOISY)
    assert found is not None
    known = list(range(len(NOISY)))
    encoded = [loaded.chat.training(each) for each in NOISY]
    weight_n, score_n = noise._scores(made, loaded, known, encoded)
    marks = [mark for each in NOISY for mark in noise.noise_of(loaded.chat, each)]
    bad = [s for s, mark in zip(score_n.tolist(), marks, strict=True) if mark]
    good = [s for s, mark in zip(score_n.tolist(), marks, strict=True) if not mark]
    pairs = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert (found.n_noise, found.n_clean) == (8, len(good)), "8 + 1 is 9: one row has no noise"
    own = weight_n[torch.tensor(marks)].mean() / weight_n.mean()
    assert found.noise_weight == pytest.approx(float(own), rel=1e-6)


def test_where_noise_is_not_known_or_all_weigh_the_same_nothing_is_said() -> None:
    loaded = tiny("llama")
    plain = [Example(f"r{i}", each.messages, each.answer) for i, each in enumerate(NOISY)]
    dft, uniform = TokenWeightingConfig(scorer="dft"), TokenWeightingConfig(scorer="uniform")
    assert noise.planted(plan.plan(dft, loaded, plain), loaded, plain) is None
    assert noise.planted(plan.plan(uniform, loaded, NOISY), loaded, NOISY) is None


def test_the_labs_noise_is_of_digits_at_its_share_and_leaves_the_rest_as_it_was() -> None:
    noisy, clean = rows("arithmetic/noisy", "train", 300), rows("arithmetic", "train", 300)
    digits = wrong = 0
    for found, right in zip(noisy, clean, strict=True):
        assert (found.messages, found.without_noise, found.reference) == (right.messages, right.answer, right.reference)
        assert len(found.answer) == len(right.answer)
        for a, b in zip(found.answer, right.answer, strict=True):
            assert a == b or (a.isdigit() and b.isdigit())
            digits, wrong = digits + b.isdigit(), wrong + (a != b)
    assert abs(wrong / digits - 0.1) < 5 * (0.1 * 0.9 / digits) ** 0.5
    assert rows("arithmetic/noisy", "train", 20) == noisy[:20]
