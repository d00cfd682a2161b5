"""The panel of attacks and hardening: pairs, charts, curves, reported figures, in all three renderings."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.reports.browser import measure
from tests.reports.causal_run import LAYERS, attack, causal_run, table, train
from tests.reports.sample_run import sample_run

from holdfast.core.results import RunRecord, StepRecord
from holdfast.reports import causal_figures, causal_text
from holdfast.reports.causal_panel import CausalPanel
from holdfast.reports.figures import dumbbell
from holdfast.reports.literature import REPORTED
from holdfast.reports.page import to_html
from holdfast.reports.reading import read_run
from holdfast.reports.text import print_view, to_markdown

HOSTILE = '<script>x</script>"|`' + "x" * 60


def panel(*steps: StepRecord) -> CausalPanel:
    found = read_run(causal_run(*steps)).hardened
    assert found is not None
    return found


def words(run: RunRecord) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", to_html(read_run(run))).split())


def test_an_attack_stands_beside_that_on_the_undefended_model_with_the_same_settings() -> None:
    after, filtered = panel().attacked
    assert (after.id, after.before, after.model) == ("after", "before", "hardened")
    assert (filtered.id, filtered.before) == ("filtered", "before")
    assert filtered.model.endswith("behind keyword block")


def test_an_attack_with_another_limit_or_another_start_stands_alone() -> None:
    others = (attack("small", 9, source="hardened", limit=10), attack("elsewhere", 9, source="other"))
    attacked = {one.id: one.before for one in panel(attack("before", 90), train(), *others).attacked}
    assert attacked == {"small": "", "elsewhere": "", "before": ""}


def test_models_after_a_chain_of_trainings_are_traced_to_where_they_began() -> None:
    second = train("again").model_copy(update={"config": {"model": {"source": "hardened"}}})
    (after,) = panel(attack("before", 90), train(), second, attack("after", 6, source="again")).attacked
    assert after.before == "before"


def test_a_model_with_an_adapter_of_its_own_is_not_taken_for_the_undefended_one() -> None:
    adapted = attack("adapted", 20, model={"source": "lab", "adapter": "somewhere"})
    (one,) = panel(attack("before", 90), adapted).attacked
    assert (one.id, one.before) == ("adapted", "before")


def test_families_and_positions_are_drawn_with_both_sides_and_their_n() -> None:
    (by_family, families), (by_place, places) = panel().attacked[0].parts
    assert (by_family, by_place) == ("attack family", "position of the injection")
    assert [row.label for row in places] == ["before the text", "in the middle", "after the text"]
    naive = families[0]
    assert naive.before is not None
    assert (naive.before.text, naive.after.text, naive.after.n) == ("90.0 %", "6.0 %", 100)
    svg = dumbbell(naive)
    assert svg.count("<circle") == 2
    assert svg.count("whisker") == 6
    assert next(iter(ElementTree.fromstring(svg))).tag.endswith("title")


def test_differences_are_points_with_a_sign_limits_are_at_most_and_the_missing_says_why() -> None:
    rows = {row[0]: row[1:] for row in panel().attacked[0].figures}
    assert rows["Position bias: at the end less elsewhere"][1] == "+4.0 pp [−6.0, 14.0] (n = 300)"
    assert rows["Attack success, worst family"][1] == "2.0 %, at most 5.0 % (n = 300, role claim)"
    assert rows["eps_causal, outcomes, worst attack"][0] == "30.0 %, at most 33.0 % (n = 300, role claim)"
    assert rows["Trigger effect: task lost to harmless trigger words"][1] == "– (no case stands in both parts)"


def test_every_term_and_gate_has_a_curve_and_a_row_with_its_first_and_last_value() -> None:
    (trained,) = panel().trained
    assert [plot.title for plot in trained.terms] == ["Task", "Invariance", "Separation"]
    assert [len(plot.lines) for plot in trained.gates] == [2, 2, 2]
    assert ("Invariance", "12", "0.1", "12", "0.1") in trained.rows
    assert (f"Effective rank, {LAYERS[1]}", "30", "18", "30", "18") in trained.rows
    for svg in (*causal_figures.curves(trained.terms), *causal_figures.curves(trained.gates)):
        assert next(iter(ElementTree.fromstring(svg))).tag.endswith("title")
    assert causal_figures.names_of(trained.gates) == list(LAYERS)


def test_curves_lie_inside_their_plot_also_below_zero_and_where_values_are_not_finite() -> None:
    points = [(1.0, -0.4), (2.0, float("inf")), (3.0, 0.2)]
    (trained,) = panel(train(curves={"gate/contrast/x": points})).trained
    (svg,) = causal_figures.curves(trained.gates)
    (line,) = re.findall(r'polyline class="line1" points="([^"]+)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert len(places) == 2
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in places)
    assert places[0][1] > places[1][1]


def test_a_training_without_terms_or_gates_has_no_curves_here() -> None:
    assert panel(attack("before", 90), train(curves={"loss": [(1.0, 2.0)]})).trained == ()
    assert read_run(causal_run(train(curves={"loss": [(1.0, 2.0)]}))).hardened is None


def test_what_is_reported_elsewhere_never_stands_in_the_measured_column() -> None:
    ((title, rows),) = panel().baselines
    assert title == "Defences"
    by_row = {row[0]: row[1:] for row in rows}
    assert by_row["struq"] == ("12.0 % [11.0, 13.0] (n = 300)", REPORTED["struq"])
    assert by_row["ours"][1] == "–"
    bare = table().model_copy(update={"metrics": tuple(m.model_copy(update={"value": None}) for m in table().metrics)})
    missing = {row[0]: row[1:] for row in panel(attack("before", 90), bare).baselines[0][1]}
    assert missing["struq"][0].startswith("–")


def test_a_source_stands_below_a_table_only_where_it_is_about_one_of_its_rows() -> None:
    whole = table()
    bare = whole.model_copy(update={"metrics": tuple(m for m in whole.metrics if m.group != "row=struq")})
    for step, told in ((whole, True), (bare, False)):
        run = causal_run(attack("before", 90), step)
        for text in (to_markdown(read_run(run)), words(run)):
            assert ("2601.07185" in text) is told
            assert "2410.05451" in text, "the row before is beside a figure of that paper"


def test_all_three_renderings_have_the_figures() -> None:
    view = read_run(causal_run())
    markdown = to_markdown(view).replace("\\", "")
    assert "| Attack success | 30.0 % [28.0, 33.0] (n = 300) | 2.0 % [0.0, 5.0] (n = 300) |" in markdown
    assert "| naive | 90.0 % [88.0, 93.0] (n = 100) | 6.0 % [4.0, 9.0] (n = 100) |" in markdown
    assert "arXiv 2410.05451" in markdown
    html = words(causal_run())
    assert "Attack success by attack family" in html
    assert "Terms of hardened" in html
    out = io.StringIO()
    print_view(view, Console(file=out, width=80))
    printed = " ".join(out.getvalue().split())
    assert "after: attack success of hardened 2.0 % [0.0, 5.0] (n = 300), undefended 30.0 %" in printed


def test_more_attacks_than_are_told_at_once_are_folded_away() -> None:
    many = [attack(f"a{i}", 5, source="hardened", defence=f"d{i}") for i in range(5)]
    run = causal_run(attack("before", 90), train(), *many)
    assert to_html(read_run(run)).count("<summary>Attack: ") == 2
    assert "2 more attacks are in the report." in list(causal_text.lines(panel(*run.steps)))


def test_hostile_texts_are_shown_as_text() -> None:
    run = causal_run(attack("before", 90), attack("x", 9, source="elsewhere", model_name=HOSTILE), train())
    assert "<script" not in to_html(read_run(run))
    assert "<script" not in to_markdown(read_run(run))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_attacks_without_overflow_at_both_widths(dark: bool) -> None:
    long = causal_run(attack("b" * 60, 90), train("t" * 60), attack("a" * 60, 9, source="t" * 60), table())
    for frame in measure([to_html(read_run(run)) for run in (causal_run(), long)], (390, 1440), dark=dark):
        assert frame["cut"] == []
        assert frame["scroll"] <= frame["client"]
        assert frame["outside"] == []
        assert frame["requests"] == 0
        assert frame["smallest"] >= 12


def test_a_run_without_attacks_has_no_such_section() -> None:
    assert read_run(sample_run()).hardened is None
    assert 'id="causal"' not in to_html(read_run(sample_run()))
    failed = StepRecord(id="a", do="attack", config={}, status="failed", notes=("no rows",))
    assert read_run(causal_run(failed)).hardened is None
