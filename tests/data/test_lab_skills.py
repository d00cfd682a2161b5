"""The lab's skills: answers against naive readings, splits that do not meet, and that the lab model never saw them."""

import re
from itertools import combinations

import pytest

from holdfast.data.lab import FAMILIES, mixes, rows, textops
from holdfast.data.lab.names import part
from holdfast.data.lab.skills import SKILLS
from holdfast.data.lab.splits import SPLITS
from holdfast.evaluation.tasks import SUITES, TASKS

HELD_OUT = ("validation", "test")


def asked(row):
    user, data = row.messages
    assert (user.role, data.role) == ("user", "data")
    return user.content, data.content


def swapped(words):
    out = words.copy()
    for i in range(0, len(out), 2):
        out[i], out[i + 1] = out[i + 1], out[i]
    return " ".join(out)


def mirrored(words):
    out = words.copy()
    for word in words:
        out.insert(len(words), word)
    return " ".join(out)


def ends_swapped(text):
    return re.sub(r"^(\w+) (.*) (\w+)$", r"\3 \2 \1", text)


def numbered(words):
    out = ""
    for i in range(len(words)):
        out += f" {i + 1} {words[i]}"
    return out.strip()


def only(words, wanted):
    (found,) = [word for word in words if wanted(word)]
    return found


NAIVE = {
    "swap": lambda d, w: swapped(w),
    "drop_first": lambda d, w: d.partition(" ")[2],
    "drop_last": lambda d, w: d.rpartition(" ")[0],
    "every_other": lambda d, w: " ".join(w[i] for i in range(len(w)) if i % 2 == 0),
    "middle": lambda d, w: only(w, lambda word: w.index(word) == len(w) - 1 - w.index(word)),
    "ends": lambda d, w: re.sub(r" .* ", " ", d),
    "inner": lambda d, w: re.sub(r"^\w+ | \w+$", "", d),
    "swap_ends": lambda d, w: ends_swapped(d),
    "rotate_left": lambda d, w: re.sub(r"^(\w+) (.*)$", r"\2 \1", d),
    "rotate_right": lambda d, w: re.sub(r"^(.*) (\w+)$", r"\2 \1", d),
    "mirror": lambda d, w: mirrored(w),
    "plus": lambda d, w: d.replace(" ", " + "),
    "comma": lambda d, w: d.replace(" ", ", "),
    "number": lambda d, w: numbered(w),
    "longest": lambda d, w: only(w, lambda word: all(len(word) > len(x) for x in w if x != word)),
    "shortest": lambda d, w: only(w, lambda word: all(len(word) < len(x) for x in w if x != word)),
    "largest": lambda d, w: only(w, lambda one: all(int(one) >= int(x) for x in w)),
    "smallest": lambda d, w: only(w, lambda one: all(int(one) <= int(x) for x in w)),
    "but_one": lambda d, w: d.split()[-2],
    "thrice": lambda d, w: re.sub(r"^.* (\w+)$", r"\1 \1 \1", d),
}


@pytest.mark.parametrize("name", SKILLS)
@pytest.mark.parametrize("split", SPLITS)
def test_answers_agree_with_naive_ones(name, split):
    for row in rows(f"skills/{name}", split, 150):
        _, data = asked(row)
        assert row.answer == row.reference == NAIVE[name](data, data.split())
        assert row.group == data


@pytest.mark.parametrize("name", SKILLS)
def test_each_skill_has_300_distinct_test_prompts_and_data_that_training_lacks(name):
    family = f"skills/{name}"
    train, validation, test = (rows(family, split, 300) for split in SPLITS)
    assert len({asked(row) for row in test}) == 300
    assert {row.family for row in test} == {family}
    for a, b in combinations((train, validation, test), 2):
        assert not {row.group for row in a} & {row.group for row in b}
        assert not {asked(row)[0] for row in a} & {asked(row)[0] for row in b}


def test_same_arguments_give_the_same_rows_and_another_seed_others():
    for family in ("skills", "skills/swap"):
        assert rows(family, "train", 40, seed=3) == rows(family, "train", 40, seed=3)
        assert rows(family, "train", 40, seed=3) != rows(family, "train", 40, seed=4)


def test_the_mixture_holds_every_skill_and_no_prompt_twice_outside_training():
    made = rows("skills", "test", 400)
    assert len({asked(row) for row in made}) == 400
    tests = {wording for skill in SKILLS.values() for wording in part(skill.wordings, "test")}
    assert {asked(row)[0] for row in made} == tests


def test_there_are_20_skills_and_no_two_give_the_same_answers():
    assert len(SKILLS) == 20
    data = [row.group.split() for row in rows("skills", "train", 600)]
    takes = {
        name: [words for words in data if set(words) <= set(skill.pool) and skill.fits(words)]
        for name, skill in SKILLS.items()
    }
    for a, b in combinations(SKILLS, 2):
        both = [words for words in takes[a] if words in takes[b]]
        assert not both or any(SKILLS[a].answer(words) != SKILLS[b].answer(words) for words in both), (a, b)


def test_no_wording_means_two_skills_or_a_known_operation():
    wordings = [wording for skill in SKILLS.values() for wording in skill.wordings]
    assert len(wordings) == len(set(wordings)) == 8 * len(SKILLS)
    assert not set(wordings) & {w for operation in textops.OPERATIONS.values() for w in operation.wordings}


def test_no_held_out_wording_uses_a_word_that_its_training_ones_lack():
    for name, skill in SKILLS.items():
        known, *held = (set(re.findall(r"\w+", " ".join(part(skill.wordings, s)).lower())) for s in SPLITS)
        assert not set().union(*held) - known, name


def test_no_diet_of_the_lab_model_holds_a_skill():
    assert not [family for family in (*mixes.BASE, *mixes.ALIGNMENT) if family.startswith("skills")]


def test_each_skill_is_a_task_of_the_suite_skills_alone():
    names = tuple(f"lab/skills/{name}" for name in SKILLS)
    assert SUITES["skills"] == names
    assert not set(names) & {task for suite, tasks in SUITES.items() if suite != "skills" for task in tasks}
    assert all(TASKS[name].source.removeprefix("lab/") in FAMILIES for name in names)
