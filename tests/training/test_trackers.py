import io
import json
import re
import sys
from pathlib import Path

import pytest
from tests.training.helpers import config, run

from holdfast.core.errors import MissingExtra
from holdfast.training.trackers import Log, Progress, curves_of, read_log, require


def test_the_log_has_one_object_a_line_and_the_result_has_its_columns(tmp_path: Path) -> None:
    result = run(tmp_path, config())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second"}
    assert result.curves["loss"] == [(row["step"], row["loss"]) for row in rows]


def test_tensorboard_gets_the_same_curves(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run(tmp_path, config(trackers=("tensorboard",)))
    events = next(p for p in tmp_path.rglob("events.out.tfevents*") if p.parent.name == "tracking")
    book = reader.EventAccumulator(str(events.parent))
    book.Reload()
    found = [(event.step, event.value) for event in book.Scalars("loss")]
    assert [step for step, _ in found] == [step for step, _ in result.curves["loss"]]
    assert [value for _, value in found] == pytest.approx([value for _, value in result.curves["loss"]])


def test_resuming_a_log_cuts_off_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2})
    with Log(path, 2) as log:
        log.write(3, {"loss": 9.0})
    assert read_log(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_curves_are_columns_and_a_missing_value_is_left_out() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation/loss": 3.0}]
    assert curves_of(rows) == {"loss": [(1, 2.0), (2, 1.0)], "validation/loss": [(2, 3.0)]}


def test_without_a_terminal_the_last_step_is_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with Progress(3, 0, show=True) as progress:
        for step in (1, 2, 3):
            progress.update(step, 0.5, 1234.5)
    assert re.fullmatch(r"step 3/3  loss 0\.5000  1,23[45] tokens/s  0 s left\n", out.getvalue())


def test_other_processes_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with Progress(1, 0, show=False) as progress:
        progress.update(1, 0.5, 1.0)
    assert out.getvalue() == ""


def test_a_missing_tracker_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.training.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"Tracker 'mlflow' needs .* 'holdfast\[mlflow\]'"):
        require(("mlflow",))
