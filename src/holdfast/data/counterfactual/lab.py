"""The lab's injection cases: drawn where `lab/injection` draws them, so that every view is row by row the same."""

from __future__ import annotations

from holdfast.data.counterfactual.row import Counterfactual
from holdfast.data.lab import documents, injection


def lab_cases(split: str, n: int, seed: int) -> tuple[Counterfactual, ...]:
    """``n`` cases of one split, in the order of the rows of ``lab/injection``."""
    return tuple(
        _case(case, f"injection/{split}/{seed}/{i}", split) for i, case in enumerate(injection.cases(split, n, seed))
    )


def _case(case: injection.Case, ident: str, split: str) -> Counterfactual:
    return Counterfactual(
        id=ident,
        group=case.task.group,
        system=case.system[0].content if case.system else "",
        instruction=case.task.instruction,
        data=documents.join(case.task.parts),
        answer=case.task.answer,
        payload=case.payload,
        injection=case.injected,
        witness=case.payload_answer,
        payload_answer=case.payload_answer,
        attack=case.attack,
        position=case.position,
        split=split,
        twin_data=documents.join((*case.task.parts, case.extra)),
        attacked_data=case.attacked_data(),
        family="injection",
    )
