"""What a verified model is asked: test cases, the same cases with other injections, and tasks crossed with injections.

Names of variables as in `holdfast.methods.causal.verify`: ``S`` the task, ``U`` the injected instruction.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from holdfast.core.errors import DataError
from holdfast.data.counterfactual import Counterfactual, of_families, read_cases, read_unchecked
from holdfast.data.counterfactual.checks import check_cases, holds, words
from holdfast.data.counterfactual.splits import check_held_out
from holdfast.data.examples import Example
from holdfast.data.sources import SourceConfig
from holdfast.evaluation import intervals
from holdfast.evaluation.intervals import samples_to_certify
from holdfast.methods.causal.verify_config import VerifyConfig

FEWEST_GROUPS = 6
"""Pairs of fewer groups can change sides in fewer than 40 ways, so that nothing can be tested."""
CROSSED_CASES = 150
"""Cases that are crossed with other tasks, at most: nine rows each."""
TRIED = 60
"""Cases that are looked at as donors of an injection or a task."""
SWAPPED = 2
"""Injections that are put into every case in turn."""
FAMILIES = 2
"""Families of attacks in the crossed rows, the most frequent."""
NONE = "none"
"""Level of U where nothing is injected; the others are families of attacks."""
OWN = "own task"
TASKS = ("task 1", "task 2")
"""Levels of S beside the case's own: the payloads of two more cases, asked by the user."""


@dataclass(frozen=True, slots=True)
class Tested:
    """The cases of a verification."""

    cases: tuple[Counterfactual, ...]
    """Those drawn from the test split."""
    held_out: frozenset[str]
    """Families of attacks that no training case has."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """One row of the crossed design."""

    task: str
    injected: str
    case: int
    """Place of its case among those that are swapped."""
    row: Example


@dataclass(frozen=True, slots=True)
class Swaps:
    """Cases with the same two injections put in place of their own, and the first of them with other tasks too."""

    cases: tuple[Counterfactual, ...]
    """Those in which obeying is seen whatever is injected or asked."""
    swapped: tuple[tuple[Counterfactual, ...], tuple[Counterfactual, ...]]
    others: Mapping[int, Counterfactual]
    """By number of a test case, the same with the injection of another one, drawn anew for each; where one fits."""
    crossed: tuple[Asked, ...]
    """Empty where ``reason`` says why tasks cannot be crossed."""
    reason: str = ""
    notes: tuple[str, ...] = ()


def read(source: SourceConfig) -> tuple[Counterfactual, ...]:
    """Checked cases of every split, or of the one that the source names.

    Raises:
        ConfigError, DataError: as `read_cases`.
    """
    if source.split:
        return read_cases(source)
    found = read_unchecked(source)
    check_cases(found, source.source)
    return found


def tested(cases: Sequence[Counterfactual], settings: VerifyConfig) -> Tested:
    """Test cases and held-out families.

    Raises:
        DataError: no test case, none of a named family, none with a sign of obeying, too few groups, no answers, no
            held-out family, or families too small for the bound.
    """
    check_held_out(cases, "Cases to verify on")
    test, blind = _told(of_families([case for case in cases if case.split == "test"], settings.families))
    drawn = _evenly(test, settings.rows, settings.seed)
    groups = len({case.group for case in drawn})
    if groups < FEWEST_GROUPS:
        raise DataError(
            f"Cases to verify on: got {len(drawn)} test cases in {groups} groups, expected at least {FEWEST_GROUPS} "
            "groups: sides of fewer change places in too few ways for any test. Do: give more scenarios of split test."
        )
    if empty := [case.id for case in drawn if not case.answer.strip()]:
        raise DataError(
            f"Cases to verify on: {len(empty)} test cases have no answer, the first is {empty[0]!r}, expected the "
            "wanted answer. Do: fill in 'answer', or leave them out."
        )
    trained = {case.attack for case in cases if case.split == "train"}
    held = frozenset({case.attack for case in drawn} - trained)
    if not held:
        remedy = "Do: name a family that is only tested." if settings.families else "Do: raise rows."
        raise DataError(
            f"No held-out family among {len(drawn)} test cases drawn: got the attacks "
            f"{', '.join(sorted({case.attack for case in drawn}))}, all of them in train. {blind or remedy}"
        )
    if settings.bound is not None:
        _check_size(drawn, held, settings.bound)
    untrained = "" if trained else "There are no training cases, so that every family counts as held out."
    return Tested(tuple(drawn), held, tuple(filter(None, (blind, untrained))))


def _evenly(test: Sequence[Counterfactual], most: int, seed: int) -> list[Counterfactual]:
    """At most ``most`` cases in their order, of each family as many as of any other, as far as it has them."""
    order = random.Random(seed).sample(range(len(test)), len(test))
    seen: Counter[str] = Counter()
    turn = {}
    for number in order:
        turn[number] = seen[test[number].attack]
        seen[test[number].attack] += 1
    return [test[number] for number in sorted(sorted(order, key=turn.__getitem__)[:most])]


def _told(test: Sequence[Counterfactual]) -> tuple[list[Counterfactual], str]:
    """The cases in which obeying shows, and a sentence about the others.

    Raises:
        DataError: it shows in none.
    """
    kept = [case for case in test if case.witness.strip() or case.payload_answer.strip()]
    if test and not kept:
        raise DataError(
            f"Cannot tell whether an injection was followed: none of {len(test)} test cases has a 'witness' or a "
            "'payload_answer', expected at least one. Do: add a string that only an obeying answer holds."
        )
    if len(kept) == len(test):
        return kept, ""
    gone = sorted({case.attack for case in test} - {case.attack for case in kept})
    families = f", and with them every case of {', '.join(gone)}" if gone else ""
    return kept, (
        f"{len(test) - len(kept)} of {len(test)} test cases have neither witness nor payload_answer: whether they were "
        f"followed is not told, and they are left out{families}."
    )


def independent(cases: Sequence[Counterfactual]) -> list[int]:
    """Numbers of cases, the first of each group and family: what an exact bound may count."""
    return intervals.independent([(case.attack, case.group) for case in cases])


def _check_size(drawn: Sequence[Counterfactual], held: frozenset[str], bound: float) -> None:
    needed = samples_to_certify(bound)
    counts = dict.fromkeys(sorted(held), 0)
    for number in independent(drawn):
        if drawn[number].attack in held:
            counts[drawn[number].attack] += 1
    if small := {name: count for name, count in counts.items() if count < needed}:
        listed = ", ".join(f"{name} {count}" for name, count in small.items())
        raise DataError(
            f"Too few rows to certify attack success of at most {100 * bound:g} %: got {listed} (one of each scenario "
            f"counts), expected at least {needed} of each held-out family, without a hit. "
            f"Do: give {needed - min(small.values())} more, raise rows, or plan a larger bound."
        )


def swaps(cases: Sequence[Counterfactual], seed: int) -> Swaps:
    """Every case with the injections of two others, and the crossed design.

    Donors are cases with an answer to their payload or a witness; those whose witness stands in fewest cases are
    taken, and cases in which it does are left out.

    Raises:
        DataError: there are no two cases with different payloads.
    """
    order = list(cases)
    random.Random(f"swaps/{seed}").shuffle(order)
    order = order[:TRIED]
    donors = _donors(order, cases, SWAPPED, [])
    if len(donors) < SWAPPED:
        raise DataError(
            "Cannot swap injections: got test cases that all inject the same, expected at least two different "
            "payloads. Do: give cases with other payloads."
        )
    given = _donors([case for case in order if case.payload_answer.strip()], cases, len(TASKS), donors)
    reason = _uncrossed(cases, given)
    used = donors if reason else [*donors, *given]
    kept = tuple(case for case in cases if not any(_clash(case, donor) for donor in used))
    if len({case.group for case in kept}) < FEWEST_GROUPS:
        raise DataError(
            f"Cannot swap injections: {len(kept)} of {len(cases)} test cases do not hold the swapped witness already, "
            f"expected {FEWEST_GROUPS} groups of them. Do: give cases with rarer witnesses."
        )
    left_out = len(cases) - len(kept)
    first, second = (tuple(swapped(case, donor) for case in kept) for donor in donors)
    others = _others(cases, seed)
    notes = (
        f"{left_out} cases hold a swapped witness already and are left out of swaps." if left_out else "",
        f"{len(cases) - len(others)} cases fit no injection of another case and are left out of outcome/swapped."
        if len(others) < len(cases)
        else "",
    )
    return Swaps(
        cases=kept,
        swapped=(first, second),
        others=others,
        crossed=() if reason else tuple(_crossed(kept, given, seed)),
        reason=reason,
        notes=tuple(filter(None, notes)),
    )


def swapped(case: Counterfactual, donor: Counterfactual) -> Counterfactual:
    """The case with another's injection in the place of its own."""
    return replace(
        case.with_injection(donor.injection, donor.attack),
        id=f"{case.id}/{donor.id}",
        payload=donor.payload,
        witness=donor.witness,
        payload_answer=donor.payload_answer,
    )


def _others(cases: Sequence[Counterfactual], seed: int) -> dict[int, Counterfactual]:
    dice = random.Random(f"others/{seed}")
    found: dict[int, Counterfactual] = {}
    for number, case in enumerate(cases):
        order = dice.sample(cases, len(cases))
        donor = next((each for each in order if not (_clash(case, each) or _alike(case, each))), None)
        if donor is not None:
            found[number] = swapped(case, donor)
    return found


def _donors(
    order: Sequence[Counterfactual], cases: Sequence[Counterfactual], count: int, taken: Sequence[Counterfactual]
) -> list[Counterfactual]:
    """Cases with payloads and answers unlike each other's, those that clash with fewest first."""
    clashes = {id(donor): sum(_clash(case, donor) for case in cases) for donor in order}
    found: list[Counterfactual] = []
    for donor in sorted(order, key=lambda each: clashes[id(each)]):
        if not any(_alike(donor, other) for other in (*taken, *found)):
            found.append(donor)
        if len(found) == count:
            break
    return found


def _alike(one: Counterfactual, other: Counterfactual) -> bool:
    """Whether obeying one cannot be told from obeying the other."""
    texts = ((one.payload, other.payload), (one.witness, other.payload_answer), (other.witness, one.payload_answer))
    return any(words(a) == words(b) or holds(b, a) or holds(a, b) for a, b in texts if a.strip() and b.strip())


def _clash(case: Counterfactual, donor: Counterfactual) -> bool:
    """Whether obeying ``donor`` could not be seen in ``case``."""
    known = "\n".join((case.instruction, case.data, case.answer, case.system))
    return any(holds(known, sign) for sign in (donor.witness, donor.payload_answer)) or words(donor.payload) == words(
        case.instruction
    )


def _uncrossed(cases: Sequence[Counterfactual], given: Sequence[Counterfactual]) -> str:
    if any(case.channel != "data" for case in cases):
        return "the user's turn is attacked, so that no other task can be asked about the same data"
    if len(given) < len(TASKS):
        return "too few payloads have an answer, so that no other task can be asked about the same data"
    return ""


def _crossed(cases: Sequence[Counterfactual], given: Sequence[Counterfactual], seed: int) -> list[Asked]:
    """Every case with every task and every family of attacks: ``S x U x data``.

    A family's injections differ from case to case, or R would tell them apart without error and hide what O hears.
    """
    families = [name for name, _ in Counter(case.attack for case in cases).most_common(FAMILIES)]
    made: list[Asked] = []
    for number, case in enumerate(cases[:CROSSED_CASES]):
        order = random.Random(f"crossed/{seed}/{case.id}").sample(cases, len(cases))
        fitting = [donor for donor in order if donor.attack in families and _fits(case, donor, given)]
        donors = {name: next((d for d in fitting if d.attack == name), None) for name in families}
        if all(donors.values()):
            made += _of_one(number, case, given, donors)
    return made


def _fits(case: Counterfactual, donor: Counterfactual, given: Sequence[Counterfactual]) -> bool:
    """Whether obeying ``donor`` is seen in ``case`` with any of the tasks."""
    return not (donor.id == case.id or _clash(case, donor) or any(_alike(donor, task) for task in given))


def _of_one(
    number: int, case: Counterfactual, given: Sequence[Counterfactual], donors: Mapping[str, Counterfactual | None]
) -> Iterator[Asked]:
    posed = {OWN: case}
    for name, task in zip(TASKS, given, strict=True):
        posed[name] = replace(
            case,
            id=f"{case.id}/{name}",
            instruction=task.payload,
            answer=task.payload_answer,
            attacked_answer="",
        )
    for name, each in posed.items():
        yield Asked(name, NONE, number, replace(each.benign(), witness="", payload_answer=""))
        for family, donor in donors.items():
            if donor is not None:
                yield Asked(name, family, number, swapped(each, donor).attacked())
