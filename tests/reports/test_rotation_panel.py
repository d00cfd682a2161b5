from __future__ import annotations

import io
import re
from statistics import median
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.reports.browser import measure
from tests.reports.rotation_run import KINDS, basis, held, long_run, mask, record, rotated_run
from tests.reports.sample_run import sample_run
from tests.reports.test_page import HOSTILE, WIDTHS, contrast, page, parsed

from holdfast.core.results import Metric, RunRecord
from holdfast.reports.figures import decades
from holdfast.reports.names import number
from holdfast.reports.page import TEMPLATES
from holdfast.reports.reading import read_run
from holdfast.reports.rotation_figures import names_of, small_charts
from holdfast.reports.rotation_panel import SHOWN, RotationPanel, rotation_panel
from holdfast.reports.text import print_view, to_markdown


def panel(run: RunRecord) -> RotationPanel:
    found = rotation_panel(run.steps)
    assert found is not None
    return found


def hostile_run() -> RunRecord:
    name = HOSTILE + "x" * 300
    return record((basis(2, name), mask(name, 2), held(name, name, 2)))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_long_and_hostile_runs_without_overflow_at_both_widths(dark: bool) -> None:
    pages = [page(run) for run in (rotated_run(), long_run(), hostile_run())]
    for width, frame in zip(WIDTHS * len(pages), measure(pages, WIDTHS, dark=dark), strict=True):
        assert frame["client"] == width
        assert frame["scroll"] <= width, frame
        assert frame["outside"] == []
        assert frame["requests"] == 0


def test_the_section_is_closed_linked_and_escaped() -> None:
    for html in (page(rotated_run()), page(long_run()), page(hostile_run())):
        tags = parsed(html).seen
        targets = [str(attributes["id"]) for _, attributes in tags if "id" in attributes]
        assert len(targets) == len(set(targets))
        assert "rotation" in targets
        assert not {"script", "img"} & {tag for tag, _ in tags}
        assert not [name for _, attributes in tags for name in attributes if name == "style"]


def test_a_run_without_rotation_has_no_section() -> None:
    assert rotation_panel(sample_run().steps) is None
    assert 'id="rotation"' not in page(sample_run())
    assert "## Rotation" not in to_markdown(read_run(sample_run()))


def test_a_certificate_is_told_with_what_was_frozen_the_leak_and_how_to_check_it() -> None:
    (card,) = panel(rotated_run()).cards
    assert card.holds
    assert card.sentence.startswith("Frozen: 25.0 % of the input directions of 28 layers.")
    assert "Largest leak 1.5e−08." in card.sentence
    out = io.StringIO()
    print_view(read_run(rotated_run()), Console(file=out, width=80))
    for text in (page(rotated_run()), to_markdown(read_run(rotated_run())), out.getvalue()):
        assert "certificate holds" in text
        assert "1.5e−08" in text
        assert "holdfast verify certificate RUN" in text


def test_a_held_step_without_a_certificate_or_with_a_broken_one_never_looks_certified() -> None:
    good = held("tuned", "mask", 2)
    failed = good.model_copy(update={"status": "failed", "verdicts": (), "metrics": ()})
    broken = good.model_copy(
        update={"verdicts": (good.verdicts[0].model_copy(update={"holds": False, "reason": "moved by 3"}),)}
    )
    for step, holds, said in ((failed, None, "The step failed."), (broken, False, "moved by 3.")):
        run = record((mask("mask", 2), step))
        (card,) = panel(run).cards
        assert card.holds is holds
        assert said in card.sentence
        assert "certificate holds" not in page(run)


def test_a_control_that_freezes_nothing_says_so_and_draws_no_frozen_chart() -> None:
    run = record((mask("mask", 2, choose="nothing"), held("tuned", "mask", 2, frozen=0)))
    found = panel(run)
    assert found.masks == (("mask", "Freezes nothing, as a control."),)
    assert found.frozen == ()
    assert "nothing, as a control" in found.cards[0].sentence


def test_stability_stands_beside_what_chance_would_give() -> None:
    ((_, sentence),) = panel(rotated_run()).masks
    assert "overlap by 0.912" in sentence
    assert "independent masks of this size would overlap by 0.143" in sentence


def test_the_spectrum_is_the_median_over_blocks_between_the_lowest_and_the_highest() -> None:
    run = rotated_run(blocks=5)
    (chart,) = panel(run).spectra
    assert [plot.title for plot in chart.plots] == ["attention input", "attention output", "mlp input", "mlp output"]
    assert chart.marks == (0.25,)
    (line,) = chart.plots[2].lines
    for position, (x, y) in enumerate(line.points):
        values = [run.steps[0].curves[f"spectrum/layers.{block}.mlp_input"][position] for block in range(5)]
        assert {at for at, _ in values} == {x}
        heights = [value for _, value in values]
        assert (line.low[position][1], y, line.high[position][1]) == (min(heights), median(heights), max(heights))


def test_inputs_of_another_width_are_never_averaged_with_the_others() -> None:
    step = basis(3)
    odd = {**step.curves, "spectrum/layers.2.mlp_input": [(0.5, 0.8), (1.0, 1.0)]}
    (chart,) = panel(record((step.model_copy(update={"curves": odd}),))).spectra
    assert [len(plot.lines[0].points) for plot in chart.plots if plot.title == "mlp input"] == [30, 2]


def test_drift_is_drawn_by_kind_over_depth_with_a_line_a_held_step() -> None:
    run = record((mask("a", 12), mask("b", 12), held("one", "a", 12), held("two", "b", 12, drift=0.01)))
    chart = panel(run).drift
    assert chart is not None
    assert {plot.title for plot in chart.plots} == set(KINDS)
    assert [plot.title for plot in chart.plots][:3] == ["q_proj", "k_proj", "v_proj"]
    assert names_of(chart) == ["one", "two"]
    for plot in chart.plots:
        for line, step in zip(plot.lines, run.steps[2:], strict=True):
            value = {m.group: m.value for m in step.metrics if m.name == "rotation/drift"}
            assert line.points == tuple((float(b), value[f"layer=layers.{b}.{plot.title}"]) for b in range(12))


def test_on_the_scale_of_powers_of_ten_equal_ratios_are_equal_distances() -> None:
    run = record((mask("a", 3), held("one", "a", 3)))
    chart = panel(run).drift
    assert chart is not None
    steps = [1e-4, 1e-3, 1e-2]
    line = chart.plots[0].lines[0]
    plot = type(chart.plots[0])("q", (type(line)("one", tuple(enumerate(steps))),), "told")
    (drawn,) = small_charts(type(chart)("t", "n", (plot,), "depth", "log"))
    heights = [float(y) for y in re.findall(r'<circle class="line1" cx="[^"]+" cy="([^"]+)"', drawn)]
    assert heights == [120.0, 60.0, 0.0]
    assert decades([1e-4, 0.0, 1e-2]) == (-4.0, -2.0)


def test_a_drift_of_zero_is_left_off_the_scale_and_kept_in_the_table() -> None:
    step = held("still", "a", 2, drift=0.0)
    assert panel(record((mask("a", 2), step))).drift is None
    both = panel(record((mask("a", 2), mask("b", 2), step, held("moved", "b", 2)))).drift
    assert both is not None
    assert all("<title>" in drawn for drawn in small_charts(both))
    assert {row[1] for row in both.rows} == {"0 %"}


def test_many_held_steps_show_the_first_of_each_mask_and_list_all() -> None:
    run = long_run(masks=10, seeds=5, blocks=4)
    found = panel(run)
    assert [card.id for card in found.cards] == [f"a-long-name-of-held-{i}-0" for i in range(SHOWN)]
    assert len(found.held) == 50
    assert found.counted.startswith("Drawn: 6 of 50 held steps, the first of each mask for 6 of 10 masks.")
    html = page(run)
    assert html.count('class="card held"') == SHOWN
    listed = html.partition("All 50 held steps")[2].partition("</details>")[0]
    assert listed.count("certificate holds") == 50
    out = io.StringIO()
    print_view(read_run(run), Console(file=out, width=80))
    assert "50 of 50 held steps have a certificate that holds" in out.getvalue()
    assert len(out.getvalue().splitlines()) < 40


def test_a_failed_first_seed_gives_its_place_to_the_next() -> None:
    failed = held("s0", "a", 2).model_copy(update={"status": "failed", "verdicts": (), "metrics": ()})
    assert [card.id for card in panel(record((mask("a", 2), failed, held("s1", "a", 2)))).cards] == ["s1"]


def test_every_chart_is_valid_xml_with_its_numbers_in_words() -> None:
    found = panel(long_run(masks=2, seeds=1))
    charts = [*found.spectra, *found.frozen, *([found.drift] if found.drift else [])]
    assert len(charts) == 4
    for chart in charts:
        for plot, drawn in zip(chart.plots, small_charts(chart), strict=True):
            title = ElementTree.fromstring(drawn).find("{http://www.w3.org/2000/svg}title")
            assert title is not None
            assert title.text == plot.told
            assert "%" in plot.told


def test_a_mask_of_elements_shows_no_energy_and_marks_no_directions() -> None:
    scored = rotated_run().steps[1]
    found = panel(record((basis(2), scored, mask("mask", 2, unit="element"))))
    assert found.spectra[0].marks == ()
    assert [len(plot.lines) for plot in found.frozen[0].plots] == [1] * len(KINDS)
    assert {row[3] for row in found.frozen[0].rows} == {"–"}


def test_one_block_and_names_without_a_block_are_drawn_too() -> None:
    lone = Metric(name="rotation/drift", value=0.01, n=4, k=1, group="layer=lm_head")
    step = held("tuned", "mask", 1)
    run = record((basis(1), mask("mask", 1), step.model_copy(update={"metrics": (*step.metrics, lone)})))
    parsed(page(run))
    drift = panel(run).drift
    assert drift is not None
    assert drift.plots[-1].title == "lm_head"


def test_a_tiny_leak_is_never_printed_as_zero() -> None:
    assert number(1.5e-8, rate=False) == "1.5e−08"
    assert number(0.0, rate=False) == "0.000"
    leaks = [full.figure.text for full in read_run(rotated_run()).full if full.name == "rotation/leak"]
    assert set(leaks) == {"1.5e−08"}


def test_lines_have_contrast_in_light_and_dark_and_differ_without_colour() -> None:
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    for scheme in schemes:
        for position in range(2, SHOWN + 1):
            assert contrast(scheme[f"line{position}"], scheme["bg"]) >= 3
    dashes = re.findall(r"\.line\d \{ --stroke: [^;]+;(?: --dash: ([^;]+);)? \}", style)
    assert len(dashes) == len(set(dashes)) == SHOWN


def test_a_control_is_not_taken_for_the_mask_it_is_as_large_as() -> None:
    real = held("tuned", "mask", 2)
    config = {**real.config, "baseline": {"name": "random_mask"}}
    drawn = real.model_copy(update={"id": "drawn", "config": config})
    found = panel(record((mask("mask", 2), real, drawn)))
    assert [card.mask for card in found.cards] == ["mask", "mask, control random mask"]
