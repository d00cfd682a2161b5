"""Code answers in every shape a model gives them, judged by running them."""

import gzip
import json
from dataclasses import replace

import pytest
from tests.public_data import public

from holdfast.core.errors import DataError
from holdfast.data.examples import Example, Message
from holdfast.evaluation.judges.base import INVALID, Sample
from holdfast.evaluation.judges.code import extract_code, judge_code, program

PROMPT = 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each."""\n'
ROW = Example(
    "row", (Message("user", PROMPT),), tests="def check(f):\n    assert f([1, 2]) == [2, 4]", entry_point="double"
)
BODY = "    return [2 * x for x in xs]\n"


@pytest.mark.parametrize(
    "output",
    [
        BODY,
        BODY.strip(),
        "    ys = []\n    for x in xs:\n        ys.append(2 * x)\n    return ys\n\ndef unfinished(",
        "ys = [2 * x for x in xs]\nreturn ys",
        f"Sure!\n```python\n{PROMPT}{BODY}```\nIt doubles.",
        f"```\n{BODY}```",
        "```python\ndef double(xs: List[int]) -> List[int]:\n    return [2 * x for x in xs]",
        "Here it is:\ndef double(xs):\n    return [2 * x for x in xs]",
        "```python\ndef helper(x): ...\n```\nand\n```python\ndef double(xs):\n    return [2 * x for x in xs]\n```",
    ],
)
def test_right_answer_passes_in_whatever_shape_it_comes(output):
    (score,) = judge_code([Sample(ROW, output)], seconds=60)
    assert (score.value, score.outcome, score.reason) == (1.0, "passed", "")


@pytest.mark.parametrize(
    "output", ["    return xs", "```python\nimport os\nos._exit(0)\n```", "I cannot do that.", "("]
)
def test_wrong_answer_fails_with_a_reason(output):
    (score,) = judge_code([Sample(ROW, output)], seconds=60)
    assert (score.value, score.outcome) == (0.0, "failed")
    assert score.reason


def test_empty_answer_is_invalid_and_order_is_kept():
    scores = judge_code([Sample(ROW, BODY), Sample(ROW, " "), Sample(ROW, "    return 1")], seconds=60)
    assert [score.outcome for score in scores] == ["passed", INVALID, "failed"]


def test_row_without_tests_is_refused():
    with pytest.raises(DataError, match="has no tests"):
        judge_code([Sample(replace(ROW, tests=""), BODY)])


def test_check_is_called_once_whether_or_not_the_row_calls_it():
    called = replace(ROW, tests=f"{ROW.tests}\ncheck(double)")
    assert program(ROW, BODY).count("check(double)") == program(called, BODY).count("check(double)") == 1


def test_block_that_defines_the_function_is_preferred():
    output = "```\nx = 1\n```\n```py\ndef double(xs): ...\n```"
    assert extract_code(output, "double") == "def double(xs): ..."
    assert extract_code(output) == "x = 1"


def test_all_164_humaneval_reference_solutions_pass():
    with gzip.open(public("humaneval/HumanEval.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    samples = [
        Sample(
            Example(r["task_id"], (Message("user", r["prompt"]),), tests=r["test"], entry_point=r["entry_point"]),
            r["canonical_solution"],
        )
        for r in rows
    ]
    scores = judge_code(samples, workers=2, seconds=120)
    assert len(scores) == 164
    assert [(s.example.id, score.reason) for s, score in zip(samples, scores, strict=True) if score.value != 1.0] == []


@pytest.mark.slow
def test_all_mbpp_reference_solutions_pass():
    rows = [json.loads(line) for line in public("mbpp/sanitized_mbpp.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [
        Sample(
            Example(
                str(r["task_id"]), (Message("user", r["text"]),), tests="import math\n" + "\n".join(r["test_list"])
            ),
            r["code"],
        )
        for r in rows
    ]
    scores = judge_code(samples, workers=2, seconds=120)
    assert [(s.example.id, score.reason) for s, score in zip(samples, scores, strict=True) if score.value != 1.0] == []
