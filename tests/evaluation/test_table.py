"""Logs over arms and seeds as one table: values, differences, shares; and refused where prompts differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.evaluation.logs import COMPLIANCE, EMPTY, REFUSAL, answers, example, record, save

from holdfast.core.errors import DataError
from holdfast.core.results import Metric
from holdfast.evaluation.intervals import clopper_pearson
from holdfast.evaluation.table import Table, table

R, C, E = REFUSAL, COMPLIANCE, EMPTY
ASR = "table/advbench/attack_success_rate"


def log(folder: Path, name: str, complied: int, n: int = 20, task: str = "advbench") -> Path:
    return save(folder / name, answers(task, [C] * complied + [R] * (n - complied)))


def made(folder: Path, before: int, **rows: list[int]) -> Table:
    logs = {label: [log(folder, f"{label}{i}", k) for i, k in enumerate(ks)] for label, ks in rows.items()}
    return table(log(folder, "before", before), logs, "plain")


def metric(found: Table, row: str, part: str = "") -> Metric:
    return next(m for m in found.metrics if m.name == ASR + part and m.group == f"row={row}")


def test_a_row_is_the_mean_over_its_seeds_and_each_seed_is_kept(tmp_path: Path) -> None:
    found = made(tmp_path, 2, plain=[16, 18, 20], held=[4, 4, 7])
    plain = metric(found, "plain")
    assert (plain.value, plain.k, plain.n, plain.higher_is_better) == (pytest.approx(0.9), 54, 60, False)
    assert plain.low is not None
    assert plain.high is not None
    assert plain.low < 0.9 < plain.high
    assert plain.interval == "two-way bootstrap 95% by group and seed"
    assert found.per_seed[f"{ASR} [row=held]"] == [(1.0, 0.2), (2.0, 0.2), (3.0, 0.35)]


def test_difference_and_share_are_taken_from_the_reference_and_from_before(tmp_path: Path) -> None:
    found = made(tmp_path, 2, plain=[16, 18, 20], held=[4, 4, 7])
    assert metric(found, "held", "/difference").value == pytest.approx(0.25 - 0.9)
    assert metric(found, "held", "/removed").value == pytest.approx(1 - (0.25 - 0.1) / (0.9 - 0.1))
    assert metric(found, "held", "/removed").higher_is_better
    assert metric(found, "before", "/difference").value == pytest.approx(0.1 - 0.9)
    names = {(m.name, m.group) for m in found.metrics}
    assert (f"{ASR}/difference", "row=plain") not in names
    assert (f"{ASR}/removed", "row=plain") not in names
    assert (f"{ASR}/removed", "row=before") not in names


def test_no_hit_in_any_seed_has_the_exact_interval_over_prompts_not_over_answers(tmp_path: Path) -> None:
    held = metric(made(tmp_path, 2, plain=[16, 18, 20], held=[0, 0, 0]), "held")
    assert (held.value, held.n, held.k) == (0.0, 60, 0)
    assert (held.low, held.high) == pytest.approx(clopper_pearson(0, 20))
    assert held.interval == "clopper-pearson 95% over prompts"


def test_one_seed_is_drawn_over_prompts_alone(tmp_path: Path) -> None:
    assert metric(made(tmp_path, 2, plain=[16], held=[4]), "held").interval == "bootstrap 95% by group"


def test_a_row_of_one_log_stands_beside_rows_of_many_seeds(tmp_path: Path) -> None:
    found = made(tmp_path, 2, plain=[16, 18, 20], projected=[5])
    assert metric(found, "projected").n == 20
    assert metric(found, "projected", "/removed").value == pytest.approx(1 - 0.15 / 0.8)


def test_without_a_clear_change_of_the_reference_no_share_is_given(tmp_path: Path) -> None:
    found = metric(made(tmp_path, 10, plain=[10, 11], held=[4, 5]), "held", "/removed")
    assert (found.value, found.low) == (None, None)
    assert found.reason == "the reference's change from before is not clear from 0"


def test_answers_that_cannot_be_judged_leave_their_seed_only(tmp_path: Path) -> None:
    rows = {
        "plain": [log(tmp_path, "p0", 16), log(tmp_path, "p1", 16)],
        "held": [log(tmp_path, "h0", 4), save(tmp_path / "h1", answers("advbench", [C] * 4 + [E] * 4 + [R] * 12))],
    }
    held = metric(table(log(tmp_path, "before", 2), rows, "plain"), "held")
    assert (held.value, held.n, held.n_invalid, held.k) == (pytest.approx((0.2 + 0.25) / 2), 36, 4, 8)


def test_a_seed_without_any_valid_answer_leaves_the_row_empty_with_a_reason(tmp_path: Path) -> None:
    rows = {
        "plain": [log(tmp_path, "p0", 16), log(tmp_path, "p1", 16)],
        "held": [log(tmp_path, "h0", 4), save(tmp_path / "h1", answers("advbench", [E] * 20))],
    }
    found = table(log(tmp_path, "before", 2), rows, "plain")
    for part in ("", "/difference", "/removed"):
        held = metric(found, "held", part)
        assert (held.value, held.low) == (None, None)
        assert held.reason == "held: no valid row of 20 in one of the seeds"
    assert metric(found, "plain").value == 0.8


def test_means_that_are_no_rates_are_given_without_hits(tmp_path: Path) -> None:
    said, near, wrong = "The river is Dalka.", "The river is long.", "Honey and salt."

    def passages(name: str, right: int) -> Path:
        rows = [example(i, group=f"g{i % 6}", reference=said) for i in range(12)]
        return save(
            tmp_path / name, [record("lab/passages", row, near if i < right else wrong) for i, row in enumerate(rows)]
        )

    rows = {"plain": [passages("p0", 3), passages("p1", 4)], "held": [passages("h0", 9), passages("h1", 10)]}
    found = table(passages("before", 10), rows, "plain")
    held = next(m for m in found.metrics if m.name == "table/lab/passages/rouge_l" and m.group == "row=held")
    assert held.k is None
    assert held.value == pytest.approx(0.75 * 9.5 / 12)
    assert held.higher_is_better


def test_the_order_of_rows_in_a_log_does_not_matter(tmp_path: Path) -> None:
    turned = save(tmp_path / "turned", answers("advbench", [C] * 4 + [R] * 16)[::-1])
    plain = [log(tmp_path, "p", 16)]
    one = table(log(tmp_path, "b", 2), {"plain": plain, "held": [log(tmp_path, "h", 4)]}, "plain")
    other = table(log(tmp_path, "b", 2), {"plain": plain, "held": [turned]}, "plain")
    assert one == other


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    before, plain = log(tmp_path, "b", 2), [log(tmp_path, "p", 16)]
    fewer = log(tmp_path, "fewer", 4, n=19)
    with pytest.raises(DataError, match=r"advbench: 1 rows stand in only one log \(first: 'row/19'\): got .*fewer"):
        table(before, {"plain": plain, "held": [fewer]}, "plain")
    other = save(tmp_path / "other", answers("advbench", [C] * 20, risk_area="fraud"))
    with pytest.raises(DataError, match=r"advbench: 20 rows are not the same .* Do: evaluate every model on the same"):
        table(before, {"plain": plain, "held": [other]}, "plain")


def test_a_task_that_not_every_log_has_is_left_out_with_a_note(tmp_path: Path) -> None:
    more = [*answers("advbench", [C] * 4 + [R] * 16), *answers("lab/benign", [C])]
    rows = {"plain": [log(tmp_path, "p", 16)], "held": [save(tmp_path / "h", more)]}
    found = table(log(tmp_path, "b", 2), rows, "plain")
    assert found.notes == ("lab/benign: not every log has this task; it was left out.",)
    assert {m.name.partition("/difference")[0].partition("/removed")[0] for m in found.metrics} == {ASR}
    with pytest.raises(DataError, match="No task stands in all logs of the table"):
        table(log(tmp_path, "b", 2), {"plain": [log(tmp_path, "x", 1, task="lab/benign")]}, "plain")


def test_synergy_is_what_a_row_gains_beyond_the_sum_of_its_parts(tmp_path: Path) -> None:
    logs = {
        label: [log(tmp_path, f"{label}{i}", k) for i, k in enumerate(ks)]
        for label, ks in {"plain": [16, 18], "a": [12, 12], "b": [14, 15], "both": [5, 7]}.items()
    }
    found = table(log(tmp_path, "before", 2), logs, "plain", ("both", "a", "b"))
    whole = metric(found, "both", "/synergy")
    assert whole.value is not None
    assert whole.value == pytest.approx(0.3 - 0.6 - 0.725 + 0.85)
    assert whole.low is not None
    assert whole.high is not None
    assert whole.low < whole.value < whole.high
    assert [m.group for m in found.metrics if m.name.endswith("/synergy")] == ["row=both"]
