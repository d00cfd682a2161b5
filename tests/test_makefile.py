"""What `make` is told to run exists."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_experiments_run_recipes_that_exist_and_write_pages_from_their_runs() -> None:
    done = subprocess.run(["make", "-n", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("for name in ")]
    names = re.findall(r"[\w-]+", line.partition(" in ")[2].partition(";")[0])
    assert "--resume || exit 1" in line
    names += re.findall(r"holdfast run recipes/([\w-]+)\.yaml .*-o runs/\1 --resume$", done.stdout, re.MULTILINE)
    assert len(names) == len(set(names)) >= 4
    for name in names:
        assert (ROOT / "recipes" / f"{name}.yaml").is_file(), name
    scripts = re.findall(r"python (docs/scripts/\w+_results\.py) (.*)", done.stdout)
    assert {word.removeprefix("runs/") for _, folders in scripts for word in folders.split()} == set(names)
    for script, _ in scripts:
        assert (ROOT / script).is_file(), script
