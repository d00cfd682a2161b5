"""The section of token weights: every plan a row, only columns that were measured, nothing overflows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from tests.reports.browser import measure
from tests.reports.sample_run import sample_run
from tests.reports.test_page import HOSTILE, WIDTHS, page

from holdfast.core.results import Metric, RunRecord, StepRecord
from holdfast.reports.reading import read_run
from holdfast.reports.text import print_view, to_markdown
from holdfast.reports.weights_panel import WeightsPanel, weights_panel


def planned(name: str, ess: float, *more: Metric, **config: Any) -> StepRecord:
    """A finished step with the share of tokens that weigh anything at six tenths."""
    own = (Metric(name="weights/kept_share", value=0.6, n=500), Metric(name="weights/ess", value=ess, n=500))
    return StepRecord(id=name, do="token_weighting", config=config, status="done", metrics=(*own, *more))


def weighted_run(*steps: StepRecord) -> RunRecord:
    return sample_run().model_copy(update={"steps": steps})


NOISE = (Metric(name="noise/auroc", value=0.9713, n=500), Metric(name="noise/weight", value=0.042, n=40))
PAIRS = Metric(name="critic/pair_accuracy", value=0.75, n=8, k=6, low=0.41, high=0.93)
RUN = weighted_run(
    planned("weigh", 0.5964, *NOISE, scorer="rho1", horizon=3),
    planned("mixed", 0.5964, scorer="shuffled", of="rho1"),
    planned("valued", 0.31, PAIRS, scorer="critic"),
)


def panel(run: RunRecord) -> WeightsPanel:
    found = weights_panel(run.steps)
    assert found is not None
    return found


def test_a_plan_is_a_row_with_what_was_measured_of_it() -> None:
    found = panel(RUN)
    assert found.head[5:] == ("Noise found", "Weight of noise", "Pairs told apart")
    assert found.rows == (
        ("weigh", "rho1", "3", "60.0 %", "59.6 %", "0.971", "0.042", "–"),
        ("mixed", "shuffled, of rho1", "1", "60.0 %", "59.6 %", "–", "–", "–"),
        ("valued", "critic", "1", "60.0 %", "31.0 %", "–", "–", "75.0 % [41.0, 93.0] (n = 8)"),
    )
    assert len(panel(weighted_run(planned("alone", 1.0, scorer="uniform"))).head) == 5


def test_all_three_renderers_tell_how_well_noise_was_found() -> None:
    out = io.StringIO()
    print_view(read_run(RUN), Console(file=out, width=200))
    for text in (page(RUN), to_markdown(read_run(RUN)), out.getvalue()):
        assert "0.971" in text
    assert "weigh: rho1, tokens with weight 60.0 %, effective share 59.6 %, noise found 0.971" in out.getvalue()


def test_a_run_without_a_finished_plan_has_no_section() -> None:
    failed = RUN.steps[0].model_copy(update={"status": "failed", "metrics": ()})
    for run in (sample_run(), weighted_run(failed)):
        assert weights_panel(run.steps) is None
        assert 'id="weights"' not in page(run)
        assert "## Token weights" not in to_markdown(read_run(run))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chromium_shows_many_and_hostile_plans_without_overflow_at_both_widths(dark: bool) -> None:
    name = HOSTILE + "x" * 300
    hostile = weighted_run(*(planned(f"{name}{n}", 0.5, *NOISE, PAIRS, scorer=HOSTILE) for n in range(20)))
    for width, frame in zip(WIDTHS * 2, measure([page(RUN), page(hostile)], WIDTHS, dark=dark), strict=True):
        assert frame["client"] == width
        assert frame["scroll"] <= width, frame
        assert frame["outside"] == []
        assert frame["requests"] == 0
