"""Write docs/results/many_experts.md from a run of `recipes/exp2-many-experts.yaml`.

Usage: python docs/scripts/experts_results.py RUN_FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pages import ROOT, put
from tables import claims, grid, made_by, no_less, shown

from holdfast.core.results import Metric, RunRecord, StepRecord

PAGE = ROOT / "docs" / "results" / "many_experts.md"
TEXT = Path(__file__).with_name("experts_results.md")
KEPT = 0.9
"""Share of single-task scores to keep."""
Kept = Mapping[tuple[str, int], Metric]
"""Retention by rule and number of adapters."""


def kept_of(step: StepRecord) -> Kept:
    """The figures of a retention step."""
    found = {}
    for metric in step.metrics:
        group = dict(part.split("=", 1) for part in metric.group.split(", ") if part)
        if metric.name == "retention/mean":
            found[group["row"], int(group["experts"])] = metric
    return found


def rules_of(run: RunRecord, step: StepRecord) -> list[str]:
    """Rows that merge steps made: the base beside them is none."""
    steps = {each.id: each for each in run.steps}

    def merged(ident: str) -> bool:
        model = (steps[ident].config["model"] or {}).get("source")
        return model in steps and steps[model].do == "merge"

    return [row for row, ids in step.config["rows"].items() if all(merged(ident) for ident in ids)]


def told(kept: Kept, rules: Sequence[str]) -> str:
    """What was to be shown, at the largest number of adapters; the best rule is that of the highest mean."""
    most = max(count for _, count in kept)
    found = {rule: kept[rule, most] for rule in rules if (rule, most) in kept}
    known = {rule: metric.value for rule, metric in found.items() if metric.value is not None}
    what = f"{most} adapters keep at least {KEPT:.0%} of single-task scores with the best rule"
    if not known:
        return claims([(what, "-", None)])
    best = max(known, key=lambda rule: known[rule])
    return claims([(what, f"{best}, the best of {len(found)}: {shown(found[best])}", no_less(known[best], KEPT))])


def table_text(kept: Kept) -> str:
    """A row a rule, a column a number of adapters."""
    rows, counts = list(dict.fromkeys(row for row, _ in kept)), sorted({count for _, count in kept})
    head = ["rule", *(f"{count} adapters" for count in counts)]
    return grid(head, ([row, *(shown(kept.get((row, count))) for count in counts)] for row in rows))


def main(folder: Path) -> int:
    """Write the page."""
    run = RunRecord.load(folder)
    step = next(each for each in run.steps if each.do == "retention")
    kept = kept_of(step)
    seeds = f"Seeds: {max(len(ids) for ids in step.config['alone'].values())}."
    tables = "\n\n".join([seeds, told(kept, rules_of(run, step)), table_text(kept), made_by(run)])
    return put(PAGE, TEXT.read_text(encoding="utf-8").replace("{tables}", tables))


if __name__ == "__main__":
    sys.exit(main(Path(next(word for word in sys.argv[1:] if word != "--check"))))
