"""The results page of token weighting: its lines follow from the answers, over runs and seeds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from tests.evaluation.logs import COMPLIANCE, REFUSAL, answers, example, record, save

from holdfast.core.errors import DataError
from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.evaluation.judges import JUDGES, Sample
from holdfast.evaluation.log import Record
from holdfast.evaluation.tasks import TASKS

SCRIPTS = Path(__file__).parents[1] / "docs" / "scripts"
N, DIGITS = 60, 10
SEEDS = (0, 1, 2)
SAFETY_TASKS = ("lab/harmful", "lab/jailbreak", "lab/benign", "lab/lookalike")


class Marks(NamedTuple):
    """Of `N` sums, how many are right; of `DIGITS` digits a result, how many are wrong, on average."""

    right: int
    wrong: int


class Harm(NamedTuple):
    """Of `N` answers to each task: refused, or right."""

    refused: int
    wrapped: int
    over: int
    look: int
    right: int


NOISY = {"before": Marks(10, 6), "uniform": Marks(20, 4), "rho1": Marks(35, 3), "mtp": Marks(21, 4)}
WHOLE = NOISY | {"both": Marks(38, 2), "shuffled": Marks(19, 4), "random": Marks(18, 5), "reference": Marks(45, 1)}
POISONED = {
    "before": Harm(60, 57, 0, 1, 20),
    "uniform": Harm(0, 0, 0, 0, 40),
    "rho1": Harm(25, 30, 0, 0, 42),
    "contrast": Harm(60, 56, 1, 1, 40),
}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def write(scripts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The page of runs, and of a benchmark of decoding where one is given."""
    module, pages, found = scripts("token_weighting_results"), scripts("pages"), tmp_path / "benchmark.json"
    monkeypatch.setattr(scripts("token_weighting_lines"), "BENCHMARK", found)

    def of(*runs: Path, decoding: Mapping[str, Any] | None = None) -> str:
        if decoding:
            found.write_text(json.dumps(decoding), encoding="utf-8")
        return str(pages.filled(module.TEXT.read_text(encoding="utf-8"), module.parts(runs)))

    return of


def sums(marks: Marks) -> list[Record]:
    """Right sums first; the wrong digits of a result are one fewer, as many and one more, in turns."""
    task = "lab/arithmetic"
    made = [record(task, example(i, reference="7"), "7" if i < marks.right else "8") for i in range(N)]
    judge = JUDGES[TASKS[f"{task}/digits"].judge]
    for i in range(N):
        wrong = marks.wrong + i % 3 - 1
        sample = Sample(example(i, reference="7"), option_scores=((0.0, 0),) * wrong + ((0.0, 1),) * (DIGITS - wrong))
        made.append(Record(f"{task}/digits", "prompt", sample, {judge.name: judge.judge([sample])[0]}))
    return made


def harms(marks: Harm) -> list[Record]:
    counts = zip(SAFETY_TASKS, marks, strict=False)
    made = [each for task, k in counts for each in answers(task, [REFUSAL] * k + [COMPLIANCE] * (N - k))]
    made += [record("lab/arithmetic", example(i, reference="7"), "7" if i < marks.right else "8") for i in range(N)]
    passages = [record("lab/passages", example(i, reference="The river."), "The river.") for i in range(N)]
    return made + passages


def evaluated(folder: Path, ident: str, records: Sequence[Record]) -> StepRecord:
    (folder / ident).mkdir(parents=True)
    save(folder / ident / "log.jsonl", records)
    return StepRecord(id=ident, do="evaluate", config={})


def trained(ident: str, steps: int = 200) -> StepRecord:
    return StepRecord(id=ident, do="train", config={"steps": steps, "epochs": None, "batch_size": 16})


def weighed(ident: str, auroc: float) -> StepRecord:
    figures = {"noise/auroc": (auroc, 1000), "noise/share": (0.1, 1000), "noise/weight": (1 - auroc, 100)}
    metrics = tuple(Metric(name=name, value=value, n=n) for name, (value, n) in figures.items())
    return StepRecord(id=ident, do="token_weighting", config={}, metrics=metrics)


def saved(folder: Path, name: str, steps: Iterable[StepRecord], seeds: Sequence[int] | None = None) -> Path:
    run = RunRecord(
        name=name, version="1", git="abc", packages={}, device="cpu", started="2026-01-01T00:00:00+00:00",
        recipe={"seeds": list(seeds) if seeds else None}, steps=tuple(steps),
    )  # fmt: skip
    run.save(folder / "run.json")
    return folder


def noisy(
    folder: Path,
    seeds: Sequence[int] = SEEDS,
    arms: Mapping[str, Marks] = WHOLE,
    aurocs: Sequence[float] = (0.96, 0.95, 0.94),
    lasting: Mapping[str, int] | None = None,
) -> Path:
    """A run of wmtp-synergy: with each seed, uniform and every arm have a sum more right."""
    steps = [evaluated(folder, "before", sums(arms["before"]))]
    for name, marks in arms.items():
        if name == "reference":
            steps.append(evaluated(folder, "after-reference", sums(marks)))
        elif name != "before":
            for seed in seeds:
                steps.append(trained(f"{name}-{seed}", (lasting or {}).get(name, 200)))
                own = marks._replace(right=marks.right + seed)
                steps.append(evaluated(folder, f"after-{name}-{seed}", sums(own)))
    steps += [weighed(f"weigh-rho1-{seed}", aurocs[seed]) for seed in seeds]
    steps += [weighed(f"weigh-shuffled-{seed}", 0.5) for seed in seeds]
    return saved(folder, "wmtp-synergy", steps, seeds)


def short(folder: Path) -> Path:
    """A run of wmtp-lab, which has no seeds."""
    arms = {name: marks for name, marks in WHOLE.items() if name not in ("shuffled", "random")}
    steps = [
        evaluated(folder, name if name == "before" else f"after-{name}", sums(marks)) for name, marks in arms.items()
    ]
    steps += [*(trained(name) for name in arms if name != "before"), weighed("weigh-rho1", 0.9)]
    return saved(folder, "wmtp-lab", steps)


def poisoned(folder: Path, arms: Mapping[str, Harm] = POISONED, seeds: Sequence[int] = (0, 1)) -> Path:
    """A run of wmtp-safety."""
    steps = [evaluated(folder, "before", harms(arms["before"]))]
    for name in list(arms)[1:]:
        for seed in seeds:
            steps += [trained(f"{name}-{seed}"), evaluated(folder, f"after-{name}-{seed}", harms(arms[name]))]
    return saved(folder, "wmtp-safety", steps, seeds)


def benchmark(same: int = 200, count: int = 200) -> dict[str, Any]:
    result = {
        "what": "self-speculative decoding, medusa heads up to horizon 3",
        "ratio": 1.254,
        "remarks": [
            f"{same} of {count} answers identical; the closest choice was between logits 0.1 apart",
            "1.85 tokens a pass; guesses that counted: horizon 2 60%, horizon 3 25%",
        ],
    }
    other = {"what": "4-head loss", "ratio": 1.0, "remarks": []}
    return {"date": "2026-01-02", "machine": "a laptop", "results": [other, result]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of whole runs."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        runs = (noisy(folder / "noisy"), poisoned(folder / "poisoned"))
        patch.setattr(sys, "argv", ["script", *map(str, runs)])
        patch.setattr(importlib.import_module("token_weighting_lines"), "BENCHMARK", folder / "none.json")
        module, page = importlib.import_module("token_weighting_results"), folder / "page.md"
        assert importlib.import_module("pages").from_runs(page, module.TEXT, module.parts) == 0
    return page.read_text(encoding="utf-8")


def cells(page: str, start: str) -> list[str]:
    """The cells of the only row that starts so."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return row.strip("| ").split(" | ")


def section(page: str, title: str) -> str:
    (found,) = [part for part in page.split("\n## ") if part.startswith(title)]
    return found


def test_lines_are_those_that_follow_from_the_answers(finished: str) -> None:
    page = section(finished, "What the lab")
    beats = cells(page, "a weighted arm beats")
    assert beats[1] == ".300 (both)"
    assert beats[3:] == ["180", "3", "yes"]
    low, high = map(float, beats[2].strip("[]").split(", "))
    assert 0.15 < low < 0.3 < high < 0.45
    assert cells(page, "aim: it beats it")[5] == "yes"
    cut = cells(page, "it cuts the error")
    assert cut[1] == ".500 (both)"
    assert cells(page, "aim: it cuts")[5] == "yes"
    stands, hope = cells(page, "synergy on arithmetic stands"), cells(page, "hope: synergy")
    assert stands[1] == hope[1] == ".033"
    assert stands[5] == "yes"
    assert hope[5] == "**no**", "two sums of sixty are not told from none"
    controls = cells(page, "both controls")
    assert controls[1].startswith("shuffled -.017 [")
    assert ", random_matched -.033 [" in controls[1]
    assert controls[5] == "yes"


def test_synergy_in_the_error_and_every_seed_stand_beside_the_arms(finished: str) -> None:
    page = section(finished, "Two by two")
    assert "Seeds: 0, 1, 2. Test prompts a task: 60. Every arm: 200 steps of 16 rows." in page
    assert [cell.split()[0] for cell in cells(page, "error on digits")[1:]] == [".000", "-.100", "-.200", "-.100"]
    head = page.index("Seed by seed")
    assert cells(page[head:], "rho1")[1:] == [".583", ".600", ".617", ".300", ".300", ".300"]
    assert [cell.split()[0] for cell in cells(page[:head], "reference")[1:]] == [
        ".750", ".400", ".100", "-.300", ".750", ".150",
    ]  # fmt: skip


def test_noise_is_told_by_the_mean_over_seeds_with_their_range(finished: str, tmp_path: Path, write: Any) -> None:
    line = cells(section(finished, "What the lab"), "rho1: AUROC")
    assert line[1:] == [".950", "lowest and highest seed [.940, .960]", "3,000 tokens", "3", "yes"]
    assert cells(section(finished, "Does a scorer"), "wmtp-synergy, seed 2")[1:] == [
        ".940", ".500", ".060", "1,000", ".100",
    ]  # fmt: skip
    less = cells(write(noisy(tmp_path / "a", aurocs=(0.96, 0.95, 0.93))), "rho1: AUROC")
    assert (less[1], less[5]) == (".947", "**no**")


def test_contrast_is_held_against_the_untouched_model_and_uniform_weights(
    finished: str, tmp_path: Path, write: Any
) -> None:
    page = section(finished, "What the lab")
    attack, wrapped, right = (cells(page, f"contrast: {word}") for word in ("attack", "wrapped", "arithmetic"))
    assert (attack[1], attack[5]) == (".000", "yes")
    assert (wrapped[1], wrapped[5]) == (".017", "yes")
    assert (right[1], right[3:]) == (".000", ["120", "2", "yes"])
    shown = cells(section(finished, "Poisoned rows").partition("Each row less")[0], "rho1")
    assert [cell.split()[0] for cell in shown[1:]] == [".417", ".500", ".000", ".000", ".700", "1.000"]
    worse = POISONED | {"contrast": Harm(55, 53, 1, 1, 38)}
    page = write(poisoned(tmp_path / "a", worse))
    assert [cells(page, f"contrast: {word}")[5] for word in ("attack", "wrapped", "arithmetic")] == ["**no**"] * 3


def test_arms_that_gain_nothing_are_said_to(tmp_path: Path, write: Any) -> None:
    arms = WHOLE | {"rho1": Marks(18, 4), "both": Marks(17, 5)}
    page = write(noisy(tmp_path / "run", arms=arms))
    lines = [cells(page, start) for start in ("a weighted arm", "aim: it beats", "it cuts", "aim: it cuts")]
    assert [line[1] for line in lines] == ["-.033 (rho1)", "-.033 (rho1)", ".000 (rho1)", ".000 (rho1)"]
    assert [line[5] for line in lines[:2]] == ["**no**", "**no**"]
    assert lines[3][5] == "**no**"
    assert cells(page, "synergy on arithmetic stands")[1] == "-.033"
    assert "Not met: a weighted arm beats uniform" in page


def test_arms_of_other_lengths_are_not_compared(tmp_path: Path, write: Any) -> None:
    page = write(noisy(tmp_path / "run", lasting={"both": 300}))
    assert [cells(page, start)[5] for start in ("a weighted arm beats", "aim: it beats")] == ["not told", "not told"]
    assert "Every arm: 200 steps of 16 rows or 300 steps of 16 rows." in page


def test_runs_of_one_seed_each_make_the_page_of_one_run_of_all(tmp_path: Path, write: Any, finished: str) -> None:
    runs = [noisy(tmp_path / f"run{seed}", (seed,)) for seed in SEEDS]
    runs += [poisoned(tmp_path / f"harm{seed}", seeds=(seed,)) for seed in (0, 1)]
    page = write(*runs)
    assert page.partition("## Runs")[0] == finished.partition("## Runs")[0]
    assert "- `holdfast run wmtp-synergy --set 'seeds=[2]'`. Run `wmtp-synergy` of 2026-01-01" in page
    assert page.count(", commit `abc`, cpu, ") == 5


def test_what_has_not_run_has_no_section_and_is_named(tmp_path: Path, write: Any) -> None:
    page = write(poisoned(tmp_path / "harm"))
    assert "Not run, so not on this page: `wmtp-lab`, `wmtp-synergy`." in page
    assert [part.partition("\n")[0] for part in page.split("\n## ")[1:]] == [
        "Reading", "What the lab was to show", "Poisoned rows", "Decoding with the heads", "Runs",
    ]  # fmt: skip
    assert cells(page, "a weighted arm beats")[1:] == ["not run", "-", "-", "-", "not told"]
    assert "has not been run at full size yet" in section(page, "Decoding")
    assert "{" not in page
    begun = write(saved(tmp_path / "begun", "wmtp-synergy", [weighed("weigh-rho1-0", 0.97)]))
    assert "Begun, no seed whole yet: `wmtp-synergy`." in begun
    assert cells(begun, "rho1: AUROC")[5] == "yes"
    assert "## Two by two" not in begun


def test_the_short_recipe_stands_in_until_the_long_one_has_run(tmp_path: Path, write: Any) -> None:
    lab = short(tmp_path / "lab")
    page = write(lab)
    assert "One seed." in page
    assert "Seed by seed" not in page
    assert "Not run: " not in section(page, "Two by two"), "its recipe has no controls"
    assert cells(page, "a weighted arm beats")[3:] == ["60", "1", "yes"]
    assert cells(page, "rho1: AUROC")[1:3] == [".900", "-"]
    both = write(lab, noisy(tmp_path / "long"))
    assert cells(both, "a weighted arm beats")[4] == "3"
    assert cells(both, "rho1: AUROC")[1] == ".950"
    assert [word in both for word in ("### `wmtp-synergy`", "### `wmtp-lab`")] == [True, True]


def test_a_seed_that_is_not_whole_is_left_out_and_rows_that_have_not_run_are_named(tmp_path: Path, write: Any) -> None:
    folder = noisy(tmp_path / "run")
    unfinished = ("after-both-2", "after-random-0", "after-random-1", "after-random-2")
    steps = [step for step in RunRecord.load(folder).steps if step.id not in unfinished]
    page = write(saved(folder, "wmtp-synergy", steps, SEEDS))
    assert "Seeds: 0, 1." in page
    assert "Not run: random_matched." in page
    assert cells(page, "a weighted arm beats")[3:] == ["120", "2", "yes"]
    assert cells(page, "both controls")[5] == "**no**"


def test_decoding_is_lossless_where_enough_answers_are_the_same(tmp_path: Path, write: Any) -> None:
    run = saved(tmp_path, "wmtp-safety", [])
    page = write(run, decoding=benchmark())
    assert cells(page, "self-speculative decoding")[1:] == [
        "200 the same; 1.85 tokens a pass, 1.25 times plain decoding's speed", "-", "200", "-", "yes",
    ]  # fmt: skip
    assert cells(section(page, "Decoding"), "medusa heads up to horizon 3")[1:3] == ["200 of 200", "1.85"]
    assert "2026-01-02, a laptop" in page
    for few in (benchmark(199), benchmark(100, 100)):
        assert cells(write(run, decoding=few), "self-speculative decoding")[5] == "**no**"
    with pytest.raises(DataError, match="answers identical"):
        write(run, decoding=benchmark() | {"results": [{**benchmark()["results"][1], "remarks": []}]})


def test_runs_that_cannot_be_one_experiment_are_refused(tmp_path: Path, write: Any) -> None:
    lab = short(tmp_path / "lab")
    with pytest.raises(DataError, match="uniform-1 stands in two runs"):
        write(noisy(tmp_path / "a", (0, 1)), noisy(tmp_path / "b", (1, 2)))
    with pytest.raises(DataError, match="none has seeds in their steps"):
        write(lab, short(tmp_path / "again"))
    named = saved(tmp_path / "lab", "wmtp-synergy", RunRecord.load(lab).steps)
    with pytest.raises(DataError, match="some have seeds in their steps"):
        write(named, noisy(tmp_path / "c"))
    with pytest.raises(DataError, match="got quickstart, expected runs of wmtp-lab"):
        write(saved(tmp_path / "other", "quickstart", []))


def test_rows_of_the_page_are_those_of_the_recipes(scripts: Callable[[str], ModuleType]) -> None:
    from holdfast.recipes.schema import load_recipe

    for name, rows in scripts("token_weighting_arms").ROWS.items():
        steps = load_recipe(SCRIPTS.parents[1] / "recipes" / f"{name}.yaml").steps
        table: Any = next(step for step in steps.values() if step.do == "table")
        expected = {row: ids[0].removeprefix("after-").removesuffix("-0") for row, ids in table.rows.items()}
        assert rows == expected
        assert table.before == "before"
        assert table.reference == "uniform"
        assert table.synergy in ([], ["both", "mtp", "rho1"], (), ("both", "mtp", "rho1"))
