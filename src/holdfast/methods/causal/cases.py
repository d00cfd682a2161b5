"""Cases as the model reads them: each view tokenised once, checked, and kept beside the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.errors import DataError
from holdfast.data.batches import Encoded, Rows
from holdfast.data.counterfactual import Counterfactual
from holdfast.data.examples import Example
from holdfast.methods.causal.config import CausalConfig
from holdfast.models.generate import check_context
from holdfast.models.load import LoadedModel

VIEWS = ("benign", "attacked", "obeyed", "twin", "payload")
"""``payload`` is the attacked view with the payload's answer. It and ``twin`` are there where they are needed."""


@dataclass(frozen=True, eq=False, slots=True)
class Cases:
    """All cases of a plan, those to train on first; every sequence has one entry a case."""

    views: Mapping[str, Rows]
    """By the name of the view. The benign row's id is the case's, by which a batch names it."""
    attacks: tuple[str, ...]
    positions: tuple[str, ...]
    n_train: int
    """The rest are for validation."""

    def __len__(self) -> int:
        return len(self.attacks)

    def numbers(self) -> dict[str, int]:
        """The number of each case by the id of its benign row."""
        return {self.views["benign"][n].id: n for n in range(len(self))}


def encode(
    config: CausalConfig, loaded: LoadedModel, train: Sequence[Counterfactual], validation: Sequence[Counterfactual]
) -> Cases:
    """Tokenise every view that ``config`` needs.

    Raises:
        DataError: too few cases, two of one id, a view or an answer that is missing, an attack that changes nothing, or
            a row that does not fit the model's context.
    """
    if len(train) < 2:
        raise DataError(f"Cannot plan: got {len(train)} cases, expected at least 2. Do: give more.")
    cases = (*train, *validation)
    check_learnable(config, cases)
    views: dict[str, Rows] = {name: Rows() for name in VIEWS if _is_needed(config, name)}
    seen: set[str] = set()
    for case in cases:
        rows = {name: _encoded(loaded, case, name) for name in views}
        _check(case, rows, seen)
        check_context(loaded, list(rows.values()), 0)
        seen.add(rows["benign"].id)
        for name, row in rows.items():
            views[name].append(row)
    attacks, positions = tuple(case.attack for case in cases), tuple(case.position for case in cases)
    return Cases(views, attacks, positions, len(train))


def check_learnable(config: CausalConfig, cases: Sequence[Counterfactual]) -> None:
    """Refuse cases that have no answer to learn, or one under attack that is another than without.

    The terms hold both views to one answer, token by token.

    Raises:
        DataError: naming the first such case.
    """
    for case in cases:
        if not case.answer.strip():
            raise DataError(
                f"Case {case.id!r} has no answer to learn: its 'answer' is empty, expected text. Do: fill it in, or "
                "leave the case out."
            )
        if case.attacked_answer not in {"", case.answer}:
            count = sum(each.attacked_answer not in {"", each.answer} for each in cases)
            raise DataError(
                f"Case {case.id!r} wants another answer under attack: its 'attacked_answer' is "
                f"{case.attacked_answer!r:.80}, as in {count} of {len(cases)} cases, expected the answer of the task. "
                "Do: leave such cases out; they can be attacked, but not trained on."
            )
        if not case.payload_answer.strip() and (_is_needed(config, "payload") or "response" in config.kinds):
            raise DataError(
                f"Case {case.id!r} has no answer to its payload: its 'payload_answer' is empty, expected text. Do: "
                "fill it in, or set tokens: prompt and lambda_preference: 0."
            )


def _is_needed(config: CausalConfig, view: str) -> bool:
    return {"twin": config.twin, "payload": config.lambda_preference > 0}.get(view, True)


def view_of(case: Counterfactual, view: str) -> Example:
    """One view of a case as a row; see `VIEWS`.

    Raises:
        DataError: the case has no twin.
    """
    if view == "payload":
        attacked = case.attacked()
        return Example(f"{case.id}/payload", attacked.messages, case.payload_answer)
    row: Example | None = getattr(case, view)()
    if row is None:
        raise DataError(f"Case {case.id!r} has no twin, expected one with twin: true. Do: set twin: false.")
    return row


def _encoded(loaded: LoadedModel, case: Counterfactual, view: str) -> Encoded:
    return loaded.chat.training(view_of(case, view))


def _check(case: Counterfactual, rows: Mapping[str, Encoded], seen: set[str]) -> None:
    benign, attacked = rows["benign"], rows["attacked"]
    if benign.id in seen:
        raise DataError(f"Two cases have the id {case.id!r}, expected one. Do: give each case its own id.")
    if attacked.ids == benign.ids:
        raise DataError(
            f"Case {case.id!r} is not attacked: its attacked view is its benign one, expected an injection in the "
            "data. Do: check its 'injection' and 'attacked_data'."
        )
    if response_of(attacked) != response_of(benign):
        raise DataError(
            f"Case {case.id!r} is answered by other tokens under attack, expected the same answer in both views. Do: "
            "use a chat template that writes answers the same way after any prompt."
        )


def response_of(row: Encoded) -> tuple[int, ...]:
    """The tokens that are learnt. The first token of a row never is: nothing predicts it."""
    return tuple(token for token, learnt in zip(row.ids[1:], row.response[1:], strict=True) if learnt)
