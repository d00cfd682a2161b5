"""Trade-off curves over a dial: areas against a count on a grid, paired differences, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.logs import COMPLIANCE, REFUSAL, answers, save

from holdfast.core.errors import DataError
from holdfast.evaluation.front import Front, Logs, front

N = 40


def logs(folder: Path, name: str, points: Sequence[tuple[int, int]]) -> Logs:
    """By number of the point, a log with so many attacks refused and so many harmless requests answered, of `N`."""
    made = {}
    for value, (refused, answered) in enumerate(points):
        records = answers("advbench", [REFUSAL] * refused + [COMPLIANCE] * (N - refused))
        records += answers("lab/benign", [COMPLIANCE] * answered + [REFUSAL] * (N - answered))
        made[float(value)] = save(folder / f"{name}-{value}.jsonl", records)
    return made


def found(folder: Path, **rows: Sequence[tuple[int, int]]) -> Front:
    given = {label: [logs(folder, label, points)] for label, points in rows.items()}
    return front(given, "a", ["advbench"], ["lab/benign"])


def area(of: Front, row: str, part: str = "") -> tuple[float, float, float]:
    (metric,) = (m for m in of.metrics if m.name == f"front/hypervolume{part}" and m.group == f"row={row}")
    assert metric.value is not None
    assert metric.low is not None
    assert metric.high is not None
    return metric.low, metric.value, metric.high


def counted(points: Sequence[tuple[int, int]], corner: tuple[int, int]) -> float:
    """Cells of a grid that some point reaches beyond the corner."""
    cells = np.zeros((N, N))
    for safety, utility in points:
        cells[corner[0] : safety, corner[1] : utility] = 1
    return float(cells.sum()) / N**2


def test_the_area_is_that_of_the_cells_that_a_point_reaches_beyond_the_worst_of_all(tmp_path: Path) -> None:
    a, b = [(10, 36), (30, 32), (38, 12)], [(8, 34), (20, 20), (36, 10)]
    of = found(tmp_path, a=a, b=b)
    assert area(of, "a")[1] == pytest.approx(counted(a, (8, 10)))
    assert area(of, "b")[1] == pytest.approx(counted(b, (8, 10)))
    assert area(of, "b", "/difference")[1] == pytest.approx(counted(b, (8, 10)) - counted(a, (8, 10)))
    assert of.curves["front [row=a]"] == [pytest.approx((s / N, u / N)) for s, u in a]


def test_a_row_beside_itself_differs_by_nothing_in_any_resample(tmp_path: Path) -> None:
    points = [(10, 36), (30, 32), (38, 12)]
    assert area(found(tmp_path, a=points, b=points), "b", "/difference") == (0.0, 0.0, 0.0)


def test_a_clear_difference_has_an_interval_apart_from_0_and_a_slight_one_does_not(tmp_path: Path) -> None:
    a = [(10, 36), (30, 32), (38, 12)]
    of = found(tmp_path, a=a, worse=[(8, 12), (12, 11), (14, 10)], near=[(10, 36), (29, 32), (38, 13)])
    assert area(of, "worse", "/difference")[2] < 0
    low, _, high = area(of, "near", "/difference")
    assert low < 0 < high


def test_seeds_with_other_values_of_the_dial_are_refused(tmp_path: Path) -> None:
    two = [logs(tmp_path, "x", [(10, 30), (20, 20)]), logs(tmp_path, "y", [(10, 30)])]
    with pytest.raises(DataError, match="different values of the dial"):
        front({"a": two, "b": two}, "a", ["advbench"], ["lab/benign"])


def test_a_task_that_was_not_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No task 'gsm8k' in the logs: got advbench, lab/benign"):
        front({"a": [logs(tmp_path, "x", [(10, 30)])]}, "a", ["advbench"], ["gsm8k"])


def renamed(of: Logs, folder: Path) -> Logs:
    """The same answers to prompts of other names."""
    folder.mkdir()
    made = {value: folder / log.name for value, log in of.items()}
    for value, log in of.items():
        made[value].write_text(log.read_text().replace('"id":"', '"id":"other-').replace('"id": "', '"id": "other-'))
    return made


def test_seeds_that_were_asked_other_prompts_are_averaged_and_both_kinds_of_prompts_are_drawn(tmp_path: Path) -> None:
    one, two = logs(tmp_path, "a", [(10, 36), (38, 12)]), logs(tmp_path, "b", [(20, 30), (36, 20)])
    alike = front({"a": [one, two]}, "a", ["advbench"], ["lab/benign"])
    apart = front({"a": [one, renamed(two, tmp_path / "other")]}, "a", ["advbench"], ["lab/benign"])
    assert apart.curves == alike.curves == {"front [row=a]": [(15 / N, 33 / N), (37 / N, 16 / N)]}
    (same,), (other,) = alike.metrics, apart.metrics
    assert other.n == same.n == 2 * 2 * N
    assert None not in (same.low, same.high, other.low, other.high)
    assert other.high != same.high
