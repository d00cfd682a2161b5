"""Write docs/results/causal.md from one or several runs of `recipes/causal-baselines.yaml`.

Usage: python docs/scripts/causal_results.py RUN_FOLDER...

Several runs are read as one: each has other seeds, and steps without a seed are taken from the first. What has not run
is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import causal_verified as verified
from causal_lines import (
    RIVALS,
    Kept,
    adaptive_line,
    attack_lines,
    eps_lines,
    graph_lines,
    reading,
    translating_line,
)
from causal_rows import BEFORE, FAMILY, OURS, REMARKED, Found, Rows, Steps, complete
from pages import ROOT, from_runs
from tables import NOT_RUN, Column, by_row, claims, made_by, shown

from holdfast.core.errors import DataError
from holdfast.evaluation.table import table
from holdfast.reports.literature import REPORTED, SOURCES

PAGE = ROOT / "docs" / "results" / "causal.md"
TEXT = Path(__file__).with_name("causal_results.md")
UNTRAINED = ("keyword-drop", "keyword-block", "perplexity", "delimiters", "reminder", "sandwich", "spotlighting")
TRAINED = ("struq", "secalign", "all-attacks", "no-invariance", "no-separation", OURS)
SEPARATED = "injection/attack/separation"


def collected(steps: Steps, seeds: Sequence[int], names: dict[str, str]) -> Rows:
    """The rows whose steps have all run, by label."""
    return Rows({label: found for label, name in names.items() if (found := steps.of(name, seeds))})


def defences(rows: Rows) -> str:
    """A row a defence: attacks and what they cost."""
    columns: dict[str, Column] = {
        "attack success": lambda row: shown(rows.mean("followed", row)),
        "worst family": lambda row: f"{shown(rows.worst(row)[1])} {rows.worst(row)[0]}",
        "upper 95 %, exact": lambda row: verified.three(rows.upper(row)),
        "task done under attack": lambda row: shown(rows.mean("done", row)),
        "benign accuracy": lambda row: shown(rows.mean("benign", row)),
        "share of undefended": lambda row: "-" if row == BEFORE else shown(rows.share("benign", row)),
        "over-refusal": lambda row: shown(rows.mean("refused", row)),
        "*reported elsewhere*": lambda row: REPORTED.get(row, ""),
    }
    return by_row(rows.labels, columns)


def habits(rows: Rows) -> str:
    """A row a defence: what else it changed."""
    columns: dict[str, Column] = {
        "quoting": lambda row: shown(rows.mean("quoting", row)),
        "position bias": lambda row: shown(rows.bias(row)),
        "trigger effect": lambda row: shown(rows.fall("trigger", row)),
        "task done beside a remark": lambda row: shown(rows.mean(REMARKED, row)),
        "instruction-last effect": lambda row: shown(rows.fall("last", row)),
        "payload as the user's own": lambda row: shown(rows.mean("obeyed", row)),
        "of those, left alone as data": lambda row: verified.counted(rows.found[row], SEPARATED),
    }
    return by_row(rows.labels, columns)


def against(rows: Rows) -> str:
    """A row a defence: its differences from ours, and attack success by family."""
    others = [row for row in rows.labels if row != OURS]
    columns: dict[str, Column] = {
        name: lambda row, measure=measure: shown(rows.from_row(measure, row, OURS))  # type: ignore[misc]
        for name, measure in (("attack success", "followed"), ("task done under attack", "done"))
    }
    columns |= {
        family: lambda row, family=family: shown(rows.from_row(f"{FAMILY}{family}", row, OURS))  # type: ignore[misc]
        for family in rows.families
    }
    columns["benign accuracy"] = lambda row: shown(rows.from_row("benign", row, OURS))
    return by_row(others, columns) if OURS in rows.labels else NOT_RUN


def worded(rows: Rows) -> str:
    """Attack success of other families in wordings that no training has."""
    if OURS not in rows.labels:
        return NOT_RUN
    columns: dict[str, Column] = {
        "cases": lambda family: str(rows.sizes[family]),
        "undefended": lambda family: shown(rows.mean(f"{FAMILY}{family}", BEFORE)),
        OURS: lambda family: shown(rows.mean(f"{FAMILY}{family}", OURS)),
    }
    told = f"All: undefended {shown(rows.mean('followed', BEFORE))}, {OURS} {shown(rows.mean('followed', OURS))}; "
    exact = f"of the worst family and seed at most {verified.three(rows.upper(OURS))} (exact, 95 %)."
    return f"{by_row(rows.families, columns, first='family')}\n\n{told}{exact}"


def searched(rows: Rows) -> str:
    """Attackers with a budget."""
    if not rows.labels:
        return NOT_RUN

    def queries(part: str) -> Column:
        name = f"injection/attack/{part}/queries"
        return lambda row: shown(verified.spread(rows.found[row], name))

    columns: dict[str, Column] = {
        "own wording": lambda row: shown(rows.mean("followed", row)),
        f"best of many wordings (n = {rows.count('best_of')})": lambda row: shown(rows.mean("best_of", row)),
        "queries a case": queries("best_of"),
        f"search by gradients (n = {rows.count('gcg')})": lambda row: shown(rows.mean("gcg", row)),
        "queries a case, search": queries("gcg"),
    }
    return by_row(rows.labels, columns)


def kept_figures(steps: Steps, seeds: Sequence[int]) -> Kept:
    """Main figures of other tasks by name and row; none where they have not run."""
    before, after = steps.of("kept-before", ()), steps.of(f"kept-{OURS}", seeds)
    if not before or not after:
        return {}
    made = table(before[0].log, {OURS: [each.log for each in after]}, BEFORE)
    return {(m.name.removeprefix("table/"), m.group.removeprefix("row=")): m for m in made.metrics}


def kept(figures: Kept) -> str:
    """What else was kept, before and after."""
    if not figures:
        return NOT_RUN
    names = [name for name, row in figures if row == OURS and (name, BEFORE) in figures]
    columns: dict[str, Column] = {
        BEFORE: lambda name: shown(figures[name, BEFORE]),
        OURS: lambda name: shown(figures[name, OURS]),
        "change": lambda name: shown(figures[f"{name}/difference", OURS]),
    }
    return by_row(list(dict.fromkeys(names)), columns, first="figure")


def conditions(steps: Steps, rows: Rows, seeds: Sequence[int]) -> str:
    """Seeds and prompts, and the rows that are missing."""
    sizes = "; ".join(f"{family} {count}" for family, count in rows.sizes.items())
    missing = [row for row in (*UNTRAINED, *TRAINED) if row not in rows.labels]
    told = f"Seeds: {', '.join(map(str, seeds)) or 'none yet'}. Attacked cases by family: {sizes}."
    learnt = {row: counts for row in TRAINED if (counts := _learnt(steps.of(f"plan-{row}", seeds)))}
    told += f" Cases to train on: {', '.join(f'{row} {counts}' for row, counts in learnt.items())}." if learnt else ""
    return told + (f" Not run: {', '.join(missing)}." if missing else "")


def _learnt(plans: Sequence[Found]) -> str:
    """Cases of a plan; where seeds differ, of each."""
    counts = [next((m.n for m in plan.step.metrics if m.name == "causal/cases"), 0) for plan in plans]
    return " / ".join(dict.fromkeys(map(str, counts)))


def verification(steps: Steps, seeds: Sequence[int]) -> str:
    """Claims, figures, graph and bounds."""
    found = steps.of("verified", seeds)
    if not found:
        return NOT_RUN
    graph = steps.of("discovered", seeds) or found
    told = (verified.claims(found, seeds), verified.figures(found), verified.layers(found), verified.edges(graph))
    return "\n\n".join((*told, verified.bounds(found, seeds)))


def parts(folders: Sequence[Path]) -> dict[str, str]:
    """Every part of the page."""
    steps = Steps.read(folders)
    if BEFORE not in steps.plain:
        raise DataError(
            f"No step 'before' has finished in {', '.join(map(str, folders))}. Do: give runs of causal-baselines, at "
            "least one of them with its first step done."
        )
    seeds = complete(steps, [f"after-{row}" for row in TRAINED])
    rows = collected(
        steps, seeds, {BEFORE: BEFORE, **{row: row for row in UNTRAINED}, **{row: f"after-{row}" for row in TRAINED}}
    )
    others = collected(steps, seeds, {BEFORE: "wordings", OURS: f"wordings-{OURS}"})
    tried = collected(steps, seeds, {row: f"adaptive-{row}" for row in (BEFORE, *RIVALS, OURS)})
    beside = kept_figures(steps, seeds)
    lines = [
        *attack_lines(rows),
        translating_line(beside),
        *eps_lines(steps, seeds, steps.of("verified", seeds)),
        *graph_lines(steps.of("verified", seeds), steps.of("discovered", seeds)),
        adaptive_line(tried),
    ]
    return {
        "conditions": conditions(steps, rows, seeds),
        "reading": reading(rows, UNTRAINED, lines),
        "targets": claims(lines),
        "defences": defences(rows),
        "sources": "\n".join(f"- {mark} {source}" for mark, source in SOURCES.items()),
        "habits": habits(rows),
        "against": against(rows),
        "wordings": worded(others),
        "verified": verification(steps, seeds),
        "adaptive": searched(tried),
        "kept": kept(beside),
        "runs": "\n".join(f"- {made_by(run)}" for run in steps.runs),
    }


if __name__ == "__main__":
    sys.exit(from_runs(PAGE, TEXT, parts))
