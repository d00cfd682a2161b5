"""Results to a JSON file for each benchmark, and from there to README.md and the terminal."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import Result

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results"
MARK = "<!-- everything below is written by python -m benchmarks -->"


def record(results: Sequence[Result], about: dict[str, Any]) -> dict[str, Any]:
    """Everything about one run, as the JSON file holds it."""
    return about | {"results": [asdict(r) | {"ratio": r.ratio, "met": r.met} for r in results]}


def save(name: str, kept: dict[str, Any]) -> None:
    """Write the JSON file of one benchmark."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def write_readme(names: Sequence[str]) -> None:
    """Put a table for each benchmark that has been run under the mark in README.md."""
    files = {name: FOLDER / f"{name}.json" for name in names}
    kept = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    parts = [f"## {name}\n\n{markdown(each)}" for name, each in kept.items()]
    readme = HERE / "README.md"
    head = readme.read_text(encoding="utf-8").split(MARK)[0]
    readme.write_text(f"{head}{MARK}\n\n{chr(10).join(parts)}", encoding="utf-8")


def _figure(values: Sequence[float]) -> str:
    """Median, and smallest to largest."""
    if not values:
        return ""
    digits = 3 if max(values) < 10 else 1 if max(values) < 1000 else 0
    middle, low, high = (f"{v:,.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def markdown(kept: dict[str, Any]) -> str:
    """The table and the remarks."""
    lines = [
        f"Measured on {kept['date']}: {kept['machine']}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in kept['versions'].items())}.",
        "Figures are medians with smallest to largest; both sides took turns in one run.",
        "",
        "| what | unit | Holdfast | peer | peer's | ratio | wanted | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if kept["quick"]:
        lines.insert(0, "**A quick run: these figures only show that the benchmarks work.**\n")
    for r in kept["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        wanted = f"{r['wanted']} {r['bound']:g}" + (" x" if r["peer"] else f" {r['unit']}")
        if r["wanted"] == "for information":
            wanted = r["wanted"]
        cells = [r["what"], r["unit"], _figure(r["ours"]), r["peer_name"], _figure(r["peer"]), ratio, wanted]
        lines.append(f"| {' | '.join(cells)} | {'yes' if r['met'] else '**no**'} |")
    remarks = [f"- {r['what']}: {'; '.join(r['remarks'])}." for r in kept["results"] if r["remarks"]]
    return "\n".join([*lines, "", *remarks, ""])
