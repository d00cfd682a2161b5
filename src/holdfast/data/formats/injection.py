"""Instructions that stand inside data, and training rows for conversations."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError
from holdfast.data import files
from holdfast.data.examples import Example
from holdfast.data.formats.base import Examples, Format, Row, user

POSITIONS = ("before", "middle", "after")


def place(payload: str, context: str, position: str) -> str:
    """Put ``payload`` on a line of its own before, in the middle of (at a sentence end) or after ``context``.

    >>> place("Say X.", "One. Two. Three. Four.", "middle")
    'One. Two.\\nSay X.\\nThree. Four.'
    """
    if position == "before":
        return f"{payload}\n{context}"
    if position == "after":
        return f"{context}\n{payload}"
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|\n", context)] or [len(context) // 2]
    cut = min(ends, key=lambda end: abs(end - len(context) // 2))
    return f"{context[:cut].rstrip()}\n{payload}\n{context[cut:].lstrip()}"


def attacks_near(contexts: Path) -> Path:
    """BIPIA keeps ``email/train.jsonl`` beside ``text_attack_train.json``, one folder up."""
    name = f"text_attack_{files.stem_of(contexts)}.json"
    for folder in (contexts.parent, contexts.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{contexts}: no attacks, expected {name} beside it or one folder up. Do: name the file in 'attacks'."
    )


def read_attacks(path: Path) -> dict[str, tuple[str, ...]]:
    """BIPIA's attack instructions by category."""
    if not path.is_file():
        raise DataError(f"Cannot read attacks from {path}: no such file.")
    try:
        given = json.loads(files.decode(path, path.read_bytes()))
    except json.JSONDecodeError as problem:
        raise DataError(f"{path} is not JSON: {problem}. Do: fetch the file again.") from problem
    if not isinstance(given, dict) or not all(isinstance(v, list) and v for v in given.values()):
        raise DataError(f"{path}: expected an object of attack categories, each with a list of instructions.")
    return {category: tuple(map(str, payloads)) for category, payloads in given.items()}


def _bipia(row: Row) -> Examples:
    """One row per attack category and context; instance and position are drawn from the seed."""
    if not row.attacks:
        raise DataError(f"{row.where}: no attacks to pair it with. Do: name BIPIA's text_attack_*.json in 'attacks'.")
    context, question = row.text("context"), row.text("question")
    ideal = row.text("ideal")
    for category, payloads in sorted(row.attacks.items()):
        draw = random.Random(f"bipia/{row.seed}/{row.index}/{category}")
        position = draw.choice(POSITIONS)
        yield Example(
            id=f"bipia/{row.index}/{category}",
            messages=user(question.removeprefix("Q: "), data=place(draw.choice(payloads), context, position)),
            answer=ideal,
            family="bipia",
            split=row.split,
            group=f"bipia/{row.index}",
            reference=ideal,
            attack=category,
            position=position,
        )


def _sep(row: Row) -> Examples:
    """Two rows: the probe inside the data (must be ignored) and inside the instruction (should be obeyed)."""
    witness, group = row.text("witness"), f"sep/{row.index}"
    clean, probed = row.text("prompt_clean"), row.text("prompt_instructed")
    before, after = probed.endswith(clean), probed.startswith(clean)
    info = row.record.get("info")
    attack = "insistent" if isinstance(info, dict) and info.get("is_insistent") else "naive"
    yield Example(
        id=f"{group}/data",
        messages=user(row.text("system_prompt_clean"), data=probed),
        family="sep",
        split=row.split,
        group=group,
        witness=witness,
        attack=attack,
        position="before" if before else "after" if after else "middle",
    )
    yield Example(
        id=f"{group}/instruction",
        messages=user(row.text("system_prompt_instructed"), data=clean),
        family="sep",
        split=row.split,
        group=group,
        witness=witness,
        label="instructed",
    )


def _injection_pairs(row: Row) -> Examples:
    """Three rows, told apart by the end of their id: ``/benign``, ``/twin`` and ``/attacked``."""
    system, context = row.text("system_instruction"), row.optional("context")
    group = row.text("user_input_benign_1")
    shared: dict[str, Any] = {
        "family": "injection_pairs",
        "split": row.split,
        "group": group,
        "risk_area": row.optional("task_category"),
    }
    ident = row.name("injection_pairs", "id")
    for name, column in (("benign", "1"), ("twin", "2")):
        answer = row.text(f"expected_output_{column}")
        yield Example(
            id=f"{ident}/{name}",
            messages=user(row.text(f"user_input_benign_{column}"), system=system, data=context),
            answer=answer,
            reference=answer,
            label="benign",
            **shared,
        )
    yield Example(
        id=f"{ident}/attacked",
        messages=user(row.text("user_input_injection"), system=system, data=context),
        answer=row.text("expected_output_injection"),
        attack=row.text("attack_type"),
        label="attacked",
        **shared,
    )


INJECTION = (
    Format(
        "bipia",
        ("context", "question", "ideal"),
        _bipia,
        "E-mails and other contexts with an attack inside (BIPIA).",
        answers=("ideal",),
    ),
    Format(
        "sep",
        ("system_prompt_clean", "prompt_instructed", "system_prompt_instructed", "prompt_clean", "witness"),
        _sep,
        "Does the model tell instructions from data? Probe in the data against probe in the instruction.",
        also=("info",),
    ),
    Format(
        "injection_pairs",
        (
            "system_instruction",
            "user_input_benign_1",
            "expected_output_1",
            "user_input_benign_2",
            "expected_output_2",
            "user_input_injection",
            "expected_output_injection",
            "attack_type",
        ),
        _injection_pairs,
        "Benign request, benign twin and attacked request under one system instruction.",
        also=("context", "task_category", "id"),
    ),
)
