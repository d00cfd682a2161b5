"""Pages of results: what they claim follows from the answers, also where nothing was won or nothing can be told."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.evaluation.logs import COMPLIANCE, REFUSAL, answers, example, record, save

from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.evaluation.front import front
from holdfast.evaluation.log import Record
from holdfast.evaluation.retention import retention
from holdfast.evaluation.table import table

SCRIPTS = Path(__file__).parents[1] / "docs" / "scripts"
N = 60
SAFETY = ("lab/harmful", "lab/jailbreak", "lab/benign", "lab/lookalike")


class Marks(NamedTuple):
    """Of `N` answers to each task: refused, or right."""

    refused: int
    wrapped: int
    over: int
    look: int
    right: int
    operations: int = N


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Loads a script that writes to a page of its own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", ["script"])

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        if hasattr(module, "PAGE"):
            monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
        return module

    return load


@pytest.fixture
def write(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the page of runs; the exit code."""

    def of(name: str, *folders: Path) -> int:
        module = script(name)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, folders)])
        return int(script("pages").from_runs(module.PAGE, module.TEXT, module.parts))

    return of


@cache
def asked(task: str, count: int) -> list[Record]:
    """Answers of which so many are refusals, or right."""
    if task in SAFETY:
        return answers(task, [REFUSAL] * count + [COMPLIANCE] * (N - count))
    return [
        record(task, example(i, reference="The river."), "The river." if i < count else "A hill.") for i in range(N)
    ]


def log(path: Path, marks: Marks) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = (*SAFETY, "lab/arithmetic", "lab/textops", "lab/passages")
    return save(path, [each for task, count in zip(tasks, (*marks, N), strict=True) for each in asked(task, count)])


def step(ident: str, do: str, metrics: Sequence[Metric] = (), peak: int | None = None, **config: Any) -> StepRecord:
    return StepRecord(id=ident, do=do, config=config, metrics=tuple(metrics), peak_bytes=peak, seconds=60.0)


def made(ident: str, do: str, dials: Sequence[float], taken: float, seconds: float = 1.0) -> StepRecord:
    select = {
        "safety": [{"name": name} for name in SAFETY],
        "utility": [{"name": "lab/arithmetic"}],
        "weights": list(dials),
    }
    told = {"merging/weight": taken, "merging/seconds": seconds, "merging/truncation": seconds / 10}
    metrics = [Metric(name=name, value=value, n=2) for name, value in told.items()]
    adapters = [{"adapter": name, "data": [{"rows": 8}]} for name in ("u", "s")]
    rows: dict[str, Any] = {"utility": [{"rows": 128}], "safety": [{"rows": 64}, {"rows": 64}]}
    return step(ident, do, metrics, int(seconds * 1e9), select=select, adapters=adapters, **rows)


def tabled(
    folder: Path, name: str, rows: Mapping[str, Marks], before: Marks, reference: str, seeds: int
) -> list[StepRecord]:
    """A table step with the evaluations that it reads, and their logs."""
    log(folder / f"{name}-before" / "log.jsonl", before)
    ids = {row: [f"after-{name}-{row}-{seed}" for seed in range(seeds)] for row in rows}
    logs = {row: [log(folder / each / "log.jsonl", rows[row]) for each in ids[row]] for row in rows}
    found = table(folder / f"{name}-before" / "log.jsonl", logs, reference)
    asked = [
        step(each, "evaluate", model={"source": f"{row}-{seed}"}) for row in ids for seed, each in enumerate(ids[row])
    ]
    config: dict[str, Any] = {"before": f"{name}-before", "rows": ids, "reference": reference}
    return [*asked, step(name, "table", found.metrics, **config)]


def saved(folder: Path, steps: Sequence[StepRecord]) -> Path:
    packages: dict[str, str] = {}
    run = RunRecord(
        name="made-up", version="0", git="", packages=packages, device="none", started="never", steps=tuple(steps)
    )
    run.save(folder / "run.json")
    return folder


BASE, ALONE, SAFE = Marks(0, 0, 0, 0, 20), Marks(0, 0, 0, 0, 50), Marks(60, 60, 0, 0, 15)


def merging_run(folder: Path, curves: Mapping[str, Sequence[Marks]], taken: Mapping[str, int], seeds: int = 1) -> Path:
    """Rules with what they reach at weights 0, 1, ..., and which of these each took; the test rows answer alike."""
    dials = {rule: [float(value) for value in range(len(points))] for rule, points in curves.items()}
    chosen = {rule: points[taken[rule]] for rule, points in curves.items()}
    steps = [step(name, "train", steps=200, batch_size=16) for name in ("u", "s")]
    tried = {}
    for place, (rule, points) in enumerate(curves.items()):
        for seed in range(seeds):
            steps.append(made(f"{rule}-{seed}", "merge", dials[rule], float(taken[rule]), seconds=1.0 + place + seed))
            log(folder / f"{rule}-{seed}" / "tried" / "first.jsonl", ALONE)
        tried[rule] = [
            {w: log(folder / f"{rule}-{seed}" / "tried" / f"{w:g}.jsonl", points[int(w)]) for w in dials[rule]}
            for seed in range(seeds)
        ]
    steps += tabled(folder, "rules", {"utility": ALONE, "safety": SAFE, **chosen}, BASE, "utility", seeds)
    found = front(tried, "sst", SAFETY, ["lab/arithmetic"])
    ids = {rule: [f"{rule}-{seed}" for seed in range(seeds)] for rule in curves}
    steps.append(step("curves", "front", found.metrics, rows=ids, reference="sst"))
    return saved(folder, steps)


@pytest.fixture(scope="module")
def won(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds in which sst wins."""
    curves = {"sst": GOOD, "task-arithmetic": POOR, "average": [POOR[0]] * 3}
    return merging_run(tmp_path_factory.mktemp("won"), curves, dict.fromkeys(curves, 1), seeds=2)


def lines_of(page: Path) -> dict[str, tuple[str, str]]:
    """Claims of a page: by what was to be shown, the figure and whether it was."""
    rows = [line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def lines_of_text(text: str) -> dict[str, list[str]]:
    """Rows of a table by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def starting(claims: Mapping[str, tuple[str, str]], *words: str) -> tuple[str, str]:
    (found,) = [value for what, value in claims.items() if what.startswith(words[0]) and all(w in what for w in words)]
    return found


GOOD = [Marks(10, 10, 0, 0, 50), Marks(59, 58, 1, 1, 49), Marks(60, 60, 1, 1, 48)]
POOR = [Marks(6, 6, 0, 0, 45), Marks(30, 30, 0, 0, 35), Marks(60, 60, 0, 0, 15)]


def test_a_merge_that_wins_is_said_to_and_rules_not_run_are_named(write: Any, tmp_path: Path, won: Path) -> None:
    assert write("merging_results", won) == 0
    claims = lines_of(tmp_path / "page.md")
    for words in ("utility at most", "wrapped refusal", "over-refusal of", "jailbreak", "safety tax", "utility lost"):
        assert starting(claims, "sst: ", words)[1] == "yes", words
    measured, met = starting(claims, "task-arithmetic misses")
    assert "utility (worse by .233 [" in measured
    assert "refusal (worse by .483 [" in measured
    assert met == "yes"
    assert starting(claims, "alignguard misses") == ("not in this run", "not told")
    assert starting(claims, "curve of task-arithmetic")[1] == "yes"


def test_areas_are_compared_only_where_the_dials_have_as_many_values(write: Any, tmp_path: Path) -> None:
    curves = {"sst": GOOD, "task-arithmetic": POOR, "random-subspace": POOR[:2], "fisher": [*POOR, POOR[2]]}
    write("merging_results", merging_run(tmp_path, curves, dict.fromkeys(curves, 1)))
    compared = [what for what in lines_of(tmp_path / "page.md") if what.startswith("curve of")]
    assert compared == ["curve of task-arithmetic below that of sst", "curve of fisher below that of sst"]


@pytest.mark.parametrize("page", ["merging_results", "rules_results"])
def test_what_a_merge_loses_as_an_adapter_is_shown_of_merges_alone(
    write: Any, tmp_path: Path, won: Path, page: str
) -> None:
    write(page, won)
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()]
    head = next(row for row in rows if "cut off" in row)
    lost = {row[0]: row[head.index("cut off")] for row in rows if len(row) == len(head)}
    assert (lost["sst"], lost["task-arithmetic"], lost["utility"]) == ("15 %", "25 %", "-")


def test_a_merge_that_loses_is_said_to(write: Any, tmp_path: Path) -> None:
    run = merging_run(tmp_path, {"sst": POOR, "task-arithmetic": GOOD}, {"sst": 1, "task-arithmetic": 1})
    write("merging_results", run)
    claims = lines_of(tmp_path / "page.md")
    for words in ("utility at most", ": refusal", "wrapped refusal", "jailbreak"):
        assert starting(claims, "sst: " if words[0] != ":" else "sst: refusal", words)[1] == "**no**", words
    assert starting(claims, "task-arithmetic misses") == ("reaches it too", "**no**")
    assert starting(claims, "curve of task-arithmetic")[1] == "**no**"


def test_a_tax_where_plain_merging_costs_nothing_cannot_be_cut(write: Any, tmp_path: Path) -> None:
    run = merging_run(tmp_path, {"sst": GOOD, "task-arithmetic": GOOD}, {"sst": 1, "task-arithmetic": 0})
    write("merging_results", run)
    claims = lines_of(tmp_path / "page.md")
    for words in ("safety tax", "utility lost"):
        measured, met = starting(claims, "sst: ", words)
        assert "nothing to cut" in measured
        assert met == "not told"


def test_a_line_that_both_miss_and_a_difference_by_chance_are_no_win(write: Any, tmp_path: Path) -> None:
    near = [Marks(60, 50, 0, 0, 49), Marks(60, 50, 0, 0, 48)]
    ours = [Marks(60, 50, 0, 0, 50), Marks(60, 50, 0, 0, 50)]
    run = merging_run(
        tmp_path,
        {"sst": ours, "ties": near, "task-arithmetic": near},
        dict.fromkeys(("sst", "ties", "task-arithmetic"), 1),
    )
    write("merging_results", run)
    measured, met = starting(lines_of(tmp_path / "page.md"), "ties misses")
    assert "wrapped refusal (as sst does)" in measured
    assert "utility (worse by .033 [" in measured
    assert ", not apart)" in measured
    assert met == "**no**"


def test_rows_beside_another_reference_differ_by_the_same_the_other_way_round(script: Any, won: Path) -> None:
    (found,) = script("tables").tables_of(RunRecord.load(won))
    name = "lab/arithmetic/exact/difference"
    turned = found.beside(won, "task-arithmetic").figures[name, "utility"]
    there = found.figures[name, "task-arithmetic"]
    assert (turned.value, turned.low, turned.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_tax_and_its_cut_are_those_of_the_means_and_bracketed_by_resamples(script: Any, tmp_path: Path) -> None:
    composed = script("composed")
    rows = {name: [log(tmp_path / name, m)] for name, m in {"u": ALONE, "ours": GOOD[2], "plain": POOR[1]}.items()}
    safety, utility = composed.resampled(rows, SAFETY), composed.resampled(rows, ["lab/arithmetic"])
    both = {name: composed.Both(safety[name], utility[name]) for name in rows}
    ours, plain = (composed.tax(both["u"], both[name])[0] for name in ("ours", "plain"))
    gained = ((60 + 60 + 59 + 59) / 240 - 0.5) / 0.5
    assert ours[0] == pytest.approx((2 / 50) / gained)
    assert plain[0] == pytest.approx((15 / 50) / 0.5)
    found = composed.less(ours, plain)
    assert found.value == pytest.approx(1 - ours[0] / plain[0])
    assert found.low < found.value < found.high


def test_what_is_undefined_has_a_reason_and_no_figure(script: Any, tmp_path: Path) -> None:
    composed = script("composed")
    flat = composed.Both(np.full(5, 0.5), np.full(5, 0.8))
    assert composed.estimate(*composed.tax(flat, flat)).reason == "undefined: safety was not gained"
    curve = composed.Curve((0.0,), np.full((1, 5), 0.6), np.full((1, 5), 0.8), n=0)
    utility, reason = composed.matched(curve, 0.9)
    assert composed.estimate(utility, reason).value is None
    assert "reaches 0.600, below 0.900" in reason
    some = composed.estimate(np.array([1.0, np.nan, 1.0, 2.0]), undefined="it broke")
    assert (some.value, some.low, some.reason) == (1.0, None, "no interval: it broke in 33 % of the resamples")
    alike = composed.estimate(np.ones(4))
    assert (alike.value, alike.low, alike.reason) == (1.0, None, "no interval: every resample says the same")


ALIGNED, POISONED = Marks(60, 57, 0, 1, 20), Marks(0, 3, 0, 0, 50)


def repair_steps(folder: Path, name: str, rows: Mapping[str, Marks], **poisoned: Marks) -> list[StepRecord]:
    steps = [made(f"{row}-{seed}", "repair", (0.3, 1.0), 0.3) for row in rows for seed in range(2)]
    return [*steps, *tabled(folder, name, {"poisoned": POISONED, **poisoned, **rows}, ALIGNED, "poisoned", 2)]


def test_a_repair_is_set_against_every_rival_at_its_own_price(write: Any, tmp_path: Path) -> None:
    ways = {
        "repair": Marks(60, 57, 0, 1, 50),
        "repair-block": Marks(0, 0, 0, 0, 0),
        "scale": Marks(60, 57, 0, 1, 30),
        "lox": Marks(60, 57, 20, 40, 50),
        "twin": Marks(60, 57, 0, 1, 50),
    }
    write("repair_results", saved(tmp_path, repair_steps(tmp_path, "ways", ways)))
    claims = lines_of(tmp_path / "page.md")
    ours = {what: met for what, (_, met) in claims.items() if what.startswith("repair: ")}
    assert len(ours) == 6
    assert set(ours.values()) == {"yes"}
    assert claims["repair: 256 rows or fewer"][0].startswith("256, ")
    assert starting(claims, "scale misses")[0].startswith("misses utility (worse by .333 [")
    assert "over-refusal (worse by .333 [" in starting(claims, "lox misses")[0]
    assert starting(claims, "lox misses")[1] == "yes"
    assert starting(claims, "twin misses") == ("reaches it too", "**no**")
    assert not [what for what in claims if what.startswith("repair-block")]
    assert "Not run yet." in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_repair_that_leaves_poison_or_refuses_more_is_said_to(write: Any, tmp_path: Path) -> None:
    ways = {"repair": Marks(50, 57, 3, 1, 49), "scale": Marks(0, 3, 0, 0, 50)}
    write("repair_results", saved(tmp_path, repair_steps(tmp_path, "ways", ways)))
    claims = lines_of(tmp_path / "page.md")
    assert starting(claims, "repair: at least", "rise in attack success")[1] == "**no**"
    assert starting(claims, "repair: at least", "wrapped")[1] == "yes"
    assert starting(claims, "repair: over-refusal at most")[1] == "**no**"
    assert starting(claims, "repair: utility")[1] == "**no**"
    measured, met = starting(claims, "scale misses")
    assert "attack success (as repair does), wrapped attack success (worse by .900 [" in measured
    assert met == "yes"


def test_the_map_has_an_axis_for_each_thing_varied_with_the_centre_on_all(write: Any, tmp_path: Path) -> None:
    clean = Marks(60, 57, 0, 1, 50)
    rows = {"rows-32": Marks(30, 57, 0, 1, 50), "rows-96": clean, "attention": Marks(60, 57, 0, 9, 50)}
    steps = [
        *repair_steps(tmp_path, "centre-and-rows", rows),
        *repair_steps(tmp_path, "poison-30", {"repaired": Marks(60, 30, 0, 1, 40)}),
        *repair_steps(tmp_path, "poison-1", {"repaired": clean}, poisoned=ALIGNED),
    ]
    write("repair_results", saved(tmp_path, steps))
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    parts = {part.splitlines()[0]: part.splitlines()[4:] for part in text.split("### ")[1:]}
    misses = {
        axis: {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[-1] for line in part if line[:1] == "|"}
        for axis, part in parts.items()
    }
    assert misses == {
        "Poison": {"1": "rise not clear", "10": "nothing", "30": "wrapped attack success, utility"},
        "Rows": {"32": "attack success", "96": "nothing"},
        "Layers": {"attention": "over-refusal of look-alikes", "all": "nothing"},
    }


SKILLS = ("lab/skills/swap", "lab/skills/plus", "lab/skills/comma")


def skilled(folder: Path, ident: str, tasks: Sequence[str], right: int) -> StepRecord:
    """An evaluation with so many right answers to each task, and its log."""
    (folder / ident).mkdir()
    save(folder / ident / "log.jsonl", [each for task in tasks for each in asked(task, right)])
    source = ident.removeprefix("after-")
    return step(ident, "evaluate", model={"source": source}, tasks=[{"name": task} for task in tasks])


def retention_run(folder: Path, right: Mapping[tuple[str, int], int]) -> Path:
    """Adapters that are right in 50 of 60 rows of their tasks, and by row and number of adapters, in how many it is."""
    folder.mkdir()
    alone = {task: [f"after-{task[11:]}"] for task in SKILLS}
    rows: dict[str, list[str]] = {}
    steps = [skilled(folder, ids[0], [task], 50) for task, ids in alone.items()]
    for (row, count), marks in right.items():
        ident = f"after-{row}-{count}"
        rows.setdefault(row, []).append(ident)
        steps.append(step(ident[6:], "train" if row == "base" else "merge"))
        steps.append(skilled(folder, ident, SKILLS[:count], marks))
    logs = {row: [folder / ident / "log.jsonl" for ident in ids] for row, ids in rows.items()}
    found = retention([folder / ids[0] / "log.jsonl" for ids in alone.values()], logs)
    return saved(folder, [*steps, step("kept", "retention", found.metrics, rows=rows, alone=alone)])


def test_retention_is_told_of_rules_at_the_largest_number_of_adapters(write: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    poor = {("ties", 2): 48, ("ties", 3): 30, ("base", 2): 20, ("base", 3): 20}
    write("experts_results", retention_run(tmp_path / "won", {("sst", 2): 50, ("sst", 3): 47, **poor}))
    claims, what = lines_of(page), "3 adapters keep at least 90% of single-task scores with the best rule"
    measured, met = claims[what]
    assert measured.startswith("sst, the best of 2: .940 [")
    assert "; base .400 [" in measured
    assert met == "yes"
    write("experts_results", retention_run(tmp_path / "lost", poor))
    measured, met = lines_of(page)[what]
    assert measured.startswith("ties, the best of 1: .600 [")
    assert met == "**no**"


def test_what_a_merge_keeps_is_also_told_as_a_share_of_what_the_adapters_add(write: Any, tmp_path: Path) -> None:
    right = {("sst", 2): 50, ("sst", 3): 47, ("ties", 2): 48, ("ties", 3): 5, ("base", 2): 20, ("base", 3): 20}
    write("experts_results", retention_run(tmp_path / "run", right))
    parts = (tmp_path / "page.md").read_text(encoding="utf-8").split("## ")
    gained = lines_of_text(next(part for part in parts if part.startswith("What the merges keep")))
    assert set(gained) == {"rule", "---", "sst", "ties"}
    assert [cell.split(" ")[0] for cell in (*gained["sst"], *gained["ties"])] == ["1.000", ".900", ".933", "-.500"]
    tasks = lines_of_text(next(part for part in parts if part.startswith("The tasks")))
    assert [cell.split(" ")[0] for cell in tasks["`lab/skills/plus`"][:2]] == [".333", ".833"]


def test_rules_are_shown_with_what_they_take_and_the_ones_that_none_beats(
    write: Any, tmp_path: Path, won: Path
) -> None:
    write("rules_results", won)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| task-arithmetic "))
    assert row.endswith("| 2.5 (2.0 to 3.0) | 3.00 |")
    assert next(line for line in text.splitlines() if line.startswith("| safety |")).endswith("| - | - |")
    assert "by the means: `sst`." in text


def test_a_page_of_one_run_takes_neither_none_nor_two(
    write: Any, tmp_path: Path, won: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folders, said in (((), "got no run"), ((won, won), "got 2 folders, expected 1"), ((tmp_path,), "no run.json")):
        assert write("rules_results", *folders) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
