import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.training.helpers import config, examples, run
from tests.training.tracked import FIGURES

from holdfast.core.errors import MissingExtra
from holdfast.training import trackers as trackers_module
from holdfast.training.trackers import Log, Progress, curves_of, read_log, require

PYTHON = Path(os.environ.get("HOLDFAST_TRACKERS_PYTHON", ".peers/trackers/bin/python"))
installed = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: make peers, or HOLDFAST_TRACKERS_PYTHON")


def tracked(out: Path, *trackers: str, **environment: str) -> tuple[dict[str, Any], str]:
    """What `tracked.main` prints, and standard error, from a process that has MLflow and W&B."""
    here = Path.cwd()
    known = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "WANDB"))}
    done = subprocess.run(
        [str(PYTHON.absolute()), "-m", "tests.training.tracked", str(out), *trackers],
        env={**known, "PYTHONPATH": f"{here}:{here / 'src'}", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def logged(out: Path) -> dict[str, list[list[float]]]:
    """The curves of the log, as JSON has them."""
    return {name: [list(point) for point in curve] for name, curve in curves_of(read_log(out / "log.jsonl")).items()}


@pytest.mark.peers
@installed
def test_mlflow_gets_the_curves_and_names_of_the_log(tmp_path: Path) -> None:
    told, _ = tracked(tmp_path / "run", "mlflow", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/runs.db")
    assert told["notes"] == []
    assert (told["name"], told["status"], told["params"]["batch_size"]) == ("run", "FINISHED", "8")
    expected = logged(tmp_path / "run")
    assert set(FIGURES) | {"loss", "validation/loss"} <= set(expected)
    assert told["curves"].keys() == expected.keys()
    for name, curve in expected.items():
        assert [step for step, _ in told["curves"][name]] == [step for step, _ in curve]
        assert [value for _, value in told["curves"][name]] == pytest.approx([value for _, value in curve])


@pytest.mark.peers
@installed
def test_with_mlflow_down_the_run_goes_on_and_says_so_once(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound and never listening: refused, and nobody else can take the port
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        told, errors = tracked(tmp_path / "run", "mlflow", "tensorboard", MLFLOW_TRACKING_URI=uri)
    (note,) = told["notes"]
    assert note.startswith("Tracker 'mlflow' is off from step 0 on: ")
    assert uri in note
    assert errors.count("Tracker 'mlflow' is off") == 1
    assert len(logged(tmp_path / "run")["weight/ess"]) == 5
    assert list((tmp_path / "run" / "tracking").glob("events.out.tfevents*"))
    assert told["seconds"] < 60


@pytest.mark.peers
@installed
def test_wandb_offline_keeps_every_name_beside_the_log(tmp_path: Path) -> None:
    told, _ = tracked(tmp_path / "run", "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    assert told["notes"] == []
    (kept,) = (tmp_path / "run").rglob("*.wandb")
    raw = kept.read_bytes()
    assert [name for name in logged(tmp_path / "run") if name.encode() not in raw] == []


class _Failing:
    """In place of a tracker's class: its server answers three times and then no more."""

    requires_logging_directory = False
    last: "_Failing"

    def __init__(self, project: str, **keywords: str) -> None:
        self.calls: list[str] = []
        _Failing.last = self

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.calls.append("settings")

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(f"log {step}")
        if step == 2:
            raise ConnectionError("no answer")

    def finish(self) -> None:
        self.calls.append("finish")
        raise ConnectionError("no answer")


def test_a_tracker_that_fails_on_the_way_is_off_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(trackers_module._FAILURES, "tensorboard", ("builtins", "ConnectionError"))
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"tensorboard": _Failing})
    result = run(tmp_path, config(trackers=("tensorboard",)))
    sentence = (
        "Tracker 'tensorboard' is off from step 2 on: no answer. The run goes on, and log.jsonl has every figure."
    )
    assert result.notes == (sentence,)
    assert capsys.readouterr().err.count(sentence) == 1
    assert _Failing.last.calls == ["start", "settings", "log 1", "log 2", "finish"]
    assert len(result.curves["loss"]) == 5


def test_mlflow_waits_seconds_for_its_server_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with trackers_module._impatient():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_the_log_has_one_object_a_line_and_the_result_has_its_columns(tmp_path: Path) -> None:
    result = run(tmp_path, config())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second"}
    assert result.curves["loss"] == [(row["step"], row["loss"]) for row in rows]


def test_tensorboard_gets_the_curves_and_names_of_the_log(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = config(trackers=("tensorboard",), evaluate_every=1)
    result = run(tmp_path, settings, validation=examples(4, 1), watch=lambda step: FIGURES)
    events = next(p for p in tmp_path.rglob("events.out.tfevents*") if p.parent.name == "tracking")
    book = reader.EventAccumulator(str(events.parent))
    book.Reload()
    assert set(FIGURES) | {"loss", "validation/loss"} <= set(result.curves)
    for name, curve in result.curves.items():
        found = [(event.step, event.value) for event in book.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in curve]
        assert [value for _, value in found] == pytest.approx([value for _, value in curve])


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
