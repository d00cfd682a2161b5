"""Code that is run: the answer's program with the row's tests, in the sandbox. Pass or fail, nothing between."""

from __future__ import annotations

import re
from collections.abc import Sequence

from holdfast.core.errors import DataError
from holdfast.data.examples import Example
from holdfast.evaluation.judges.base import INVALID, Judge, Sample, Score
from holdfast.evaluation.sandbox import run_many

_FENCE = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_START = re.compile(r"^(?:from\s+\S+\s+import\b|import\s+\S|def\s+\w|async\s+def\s|class\s+\w|@\w)", re.MULTILINE)


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(", code, re.MULTILINE) is not None


def _compiles(code: str) -> bool:
    try:
        compile(code, "answer", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def extract_code(output: str, entry_point: str = "") -> str:
    """The program in an answer: the fenced block that defines ``entry_point``, else the first, else the text itself.

    >>> extract_code("Here you are:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1'
    """
    blocks = [m.group(2) for m in _FENCE.finditer(output) if m.group(1).lower() in {"", "python", "py", "python3"}]
    if not blocks:
        return output
    return next((block for block in blocks if entry_point and _defines(block, entry_point)), blocks[0])


def prompt_code(example: Example) -> str:
    """The code that the prompt shows (HumanEval: imports, helpers, signature and docstring), or an empty string."""
    asked = next((m.content for m in reversed(example.messages) if m.role in {"user", "data"}), "")
    code = extract_code(asked, example.entry_point)
    start = _START.search(code)
    shows = bool(example.entry_point) and _defines(code, example.entry_point)
    return code[start.start() :] if start and shows else ""


def _body(text: str) -> str:
    """The continuation of a function: everything before the first later line that starts in the first column."""
    lines = text.split("\n")
    kept = lines[:1]
    for line in lines[1:]:
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "\n".join(kept)


def _completed(shown: str, text: str) -> str:
    """``shown`` continued by ``text``: as it stands, or indented by four where the answer's body is flush left."""
    body = _body(text)
    if text[:1].isspace() and _compiles(shown + body):
        return shown + body
    lines = text.split("\n")
    indented = "\n".join("    " + line if line.strip() else line for line in lines)
    first_only = "    " + body.lstrip()
    flush = any(line.strip() and not line[0].isspace() for line in lines[1:])
    ways = (indented, first_only) if flush else (first_only, indented)
    return next((shown + way for way in ways if _compiles(shown + way)), shown + body)


def program(example: Example, output: str) -> str:
    """The whole program: what the prompt shows, the answer as a definition or as a completion, and the tests."""
    code = extract_code(output, example.entry_point)
    shown = prompt_code(example)
    if shown and not _defines(code, example.entry_point):
        solution = _completed(shown if shown.endswith("\n") else shown + "\n", code)
    else:
        start = _START.search(code)
        plain = code if _compiles(code) or not start else code[start.start() :]
        solution = f"{shown}\n{plain}" if shown and _compiles(shown) else plain
    call = f"check({example.entry_point})"
    tests = example.tests if "def check(" not in example.tests or call in example.tests else f"{example.tests}\n{call}"
    return f"{solution}\n\n{tests}\n"


def judge_code(
    samples: Sequence[Sample], *, workers: int = 2, seconds: float = 10.0, memory_mb: int = 512
) -> list[Score]:
    """Run every answer with its tests, ``workers`` at a time. An empty answer is invalid; a broken one is wrong.

    Raises:
        DataError: a row has no tests.
    """
    untested = next((s.example.id for s in samples if not s.example.tests.strip()), None)
    if untested is not None:
        raise DataError(f"Cannot judge row {untested!r} by running it: it has no tests. Do: map a column to 'tests'.")
    filled = [sample for sample in samples if sample.output.strip()]
    programs = [program(sample.example, sample.output) for sample in filled]
    outcomes = iter(run_many(programs, workers=workers, seconds=seconds, memory_mb=memory_mb))
    scores = []
    for sample in samples:
        if not sample.output.strip():
            scores.append(Score(None, INVALID, "empty"))
            continue
        outcome = next(outcomes)
        scores.append(Score(float(outcome.passed), "passed" if outcome.passed else "failed", outcome.reason))
    return scores


CODE = Judge("code", 1, "right", judge_code)
