"""The panel of merging: rules by safety and utility, taxes, dials, retention, spectra, in all three renderings."""

from __future__ import annotations

import io
import random
import re
from itertools import pairwise
from statistics import median
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.close import assert_close
from tests.reports import merging_run as made
from tests.reports.browser import measure
from tests.reports.merging_run import MERGED, ROWS, SEEDS, WEIGHTS, merging_run, record
from tests.reports.sample_run import sample_run

from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.reports import merging_figures
from holdfast.reports.merging_board import UNCLEAR, Board
from holdfast.reports.merging_panel import MergingPanel
from holdfast.reports.merging_rules import grouped
from holdfast.reports.page import to_html
from holdfast.reports.reading import read_run
from holdfast.reports.table_figures import WIDTHS, overlap, place, scatter
from holdfast.reports.table_panel import Point
from holdfast.reports.text import print_view, to_markdown
from holdfast.reports.view import Figure

HOSTILE = '<script>x</script>"|`' + "x" * 60


def panel(run: RunRecord | None = None) -> MergingPanel:
    found = read_run(run or merging_run()).merging
    assert found is not None
    return found


def board(run: RunRecord | None = None) -> Board:
    return panel(run).boards[0]


def without(run: RunRecord, *kinds: str) -> RunRecord:
    return run.model_copy(update={"steps": tuple(step for step in run.steps if step.do not in kinds)})


def changed(run: RunRecord, do: str, **config: object) -> RunRecord:
    steps = [s.model_copy(update={"config": s.config | config}) if s.do == do else s for s in run.steps]
    return run.model_copy(update={"steps": tuple(steps)})


def point(label: str, run: RunRecord | None = None) -> Point:
    return next(p for p in board(run).axes.points if p.label == label)


def test_safety_and_utility_are_means_of_their_tasks_with_1_at_best() -> None:
    sst = point("sst-block")
    assert board().tasks == (("lab/harmful", "lab/benign"), ("lab/arithmetic",))
    assert_close((sst.y.value, sst.x.value), (1 - (0.02 + 0.02) / 2, 0.72), "float64")


def test_limits_of_a_mean_are_the_means_of_the_limits_turned_with_it() -> None:
    average = point("average")
    assert average.y.low is not None
    assert average.y.high is not None
    harmful, benign = ((1 - 0.62, 1 - 0.58), (1 - 0.02, 1 + 0.02))
    assert_close(average.y.low, (harmful[0] + benign[0]) / 2, "float64")
    assert_close(average.y.high, (harmful[1] + benign[1]) / 2, "float64")
    assert_close((average.x.low, average.x.high), (0.60, 0.64), "float64")


def test_without_a_chosen_dial_the_suites_say_which_tasks_are_safety() -> None:
    assert board(changed(merging_run(), "merge", select=None)).tasks == (
        ("lab/harmful", "lab/benign"),
        ("lab/arithmetic",),
    )


def test_only_tables_with_a_merge_behind_a_row_have_a_plane() -> None:
    run = without(merging_run(), "merge")
    assert read_run(run).tables
    assert panel(run).boards == ()
    assert len(panel().boards) == 1


def test_the_pareto_set_is_what_no_other_row_beats() -> None:
    values = {p.label: (p.y.value or 0.0, p.x.value or 0.0) for p in board().axes.points}
    unbeaten = {
        label
        for label, own in values.items()
        if not any(all(o >= s for o, s in zip(other, own, strict=True)) and other != own for other in values.values())
    }
    assert set(board().front) == unbeaten == {"sst", "sst-block", "safety"}
    assert board().front == ("sst-block", "sst", "safety"), "by rising safety"


def test_the_plane_rings_the_pareto_set_and_joins_it_by_stairs() -> None:
    svg = scatter(board().axes, board().front)
    root = ElementTree.fromstring(svg)
    rings = [part for part in root.iter() if part.get("class") == "ring"]
    stairs = [part for part in root.iter() if part.get("class") == "stair"]
    assert (len(rings), len(stairs)) == (3, 6)
    assert "Pareto set: " + ", ".join(board().front) in svg
    ends = [(part.get("x2"), part.get("y2")) for part in stairs]
    starts = [(part.get("x1"), part.get("y1")) for part in stairs]
    assert ends[:-1] == starts[1:], "one unbroken path"


def test_labels_keep_off_error_bars_where_there_is_room() -> None:
    figure = Figure(0.5, None, None, "", "", 1, 0, True, "")
    places = [(0.3, 100.0), (0.6, 250.0)]
    bars = [(x - 0.2, y, x + 0.2, y) for x, y in places]
    points = [Point("a rule", "arm", figure, figure)] * 2
    for label, (x, y) in zip(place(points, places, 400, bars), places, strict=True):
        for width in WIDTHS:
            runs = [(left * width, top, right * width, bottom) for left, top, right, bottom in bars]
            box = label.box(x * width, y)
            assert not any(overlap(box, (a, b - 1, c, d + 1)) for a, b, c, d in runs)
    assert {label.down for label in place(points, places, 400)} == {0}


def test_a_tax_is_relative_utility_lost_per_relative_safety_gained() -> None:
    taxes = {tax.label: tax for tax in board().taxes}
    average = taxes["average"]
    assert average.value == pytest.approx(((0.70 - 0.62) / 0.70) / ((0.70 - 0.50) / 0.50))
    assert (average.lost, average.gained) == ("utility −8.0 pp [−11.0, −5.0]", "safety +20.0 pp [17.0, 23.0]")
    assert average.text == "0.29"
    block = taxes["sst-block"]
    assert block.value is not None
    assert block.value < 0, "both rose"
    assert "utility" not in taxes
    assert "before" not in taxes


def test_a_tax_is_missing_with_its_reason_where_safety_did_not_clearly_rise() -> None:
    taxes = {tax.label: tax for tax in board().taxes}
    assert (taxes["tsv"].value, taxes["tsv"].reason) == (None, "undefined: safety was not gained")
    small = {**ROWS, "ties": (0.97, 0.01, 0.66)}
    run = merging_run()
    steps = [made.tabled(small) if step.do == "table" else step for step in run.steps]
    ties = next(t for t in board(run.model_copy(update={"steps": tuple(steps)})).taxes if t.label == "ties")
    assert (ties.value, ties.reason) == (None, UNCLEAR)


def test_a_row_without_a_figure_has_no_place_and_its_reason() -> None:
    run = merging_run()
    table = next(step for step in run.steps if step.do == "table")
    gone = [
        m.model_copy(update={"value": None, "low": None, "high": None, "reason": "no valid row of 100"})
        if m.group == "row=ties" and m.name == "table/lab/harmful/attack_success_rate"
        else m
        for m in table.metrics
    ]
    steps = [step if step is not table else table.model_copy(update={"metrics": tuple(gone)}) for step in run.steps]
    found = board(run.model_copy(update={"steps": tuple(steps)}))
    assert "ties" not in {p.label for p in found.axes.points}
    assert found.left_out == ("ties has no place: lab/harmful: no valid row of 100.",)


def test_bars_share_an_axis_that_holds_0_and_every_tax() -> None:
    taxes = board().taxes
    ticks = merging_figures.tax_ticks(taxes)
    assert ticks[0] <= min(0.0, *(tax.value or 0.0 for tax in taxes))
    for tax in taxes:
        if tax.value is None:
            continue
        root = ElementTree.fromstring(merging_figures.tax_bar(tax, ticks))
        bar = next(part for part in root.iter() if part.get("class") == "tax")
        zero = next(part for part in root.iter() if part.get("class") == "zero")
        start, width = (float(str(bar.get(key))[:-1]) for key in ("x", "width"))
        at = float(str(zero.get("x1"))[:-1])
        assert width == pytest.approx(100 * abs(tax.value) / (ticks[-1] - ticks[0]), rel=1e-3, abs=1e-9)
        assert (start if tax.value >= 0 else start + width) == pytest.approx(at, abs=0.05)


def test_steps_of_one_rule_stand_together_as_tables_and_fronts_name_them() -> None:
    rules = grouped(merging_run().steps)
    assert [rule.label for rule in rules] == list(MERGED)
    assert all([step.seed for step in rule.steps] == list(SEEDS) for rule in rules)


def test_a_step_that_nothing_names_is_called_by_its_id_without_its_own_seed() -> None:
    steps = [made.merged("knots", seed) for seed in SEEDS]
    rank = made.merged("mend-rank", 8).model_copy(update={"seed": 0})
    failed = made.merged("lost", 0).model_copy(update={"status": "failed"})
    assert [(rule.label, len(rule.steps)) for rule in grouped([*steps, rank, failed])] == [
        ("knots", 3),
        ("mend-rank-8", 1),
    ]


def test_each_rule_of_a_front_has_its_curve_its_area_and_rings_where_its_dial_was_set() -> None:
    front = panel().fronts[0]
    plots = {plot.title: plot for plot in front.plots}
    assert list(plots) == list(MERGED)
    average = plots["average"]
    own = average.traces[-1]
    assert_close(own.points, [(0.7 - 0.1 * w, 0.5 + 0.1 * w) for w in range(3)], "float64")
    assert len(average.traces) == len(MERGED), "all other rules stand behind it"
    assert set(average.rings) == {own.points[1], own.points[2]}, "seeds differ"
    assert plots["ties"].rings == (plots["ties"].traces[-1].points[1],)
    assert average.under == "area 0.100 [0.090, 0.300]"
    assert front.rows[0][:2] == ("average", "0.3, 0.3, 1")
    assert front.rows[1][3].startswith("+0.010 [")


def test_a_dial_has_the_mean_over_seeds_and_every_seed() -> None:
    dial = panel().dials[0]
    plot = next(p for p in dial.plots if p.title == "average")
    assert plot.stops == tuple(f"{w:g}" for w in WEIGHTS)
    mean = next(t for t in plot.traces if t.kind == "line1")
    assert [y for _, y in mean.points] == pytest.approx([0.51, 0.61, 0.71])
    assert [t.kind for t in plot.traces].count("thin1") == len(SEEDS)
    assert plot.uprights == (1.0, 2.0)
    assert dial.rows[0][:3] == ("average", "0.3, 0.3, 1", "51.0 % at 0.1, 61.0 % at 0.3, 71.0 % at 1")


def test_settings_that_were_chosen_with_the_weight_stand_beside_it() -> None:
    step = made.merged("sst", 0)
    step = step.model_copy(update={"metrics": (*step.metrics, Metric(name="merging/k", value=8.0, n=6))})
    assert panel(record([step])).dials[0].rows[0][:2] == ("sst", "0.3 (k 8)")


def test_dials_of_repair_stand_alone_and_are_not_folded_without_a_front() -> None:
    step = made.merged("scale", 0).model_copy(
        update={"do": "repair", "metrics": (Metric(name="repair/dial", value=1.0, n=3),)}
    )
    run = record([step])
    assert [dial.title for dial in panel(run).dials] == ["Over the dial of repair"]
    assert panel(run).dials[0].plots[0].uprights == (2.0,)
    assert "<summary>Over the dial" not in to_html(read_run(run))
    assert "<summary>Over the dial of merging" in to_html(read_run(merging_run()))


def test_retention_is_drawn_by_rule_with_what_is_missing_told() -> None:
    kept = panel().retention[0]
    assert kept.counts == (2.0, 8.0, 20.0)
    assert [rule.label for rule in kept.rules] == list(MERGED)
    assert kept.rows[0][1] == "100.0 % [98.0, 102.0]"
    assert kept.rows[0][3] == "– (the expert scores 0 on lab/passages)"
    root = ElementTree.fromstring(merging_figures.retention(kept))
    names = [part.text for part in root.iter() if part.get("class") == "name"]
    assert sorted(map(str, names)) == sorted(MERGED)
    lines = [part for part in root.iter() if part.tag.endswith("polyline")]
    assert [len(str(line.get("points")).split()) for line in lines] == [2, *[3] * (len(MERGED) - 1)]


@pytest.mark.parametrize("rules", [1, 3, 6, 7])
def test_intervals_of_retention_are_drawn_where_rules_are_few_enough(rules: int) -> None:
    run = record([made.retained([f"r{i}" for i in range(rules)])])
    svg = merging_figures.retention(panel(run).retention[0])
    measured = 3 * rules - (rules > 1)
    assert svg.count("interval") == (measured if rules <= 6 else 0)
    said = "Bars are 95 % intervals" if rules <= 6 else "Intervals are in the table"
    assert said in to_html(read_run(run))


@pytest.mark.parametrize("seed", range(8))
def test_names_at_the_side_are_apart_and_inside(seed: int) -> None:
    rng = random.Random(seed)
    wanted = [rng.uniform(0, 300) for _ in range(15)]
    found = merging_figures.spaced(wanted, 300)
    assert all(b - a >= merging_figures.LINE - 1e-9 for a, b in pairwise(sorted(found)))
    assert all(0 <= y <= 300 for y in found)
    assert sorted(range(15), key=lambda i: found[i]) == sorted(range(15), key=lambda i: wanted[i])


def test_one_count_of_experts_alone_is_a_chart_too() -> None:
    run = record([made.retained(["average"], counts=(4,))])
    ElementTree.fromstring(merging_figures.retention(panel(run).retention[0]))


def test_rules_with_the_same_spectra_share_their_charts() -> None:
    spectra = panel().spectra
    assert [spectrum.title for spectrum, _ in spectra] == ["Spectrum: sst, sst-block"]
    assert [plot.title for plot in spectra[0][0].plots] == ["seed 0", "seed 1", "seed 2"]


def test_a_spectrum_has_every_layer_thin_and_their_median_without_what_is_rounding() -> None:
    plot = panel().spectra[0][0].plots[0]
    layers, middle = plot.traces[:-1], plot.traces[-1]
    assert [t.kind for t in layers] == ["faint"] * len(made.LAYERS)
    assert middle.kind == "line1"
    last = made.RANKS - made.ZEROS
    for trace in plot.traces:
        assert (trace.points[0][0], trace.points[-1][0]) == (1, last)
        assert min(y for _, y in trace.points) > 0
    at = {rank: [dict(layer.points)[rank] for layer in layers] for rank, _ in middle.points}
    assert dict(middle.points) == {rank: median(values) for rank, values in at.items()}


def test_the_overlap_of_halves_stands_beside_chance_of_as_many_directions() -> None:
    chart = panel().spectra[0][1]
    assert chart is not None
    assert [plot.title for plot in chart.plots] == ["q_proj", "down_proj"]
    overlap_line, chance = chart.plots[0].lines
    assert_close(overlap_line.points, [(0.0, 0.42), (1.0, 0.52), (2.0, 0.62)], "float64")
    assert_close((overlap_line.low[0], overlap_line.high[0]), ((0.0, 0.4), (0.0, 0.44)), "float64")
    assert {y for _, y in chance.points} == {made.K / made.RANKS}
    assert "Mean overlap 0.50 over 6 layers; 0.12 by chance." in chart.note


def charts(html: str) -> list[str]:
    body = html[html.index('<section aria-labelledby="merging">') :]
    return re.findall(r"<svg xmlns.*?</svg>(?=</div>|\n)", body[: body.index("</section>")], flags=re.S)


def test_every_chart_is_valid_xml_with_its_numbers_in_a_title() -> None:
    run = merging_run({"average": HOSTILE})
    found = charts(to_html(read_run(run)))
    assert len(found) > 2 * len(MERGED)
    for svg in found:
        assert next(iter(ElementTree.fromstring(svg))).tag.endswith("title")


def test_all_three_renderings_have_the_figures() -> None:
    view = read_run(merging_run())
    markdown = to_markdown(view).replace("\\", "")
    assert "| average | 70.0 % [68.0, 72.0] | 62.0 % [60.0, 64.0] | no |" in markdown
    assert "| average | 0.29 | utility −8.0 pp [−11.0, −5.0], safety +20.0 pp [17.0, 23.0] |" in markdown
    assert "| ties | 98.0 % [96.0, 100.0]" not in markdown
    html = " ".join(re.sub(r"<[^>]+>", " ", to_html(view)).replace("\xa0", " ").split())
    assert "average 70.0 % [68.0, 72.0] 62.0 % [60.0, 64.0] no" in html
    assert "utility −8.0 pp [−11.0, −5.0] safety +20.0 pp [17.0, 23.0]" in html
    out = io.StringIO()
    print_view(view, Console(file=out, width=80))
    text = " ".join(out.getvalue().split())
    assert "Safety tax of average: 0.29" in text
    assert f"no other row beats {', '.join(view.merging.boards[0].front)} in" in text  # type: ignore[union-attr]
    assert max(len(line) for line in out.getvalue().splitlines()) <= 80


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_merging_without_overflow_at_both_widths(dark: bool) -> None:
    pages = [to_html(read_run(merging_run(rename))) for rename in ({}, {"average": HOSTILE, "sst": "a, b=c " * 9})]
    for frame in measure(pages, (390, 1440), dark=dark):
        assert frame["cut"] == []
        assert frame["scroll"] <= frame["client"]
        assert frame["outside"] == []
        assert frame["requests"] == 0
        assert frame["smallest"] >= 12


def test_hostile_labels_are_shown_as_text() -> None:
    run = merging_run({"average": HOSTILE})
    assert "<script" not in to_html(read_run(run))
    rows = [line for line in to_markdown(read_run(run)).splitlines() if line.startswith("|") and "script" in line]
    assert rows
    assert all("&lt;script" in line for line in rows)


def test_a_run_without_merging_has_no_such_section() -> None:
    assert read_run(sample_run()).merging is None
    assert 'id="merging"' not in to_html(read_run(sample_run()))
    failed = StepRecord(id="sst-0", do="merge", config={}, status="failed", notes=("disk full",))
    assert read_run(record([failed])).merging is None
