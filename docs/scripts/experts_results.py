"""Write docs/results/many_experts.md from a run of `recipes/exp2-many-experts.yaml`.

Usage: python docs/scripts/experts_results.py RUN_FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from pages import ROOT, put
from tables import claims, grid, made_by, no_less, shown

from holdfast.core.results import Metric, RunRecord

PAGE = ROOT / "docs" / "results" / "many_experts.md"
TEXT = Path(__file__).with_name("experts_results.md")
KEPT = 0.9
"""Share of single-task scores to keep."""
Kept = Mapping[tuple[str, int], Metric]
"""Retention by rule and number of adapters."""


def kept_of(run: RunRecord) -> Kept:
    """The figures of the retention steps."""
    found = {}
    for step in run.steps:
        for metric in step.metrics if step.do == "retention" else ():
            group = dict(part.split("=", 1) for part in metric.group.split(", ") if part)
            if metric.name == "retention/mean":
                found[group["row"], int(group["experts"])] = metric
    return found


def best(kept: Kept, experts: int) -> tuple[str, Metric] | None:
    """The rule that keeps most of so many adapters, by the mean."""
    known = [
        (metric.value, row) for (row, count), metric in kept.items() if count == experts and metric.value is not None
    ]
    if not known:
        return None
    row = max(known)[1]
    return row, kept[row, experts]


def told(kept: Kept) -> str:
    """What was to be shown, at the largest number of adapters."""
    most = max(count for _, count in kept)
    rules = len({row for row, count in kept if count == most})
    what = f"{most} adapters keep at least {KEPT:.0%} of single-task scores with the best rule"
    found = best(kept, most)
    if found is None:
        return claims([(what, "-", None)])
    row, metric = found
    return claims([(what, f"{row}, the best of {rules}: {shown(metric)}", no_less(metric.value, KEPT))])


def table_text(kept: Kept) -> str:
    """A row a rule, a column a number of adapters."""
    rows, counts = list(dict.fromkeys(row for row, _ in kept)), sorted({count for _, count in kept})
    head = ["rule", *(f"{count} adapters" for count in counts)]
    return grid(head, ([row, *(shown(kept.get((row, count))) for count in counts)] for row in rows))


def main(folder: Path) -> int:
    """Write the page."""
    run = RunRecord.load(folder)
    kept = kept_of(run)
    tables = "\n\n".join([told(kept), table_text(kept), made_by(run)])
    return put(PAGE, TEXT.read_text(encoding="utf-8").replace("{tables}", tables))


if __name__ == "__main__":
    sys.exit(main(Path(next(word for word in sys.argv[1:] if word != "--check"))))
