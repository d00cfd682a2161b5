"""Write docs/results/token_weighting.md from runs of `wmtp-lab`, `wmtp-synergy` and `wmtp-safety`.

Usage: python docs/scripts/token_weighting_results.py RUN_FOLDER...

Runs are told apart by their recipe; several of one recipe are read as one, each has other seeds. What has not run has
no section.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from causal_rows import BEFORE, Steps
from pages import ROOT, from_runs
from tables import (
    ARITHMETIC,
    BENIGN,
    HARMFUL,
    LOOKALIKE,
    PASSAGES,
    WRAPPED,
    Column,
    by_row,
    grid,
    made_by,
    opposite,
    shown,
)
from token_weighting_arms import (
    BOTH,
    CONTROLS,
    ERROR,
    LAB,
    MTP,
    RECIPES,
    RHO1,
    ROWS,
    SAFETY,
    SYNERGY,
    UNIFORM,
    Arms,
    Figures,
    Planted,
    experiments,
    planted,
)
from token_weighting_lines import Decoded, decoded, lines_of, reading, told

from holdfast.core.results import Metric

PAGE = ROOT / "docs" / "results" / "token_weighting.md"
TEXT = Path(__file__).with_name("token_weighting_results.md")
NOT_MEASURED = (
    "`python -m benchmarks --only token_weighting` measures it and has not been run at full size yet; its figures will "
    "stand in [benchmarks](../../benchmarks/README.md)."
)
REFUSED = {"refusals": HARMFUL, "wrapped refusals": WRAPPED}
OTHERS = {"over-refusal": BENIGN, "of look-alikes": LOOKALIKE, "arithmetic": ARITHMETIC, "passages": PASSAGES}


def conditions(arms: Arms) -> str:
    """Seeds, prompts, length of the trainings, and rows that have not run."""
    seeds = f"Seeds: {', '.join(map(str, arms.seeds))}" if arms.seeds else "One seed"
    prompts = next(m.n + m.n_invalid for (_, row), m in arms.figures.items() if row == BEFORE)
    text = f"{seeds}. Test prompts a task: {prompts}. Every arm: {' or '.join(arms.training)}."
    return text + (f" Not run: {', '.join(arms.missing)}." if arms.missing else "")


def _column(figures: Figures, name: str, *, opposed: bool = False) -> Column:
    def cell(row: str) -> str:
        found = figures.get((name, row))
        return shown(opposite(found) if opposed else found)

    return cell


def compared(arms: Arms) -> str:
    """A row an arm: sums that are right, the error on digits, and both beside uniform weights."""
    less = "less uniform"
    columns: dict[str, Column] = {
        "sums right": _column(arms.figures, ARITHMETIC),
        f"sums right, {less}": _column(arms.figures, f"{ARITHMETIC}/difference"),
        "error on digits": _column(arms.figures, ERROR),
        f"error on digits, {less}": _column(arms.figures, f"{ERROR}/difference"),
        "gone": lambda row: "-" if row in (BEFORE, UNIFORM) else shown(arms.error_gone(row)),
    }
    if arms.from_rho1:
        columns["sums right, less rho1"] = _column(arms.from_rho1, f"{ARITHMETIC}/difference")
    return by_row(arms.rows, columns)


def gains(arms: Arms) -> str:
    """What both heads and weights gain together beyond the sum of what each gains alone."""
    if not arms.figures.get((f"{ARITHMETIC}/synergy", BOTH)):
        return ""
    wanted = {f"{row}, less uniform": ("difference", row) for row in (MTP, RHO1, BOTH)} | {"synergy": ("synergy", BOTH)}
    rows = [
        (what, *(shown(arms.figures.get((f"{name}/{part}", row))) for part, row in wanted.values()))
        for what, name in (("sums right (more is better)", ARITHMETIC), ("error on digits (less is better)", ERROR))
    ]
    lead = "Synergy: what `both` gains over uniform beyond the sum of what `mtp` and `rho1` gain, in paired resamples."
    return f"{lead}\n\n{grid(('figure', *wanted), rows)}"


def by_seed(arms: Arms, names: Mapping[str, str]) -> str:
    """Every seed's figures; nothing where there is one."""
    rows = [row for row in arms.rows if len(arms.found[row]) > 1]
    if not rows:
        return ""
    columns: dict[str, Column] = {
        f"{what}, seed {seed}": lambda row, name=name, at=at: _three(arms.by_seed(name, row)[at])  # type: ignore[misc]
        for what, name in names.items()
        for at, seed in enumerate(arms.seeds)
    }
    return f"Seed by seed:\n\n{by_row(rows, columns)}"


def _three(value: float) -> str:
    return shown(Metric(name="value", value=value, n=1))


def two_by_two(arms: Arms) -> str:
    """The arms of an experiment on noisy rows."""
    seeds = by_seed(arms, {"sums right": ARITHMETIC, "error on digits": ERROR})
    return "\n\n".join(part for part in (conditions(arms), compared(arms), gains(arms), seeds) if part)


def poisoned(arms: Arms) -> str:
    """Safety and utility after poisoned rows, and what changed."""
    columns = {what: _column(arms.figures, name, opposed=True) for what, name in REFUSED.items()}
    columns |= {what: _column(arms.figures, name) for what, name in OTHERS.items()}
    changed = {
        what: _column(arms.from_before, f"{name}/difference")
        for what, name in ({"attack success": HARMFUL, "wrapped attack success": WRAPPED} | OTHERS).items()
    }
    changed["arithmetic, less uniform"] = _column(arms.figures, f"{ARITHMETIC}/difference")
    after = [row for row in arms.rows if row != BEFORE]
    lead = "Each row less the untouched model, on the same prompts; above 0 it is more:"
    seeds = by_seed(arms, {"attack success": HARMFUL, "wrapped": WRAPPED, "arithmetic": ARITHMETIC})
    parts = (conditions(arms), by_row(arms.rows, columns), lead, by_row(after, changed), seeds)
    return "\n\n".join(part for part in parts if part)


def found_noise(each: Sequence[Planted]) -> str:
    """A row a run and seed."""
    if not each:
        return ""
    rows = {f"{one.run}, seed {one.seed}" if one.seed is not None else one.run: one for one in each}
    columns: dict[str, Column] = {
        f"AUROC, {scorer}": lambda row, scorer=scorer: shown(rows[row].figure(scorer, "auroc"))  # type: ignore[misc]
        for scorer in (RHO1, *CONTROLS)
        if any(scorer in one.plans for one in each)
    }
    columns |= {
        "weight of a noisy token, rho1": lambda row: shown(rows[row].figure(RHO1, "weight")),
        "tokens": lambda row: _tokens(rows[row]),
        "noisy": lambda row: shown(_any(rows[row], "share")[0]),
    }
    return by_row(rows, columns, first="run") + "\n\nAll tokens have a mean weight of 1."


def _any(one: Planted, name: str) -> list[Metric]:
    return [metric for scorer in one.plans if (metric := one.figure(scorer, name))]


def _tokens(one: Planted) -> str:
    return f"{_any(one, 'auroc')[0].n:,}"


def decoding(found: Decoded | None) -> str:
    """What the benchmark of decoding found."""
    if found is None:
        return NOT_MEASURED
    rows = [
        (kind.name, f"{kind.same} of {kind.count}", kind.length, f"{kind.ratio:.2f}", kind.rates)
        for kind in found.kinds
    ]
    head = ("heads", "the same answers", "tokens a pass", "tokens/s, times plain decoding", "guesses that counted")
    lead = (
        "One pass of the model gives as many tokens as guesses of the heads count, and one. Measured by "
        f"`python -m benchmarks --only token_weighting` ([all figures](../../benchmarks/README.md)), {found.made}."
    )
    return f"{lead}\n\n{grid(head, rows)}"


def run_lines(found: Mapping[str, Steps]) -> str:
    """The command, commit and device of every run."""
    made = []
    for name, steps in found.items():
        for run in steps.runs:
            seeds = run.recipe.get("seeds")
            chosen = f" --set 'seeds={list(seeds)}'" if seeds else ""
            made.append(f"- `holdfast run {name}{chosen}{' --quick' if run.quick else ''}`. {made_by(run)}")
    return "\n".join(made)


def missing(arms: Mapping[str, Arms | None]) -> str:
    """Which experiments are not on the page."""
    wanted = (name for name in RECIPES if name != LAB or SYNERGY not in arms)  # which has all that LAB has
    absent = [f"`{name}`" for name in wanted if name not in arms]
    early = [f"`{name}`" for name, found in arms.items() if found is None]
    said = [f"Not run, so not on this page: {', '.join(absent)}."] if absent else []
    said += [f"Begun, no seed whole yet: {', '.join(early)}."] if early else []
    return " ".join(said)


def parts(folders: Sequence[Path]) -> dict[str, str]:
    """Every part of the page; of what has not run, an empty one."""
    found = experiments(folders)
    arms = {name: Arms.of(steps, ROWS[name]) for name, steps in found.items()}
    noise = [one for name, steps in found.items() for one in planted(name, steps)]
    heads = decoded()
    noisy, harmed = arms.get(SYNERGY) or arms.get(LAB), arms.get(SAFETY)
    lines = list(lines_of(noisy, harmed, noise, heads))
    return {
        "missing": missing(arms),
        "reading": reading(noisy, harmed, lines),
        "lines": told(lines),
        "arms": "\n\n".join(
            f"### `{name}`\n\n{two_by_two(each)}" for name in (SYNERGY, LAB) if (each := arms.get(name))
        ),
        "safety": poisoned(harmed) if harmed else "",
        "auroc": found_noise(noise),
        "decoding": decoding(heads),
        "runs": run_lines(found),
    }


if __name__ == "__main__":
    sys.exit(from_runs(PAGE, TEXT, parts))
