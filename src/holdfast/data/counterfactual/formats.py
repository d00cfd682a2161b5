"""The columns of files of cases, and how their records become cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from holdfast.core.errors import DataError
from holdfast.core.registry import Registry
from holdfast.data.counterfactual import injector
from holdfast.data.counterfactual.checks import words
from holdfast.data.counterfactual.row import NEEDED, Counterfactual
from holdfast.data.counterfactual.splits import connected, own_split
from holdfast.data.formats import FORMATS, Format, Row

Reader = Callable[[Sequence[Row]], list[Counterfactual]]


@dataclass(frozen=True, slots=True)
class CaseFormat:
    """Columns, and the reader of all rows of a source: a payload may come from another row."""

    columns: Format
    read: Reader


def _own(row: Row) -> Counterfactual:
    """A record with the names of the fields of a case."""
    channel = row.optional("channel") or "data"
    if channel not in {"data", "user"}:
        raise DataError(f"{row.where}: the channel is {channel!r}, expected data or user. Do: correct it.")
    return Counterfactual(
        id=row.optional("id") or f"{row.stem}/{row.index}",
        group=row.optional("group") or words(row.text("data")),
        system=row.optional("system"),
        instruction=row.optional("instruction"),
        data=row.text("data"),
        answer=row.optional("answer"),
        payload=row.optional("payload") or row.text("injection"),
        injection=row.text("injection"),
        witness=row.optional("witness"),
        payload_answer=row.optional("payload_answer"),
        attack=row.text("attack"),
        position=row.optional("position"),
        split=own_split(row),
        twin_data=row.optional("twin_data"),
        twin_instruction=row.optional("twin_instruction"),
        attacked_answer=row.optional("attacked_answer"),
        attacked_data=row.optional("attacked_data"),
        category=row.optional("category"),
        family=row.optional("family") or row.stem,
        channel="user" if channel == "user" else "data",
    )


def _own_cases(rows: Sequence[Row]) -> list[Counterfactual]:
    """Cases as they are. Those without a group are one where they have the same data or the same instruction."""
    cases = [_own(row) for row in rows]
    bare = [n for n, row in enumerate(rows) if not row.optional("group")]
    texts = [(words(cases[n].data), words(cases[n].instruction)) for n in bare]
    groups = dict(zip(bare, connected([tuple(filter(None, text)) or ("",) for text in texts]), strict=True))
    return [replace(case, group=groups.get(n, case.group)) for n, case in enumerate(cases)]


def added(clean: str, attacked: str) -> tuple[str, str]:
    """What an attacked text has more than the clean one, and where: ``before`` or ``after`` it.

    A text that does not hold the clean one, or goes around it, is the injection as a whole, at no place.

    >>> added("One two.", "One two.. Now sing."), added("One two.", "Sing.")
    (('Now sing.', 'after'), ('Sing.', ''))
    """
    head, found, tail = attacked.partition(clean)
    head, tail = head.strip(), tail.strip(" .\n")
    if not found or (head and tail) or not (head or tail):
        return attacked, ""
    return (head, "before") if head else (attacked[attacked.index(tail) :].strip(), "after")


def _sep(row: Row) -> Counterfactual:
    """A probe in the data; the set is made for evaluation, so it is all ``test``, and has no answer to its tasks."""
    clean, witness = row.text("prompt_clean"), row.text("witness")
    probe, position = added(clean, row.text("prompt_instructed"))
    info = row.record.get("info")
    about = info if isinstance(info, dict) else {}
    return Counterfactual(
        id=f"sep/{row.stem}/{row.index}",
        group=words(clean),
        system="",
        instruction=row.text("system_prompt_clean"),
        data=clean,
        answer="",
        payload=probe,
        injection=probe,
        witness=witness,
        payload_answer=witness,
        attack="insistent" if about.get("is_insistent") else "naive",
        position=position,
        split=own_split(row) or "test",
        attacked_data=row.text("prompt_instructed"),
        category=str(about.get("type", "")),
        family="sep",
    )


def _pair(row: Row) -> Counterfactual:
    """The system turn is the task and the user's turn is attacked, so that is the turn that holds the data.

    Where the attacked text still holds the benign one, its wanted answer is the benign one, else the row's refusal. The
    second benign request is a twin only where it has the same answer.
    """
    asked, twin = row.text("user_input_benign_1"), row.text("user_input_benign_2")
    answer, context = row.text("expected_output_1"), row.optional("context")
    attacked = row.text("user_input_injection")
    injection, position = added(asked, attacked)
    same = words(answer) == words(row.text("expected_output_2"))
    return Counterfactual(
        id=row.name("injection_pairs", "id"),
        group=words(asked),
        system=row.text("system_instruction"),
        instruction="",
        data=_in_context(asked, context),
        answer=answer,
        payload=injection,
        injection=injection,
        witness="",
        payload_answer="",
        attack=row.text("attack_type"),
        position=position,
        split=own_split(row),
        twin_data=_in_context(twin, context) if same else "",
        attacked_answer="" if asked in attacked else row.text("expected_output_injection"),
        attacked_data=attacked,
        category=row.optional("task_category"),
        family="injection_pairs",
        channel="user",
    )


def _in_context(asked: str, context: str) -> str:
    """As the attacked requests of the set put it."""
    return f"Context: {context}\n\nQuestion: {asked}" if context else asked


def _each(read: Callable[[Row], Counterfactual]) -> Reader:
    return lambda rows: [read(row) for row in rows]


_OPTIONAL = tuple(field.name for field in fields(Counterfactual) if field.name not in NEEDED)
_OWN = Format(
    "counterfactual",
    NEEDED,
    lambda row: [_own(row).attacked()],
    "One case a row: a task on data and an attack on it.",
    also=_OPTIONAL,
    answers=("answer",),
)
CASE_FORMATS: Registry[CaseFormat] = Registry(
    "format of cases",
    {
        "counterfactual": CaseFormat(_OWN, _own_cases),
        "injection_pairs": CaseFormat(FORMATS["injection_pairs"], _each(_pair)),
        "sep": CaseFormat(FORMATS["sep"], _each(_sep)),
        "bipia": CaseFormat(FORMATS["bipia"], injector.contexts),
        "alpaca": CaseFormat(FORMATS["alpaca"], injector.instructions),
        "dolly": CaseFormat(FORMATS["dolly"], injector.instructions),
    },
)
"""By name, in the order in which they are tried on a file of unknown format."""
