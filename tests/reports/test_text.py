from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.reports.sample_run import AREAS, evaluated, rate, sample_run

from holdfast.core.results import Metric, Sample, StepRecord, Verdict
from holdfast.core.wording import HARMFUL_CHARACTERS
from holdfast.reports.answers import HARMFUL_OUTPUT, talks
from holdfast.reports.build import build_report, print_report
from holdfast.reports.figures import nice_ticks
from holdfast.reports.names import number, split_name
from holdfast.reports.page import to_html
from holdfast.reports.panels import panels
from holdfast.reports.reading import read_run
from holdfast.reports.text import print_view, to_markdown
from holdfast.reports.view import Row


def compared(change: float, verdict: Verdict | None, *, higher: bool, group: str = "") -> Row:
    """The row of one rate that went from 10 to 30 of 100, with the change and verdict of a compare step."""
    name = "safety/advbench/attack_success_rate"
    ends = [
        StepRecord(id=i, do="evaluate", config={}, metrics=(rate(name, k, 100, higher=higher),))
        for i, k in (("a", 10), ("b", 30))
    ]
    metric = Metric(name=f"{name}/change", value=change, n=100, low=change - 0.01, high=change + 0.01, group=group)
    step = StepRecord(
        id="c",
        do="compare",
        config={"before": "a", "after": "b"},
        metrics=(metric,),
        verdicts=(verdict,) if verdict else (),
    )
    return panels([*ends, step])[0].main[0]


def verdict(holds: bool | None) -> Verdict:
    name = "safety/advbench/attack_success_rate changed"
    return Verdict(name=name, holds=holds, statistic=20.0, p_value=0.0412, n=97, null="nothing changed")


def test_better_and_worse_follow_the_polarity_of_the_figure() -> None:
    assert compared(0.2, verdict(True), higher=False).verdict == "worse"
    assert compared(0.2, verdict(True), higher=True).verdict == "better"
    assert compared(-0.2, verdict(True), higher=False).verdict == "better"


def test_the_test_of_a_compare_step_decides_over_intervals() -> None:
    row = compared(0.2, verdict(False), higher=False)
    assert row.verdict == "no clear change"
    assert row.test.replace("\u00a0", " ") == "p = 0.041, 97 pairs"
    assert row.change is not None
    assert (row.change.text, row.change.bounds) == ("+20.0 pp", "[19.0, 21.0]")


def test_without_a_verdict_the_interval_of_the_difference_decides() -> None:
    assert compared(0.2, None, higher=False).test == "by the interval of the difference"
    assert compared(0.2, verdict(None), higher=False).verdict == "worse"
    assert compared(0.005, None, higher=False).verdict == "no clear change"


def test_the_change_of_a_breakdown_is_not_taken_for_the_total() -> None:
    row = compared(0.9, None, higher=False, group="risk_area=fraud")
    assert row.change is not None
    assert row.change.text == "+20.0 pp"
    assert row.test == "by the two intervals"


def test_tasks_of_one_side_only_stay_out_of_the_comparison_and_get_a_panel_of_their_own() -> None:
    run = sample_run()
    extra = rate("injection/lab/injection/followed", 3, 100, higher=False)
    first = run.steps[0].model_copy(update={"metrics": (*run.steps[0].metrics, extra)})
    both, alone = read_run(run.model_copy(update={"steps": (first, *run.steps[1:])})).panels
    assert both.paired
    assert "injection" not in {row.suite for row in both.main}
    assert alone.after == "lab (step before)"
    assert not alone.paired
    assert "injection" in {row.suite for row in alone.main}


def test_the_first_total_of_each_task_is_its_main_figure_and_suites_keep_their_order() -> None:
    panel = read_run(sample_run()).panels[0]
    assert [row.suite for row in panel.main] == ["safety"] * 4 + ["utility"] * 2
    assert [row.name.rsplit("/", 1)[-1] for row in panel.main[:2]] == ["attack_success_rate"] * 2
    assert {row.label for row in panel.more} == {"Attack success, counted over all answers", "Harmful requests refused"}
    assert [row.label for row in panel.breakdowns[0].rows] == list(AREAS)


def test_answers_pair_by_prompt_in_order_even_where_shortened_prompts_collide() -> None:
    def step(outcomes: tuple[str, ...]) -> StepRecord:
        samples = tuple(Sample(task="lab/textops", prompt="same", output=o, outcome=o) for o in outcomes)
        return StepRecord(id="x", do="evaluate", config={}, samples=samples)

    (talk,) = talks([("before", step(("p", "q"))), ("after", step(("p", "r")))])
    assert [[a.output for a in exchange.answers] for exchange in talk.exchanges] == [["q", "r"], ["p", "p"]]
    assert [exchange.changed for exchange in talk.exchanges] == [True, False]


def test_harmful_prompts_and_answers_to_them_are_shortened_and_others_are_not() -> None:
    long = "x" * 300
    samples = tuple(Sample(task=t, prompt=long, output=long, outcome="o") for t in ("lab/harmful", "lab/arithmetic"))
    harmful, sums = talks([("", evaluated("a", False).model_copy(update={"samples": samples}))])
    assert len(harmful.exchanges[0].prompt) == HARMFUL_CHARACTERS
    assert len(harmful.exchanges[0].answers[0].output) == HARMFUL_OUTPUT
    assert harmful.exchanges[0].shortened
    assert sums.exchanges[0].prompt == sums.exchanges[0].answers[0].output == long


def test_markdown_holds_the_same_figures_as_the_record() -> None:
    text = to_markdown(read_run(sample_run())).replace("\\", "")
    assert "| Attack success, lab/harmful | ↓ | 2.7 % [1.1, 6.7] (n = 148, 2 invalid) | 85.8 % [79.3, 90.5]" in text
    assert "– (no valid row of 150 (repeats itself))" in text
    assert len(re.findall(r"^\| .* \| keyword@1 \|$", text, re.MULTILINE)) >= 6, "every figure names its judge"
    assert sample_run().summary in text


def test_figures_made_of_both_sides_stand_beside_the_comparison() -> None:
    run = sample_run()
    drift = Metric(
        name="composite/lab/harmful/alignment_drift", value=0.854, n=148, low=0.79, high=0.91, higher_is_better=False
    )
    tax = Metric(name="composite/safety_tax", value=None, n=900, reason="undefined: safety was not gained")
    change = run.steps[-1].model_copy(update={"metrics": (*run.steps[-1].metrics, drift, tax)})
    view = read_run(run.model_copy(update={"steps": (*run.steps[:-1], change)}))
    assert len(view.panels) == 1
    assert [(row.label, row.task) for row in view.panels[0].composites] == [
        ("Alignment drift", "lab/harmful"),
        ("Safety tax", ""),
    ]
    out = io.StringIO()
    print_view(view, Console(file=out, width=80))
    for text in (to_markdown(view).replace("\\", ""), out.getvalue()):
        assert "0.854 [0.790, 0.910] (n = 148)" in text
        assert "– (undefined: safety was not gained)" in text
    html = to_html(view)
    assert html.count("undefined: safety was not gained") == 2, "in the table and among all figures"
    assert "Made of both" in html
    assert "Made of both" not in to_html(read_run(run))


def test_a_value_without_an_interval_says_why() -> None:
    run = sample_run()
    why = "no interval: 1 cluster(s) with one and the same mean"
    drift = Metric(name="composite/lab/harmful/alignment_drift", value=1.0, n=148, reason=why)
    change = run.steps[-1].model_copy(update={"metrics": (*run.steps[-1].metrics, drift)})
    view = read_run(run.model_copy(update={"steps": (*run.steps[:-1], change)}))
    assert f"1.000 ({why}) (n = 148)" in to_markdown(view)
    assert f'<span class="value">1.000</span>\n<span class="under reason">{why}</span>' in to_html(view)


def test_hostile_output_cannot_leave_its_place_in_markdown() -> None:
    hostile = "``` | <b>x</b> | [a](b)\n# Title\n| a | b |"
    sample = Sample(task="lab/arithmetic", prompt=hostile, output=hostile, outcome=hostile)
    step = evaluated("measured", False).model_copy(update={"samples": (sample,), "notes": (hostile,)})
    run = sample_run().model_copy(update={"steps": (step,), "summary": hostile, "recipe": {"title": hostile}})
    lines = to_markdown(read_run(run)).splitlines()
    assert [line for line in lines if line.startswith("# ")] == [lines[0]]
    for first, second in itertools.pairwise(lines):
        if first.startswith("|") and second.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", first)) == len(re.findall(r"(?<!\\)\|", second))
    outside_code = re.sub(r"(`+) .*? \1", "", "\n".join(lines).partition("## Recipe")[0])
    assert "<b>" not in outside_code
    assert "\n| a | b |" not in outside_code


def test_ids_of_steps_are_text_in_headings() -> None:
    curve = {"loss": [(1.0, 2.0), (2.0, 1.0)]}
    trained = StepRecord(id="<b>_a_", do="train", config={}, curves=curve)
    measured = evaluated("measured", False).model_copy(update={"id": "__b__"})
    text = to_markdown(read_run(sample_run().model_copy(update={"steps": (measured, trained)})))
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert r"## Training &lt;b\>\_a\_" in headings
    assert r"\_\_b\_\_" in headings[0]


def test_the_terminal_table_fits_eighty_columns_and_gives_reasons() -> None:
    out = io.StringIO()
    print_view(read_run(sample_run(quick=True)), Console(file=out, width=80))
    text = out.getvalue()
    assert "not for citing" in text.splitlines()[0]
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "85.8 %" in text
    assert "+83.1 pp worse" in text
    assert "– Over-refusal, lab/lookalike, after: no valid row of 150" in text


def test_print_report_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(sample_run())
    assert "Attack success" in capsys.readouterr().out


def test_build_report_writes_both_files_and_nothing_else(tmp_path: Path) -> None:
    assert build_report(sample_run(), tmp_path / "new") == tmp_path / "new" / "report.html"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.md"]


def test_importing_reports_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "jinja2", "rich", "yaml")
    code = f"import sys, holdfast.reports.build; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.4, 7.38), (-3.0, 2.0), (1e-5, 3e-5), (0.0, 12345.0)])
def test_ticks_are_even_cover_the_range_and_are_few(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in itertools.pairwise(ticks)}
    assert ticks[0] <= low
    assert high <= ticks[-1]
    assert steps == {1.0}
    assert len(ticks) <= 7


def test_numbers_are_rounded_never_to_a_negative_zero() -> None:
    assert number(-0.0001, rate=True, signed=True) == "0.0"
    assert number(0.9999, rate=True) == "100.0"
    assert number(12345.678, rate=False) == "12,345.7"


def test_unknown_measures_keep_their_task() -> None:
    assert split_name("utility/lm-eval/gsm8k/exact_match") == ("utility", "lm-eval/gsm8k", "exact_match")
