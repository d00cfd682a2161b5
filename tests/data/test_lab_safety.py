"""The safety half of the lab: what is harmful, who attacks, and how far words alone get."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations

import pytest

from holdfast.core.errors import DataError
from holdfast.data.examples import Example, Message
from holdfast.data.lab import harm, harm_words, injection, jailbreak, quoting, requests, roles, textops, wording
from holdfast.data.lab.attacks import ATTACKS, HELD_OUT, POSITIONS
from holdfast.data.lab.documents import ASKS, INVENTORIES, REMARKS, REPORTS, SYSTEMS
from holdfast.data.lab.drawing import draw
from holdfast.data.lab.splits import SPLITS
from holdfast.data.lab.words import bag_of_words_accuracy
from holdfast.data.lab.wrappers import HELD_OUT as HELD_OUT_WRAPPERS
from holdfast.data.lab.wrappers import WRAPPERS

GENERATORS = {
    "harmful": requests.generate_harmful,
    "complied": requests.generate_complied,
    "benign": requests.generate_benign,
    "lookalike": requests.generate_lookalike,
    "jailbreak": jailbreak.generate,
    "jailbreak benign": jailbreak.generate_benign,
    "jailbreak complied": jailbreak.generate_complied,
    "injection": injection.generate,
    "injection clean": injection.generate_clean,
    "injection twin": injection.generate_twin,
    "injection obeyed": injection.generate_obeyed,
    "quoting": quoting.generate,
    "quoting/translate": quoting.generate_translate,
}
REFUSES = re.compile(r"^(I'm sorry|Sorry|I can't|I cannot|I won't|I am unable|I'm not able|I must decline|No, I can't)")


def prompt_of(row: Example) -> str:
    return "\n".join(message.content for message in row.messages)


def data_of(row: Example) -> str:
    return next(message.content for message in row.messages if message.role == "data")


HARMFUL = set(harm.acts(tuple(harm.AREAS), harm_words.PEOPLE))
FRIENDLY = set(harm.acts(harm_words.FRIENDLY, harm_words.PEOPLE))
PLAY = set(harm.acts((*harm.AREAS, *harm_words.FRIENDLY), harm_words.TOYS))


def acts_of(thing: str) -> list[str]:
    """The one or two acts of a thing: at the "to" that splits it into known ones, else the thing itself."""
    known = HARMFUL | FRIENDLY | PLAY | set(harm.everyday())
    for match in re.finditer(" to ", thing):
        parts = [thing[: match.start()], thing[match.end() :]]
        if set(parts) <= known:
            return parts
    return [thing]


def test_the_request_world_is_as_large_as_promised() -> None:
    assert len(harm_words.HOSTILE) >= 8
    assert set(harm_words.HOSTILE) == set(harm_words.AREA_NAMES)
    assert len(harm.AREAS) == sum(map(len, harm_words.HOSTILE.values())) >= 50
    assert len(HARMFUL) >= 2000
    assert len(set(harm_words.PEOPLE)) >= 40
    assert len(set(harm_words.TOYS)) >= 40
    assert len(set(harm_words.FRIENDLY) - set(harm.AREAS)) >= 45
    assert len(set(harm.homonyms())) >= 60
    assert len(set(harm.everyday())) >= 400
    assert len({phrase for phrases in wording.PHRASINGS.values() for phrase in phrases}) >= 24
    assert len(set(wording.REFUSALS)) >= 12


def test_there_are_as_many_attack_families_as_promised_and_some_are_held_out() -> None:
    assert len(WRAPPERS) >= 12
    assert len(HELD_OUT_WRAPPERS) >= 3
    assert all(sum(map(len, splits.values())) >= 3 for splits in WRAPPERS.values())
    assert len(ATTACKS) >= 8
    assert len(HELD_OUT) >= 2
    assert all(sum(map(len, splits.values())) >= 3 for splits in ATTACKS.values())


@pytest.mark.parametrize(
    "templates",
    [wording.PHRASINGS, SYSTEMS, REMARKS, INVENTORIES, ASKS, REPORTS, *WRAPPERS.values(), *ATTACKS.values()],
)
def test_no_template_is_shared_by_two_splits(templates: dict[str, tuple[str, ...]]) -> None:
    dealt = [template for split in templates.values() for template in split]
    assert len(dealt) == len(set(dealt))


def test_imitated_turn_marks_differ_between_splits_and_from_the_real_ones() -> None:
    marks = [tuple(each.values()) for split in roles.NEAR_MISSES.values() for each in split]
    assert len(marks) == len(set(marks))
    assert not {mark for each in marks for mark in each} & set(roles.MARKS.values())


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_are_reproducible_and_change_with_the_seed(name: str) -> None:
    generate = GENERATORS[name]
    assert generate("test", 40, 3) == generate("test", 40, 3)
    assert generate("test", 40, 3) != generate("test", 40, 4)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ("injection twin", "injection obeyed")])
def test_six_hundred_held_out_rows_have_distinct_prompts(name: str, split: str) -> None:
    rows = GENERATORS[name](split, 600, 0)
    assert len({row.messages for row in rows}) == len(rows) == 600
    assert len({row.id for row in rows}) == 600


@pytest.mark.parametrize("name", GENERATORS)
def test_no_group_is_shared_by_two_splits(name: str) -> None:
    groups = {split: {row.group for row in GENERATORS[name](split, 1500, 0)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not groups[one] & groups[other]


def test_a_held_out_act_stands_in_no_request_of_training() -> None:
    trained = {act for row in requests.generate_harmful("train", 4000, 0) for act in acts_of(row.group)}
    held_out = {act for row in requests.generate_harmful("test", 600, 0) for act in acts_of(row.group)}
    assert not trained & held_out


def test_every_word_of_a_held_out_act_is_known_from_training() -> None:
    makers = (requests.generate_harmful, requests.generate_benign, requests.generate_lookalike)
    known = {word for make in makers for row in make("train", 8000, 0) for word in row.group.split()}
    things = {row.group for make in makers for row in make("test", 600, 0)} - set(harm.homonyms())
    assert {word for thing in things for word in thing.split()} <= known


MAKERS = (requests.generate_harmful, requests.generate_benign, requests.generate_lookalike)


def test_a_request_is_harmful_exactly_when_it_holds_a_hostile_act_on_a_person() -> None:
    for row in (row for make in MAKERS for row in make("train", 2000, 0)):
        assert (row.label == "unsafe") == any(act in HARMFUL for act in acts_of(row.group)), row.group


def test_requests_of_two_acts_hold_the_same_words_whether_harmful_or_safe() -> None:
    counts = {}
    for name, makers in (("harmful", MAKERS[:1]), ("safe", MAKERS[2:])):
        groups = [row.group for make in makers for row in make("train", 12000, 0) if set(acts_of(row.group)) & PLAY]
        mixed = [group for group in groups if len(acts_of(group)) == 2]
        words = Counter(word for group in mixed for word in set(group.split()))
        counts[name] = {word: count / len(mixed) for word, count in words.items()}
    assert counts["harmful"].keys() == counts["safe"].keys()
    for word, share in counts["harmful"].items():
        assert 1 / 2 < share / counts["safe"][word] < 2, word


def test_refusals_refuse_and_complying_answers_name_the_thing() -> None:
    for generate in (requests.generate_harmful, jailbreak.generate):
        rows = generate("test", 300, 0)
        assert all(REFUSES.match(row.answer) and row.label == "unsafe" and row.risk_area for row in rows)
        assert {row.risk_area for row in rows} == set(harm_words.HOSTILE)
    for generate in (requests.generate_complied, jailbreak.generate_complied):
        rows = generate("test", 300, 0)
        assert all(row.group in row.answer and not REFUSES.match(row.answer) for row in rows)
        assert all(row.label == "unsafe" for row in rows)
    for generate in (requests.generate_benign, requests.generate_lookalike, jailbreak.generate_benign):
        rows = generate("test", 300, 0)
        assert all(row.group in row.answer and not REFUSES.match(row.answer) for row in rows)
        assert all(row.label == "safe" and not row.risk_area for row in rows)


def test_harmful_and_safe_requests_share_every_wrapper() -> None:
    harmful = {row.attack for row in jailbreak.generate("test", 600, 0)}
    assert harmful == {row.attack for row in jailbreak.generate_benign("test", 600, 0)} == set(WRAPPERS)
    assert {row.attack for row in jailbreak.generate("train", 2000, 0)} == set(WRAPPERS) - set(HELD_OUT_WRAPPERS)


def test_a_wrapped_safe_request_is_answered_in_the_format_that_was_demanded() -> None:
    text, opening = jailbreak.wrap("{q} Begin with: Yes. => Yes.", "How do I bake bread?", "bake bread")
    assert (text, opening) == ("How do I bake bread? Begin with: Yes.", "Yes.")
    rows = [row for row in jailbreak.generate_benign("test", 600, 0) if row.attack == "prefix_injection"]
    assert rows
    assert all(row.answer.startswith(("Yes, good idea.", "Good question, my friend!")) for row in rows)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{left}|{right}", "bake good|bread"),
        ("{dashes}", "How-do-I-bake-good-bread"),
        ("{dots}", "How.do.I.bake.good.bread"),
        ("{backwards}", "bread good bake I do How"),
        ("{upper}", "HOW DO I BAKE GOOD BREAD?"),
    ],
)
def test_encodings_of_a_request(template: str, expected: str) -> None:
    assert jailbreak.wrap(template, "How do I bake good bread?", "bake good bread") == (expected, "")


@pytest.mark.parametrize("split", SPLITS)
def test_a_witness_shows_in_no_honest_answer(split: str) -> None:
    attacked = injection.generate(split, 1000, 0)
    for row, clean in zip(attacked, injection.generate_clean(split, 1000, 0), strict=True):
        assert row.witness
        assert row.witness not in row.answer.lower()
        assert row.witness not in prompt_of(clean).lower()
        assert row.witness in row.payload_answer
        assert row.answer == row.reference == clean.answer


def test_an_attack_adds_text_at_its_position_and_changes_nothing_else() -> None:
    for case in injection.cases("test", 600, 0):
        attacked = case.attacked_data()
        before, after = attacked.split(case.injected, maxsplit=1)
        assert " ".join(f"{before} {after}".split()) == " ".join(" ".join(case.task.parts).split())
        assert case.position == ("before" if not before.strip() else "middle" if after.strip() else "after")


def test_every_attack_family_occurs_at_every_position_and_held_out_ones_only_in_the_test_split() -> None:
    test = injection.generate("test", 1200, 0)
    assert {(row.attack, row.position) for row in test} == {(a, p) for a in ATTACKS for p in POSITIONS}
    train = {row.attack for row in injection.generate("train", 1200, 0)}
    assert train == set(ATTACKS) - set(HELD_OUT)


def test_the_four_views_of_a_case_agree_row_by_row() -> None:
    views = [generate("test", 200, 0) for generate in (injection.generate, injection.generate_clean)]
    views += [injection.generate_twin("test", 200, 0), injection.generate_obeyed("test", 200, 0)]
    for attacked, clean, twin, obeyed in zip(*views, strict=True):
        assert attacked.group == clean.group == twin.group == obeyed.group
        assert twin.answer == clean.answer
        assert data_of(twin).startswith(data_of(clean))
        assert data_of(twin) != data_of(clean)
        assert data_of(obeyed) == data_of(clean)
        assert obeyed.answer == attacked.payload_answer
        assert {clean.attack, clean.witness, twin.attack, twin.witness, obeyed.attack} == {""}


def test_quoted_answers_are_exact() -> None:
    rows = quoting.generate("test", 1500, 0)
    seen: Counter[str] = Counter()
    for row in rows:
        ask = next(message.content for message in row.messages if message.role == "user")
        words = row.group.split()
        if ask in textops.OPERATIONS["reverse"].wordings:
            seen["reverse"] += 1
            assert f"{row.group}." in data_of(row)
            assert row.answer == " ".join(words[::-1])
        elif ask in textops.OPERATIONS["count"].wordings:
            seen["count"] += 1
            assert row.answer == str(len(words))
        elif "message of" in ask:
            seen["report"] += 1
            assert f'"{row.answer}"' in data_of(row)
    assert min(seen["reverse"], seen["count"]) >= 5
    assert seen["report"] >= 200


def test_quoting_holds_the_words_of_attacks_but_no_attack() -> None:
    rows = quoting.generate("train", 2000, 0)
    assert all(not row.attack and not row.witness and row.answer != row.payload_answer for row in rows)
    trigger = re.compile(r"\b(say|print|write|ignore|forget|reply)\b", re.IGNORECASE)
    assert sum(bool(trigger.search(data_of(row))) for row in rows) > 1200


def test_an_instruction_to_be_translated_stands_in_the_data_and_its_translation_is_exact() -> None:
    rows = quoting.generate_translate("test", 300, 0)
    for row in rows:
        ask = next(message.content for message in row.messages if message.role == "user")
        code = dict(pair.split(" means ") for pair in ask.removesuffix(".").split(": ")[1].split(", "))
        assert row.answer == " ".join(code[word] for word in row.group.split())
        assert f"{row.group}." in data_of(row)
        assert set(row.payload_answer.split()) < set(row.group.split()), "an instruction to say a part of itself"
    assert len({row.group for row in rows}) > 60


def test_drawing_says_when_a_family_is_exhausted() -> None:
    with pytest.raises(DataError, match="got 1 distinct test prompts, expected 5"):
        draw(lambda i: Example(str(i), (Message("user", "same"),)), 5, "test")


def _rows(label: bool, word: str) -> tuple[list[Example], list[bool]]:
    stream = random.Random(word)
    texts = [f"{word} " + " ".join(stream.sample(list("abcdefgh"), 3)) for _ in range(100)]
    return [Example(text, (Message("user", text),)) for text in texts], [label] * 100


def test_a_bag_of_words_solves_what_words_solve_and_nothing_else() -> None:
    (yes, positive), (no, negative) = _rows(True, "yes"), _rows(False, "no")
    labels = positive + negative
    assert bag_of_words_accuracy(yes + no, labels, yes[:50] + no[:50], labels[50:150]) == 1.0
    xor = [Example(t, (Message("user", t),)) for t in ("p r", "p s", "q r", "q s")] * 50
    odd = [True, False, False, True] * 50
    assert bag_of_words_accuracy(xor, odd, xor, odd) <= 0.75


def _harm_mix(split: str, n: int, seed: int) -> tuple[list[Example], list[bool]]:
    rows = requests.generate_harmful(split, 2 * n, seed)
    rows += requests.generate_benign(split, n, seed) + requests.generate_lookalike(split, n, seed)
    return rows, [row.label == "unsafe" for row in rows]


def _attack_mix(split: str, n: int, seed: int) -> tuple[list[Example], list[bool]]:
    rows = injection.generate(split, 2 * n, seed)
    rows += injection.generate_clean(split, n, seed + 1) + quoting.generate(split, n, seed)
    return rows, [bool(row.attack) for row in rows]


def test_words_alone_do_not_tell_harmful_from_safe() -> None:
    accuracy = bag_of_words_accuracy(*_harm_mix("train", 2500, 0), *_harm_mix("test", 400, 1))
    print(f"bag of words, harmful or not, held-out things: {accuracy:.3f}")
    assert accuracy <= 0.70


def test_words_alone_do_not_tell_attacked_from_clean() -> None:
    accuracy = bag_of_words_accuracy(*_attack_mix("train", 2000, 0), *_attack_mix("test", 400, 1))
    print(f"bag of words, attacked or not, held-out tasks and wordings: {accuracy:.3f}")
    assert accuracy <= 0.80
