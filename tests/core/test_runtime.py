import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core import runtime


def test_one_seed_seeds_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    runtime.seed_everything(7)
    first = draw()
    runtime.seed_everything(7)
    assert draw() == first
    runtime.seed_everything(8)
    assert draw() != first


def test_peak_memory_counts_what_was_held() -> None:
    held = np.ones(1 << 27, dtype=np.uint8)
    assert runtime.peak_bytes() > held.nbytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_that_since_it_was_forgotten() -> None:
    held = np.ones(1 << 28, dtype=np.uint8)
    high = runtime.peak_bytes()
    size = held.nbytes
    del held
    runtime.forget_peak()
    assert runtime.peak_bytes() < high - size / 2


def test_git_says_commit_and_dirty_and_nothing_outside_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runtime.git_commit() == ""

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init", "-q")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert runtime.git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert runtime.git_commit() == git("rev-parse", "HEAD") + "-dirty"


def test_versions_are_those_of_the_packages_that_change_results() -> None:
    found = runtime.package_versions()
    assert {"python", *runtime.PACKAGES} == set(found)
    assert found["torch"] == torch.__version__
