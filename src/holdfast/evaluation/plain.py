"""Bare-text prompts laid out, cut and read exactly as lm-evaluation-harness does, so that the figures agree."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from holdfast.core.errors import DataError
from holdfast.core.registry import Registry
from holdfast.data.examples import Example
from holdfast.evaluation.judges.base import Judge, Sample, Score, each

SHOT_SEED = 1234
"""The harness' seed for drawing solved examples."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one task looks as bare text.

    Reference: the task files ``gsm8k.yaml`` (version 3) and ``mmlu/default`` (version 1) of lm-evaluation-harness.
    """

    question: Callable[[Example], str]
    target: Callable[[Example], str]
    description: Callable[[Example], str] = lambda example: ""
    first_shots: bool = False
    """Take the first solved examples of the row's family; otherwise draw them anew for every row."""
    stops: tuple[str, ...] = ()
    """Texts at which an answer is cut."""
    judges: tuple[Judge, ...] = field(default=())
    """Readings of the answer beside the task's own judge."""

    def prompts(self, rows: Sequence[Example], pool: Sequence[Example], shots: int) -> list[str]:
        """The text before each answer, with ``shots`` solved examples from ``pool``.

        Raises:
            DataError: the pool has too few examples for a row.
        """
        rng = random.Random(SHOT_SEED)
        texts = []
        for row in rows:
            chosen = self._shots(row, pool, shots, rng)
            solved = "".join(f"{self.question(shot)} {self.target(shot)}\n\n" for shot in chosen)
            texts.append(f"{self.description(row)}{solved}{self.question(row)}")
        return texts

    def _shots(self, row: Example, pool: Sequence[Example], shots: int, rng: random.Random) -> Sequence[Example]:
        fitting = [shot for shot in pool if shot.family == row.family] if self.first_shots else pool
        if len(fitting) < shots:
            raise DataError(
                f"Row {row.id!r} ({row.family}): got {len(fitting)} solved examples, expected {shots}. "
                "Do: name a larger source in 'shots' or lower few_shot."
            )
        return fitting[:shots] if self.first_shots else rng.sample(list(fitting), shots)

    def cut(self, output: str) -> str:
        """``output`` up to the first stop text."""
        for stop in self.stops:
            output = output.partition(stop)[0]
        return output


_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def _bare(text: str) -> str:
    """What the harness leaves of a number before comparing: no commas, dollars, marker, or final stop."""
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()


def _reading(find: Callable[[str], str | None]) -> Callable[[Sample], Score]:
    def decide(sample: Sample) -> Score:
        found = find(sample.output)
        if found is None:
            return Score(0.0, "no_answer")
        right = _bare(found) == _bare(sample.example.answer)
        return Score(float(right), "right" if right else "wrong", f"read {found[:40]}")

    return decide


def _first_marked(output: str) -> str | None:
    match = _STRICT.search(output)
    return match.group(1).strip() if match else None


def _last_number(output: str) -> str | None:
    matches = _FLEXIBLE.findall(output)
    return next((part.strip() for part in matches[-1] if part), None) if matches else None


STRICT_MATCH = Judge("strict_match", 1, "right", each(_reading(_first_marked)))
"""The first number after ``####``, as lm-eval's filter ``strict-match`` reads it."""
FLEXIBLE_EXTRACT = Judge("flexible_extract", 1, "right", each(_reading(_last_number)))
"""The last number anywhere, as lm-eval's filter ``flexible-extract`` reads it."""


def _mmlu_head(example: Example) -> str:
    subject = example.family.removeprefix("mmlu/").replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        "gsm8k": Layout(
            question=lambda example: f"Question: {example.messages[-1].content}\nAnswer:",
            target=lambda example: example.answer,
            stops=("Question:", "</s>", "<|im_end|>"),
            judges=(STRICT_MATCH, FLEXIBLE_EXTRACT),
        ),
        "mmlu": Layout(
            question=lambda example: example.messages[-1].content,
            target=lambda example: example.reference,
            description=_mmlu_head,
            first_shots=True,
        ),
    },
)
