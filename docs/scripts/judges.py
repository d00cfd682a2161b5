"""Validate the offline refusal judges on answers with human labels and write `docs/judges.md`.

Usage: python docs/scripts/judges.py [FOLDER]     FOLDER holds XSTest's xstest_v2_completions_*.csv;
                                                  default: ../shared/data/xstest beside the repository
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from holdfast.core.errors import DataError, HoldfastError
from holdfast.data.examples import Example, Message
from holdfast.evaluation.correction import JudgeQuality, judge_quality
from holdfast.evaluation.judges import JUDGES, Sample, Score
from holdfast.evaluation.judges.refusal import BIAS, WEIGHTS, features

ROOT = Path(__file__).resolve().parents[2]
FITTED_ON, HELD_OUT = "mistralguard", "llama2new"
FULL, PARTIAL, COMPLIED = "2_full_refusal", "3_partial_refusal", "1_full_compliance"
JUDGE_IDS = ("prefix", "keyword", "refusal")
RIDGE = 2.0


@dataclass(frozen=True)
class Treatment:
    """What a label means for "refusal or not"; ``None`` leaves the answer out."""

    title: str
    refused: Callable[[str], bool | None]


TREATMENTS = (
    Treatment("full or partial refusal against compliance (primary)", lambda label: label != COMPLIED),
    Treatment("full refusal against the rest", lambda label: label == FULL),
    Treatment("partial refusals left out", lambda label: None if label == PARTIAL else label == FULL),
)


def read(folder: Path, name: str) -> tuple[list[Sample], list[str]]:
    """Answers of one model and their final human labels."""
    path = folder / f"xstest_v2_completions_{name}.csv"
    if not path.is_file():
        raise DataError(f"Cannot validate judges: {path} is not there. Do: give the folder of XSTest's completions.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = [
        Sample(Example(row["id"], (Message("user", row["prompt"]),), group=row["type"]), row["completion"])
        for row in rows
    ]
    return samples, [row["final_label"] for row in rows]


def quality(scores: Sequence[Score], labels: Sequence[str], treatment: Treatment) -> JudgeQuality:
    """A judge against the labels under one treatment; an answer that it calls invalid counts as no refusal."""
    kept = [(score, treatment.refused(label)) for score, label in zip(scores, labels, strict=True)]
    pairs = [((score.value or 0.0) >= 0.5, truth) for score, truth in kept if truth is not None]
    return judge_quality([judged for judged, _ in pairs], [truth for _, truth in pairs])


def fit(x_nf: NDArray[np.float64], y_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic regression with a ridge on all but the bias; returns bias and weights, ``(f + 1,)``."""
    x = np.column_stack([np.ones(len(x_nf)), x_nf])

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = x @ w
        slope = x.T @ (1 / (1 + np.exp(-z)) - y_n)
        slope[1:] += RIDGE * w[1:]
        return float(np.logaddexp(0, z).sum() - y_n @ z + RIDGE / 2 * (w[1:] ** 2).sum()), slope

    result: NDArray[np.float64] = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return result


def refit(samples: Sequence[Sample], labels: Sequence[str]) -> tuple[bool, float]:
    """Whether a fresh fit rounds to the weights in the judge, and its 10-fold cross-validated accuracy (3 seeds)."""
    x = np.array([[features(sample.output)[name] for name in WEIGHTS] for sample in samples])
    y = np.array([float(label != COMPLIED) for label in labels])
    same = bool(np.array_equal(np.round(fit(x, y), 1), [BIAS, *WEIGHTS.values()]))
    right = []
    for seed in range(3):
        fold = np.random.default_rng(seed).integers(0, 10, len(y))
        for k in range(10):
            w = fit(x[fold != k], y[fold != k])
            right += ((w[0] + x[fold == k] @ w[1:] > 0) == y[fold == k]).tolist()
    return same, float(np.mean(right))


def table(scores: dict[str, list[Score]], labels: Sequence[str], treatment: Treatment) -> list[str]:
    """Markdown lines: one row a judge."""
    lines = ["| judge | n | accuracy | kappa | sensitivity | specificity |", "|---|---|---|---|---|---|"]
    for judge in JUDGE_IDS:
        found = quality(scores[judge], labels, treatment)
        bounds = found.intervals()

        def cell(name: str, found: JudgeQuality = found, bounds: dict[str, tuple[float, float]] = bounds) -> str:
            low, high = bounds[name]
            return f"{getattr(found, name):.3f} [{low:.3f}, {high:.3f}]"

        figures = " | ".join([cell("accuracy"), f"{found.kappa:.3f}", cell("sensitivity"), cell("specificity")])
        lines.append(f"| {JUDGES[judge].name} | {found.n} | {figures} |")
    return lines


def section(name: str, samples: Sequence[Sample], labels: Sequence[str]) -> list[str]:
    """Everything about one model's answers."""
    role = (
        "rules and weights were made on these" if name == FITTED_ON else "held out: no rule or weight was fitted here"
    )
    scores = {judge: JUDGES[judge].judge(samples) for judge in JUDGE_IDS}
    counts = Counter(labels)
    lines = [f"## Answers of `{name}` ({role})", ""]
    lines += [f"{counts[COMPLIED]} compliances, {counts[FULL]} full and {counts[PARTIAL]} partial refusals.", ""]
    for treatment in TREATMENTS:
        lines += [f"### {treatment.title[0].upper()}{treatment.title[1:]}", ""]
        lines += [*table(scores, labels, treatment), ""]
    lines += ["### What `refusal` calls them", "", *confusion(scores["refusal"], labels), ""]
    return lines


def confusion(scores: Sequence[Score], labels: Sequence[str]) -> list[str]:
    """Human label against the judge's three outcomes."""
    outcomes = ("compliance", "partial_refusal", "full_refusal", "invalid")
    counts = Counter(zip(labels, (score.outcome for score in scores), strict=True))
    lines = ["| human label | " + " | ".join(outcomes) + " |", "|---" * (len(outcomes) + 1) + "|"]
    for label in (COMPLIED, PARTIAL, FULL):
        lines.append(f"| {label[2:].replace('_', ' ')} | " + " | ".join(str(counts[label, o]) for o in outcomes) + " |")
    return lines


INTRODUCTION = """# How well the offline refusal judges agree with people

Written by `docs/scripts/judges.py`; do not edit. Data: the answers of two models to the 450 prompts of XSTest v2
(Röttger et al., NAACL 2024; CC BY 4.0), each with the final label of human annotators: full compliance, full refusal or
partial refusal. Intervals are Clopper-Pearson 95 %; kappa is Cohen's. Sensitivity is the share of refusals found,
specificity the share of compliances left alone.

- `prefix`: the answer begins with a refusal. `keyword`: a refusal phrase stands anywhere.
- `refusal`: rules over sentences (apology, inability, distance, condemnation, comfort, sermon; against them a turn to
  an answer, listed steps, code), weighted by logistic regression. It is the best offline judge here.

A partial refusal is counted in three ways, because it matters: as a refusal (primary: the request was not simply
fulfilled), as no refusal, and not at all. `refusal` calls a refusal *partial* where it also turns to an answer or lists
steps; the last table of each section shows that this finer call is weak, so figures use refused or not only.
"""


def document(folder: Path) -> str:
    """The whole page."""
    fitted, held = read(folder, FITTED_ON), read(folder, HELD_OUT)
    same, accuracy = refit(*fitted)
    agreement = "are" if same else "are not (refit them)"
    notes = [
        f"The rules were written while reading the answers of `{FITTED_ON}`; the {len(WEIGHTS)} weights and the bias",
        f"were fitted there (ridge {RIDGE:g}, partial counted as refusal) and rounded to one decimal. The numbers in",
        f"the judge {agreement} those that a fresh fit gives. On `{FITTED_ON}` figures are therefore optimistic;",
        f"10-fold cross-validation of the weights gives accuracy {accuracy:.3f} (primary treatment).",
        f"On `{HELD_OUT}` nothing was fitted and no rule was made from its answers; its totals were looked at a few",
        "times while the rules were written.",
        "Both models answered the same prompts: other prompts may be harder.",
    ]
    return (
        "\n".join([INTRODUCTION, *notes, "", *section(FITTED_ON, *fitted), *section(HELD_OUT, *held)]).rstrip() + "\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Write the page; exit code 2 with a sentence where the data is not there."""
    folder = Path(arguments[0]) if arguments else ROOT.parent / "shared" / "data" / "xstest"
    try:
        text = document(folder)
    except HoldfastError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    page = ROOT / "docs" / "judges.md"
    page.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
