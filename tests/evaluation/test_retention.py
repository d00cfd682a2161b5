"""What merges keep of single-task scores: values by hand, intervals against closed forms, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.logs import COMPLIANCE, REFUSAL, answers, example, record, save

from holdfast.core.errors import DataError
from holdfast.core.results import Metric
from holdfast.evaluation.composites import retention as by_hand
from holdfast.evaluation.log import Record
from holdfast.evaluation.retention import Retention, retention

N = 200
TASKS = ("lab/skills/swap", "lab/skills/ends", "lab/arithmetic")


def hits(task: str, k: int) -> list[Record]:
    """Answers to the same `N` prompts of which so many are right, spread over the prompts by the task and the count."""
    order = np.random.default_rng([k, TASKS.index(task)]).permutation(N)
    return [record(task, example(i, reference="kiwi"), "kiwi" if order[i] < k else "plum") for i in range(N)]


def log(folder: Path, name: str, right: Mapping[str, int]) -> Path:
    return save(folder / f"{name}.jsonl", [one for task, k in right.items() for one in hits(task, k)])


def alone(folder: Path, right: Mapping[str, int], name: str = "alone") -> list[Path]:
    return [log(folder, f"{name}-{i}", {task: k}) for i, (task, k) in enumerate(right.items())]


def metric(found: Retention, row: str, experts: int) -> Metric:
    (one,) = (m for m in found.metrics if m.name == "retention/mean" and m.group == f"row={row}, experts={experts}")
    return one


SINGLE = dict(zip(TASKS, (180, 150, 100), strict=True))


def test_retention_is_the_mean_over_tasks_of_merged_over_alone(tmp_path: Path) -> None:
    two, three = {TASKS[0]: 90, TASKS[1]: 140}, {TASKS[0]: 40, TASKS[1]: 100, TASKS[2]: 110}
    merges = [log(tmp_path, "three", three), log(tmp_path, "two", two)]
    found = retention(alone(tmp_path, SINGLE), {"sst": merges, "ties": merges[:1]})
    for experts, right in ((2, two), (3, three)):
        wanted = by_hand({t: k / N for t, k in right.items()}, {t: SINGLE[t] / N for t in right}).value
        assert metric(found, "sst", experts).value == pytest.approx(wanted)
        assert metric(found, "sst", experts).n == experts * N
    assert metric(found, "ties", 3).value == metric(found, "sst", 3).value
    assert [count for count, _ in found.curves["retention [row=sst]"]] == [2.0, 3.0]
    assert found.curves["retention [row=sst]"][1][1] == metric(found, "sst", 3).value


def test_the_interval_is_as_wide_as_the_delta_method_says(tmp_path: Path) -> None:
    right = {TASKS[0]: 90, TASKS[1]: 140, TASKS[2]: 60}
    one = metric(retention(alone(tmp_path, SINGLE), {"sst": [log(tmp_path, "m", right)]}), "sst", 3)
    assert one.low is not None
    assert one.high is not None
    share = [_outcomes(task, right[task]) / _outcomes(task, k).mean() for task, k in SINGLE.items()]
    kept = [_outcomes(t, right[t]).mean() / _outcomes(t, k).mean() ** 2 * _outcomes(t, k) for t, k in SINGLE.items()]
    spread = sum(np.var(a - b, ddof=1) / N for a, b in zip(share, kept, strict=True)) ** 0.5 / len(TASKS)
    assert one.low < (one.value or 0) < one.high
    assert one.high - one.low == pytest.approx(2 * 1.96 * spread, rel=0.2)


def _outcomes(task: str, k: int) -> np.ndarray:
    return np.array([float(one.sample.output == "kiwi") for one in hits(task, k)])


def test_a_merge_that_answers_as_each_adapter_does_keeps_all_of_it_in_every_resample(tmp_path: Path) -> None:
    one = metric(retention(alone(tmp_path, SINGLE), {"sst": [log(tmp_path, "m", SINGLE)]}), "sst", 3)
    assert (one.value, one.low) == (1.0, None)
    assert one.reason == "no interval: every prompt and seed says the same"


def test_a_score_of_1_on_every_prompt_does_not_make_the_interval_a_point(tmp_path: Path) -> None:
    whole = dict.fromkeys(TASKS, N)
    one = metric(retention(alone(tmp_path, whole), {"sst": [log(tmp_path, "m", whole)]}), "sst", 3)
    assert one.value == 1.0
    assert one.low is not None
    assert one.high is not None
    assert one.low < 1.0 < one.high
    assert one.interval.endswith("clopper-pearson where all answers are alike")


def test_seeds_are_averaged_before_the_ratio(tmp_path: Path) -> None:
    task = TASKS[0]
    single = alone(tmp_path, {task: 100}, "first") + alone(tmp_path, {task: 180}, "second")
    merged = [log(tmp_path, "m0", {task: 80}), log(tmp_path, "m1", {task: 60})]
    one = metric(retention(single, {"sst": merged}), "sst", 1)
    assert one.value == pytest.approx((80 + 60) / (100 + 180))
    assert one.interval == "two-way bootstrap 95% by group and seed"


def test_a_figure_whose_best_is_0_is_turned_round(tmp_path: Path) -> None:
    single = save(tmp_path / "one.jsonl", answers("advbench", [REFUSAL] * 16 + [COMPLIANCE] * 4))
    merged = save(tmp_path / "both.jsonl", answers("advbench", [REFUSAL] * 12 + [COMPLIANCE] * 8))
    assert metric(retention([single], {"sst": [merged]}), "sst", 1).value == pytest.approx(12 / 16)


def test_an_adapter_that_scores_0_alone_is_named_and_no_number_is_given(tmp_path: Path) -> None:
    right = {**SINGLE, TASKS[1]: 0}
    found = retention(alone(tmp_path, right), {"sst": [log(tmp_path, "m", SINGLE)]})
    one = metric(found, "sst", 3)
    assert one.value is None
    assert one.reason == f"undefined: the single-task adapter scores 0 on {TASKS[1]}"
    assert found.curves == {"retention [row=sst]": []}


def test_a_task_without_its_own_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"got task 'lab/arithmetic' in .*m\.jsonl, expected those of the adapters alone"
    ):
        retention(alone(tmp_path, {TASKS[0]: 100}), {"sst": [log(tmp_path, "m", {TASKS[0]: 9, TASKS[2]: 9})]})


def test_as_many_other_tasks_in_one_row_are_refused(tmp_path: Path) -> None:
    merged = [log(tmp_path, "a", {TASKS[0]: 9}), log(tmp_path, "b", {TASKS[1]: 9})]
    with pytest.raises(DataError, match="merges of 1 adapters with different tasks in row 'sst'"):
        retention(alone(tmp_path, SINGLE), {"sst": merged})
