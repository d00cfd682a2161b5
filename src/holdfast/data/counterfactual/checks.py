"""What makes a case unfit: with these faults an attack's success cannot be told from the task done."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from holdfast.core.errors import DataError
from holdfast.data.counterfactual.row import Counterfactual
from holdfast.data.counterfactual.splits import UNUSED
from holdfast.data.formats.injection import POSITIONS
from holdfast.data.lab.splits import SPLITS
from holdfast.data.whole import stands

_WORD = re.compile(r"\w+")


def words(text: str) -> str:
    """The words of a text in small letters, one space between them.

    >>> words("Say:  HELLO!")
    'say hello'
    """
    return " ".join(_WORD.findall(text.casefold()))


def holds(text: str, witness: str) -> bool:
    """Whether ``witness`` stands in ``text`` as whole words (`whole.stands`), letter case and runs of spaces ignored.

    >>> holds("They allocate a Cat.", "cat"), holds("They allocate.", "cat")
    (True, False)
    """
    wanted, given = (" ".join(part.casefold().split()) for part in (witness, text))
    return stands(given, wanted)


def problems(case: Counterfactual) -> list[str]:
    """Everything that is wrong with one case, each as the end of a sentence."""
    return [*_missing(case), *_told(case), *_placed(case)]


def _missing(case: Counterfactual) -> Iterator[str]:
    for name in ("group", "data", "payload", "injection", "attack"):
        if not getattr(case, name).strip():
            yield f"{name!r} is empty, expected text"
    if not (case.instruction.strip() or case.system.strip()):
        yield "neither 'instruction' nor 'system' says what the task is"


def _told(case: Counterfactual) -> Iterator[str]:
    """Faults by which obeying and doing the task look alike."""
    for name in ("answer", "data", "twin_data", "instruction", "twin_instruction", "system"):
        if holds(getattr(case, name), case.witness):
            yield f"the witness {case.witness!r} is in the {name}, expected a string that only an obeying answer holds"
    tasks = {"instruction": case.instruction, "data": case.data if case.channel == "user" else ""}
    for name, text in tasks.items():
        if words(text) and words(text) in {words(case.payload), words(case.injection)}:
            yield f"the attack is the task: the payload and the {name} both say {case.payload!r:.80}"
    if words(case.answer) and words(case.answer) == words(case.payload_answer):
        yield f"answer and payload_answer are the same, {case.answer!r:.80}"


def _placed(case: Counterfactual) -> Iterator[str]:
    if case.position not in {"", *POSITIONS} or not (case.position or case.attacked_data):
        yield f"the position is {case.position!r}, expected one of {', '.join(POSITIONS)}"
    elif case.injection not in case.attacked_text():
        yield "the injection is not in 'attacked_data'"
    if case.injection.strip() and case.injection in case.data:
        yield "the clean data already holds the injection"
    if case.split not in {*SPLITS, UNUSED}:
        yield f"the split is {case.split!r}, expected one of {', '.join((*SPLITS, UNUSED))}"


def faults(cases: Sequence[Counterfactual]) -> list[tuple[str, str]]:
    """Id and fault of every case that has one, and of every id that stands twice."""
    counts = Counter(case.id for case in cases)
    twice = [(name, "the id stands twice, expected each id once") for name, count in counts.items() if count > 1]
    return [(case.id, fault) for case in cases for fault in problems(case)] + twice


def faulty(cases: Sequence[Counterfactual], found: Sequence[tuple[str, str]]) -> list[Counterfactual]:
    """The cases that ``faults`` are about: all of an id that stands twice."""
    named = {name for name, _ in found}
    return [case for case in cases if case.id in named]


def check_cases(cases: Sequence[Counterfactual], where: str) -> None:
    """Refuse cases that nothing could be learnt or measured on.

    Raises:
        DataError: naming the first such case and how many there are.
    """
    found = faults(cases)
    if found:
        ident, fault = found[0]
        rows = len(faulty(cases, found))
        others = f" ({rows} of {len(cases)} rows have faults)" if rows > 1 else ""
        raise DataError(
            f"{where}: row {ident!r}: {fault}{others}. "
            "Do: correct or remove it; 'holdfast data audit' lists every fault."
        )
