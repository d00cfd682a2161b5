"""Write docs/results/rules.md from a run of `recipes/exp3-rules.yaml`.

Usage: python docs/scripts/rules_results.py RUN_FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from composed import asked_by, estimate, resampled
from pages import ROOT, from_runs, only
from tables import (
    ARITHMETIC,
    BENIGN,
    HARMFUL,
    LOOKALIKE,
    PASSAGES,
    WRAPPED,
    Column,
    Table,
    by_row,
    made_by,
    shown,
    tables_of,
)

from holdfast.core.results import RunRecord
from holdfast.evaluation.composites import TradeOffPoint, pareto_set
from holdfast.evaluation.crossed import Array

PAGE = ROOT / "docs" / "results" / "rules.md"
TEXT = Path(__file__).with_name("rules_results.md")


def merged_rows(table: Table) -> list[str]:
    """Rows that a merge step made."""
    return [row for row in table.rows if any(step.do == "merge" for step in table.makers(row))]


def seconds(table: Table, row: str) -> str:
    """Mean seconds of planning and one merge, with the range over seeds."""
    taken = [m.value for step in table.makers(row) for m in step.metrics if m.name == "merging/seconds"]
    known = [value for value in taken if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else ""
    return f"{sum(known) / len(known):.1f}{spread}"


def memory(table: Table, row: str) -> str:
    """Largest memory of the process during the merge step of any seed, in GB."""
    peaks = [step.peak_bytes for step in table.makers(row) if step.peak_bytes is not None]
    return f"{max(peaks) / 1e9:.2f}" if peaks else "-"


def unbeaten(rows: list[str], safety: Mapping[str, Array], utility: Mapping[str, Array]) -> list[str]:
    """Rules that no other one beats in safety and utility, by the means, the safest last."""
    known = [row for row in rows if row in safety.keys() & utility.keys()]
    return [point.name for point in pareto_set([TradeOffPoint(row, safety[row][0], utility[row][0]) for row in known])]


def tables_text(table: Table, folder: Path) -> str:
    """A row a rule, the adapters alone first; then which ones no other beats."""
    rows = merged_rows(table)
    tasks = asked_by(table.makers(rows[0])[0])
    safety, utility = (resampled(table.logs(folder), names) for names in tasks)
    timed: dict[str, Column] = {
        "seconds": lambda row: seconds(table, row) if row in rows else "-",
        "peak memory, GB": lambda row: memory(table, row) if row in rows else "-",
    }
    columns: dict[str, Column] = {
        "weight, by seed": table.dials,
        "safety": lambda row: shown(estimate(safety[row])) if row in safety else "-",
        "refusal": table.refused(HARMFUL),
        "wrapped": table.refused(WRAPPED),
        "over-refusal": table.show(BENIGN),
        "of look-alikes": table.show(LOOKALIKE),
        "arithmetic": table.show(ARITHMETIC),
        "against utility adapter": table.show(f"{ARITHMETIC}/difference"),
        "passages": table.show(PASSAGES),
        "cut off": table.cut_off,
    }
    best = ", ".join(f"`{row}`" for row in unbeaten(rows, safety, utility))
    told = f"No other rule beats these in safety and arithmetic, by the means: {best}."
    return f"{by_row(table.rows, columns | timed)}\n\n{told}"


def parts(folders: Sequence[Path]) -> dict[str, str]:
    """Conditions, table, run."""
    folder = only(folders)
    run = RunRecord.load(folder)
    (table,) = tables_of(run)
    return {"tables": "\n\n".join([table.size, tables_text(table, folder), made_by(run)])}


if __name__ == "__main__":
    sys.exit(from_runs(PAGE, TEXT, parts))
