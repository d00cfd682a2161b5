"""Token weights: plans, their spread, weights in training, gates and synergy, in all three renderings."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.reports.browser import measure
from tests.reports.sample_run import sample_run

from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.methods.token_weighting.gates import LEAST_SHARE
from holdfast.methods.token_weighting.maths import EXTREME
from holdfast.reports import token_weighting_figures as figures
from holdfast.reports import token_weighting_text as texts
from holdfast.reports.page import to_html
from holdfast.reports.reading import read_run
from holdfast.reports.text import print_view, to_markdown
from holdfast.reports.token_weighting_panel import TokenWeightingPanel

HOSTILE = '<script>x</script>"|`' + "x" * 60
RHO1 = {"mean": 1.0, "p25": 0.0, "p75": 1.6, "p95": 1.7, "ess": 0.6, "kept_share": 0.6, "clipped": 0.01}
UNIFORM = dict.fromkeys(("mean", "p25", "p75", "p95", "ess", "kept_share"), 1.0)
NOISE = {"noise/auroc": 0.94, "noise/weight": 0.05, "noise/share": 0.1}
EXACT, ERROR = "table/lab/arithmetic/exact", "table/lab/arithmetic/digits/token_error"
VALUES = {"uniform": (0.4, 0.2), "mtp": (0.35, 0.22), "rho1": (0.6, 0.1), "both": (0.5, 0.12)}


def planned(
    step_id: str, weights: Mapping[str, float], noise: Mapping[str, float] | None = None, **config: Any
) -> StepRecord:
    found = {f"weights/{name}": value for name, value in weights.items()} | dict(noise or {})
    metrics = tuple(Metric(name=name, value=value, n=8000) for name, value in found.items())
    return StepRecord(id=step_id, do="token_weighting", config=config, metrics=metrics)


def trained(step_id: str, plan: str, *, heads: int = 1, **fields: Any) -> StepRecord:
    curves = {
        "loss": [0.9, 0.5, 0.3], "weight/ess": [0.6, 0.55, 0.59], "weight/clipped": [0.0, 0.02, 0.01],
        "weight/p95": [1.7, 1.8, 1.7], "rho1/kept_share": [0.6, 0.6, 0.6], "nan_weights": [0.0, 0.0, 0.0],
        "extreme_weights": [0.0, 7.0, 3.0], **{f"head_{h}/loss": [2.0 * h, 1.5, 1.0] for h in range(1, heads + 1)},
    }  # fmt: skip
    drawn = {name: list(zip((1.0, 100.0, 200.0), values, strict=True)) for name, values in curves.items()}
    config = {"objective": {plan: 1.0}}
    return StepRecord(**({"id": step_id, "do": "train", "config": config, "curves": drawn} | fields))


def table(synergy: Sequence[str] = ("both", "mtp", "rho1"), rename: Mapping[str, str] | None = None) -> StepRecord:
    """As a table step leaves it: synergy of right answers by hand -.05, interval apart from 0."""
    names = dict(rename or {})
    metrics = []
    for place, (figure, hits) in enumerate(((EXACT, 900), (ERROR, None))):
        for row, values in VALUES.items():
            value, base = values[place], VALUES["uniform"][place]
            told = {"n": 900, "higher_is_better": hits is not None, "group": f"row={names.get(row, row)}"}
            metrics.append(Metric(name=figure, value=value, k=hits, low=value - 0.02, high=value + 0.02, **told))
            if row != "uniform":
                change = value - base
                metrics.append(
                    Metric(name=f"{figure}/difference", value=change, low=change - 0.03, high=change + 0.03, **told)
                )
        of = {row: values[place] for row, values in VALUES.items()}
        both = of["both"] - of["mtp"] - of["rho1"] + of["uniform"]
        group = f"row={names.get('both', 'both')}"
        metrics.append(
            Metric(name=f"{figure}/synergy", value=both, n=900, low=both - 0.04, high=both + 0.04, group=group,
                   higher_is_better=hits is not None)
        )  # fmt: skip
    config = {
        "before": "before", "reference": names.get("uniform", "uniform"),
        "rows": {names.get(row, row): [] for row in VALUES}, "synergy": [names.get(row, row) for row in synergy],
    }  # fmt: skip
    return StepRecord(id="contrast", do="table", config=config, metrics=tuple(metrics))


def weighted_run(*steps: StepRecord) -> RunRecord:
    chosen = steps or (
        planned("weigh-uniform", UNIFORM, scorer="uniform"),
        planned("weigh-rho1", RHO1, NOISE, scorer="rho1", horizon=1),
        planned("weigh-both", RHO1, NOISE, scorer="rho1", horizon=3),
        planned("weigh-shuffled", RHO1, NOISE | {"noise/auroc": 0.5}, scorer="shuffled", of="rho1"),
        trained("rho1", "weigh-rho1"),
        trained("both", "weigh-both", heads=3),
        table(),
    )
    return RunRecord(
        name="weighted", version="1", git="", packages={}, device="cpu", started="2026-01-01T00:00:00+00:00",
        recipe={"title": "Weighted", "steps": {step.id: {} for step in chosen}}, steps=chosen,
    )  # fmt: skip


def panel(*steps: StepRecord) -> TokenWeightingPanel:
    found = read_run(weighted_run(*steps)).tokens
    assert found is not None
    return found


PAIRS = Metric(name="critic/pair_accuracy", value=0.75, n=8, k=6, low=0.41, high=0.93)


def test_a_plan_is_a_row_with_what_was_measured_of_it() -> None:
    valued = planned("valued", RHO1, scorer="critic")
    found = panel(
        planned("weigh", RHO1, NOISE, scorer="rho1", horizon=3),
        planned("mixed", RHO1, scorer="shuffled", of="rho1"),
        valued.model_copy(update={"metrics": (*valued.metrics, PAIRS)}),
    ).plans
    assert texts.plan_head(found)[5:] == ("Noise found", "Weight of noise", "Pairs told apart")
    assert found.rows == (
        ("weigh", "rho1", "3", "60.0 %", "60.0 %", "0.940", "0.050", "–"),
        ("mixed", "shuffled, of rho1", "1", "60.0 %", "60.0 %", "–", "–", "–"),
        ("valued", "critic", "1", "60.0 %", "60.0 %", "–", "–", "75.0 % [41.0, 93.0] (n = 8)"),
    )
    assert len(texts.plan_head(panel(planned("alone", UNIFORM, scorer="uniform")).plans)) == 5


def test_the_first_plan_of_each_kind_is_drawn_and_weights_that_are_all_the_same_are_not() -> None:
    assert [plan.id for plan in panel().kinds] == ["weigh-rho1", "weigh-shuffled"]
    assert [plan.scorer for plan in panel().kinds] == ["rho1", "shuffled of rho1"]
    assert panel().rows[0] == ("weigh-rho1", "1.000", "0.000 to 1.600", "1.700", "1.0 %", "0.050")
    other = planned("softer", RHO1, scorer="rho1", soft=2.0)
    assert [plan.id for plan in panel(planned("a", RHO1, scorer="rho1"), other).kinds] == ["a", "softer"]
    assert panel(planned("alone", UNIFORM, scorer="uniform")).kinds == ()


def test_a_spread_has_its_marks_at_their_weights() -> None:
    plan = panel().kinds[0]
    ticks = figures.weight_ticks([plan])
    assert ticks == (0.0, 0.5, 1.0, 1.5, 2.0)
    svg = ElementTree.fromstring(figures.spread(plan, ticks))
    space = "{http://www.w3.org/2000/svg}"
    (box,), (dot,) = svg.findall(f"{space}rect"), svg.findall(f"{space}circle")
    assert (box.get("x"), box.get("width"), dot.get("cx")) == ("0%", "80%", "2.5%")
    upright = {line.get("class"): line.get("x1") for line in svg.findall(f"{space}line")}
    assert upright == {"zero": "85%", "mark": "50%"}
    title = svg[0].text or ""
    assert all(f"{word} {value}" in title for word, value in (("75th percentile", "1.600"), ("noisy tokens", "0.050")))


def test_where_no_noise_is_known_none_is_drawn_or_explained() -> None:
    run = weighted_run(planned("weigh", RHO1, scorer="contrast"))
    assert "<circle" not in figures.spread(panel(*run.steps).kinds[0], (0.0, 1.0, 2.0))
    html = to_html(read_run(run))
    assert "mean of noisy tokens</span>" not in html
    assert "AUROC" not in html


def test_gates_tell_the_worst_of_all_steps_and_what_stopped_a_training() -> None:
    stopped = trained("late", "weigh-rho1", status="failed", notes=("Token weights have collapsed.",))
    none = trained("early", "weigh-rho1", status="failed", curves={}, notes=("Not a number.",))
    elsewhere = trained("other", "elsewhere")
    found = panel(planned("weigh-rho1", RHO1, scorer="rho1"), trained("a", "weigh-rho1"), stopped, none, elsewhere)
    assert found.gates == (
        ("a", "passed", "3", "55.0 %", "2.0 %", "0", "7"),
        ("late", "failed: Token weights have collapsed.", "3", "55.0 %", "2.0 %", "0", "7"),
        ("early", "failed: Not a number.", "0", "–", "–", "–", "–"),
    )
    assert [one.id for one in found.watched] == ["a", "late"]


def test_gates_are_described_as_they_are() -> None:
    assert f"below {100 * LEAST_SHARE:g} %" in texts.GATED
    assert f"Most above {EXTREME:g}" in texts.GATE_HEAD


def test_every_head_has_a_line_of_loss_and_weights_a_plot_each() -> None:
    alone, three = panel().watched
    titles = ["Effective share of the tokens", "Share with any weight", "95th percentile of weights", "Loss by head"]
    assert [plot.title for plot in alone.plots] == [plot.title for plot in three.plots] == titles
    assert [line.label for line in three.plots[-1].lines] == ["head 1", "head 2", "head 3"]
    assert [line.label for line in alone.plots[-1].lines] == [""]
    assert three.plots[-1].lines[2].points == ((1.0, 6.0), (100.0, 1.5), (200.0, 1.0))


def test_synergy_stands_two_by_two_with_the_gain_of_each_part() -> None:
    (one,) = panel().together
    assert (one.whole, one.parts, one.reference) == ("both", ("mtp", "rho1"), "uniform")
    exact, error = one.boards
    assert exact.head == ("", "without mtp", "with mtp")
    assert exact.cells == (
        ("without rho1", "uniform: 40.0 % [38.0, 42.0]", "mtp: 35.0 % [33.0, 37.0]"),
        ("with rho1", "rho1: 60.0 % [58.0, 62.0]", "both: 50.0 % [48.0, 52.0]"),
    )
    told = [(label, figure.text, figure.bounds) for label, figure in exact.gains]
    assert told[0] == ("mtp less uniform", "−5.0 pp", "[−8.0, −2.0]")
    assert told[-1] == ("synergy", "−5.0 pp", "[−9.0, −1.0]")
    assert error.title == "Error on digits of results, lab/arithmetic/digits (↓ lower is better)"
    assert (error.gains[0][1].text, error.gains[-1][1].text) == ("+0.020", "0.000")


def test_a_gain_lies_beside_the_line_of_none_with_its_interval() -> None:
    exact = panel().together[0].boards[0]
    ticks = figures.gain_ticks(exact)
    assert ticks[0] <= -0.09
    assert ticks[-1] >= 0.23
    label, figure = exact.gains[-1]
    svg = figures.gain(label, figure, ticks)
    places = [float(x) for x in re.findall(r'class="whisker over" x1="([\d.]+)%"', svg)]
    zero, dot = (float(re.findall(rf'class="{kind}" \w+="([\d.]+)%"', svg)[0]) for kind in ("zero", "arm"))
    assert min(places) < dot < max(places) < zero


def test_a_synergy_of_other_than_two_parts_is_a_list() -> None:
    board = panel(planned("a", RHO1, scorer="rho1"), table(("both", "rho1"))).together[0].boards[0]
    assert board.head == ("Row", "Value")
    assert [row[0] for row in board.cells] == ["uniform", "rho1", "both"]
    assert board.cells[1] == ("rho1", "60.0 % [58.0, 62.0]")


def test_a_missing_synergy_says_why() -> None:
    whole = table()
    bare = tuple(
        m.model_copy(update={"value": None, "low": None, "high": None, "reason": "no valid row"})
        if m.name.endswith("/synergy")
        else m
        for m in whole.metrics
    )
    run = weighted_run(planned("a", RHO1, scorer="rho1"), whole.model_copy(update={"metrics": bare}))
    assert "– no valid row" in to_html(read_run(run))
    assert "| synergy | – (no valid row) |" in to_markdown(read_run(run))


def test_all_three_renderings_have_the_figures() -> None:
    view = read_run(weighted_run())
    markdown = to_markdown(view).replace("\\", "")
    assert "| weigh-rho1 | 1.000 | 0.000 to 1.600 | 1.700 | 1.0 % | 0.050 |" in markdown
    assert "| synergy | −5.0 pp [−9.0, −1.0] |" in markdown
    assert "| both | passed | 3 | 55.0 % | 2.0 % | 0 | 7 |" in markdown
    html = " ".join(re.sub(r"<[^>]+>", " ", to_html(view)).replace("\xa0", " ").split())
    for words in ("AUROC 0.940", "Synergy of mtp and rho1", "uniform: 40.0 % [38.0, 42.0]", "Weights in training both"):
        assert words in html, words
    out = io.StringIO()
    print_view(view, Console(file=out, width=80))
    told = "weigh-rho1: rho1, tokens with weight 60.0 %, effective share 60.0 %, noise found 0.940"
    assert told in " ".join(out.getvalue().split())
    assert "contrast: synergy −5.0 pp [−9.0, −1.0], Right answers, lab/arithmetic" in " ".join(out.getvalue().split())


def test_hostile_names_are_shown_as_text() -> None:
    run = weighted_run(
        planned("weigh", RHO1, NOISE, scorer=HOSTILE),
        trained("stopped", "weigh", heads=2, status="failed", notes=(HOSTILE,)),
        table(rename={"both": HOSTILE, "mtp": f"{HOSTILE} 2"}, synergy=("both", "mtp", "rho1")),
    )
    assert "<script" not in to_html(read_run(run))
    assert "<script" not in to_markdown(read_run(run))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_weights_without_overflow_at_both_widths(dark: bool) -> None:
    long = weighted_run(
        *(planned(f"{'p' * 50}-{i}", RHO1, NOISE, scorer="rho1", keep=i) for i in range(9)),
        *(planned(f"{HOSTILE}{i}", RHO1, NOISE, scorer=HOSTILE) for i in range(9)),
        *(trained(f"{'t' * 50}-{i}", f"{'p' * 50}-0", heads=5) for i in range(5)),
        table(rename={"both": "b" * 60, "mtp": "a, b=c " * 9}),
    )
    pages = [to_html(read_run(run)) for run in (weighted_run(), long)]
    for frame in measure(pages, (390, 1440), dark=dark):
        assert frame["cut"] == []
        assert frame["scroll"] <= frame["client"]
        assert frame["outside"] == []
        assert frame["requests"] == 0
        assert frame["smallest"] >= 12


def test_a_run_without_a_finished_plan_has_no_such_section() -> None:
    failed = planned("weigh", {}, scorer="rho1")
    for run in (sample_run(), weighted_run(failed.model_copy(update={"status": "failed"}))):
        view = read_run(run)
        assert view.tokens is None
        assert 'id="weights"' not in to_html(view)
        assert "## Token weights" not in to_markdown(view)
    alone = RunRecord.model_validate(weighted_run().model_dump() | {"steps": (table().model_dump(),)})
    assert read_run(alone).tokens is None, "a synergy of something else"
    assert "Synergy of" not in to_html(read_run(alone))
