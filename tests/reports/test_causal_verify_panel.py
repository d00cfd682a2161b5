"""The panel of a verification: claims, graphs, power, bounds and representations, in all three renderings."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.reports.browser import measure
from tests.reports.sample_run import sample_run
from tests.reports.verify_run import LAYERS, verify_run

from holdfast.core.results import RunRecord, StepRecord
from holdfast.reports import causal_verify_figures as figures
from holdfast.reports.causal_verify_panel import Link, Verified
from holdfast.reports.page import to_html
from holdfast.reports.reading import read_run
from holdfast.reports.text import print_view, to_markdown

HOSTILE = '<script>x</script>"|`' + "x" * 60


def panel(run: RunRecord | None = None) -> Verified:
    (found,) = read_run(run or verify_run()).verified
    return found


def test_claims_are_counted_by_what_they_say() -> None:
    assert panel().counted == "2 of 4 claims hold; 1 fail; 1 abstain."
    assert [claim.says for claim in panel().claims] == ["holds", "fails", "abstains", "holds"]


def test_each_graph_has_its_own_match_and_edges_found_expected_or_both() -> None:
    after, before = panel().graphs
    assert (after.match, before.match) == ("0.33", "0.75")
    kinds = {f"{link.source}{link.target}": figures.kind_of(link) for link in after.links}
    assert kinds == {"RS": "both", "UO": "extra", "OR": "missing"}
    assert {figures.kind_of(link) for link in before.links} == {"both", "extra"}
    assert ("S -> O", "2 %", "no", "no") in after.rows, "an edge of resamples alone is in the table"
    assert before.told.startswith("Found: S -> R, U -> R, R -> O, U -> O. Expected: S -> R, U -> R, R -> O.")


def test_a_verification_without_an_undefended_model_has_one_graph_and_one_column() -> None:
    alone = panel(verify_run(beside=False))
    assert len(alone.graphs) == 1
    assert not alone.beside
    assert "| Figure | Value |" in to_markdown(read_run(verify_run(beside=False)))


def test_an_edge_that_is_missing_does_not_cover_one_that_was_found_between_the_same_two() -> None:
    found = Link("R", "O", directed=True, frequency=0.5, expected=False, found=True)
    wanted = Link("O", "R", directed=False, frequency=0.2, expected=True, found=False)
    graph = panel().graphs[0]
    svg = figures.graph(type(graph)(graph.title, (found, wanted), "0", "", ()))
    middles = re.findall(r"Q ([\d.]+) ([\d.]+)", svg)
    assert abs(float(middles[0][1]) - float(middles[1][1])) >= figures.ASIDE - 1


def test_a_directed_edge_has_a_head_at_its_target_and_an_undirected_none() -> None:
    svg = figures.graph(panel().graphs[1])
    heads = re.findall(r'class="head (?:both|extra)" points="([\d.]+),([\d.]+)', svg)
    assert len(heads) == 4
    x, y = map(float, heads[0])
    assert ((x - figures.PLACES["R"][0]) ** 2 + (y - figures.PLACES["R"][1]) ** 2) ** 0.5 == pytest.approx(
        figures.RADIUS + 2, abs=0.1
    )
    assert figures.graph(panel().graphs[0]).count('class="head') == 1


def test_every_chart_is_valid_xml_with_its_numbers_in_a_title() -> None:
    one = panel()
    for svg in (*map(figures.graph, one.graphs), *figures.power_curves(one.power)):
        assert next(iter(ElementTree.fromstring(svg))).tag.endswith("title")
    assert "4 % at 0 %, 81 % at 10 %, 100 % at 20 %" in figures.power_curve(one.power[0])
    assert "90 % at 4 sd" in figures.power_curve(one.power[1])


def test_bounds_say_where_they_are_vacuous() -> None:
    rows = {row[0]: row for row in panel().bounds}
    assert rows["PAC-Bayes, McAllester-Maurer"][1:] == ("1.51", "60", "vacuous")
    assert rows["PAC-Bayes, Seeger"][3] == "upper bound"
    assert rows["Attack success, role claim"][1] == "5.0 %"


def test_all_three_renderings_have_the_figures() -> None:
    view = read_run(verify_run())
    markdown = to_markdown(view).replace("\\", "")
    assert "| Attack success | 43.0 % [0.0, 50.0] | 3.0 % [0.0, 10.0] |" in markdown
    assert f"| Causal stability, {LAYERS[0]} | 0.800 [0.750, 0.850] | 0.400 [0.350, 0.450] |" in markdown
    assert "| eps_causal, outcomes, worst attack | 0.600 [≤ 0.650] | 0.200 [≤ 0.250] |" in markdown
    html = " ".join(re.sub(r"<[^>]+>", " ", to_html(view)).split())
    assert f"Causal stability, {LAYERS[0]} 0.800 [0.750, 0.850] 0.400 [0.350, 0.450]" in html
    out = io.StringIO()
    print_view(view, Console(file=out, width=80))
    assert f"fails: independence/{LAYERS[0]}: fails; effect 0.2" in " ".join(out.getvalue().split())


def test_hostile_texts_are_shown_as_text() -> None:
    run = verify_run(model=HOSTILE, notes=(HOSTILE,))
    assert "<script" not in to_html(read_run(run))
    assert "<script" not in to_markdown(read_run(run))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_verifications_without_overflow_at_both_widths(dark: bool) -> None:
    pages = [to_html(read_run(verify_run())), to_html(read_run(verify_run(model="long name " * 9, notes=("a " * 90,))))]
    for frame in measure(pages, (390, 1440), dark=dark):
        assert frame["cut"] == []
        assert frame["scroll"] <= frame["client"]
        assert frame["outside"] == []
        assert frame["requests"] == 0
        assert frame["smallest"] >= 12


def test_a_run_without_verification_has_no_such_section() -> None:
    assert read_run(sample_run()).verified == ()
    failed = StepRecord(id="v", do="verify", config={}, status="failed", notes=("no rows",))
    assert read_run(verify_run().model_copy(update={"steps": (failed,)})).verified == ()
    assert 'id="verify-1"' not in to_html(read_run(sample_run()))
