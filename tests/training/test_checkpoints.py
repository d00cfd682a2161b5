import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.helpers import config, examples, run, same_bits, weights
from tests.zoo import tiny

from holdfast.core.errors import ConfigError, DataError
from holdfast.training import checkpoints
from holdfast.training.loop import train

SETTINGS = config(steps=6, batch_size=4, accumulate=2, save_every=2)


class CrashError(Exception):
    """Stands for a crash."""


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the run die at the start of step ``steps + 1``."""
    from holdfast.training.step import Stepper

    plain = Stepper.step

    def step(self: Stepper, number: int, batches: Any, stop: bool) -> Any:
        if number == steps:
            raise CrashError
        return plain(self, number, batches, stop)

    monkeypatch.setattr(Stepper, "step", step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("whole"), SETTINGS)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"params": "lora", "lora": {"dropout": 0.3}},
        {"packing": True},
        {"precision": "bf16"},
        {"optimizer": "sgd"},
        {"optimizer": "muon"},
    ],
    ids=str,
)
def test_a_run_stopped_in_the_middle_and_resumed_equals_the_whole_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    settings = config(steps=6, batch_size=4, accumulate=2, save_every=2, **keys)
    uninterrupted = run(tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        crash_after(patch, 5)
        with pytest.raises(CrashError):
            run(tmp_path / "parts", settings)
    resumed = run(tmp_path / "parts", settings, resume=True)
    assert resumed.steps == 6
    assert same_bits(weights(resumed), weights(uninterrupted))
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert resumed.curves[name] == uninterrupted.curves[name]


@pytest.mark.parametrize("at", [3, 6])
def test_ctrl_c_saves_a_checkpoint_and_the_rest_is_the_same(tmp_path: Path, whole: Any, at: int) -> None:
    """In the middle, and in the last step, after which the run would otherwise go on."""

    def watch(step: int) -> dict[str, float]:
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    settings = SETTINGS.model_copy(update={"evaluate_every": 1, "save_every": None})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"Stopped after step {at} of 6"):
        run(tmp_path, settings, validation=examples(4), watch=watch)
    assert signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{at:08}"]
    resumed = run(tmp_path, settings, validation=examples(4), resume=True)
    assert same_bits(weights(resumed), weights(whole))


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any, failure: BaseException
) -> None:
    plain = torch.save

    def half(state: Any, path: Path) -> None:
        if isinstance(state, dict) and state.get("step") == 4:
            Path(path).write_bytes(b"half of a file")
            raise failure
        plain(state, path)

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.training.checkpoints.torch.save", half)
        with pytest.raises((DataError, KeyboardInterrupt)) as problem:
            run(tmp_path, SETTINGS)
    if isinstance(failure, OSError):
        assert "No space left on device" in str(problem.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert same_bits(weights(run(tmp_path, SETTINGS, resume=True)), weights(whole))


def test_a_killed_worker_leaves_a_checkpoint_to_resume_from(tmp_path: Path, whole: Any) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom holdfast.training.step import Stepper\n"
        "from tests.training.helpers import run\nfrom tests.training.test_checkpoints import SETTINGS\n"
        "plain = Stepper.step\n"
        "def step(self, number, batches, stop):\n"
        "    if number == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(self, number, batches, stop)\n"
        "Stepper.step = step\nrun(Path(sys.argv[1]), SETTINGS)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, env=environment, capture_output=True, timeout=900
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "model").exists()
    assert same_bits(weights(run(tmp_path, SETTINGS, resume=True)), weights(whole))


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_after(patch, 5)
        with pytest.raises(CrashError):
            run(tmp_path, SETTINGS)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # what a kill in the middle of a line leaves
    run(tmp_path, SETTINGS, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path, whole: Any) -> None:
    folder = whole.folder.parent / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-00000006"]
    assert checkpoints.latest(folder) == folder / "step-00000006"


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path, whole: Any) -> None:
    assert same_bits(weights(run(tmp_path, SETTINGS, resume=True)), weights(whole))


def test_a_fresh_run_removes_what_an_earlier_one_left(tmp_path: Path, whole: Any) -> None:
    run(tmp_path, config(steps=9, save_every=9))
    assert same_bits(weights(run(tmp_path, SETTINGS)), weights(whole))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="its configuration, rows or model differ"):
        run(tmp_path, SETTINGS.model_copy(update={"learning_rate": 5e-3}), resume=True)
    with pytest.raises(ConfigError, match="its configuration, rows or model differ"):
        run(tmp_path, SETTINGS, n=52, resume=True)
    with pytest.raises(ConfigError, match="its configuration, rows or model differ"):
        train(tiny("llama", seed=1), examples(53), SETTINGS, out=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    run(tmp_path, SETTINGS)
    file = tmp_path / "checkpoints" / "step-00000006" / checkpoints.STATE
    for damaged in (file.read_bytes()[:1000], b"not what it was"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="Cannot read checkpoint"):
            run(tmp_path, SETTINGS, resume=True)


def test_a_checkpoint_of_an_earlier_run_that_cannot_be_removed_stops_a_fresh_one(tmp_path: Path) -> None:
    """It would be the newest for a later resume."""
    (tmp_path / "elsewhere" / "step-00000009").mkdir(parents=True)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Cannot remove .*/checkpoints, which an earlier run has left"):
        run(tmp_path, SETTINGS)


def test_damaged_best_weights_are_one_sentence(tmp_path: Path) -> None:
    settings = config(steps=2, batch_size=4, evaluate_every=1, save_every=2, keep="best")
    run(tmp_path, settings, validation=examples(4))
    (tmp_path / "checkpoints" / checkpoints.BEST / checkpoints.STATE).write_bytes(b"not what it was")
    with pytest.raises(DataError, match=r"Cannot read checkpoint .*/best: .* Do: train again without resume"):
        run(tmp_path, settings, validation=examples(4), resume=True)


def test_stopping_early_is_resumed_as_stopped(tmp_path: Path) -> None:
    settings = config(steps=40, learning_rate=2e-2, schedule="constant", evaluate_every=1, patience=2, save_every=1)
    first = run(tmp_path, settings, n=4, validation=examples(6, seed=5))
    assert first.steps < 40
    again = run(tmp_path, settings, n=4, validation=examples(6, seed=5), resume=True)
    assert again.steps == first.steps
    assert same_bits(weights(again), weights(first))
