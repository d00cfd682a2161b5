"""Whether a set of counterfactual cases can carry a claim: its faults, copies, leaks, attacks, and how far words get.

A set is refused where a good figure on its test split would say nothing: where that split was seen in training, or
where the words of a prompt alone tell an attack.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scipy.stats import binomtest

from holdfast.data.counterfactual import Counterfactual
from holdfast.data.counterfactual.checks import faults, faulty, words
from holdfast.data.examples import Example
from holdfast.data.lab.splits import SPLITS
from holdfast.data.lab.words import bag_of_words_accuracy, length_accuracy
from holdfast.data.near import repeats, shared

ALIKE = 0.8
"""Jaccard similarity, on runs of three words, from which two texts are near duplicates."""
COPIES = 0.5
"""A split is refused in which more rows than this share are copies of others: its intervals would be wrong."""
LEAKED = 0.05
"""A test split is refused of which more than this share is nearly the same as training, or has its injections."""
SOLVED = 0.9
"""A set is refused where words or length tell attacked from clean prompts this well."""
FEWEST_FAMILIES, FEWEST_WORDINGS = 2, 4
"""Fewer attack families or wordings than these are no variety."""
CASES_FITTED, CASES_TRIED = 2000, 1000
"""Cases, drawn at random where there are more, that the trivial classifier is fitted and tried on."""
SHOWN = 5
"""Faults and groups that a sentence names."""
REMEDIES = {
    "validity": "correct the rows that are named, or take them out.",
    "duplicates": "keep one row of each prompt, and write more that differ.",
    "groups apart": "give all rows of a group one split, or leave 'split' out: it is then made by group.",
    "test data unseen": "give rows on the same text one split, or leave 'split' and 'group' out: such rows are then "
    "one group, and a group stands in one split.",
    "no near duplicates across splits": "give tasks that are nearly the same one 'group' and one 'split', or take them "
    "out of training.",
    "injections unseen": "write other injections for the test split: a wording belongs to one split.",
    "held-out families": "keep one attack family out of training, in the test split alone.",
    "variety of attacks": f"add attacks, to at least {FEWEST_FAMILIES} families and {FEWEST_WORDINGS} wordings.",
    "words do not tell": "add clean texts with orders in them that are not meant for the model, also as 'twin_data'.",
    "length does not tell": "add clean texts as long as the attacked ones, also as 'twin_data'.",
}
"""What to do where a check fails, by its name."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the set."""

    name: str
    holds: bool | None
    """``None``: it could not be asked, as a split is missing."""
    said: str
    """The answer, with its numbers."""
    value: float | None = None
    """A share or an accuracy in [0, 1], where the answer is one."""
    n: int | None = None
    low: float | None = None
    high: float | None = None
    """Wilson 95 % interval."""
    remedy: str = ""
    """What to do; empty unless the check failed."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found."""

    source: str
    cases: int
    splits: dict[str, int]
    checks: tuple[Check, ...]
    attacks: tuple[dict[str, str | int], ...]
    """One row per split and attack family: rows, rows at each position, wordings."""

    @property
    def refused(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.holds is False)

    @property
    def verdict(self) -> str:
        """``passes``, or ``refused`` and why."""
        if self.refused:
            return f"refused: {', '.join(check.name for check in self.refused)}"
        unasked = [check.name for check in self.checks if check.holds is None]
        return f"passes; not tested: {', '.join(unasked)}" if unasked else "passes"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able form."""
        return asdict(self) | {"verdict": self.verdict, "passes": not self.refused}


def audit(cases: Sequence[Counterfactual], source: str = "", seed: int = 0) -> Audit:
    """Ask every question of the set.

    Args:
        cases: All splits together, with their faults: see `read_unchecked`.
        seed: For the draw of cases that the trivial classifier sees.
    """
    splits: dict[str, list[Counterfactual]] = {name: [case for case in cases if case.split == name] for name in SPLITS}
    counts = Counter(case.split for case in cases)
    asked = (
        _validity(cases),
        _copies(splits),
        _groups(cases),
        *_leaks(splits),
        _families(splits),
        _variety(cases),
        *_trivial(splits, seed),
    )
    checks = tuple(replace(check, remedy=REMEDIES[check.name]) if check.holds is False else check for check in asked)
    return Audit(source, len(cases), dict(counts), checks, tuple(_attack_table(cases)))


def clean_text(case: Counterfactual) -> str:
    """What of a case is not the attacker's."""
    return f"{case.instruction}\n{case.data}"


def wording(case: Counterfactual) -> str:
    """The dress of an injection, its payload taken out; the whole injection where it holds the payload changed."""
    bare = case.payload.rstrip(".")
    for form in (bare, bare[:1].lower() + bare[1:], bare.replace(" ", "-")):
        if form and form in case.injection:
            return case.injection.replace(form, "{}")
    return case.injection


def wordings(cases: Sequence[Counterfactual]) -> int:
    """How many different ones; of whole injections where the source does not tell the payload from its dress."""
    apart = any(case.payload != case.injection for case in cases)
    return len({wording(case) if apart else words(case.injection) for case in cases})


def _validity(cases: Sequence[Counterfactual]) -> Check:
    found = faults(cases)
    rows = faulty(cases, found)
    listed = "; ".join(f"row {ident!r}: {fault}" for ident, fault in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    unanswered = sum(not case.answer.strip() for case in cases)
    unseen = sum(not (case.witness.strip() or case.payload_answer.strip()) for case in cases)
    notes = [f"{unanswered} rows have no answer to learn"] if unanswered else []
    notes += (
        [f"{unseen} rows have neither witness nor payload answer, so a judge must tell obedience"] if unseen else []
    )
    said = f"{len(rows)} of {len(cases)} rows have faults" + (f": {listed}{more}" if found else "")
    return Check("validity", not found, ". ".join([said, *notes]), value=len(rows) / len(cases), n=len(cases))


def _copies(splits: dict[str, list[Counterfactual]]) -> Check:
    shares, said = {}, []
    for name, cases in splits.items():
        if not cases:
            continue
        texts = [f"{case.system}\n{case.instruction}\n{case.attacked_text()}" for case in cases]
        exact = len(texts) - len({words(text) for text in texts})
        near = repeats(texts, ALIKE)
        shares[name] = max(exact, near) / len(texts)
        said.append(f"{name}: {exact} exact and {max(near - exact, 0)} near copies among {len(texts)} attacked prompts")
    worst = max(shares.values(), default=0.0)
    return Check("duplicates", worst <= COPIES, "; ".join(said), value=worst)


def _groups(cases: Sequence[Counterfactual]) -> Check:
    """No group in two splits."""
    where: dict[str, set[str]] = {}
    for case in cases:
        if case.split in SPLITS:
            where.setdefault(case.group, set()).add(case.split)
    if len({case.split for case in cases} & set(SPLITS)) < 2:
        return Check("groups apart", None, "there is one split only")
    torn = [group for group, names in where.items() if len(names) > 1]
    named = ", ".join(repr(group[:60]) for group in torn[:SHOWN])
    said = f"{len(torn)} of {len(where)} groups stand in two splits" + (f": {named}" if torn else "")
    return Check("groups apart", not torn, said, value=len(torn) / len(where), n=len(where))


def _leaks(splits: dict[str, list[Counterfactual]]) -> Iterator[Check]:
    """What of the test split was seen in training: the clean data, nearly the whole task, the attacker's text."""
    test, seen = splits["test"], [*splits["train"], *splits["validation"]]
    if not (test and seen):
        missing = "no test split" if seen else "no training split"
        for name in ("test data unseen", "no near duplicates across splits", "injections unseen"):
            yield Check(name, None, f"there is {missing}")
        return
    yield _same("test data unseen", "the clean text", test, seen, lambda case: case.data)
    near = shared([clean_text(case) for case in test], [clean_text(case) for case in seen], ALIKE)
    share = len(near) / len(test)
    said = f"{len(near)} of {len(test)} test tasks are nearly the same as one in training or validation"
    yield Check("no near duplicates across splits", share <= LEAKED, said, value=share, n=len(test))
    yield _same("injections unseen", "the injected text", test, seen, lambda case: case.injection, LEAKED)


def _same(
    name: str,
    what: str,
    test: Sequence[Counterfactual],
    seen: Sequence[Counterfactual],
    text: Callable[[Counterfactual], str],
    most: float = 0.0,
) -> Check:
    known = {words(text(case)) for case in seen}
    found = [case.id for case in test if words(text(case)) in known]
    share = len(found) / len(test)
    said = f"{what} of {len(found)} of {len(test)} test rows occurs in training or validation"
    named = f": {', '.join(map(repr, found[:SHOWN]))}" if found else ""
    return Check(name, share <= most, said + named, value=share, n=len(test))


def _families(splits: dict[str, list[Counterfactual]]) -> Check:
    """Whether the test split attacks in a way that training did not."""
    tested, trained = ({case.attack for case in splits[name]} for name in ("test", "train"))
    if not (tested and trained):
        return Check("held-out families", None, f"there is no {'test' if trained else 'training'} split")
    held = sorted(tested - trained)
    said = f"tested only: {', '.join(held)}" if held else f"no held-out family: train has all {len(tested)} of test"
    return Check("held-out families", bool(held), said)


def _variety(cases: Sequence[Counterfactual]) -> Check:
    families = {case.attack for case in cases}
    positions = sorted({case.position or "unplaced" for case in cases})
    said = f"{len(families)} families, {wordings(cases)} wordings, positions {', '.join(positions)}"
    return Check("variety of attacks", len(families) >= FEWEST_FAMILIES and wordings(cases) >= FEWEST_WORDINGS, said)


def _attack_table(cases: Sequence[Counterfactual]) -> Iterator[dict[str, str | int]]:
    """Rows, rows by position and different wordings of each family in each split."""
    for split in dict.fromkeys((*SPLITS, *(case.split for case in cases))):
        for attack in sorted({case.attack for case in cases if case.split == split}):
            here = [case for case in cases if case.split == split and case.attack == attack]
            places = Counter(case.position or "unplaced" for case in here)
            yield {
                "split": split,
                "attack": attack,
                "rows": len(here),
                **{name: places[name] for name in ("before", "middle", "after", "unplaced")},
                "wordings": wordings(here),
            }


def _trivial(splits: dict[str, list[Counterfactual]], seed: int) -> Iterator[Check]:
    """How well words, and length alone, tell the attacked prompt of a test case from a clean one."""
    names = ("words do not tell", "length does not tell")
    if not (splits["train"] and splits["test"]):
        for name in names:
            yield Check(name, None, f"there is no {'test' if splits['train'] else 'training'} split")
        return
    fitted = _labelled(_some(splits["train"], CASES_FITTED, seed))
    tried = _labelled(_some(splits["test"], CASES_TRIED, seed))
    n = len(tried[0])
    for name, what, accuracy in zip(
        names, ("a bag of words", "the number of words"), (bag_of_words_accuracy, length_accuracy), strict=True
    ):
        rate = accuracy(*fitted, *tried)
        bounds = binomtest(round(rate * n), n).proportion_ci(method="wilson")
        low, high = float(bounds.low), float(bounds.high)
        said = f"{what} tells attacked from clean test prompts with accuracy {rate:.3f} [{low:.3f}, {high:.3f}]"
        yield Check(name, rate < SOLVED, said, value=rate, n=n, low=low, high=high)


def _some(cases: Sequence[Counterfactual], most: int, seed: int) -> list[Counterfactual]:
    return list(cases) if len(cases) <= most else random.Random(f"audit/{seed}").sample(list(cases), most)


def _labelled(cases: Sequence[Counterfactual]) -> tuple[list[Example], list[bool]]:
    """An attacked prompt of every case and a clean one: the twin of every other case that has one, else the benign."""
    clean = [(case.twin() if i % 2 else None) or case.benign() for i, case in enumerate(cases)]
    return [*(case.attacked() for case in cases), *clean], [True] * len(cases) + [False] * len(cases)
