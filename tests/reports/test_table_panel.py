"""The panel of a table: every figure with its interval in all three renderings, and labels that stay apart."""

from __future__ import annotations

import io
import itertools
import random
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.reports.browser import measure
from tests.reports.sample_run import sample_run
from tests.reports.table_run import ARMS, table_run

from holdfast.core.results import RunRecord
from holdfast.recipes.summary import summarise
from holdfast.reports.page import to_html
from holdfast.reports.reading import read_run
from holdfast.reports.table_figures import WIDTHS, overlap, place, scatter
from holdfast.reports.table_panel import Axes, Point, TablePanel
from holdfast.reports.text import print_view, to_markdown
from holdfast.reports.view import Figure

HOSTILE = '<script>x</script>"|`'


def panel(run: RunRecord | None = None) -> TablePanel:
    return read_run(run or table_run()).tables[0]


def axes(run: RunRecord | None = None) -> Axes:
    found = panel(run).axes
    assert found is not None
    return found


def printed(run: RunRecord) -> str:
    out = io.StringIO()
    print_view(read_run(run), Console(file=out, width=80))
    return out.getvalue()


def test_a_row_is_an_arm_and_a_column_a_task() -> None:
    found = panel()
    assert [arm.label for arm in found.arms] == ["before", *ARMS]
    assert [arm.role for arm in found.arms[:3]] == ["before", "reference", "arm"]
    assert [arm.seeds for arm in found.arms[:2]] == [1, 3]
    assert [(column.task, column.arrow) for column in found.columns][2:4] == [
        ("lab/lookalike", "↓"),
        ("lab/arithmetic", "↑"),
    ]
    held = found.arms[2].cells[0]
    assert held.removed is not None
    assert held.difference is not None
    assert (held.figure.text, held.figure.bounds, held.figure.n) == ("7.0 %", "[4.0, 10.0]", 900)
    assert (held.difference.text, held.removed.text) == ("−79.0 pp", "95.2 %")
    assert held.per_seed == ("6.0", "7.0", "8.0")


def test_a_share_is_called_by_what_it_takes_away() -> None:
    assert [column.removed for column in panel().columns] == [
        *("harm removed", "harm removed"),
        *("gain removed", "gain removed"),
        "harm removed",
    ]


def test_all_three_renderings_have_value_interval_n_and_share() -> None:
    run = table_run()
    markdown = to_markdown(read_run(run)).replace("\\", "")
    assert "7.0 % [4.0, 10.0] (n = 900); harm removed 95.2 % [90.2, 100.2]" in markdown
    assert "| held | −79.0 pp [−83.0, −75.0] |" in markdown
    assert "| held | 6.0 · 7.0 · 8.0 |" in markdown
    html = " ".join(re.sub(r"<[^>]+>", " ", to_html(read_run(run))).split())
    assert "7.0 % [4.0, 10.0] n = 900 harm removed 95.2 % [90.2, 100.2]" in html
    assert "−79.0 pp [−83.0, −75.0] 6.0 · 7.0 · 8.0" in html
    for text in ("7.0 %", "[4.0, 10.0]", "95.2 %", "[90.2, 100.2]"):
        assert text in printed(run)


def test_a_row_that_changed_more_than_the_reference_is_said_to_go_further() -> None:
    """Beside plain, of 3 % to 86 % and 8 % to 2 %."""
    run = table_run({"plain": ARMS["plain"], "more": (0.91, 0.92, 0.01, 0.87, 0.71)})
    markdown = to_markdown(read_run(run)).replace("\\", "")
    assert "91.0 % [88.0, 94.0] (n = 900); rises further by 6.0 % [1.0, 11.0]" in markdown
    assert "(n = 900); falls further by 16.7 % [11.7, 21.7]" in markdown
    assert "harm removed −" not in markdown + printed(run)
    html = " ".join(re.sub(r"<[^>]+>", " ", to_html(read_run(run))).split())
    assert "falls further by 16.7 % [11.7, 21.7]" in html
    assert max(len(line) for line in printed(run).splitlines()) <= 80


def test_a_share_that_is_missing_has_its_reason_once() -> None:
    reason = "ROUGE-L, lab/passages: the reference's change from before is not clear from 0."
    assert panel().reasons == (reason,)
    assert to_markdown(read_run(table_run())).count(reason) == 1
    assert " ".join(printed(table_run()).split()).count(reason) == 1
    assert f"– {reason.replace(chr(39), '&#39;')}" in to_html(read_run(table_run()))


def test_the_terminal_tables_fit_eighty_columns() -> None:
    lines = printed(table_run()).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "What a hold keeps, beside its controls, continued" in printed(table_run())


def test_evaluations_that_a_table_shows_have_no_panels_of_their_own() -> None:
    view = read_run(table_run())
    assert view.panels == ()
    without = table_run().model_copy(update={"steps": table_run().steps[:-1]})
    assert len(read_run(without).panels) == 1 + 3 * len(ARMS)
    assert read_run(without).tables == ()


def test_the_axes_are_the_tasks_that_the_reference_changed_most() -> None:
    found = axes()
    assert (found.y.task, found.x.task) == ("lab/harmful", "lab/arithmetic")
    assert {point.label for point in found.points} == {"before", *ARMS}


def test_without_a_rate_of_utility_there_are_no_axes() -> None:
    run = table_run()
    steps = [
        step.model_copy(update={"metrics": tuple(m for m in step.metrics if "arithmetic" not in m.name)})
        for step in run.steps
    ]
    cut = run.model_copy(update={"steps": tuple(steps)})
    assert panel(cut).axes is None
    assert 'class="scatter"' not in to_html(read_run(cut))


def test_the_chart_is_valid_xml_and_says_every_point_with_both_intervals() -> None:
    root = ElementTree.fromstring(scatter(axes()))
    title = next(part.text or "" for part in root.iter() if part.tag.endswith("title"))
    assert title.startswith(
        "Right answers on lab/arithmetic across, attack success on lab/harmful upwards: before 35.0 %"
    )
    assert "held 83.0 % [80.0, 86.0], 7.0 % [4.0, 10.0]" in title
    names = [part for part in root.iter() if part.get("class") == "name"]
    assert len(names) == 1 + len(ARMS)
    marks = [part.get("class") for part in root.iter() if part.tag.endswith(("circle", "}rect"))]
    assert marks.count("before") == marks.count("reference") == 1
    assert marks[-2:] != ["arm", "arm"], "before and the reference are drawn over the arms"


def crowd(count: int, seed: int) -> list[tuple[float, float]]:
    rng = random.Random(seed)
    near = [(rng.uniform(0.8, 1.0), rng.uniform(0, 40)) for _ in range(count // 2)]
    return near + [(rng.random(), rng.uniform(0, 26 * count)) for _ in range(count - count // 2)]


@pytest.mark.parametrize("seed", range(8))
def test_labels_are_apart_at_every_width(seed: int) -> None:
    count = 16
    places = crowd(count, seed)
    figure = Figure(0.5, None, None, "", "", 1, 0, True, "")
    points = [Point(f"a row with a name {i}", "arm", figure, figure) for i in range(count)]
    labels = place(points, places, 26 * count)
    for width in WIDTHS:
        boxes = [label.box(x * width, y) for label, (x, y) in zip(labels, places, strict=True)]
        assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
        assert all(box[0] >= -30 and box[2] <= width + 40 for box in boxes)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_the_table_without_overflow_at_both_widths(dark: bool) -> None:
    long = {HOSTILE + "x" * 60 if label == "held" else label: values for label, values in ARMS.items()}
    pages = [to_html(read_run(table_run(arms))) for arms in (ARMS, long)]
    for frame in measure(pages, (390, 1440), dark=dark):
        assert frame["cut"] == []
        assert frame["scroll"] <= frame["client"]
        assert frame["outside"] == []
        assert frame["requests"] == 0


def test_hostile_labels_are_shown_as_text() -> None:
    run = table_run({"plain": ARMS["plain"], HOSTILE: ARMS["held"]})
    html = to_html(read_run(run))
    assert "<script" not in html
    ElementTree.fromstring(scatter(axes(run)))
    table = [line for line in to_markdown(read_run(run)).splitlines() if line.startswith("|")][:4]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_run_without_a_table_has_no_such_section() -> None:
    assert read_run(sample_run()).tables == ()
    assert "table-1" not in to_html(read_run(sample_run()))


def test_the_summary_says_what_the_best_row_removes() -> None:
    assert summarise(table_run().steps) == (
        "plain took attack success on lab/harmful from 3 % [0, 6] to 86 % [83, 89]; "
        f"the best of {len(ARMS) - 1} other rows, held, removes 95 % [90, 100] of that and has 7 % [4, 10]."
    )
