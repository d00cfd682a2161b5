"""What is built and installed works away from the checkout: the command, the recipes, the lab model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the built wheel alone is installed. Building fetches the build backend, as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--wheel-dir", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def started(source: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program that finds Holdfast in ``source`` before any other place, and asks no hub."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def run(installed: Path, cwd: Path, *words: str) -> str:
    """What it prints, where it succeeds."""
    done = started(installed, cwd, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    found = run(installed, tmp_path, "-c", "import holdfast; print(holdfast.__file__)")
    assert Path(found.strip()).is_relative_to(installed)


def test_the_installed_command_lists_and_checks_every_recipe_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, str(installed / "bin" / "holdfast"), "list", "recipes")
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert [line.split()[0] for line in listed.splitlines()[1:] if line.strip()] == names
    for name in names:
        here = started(installed, tmp_path, "-m", "holdfast", "check", name)
        if "Cannot fetch" in here.stderr:  # a model on the hub: what the checkout says of it
            there = started(ROOT / "src", tmp_path, "-m", "holdfast", "check", name)
            assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr)
        else:
            assert "valid" in here.stdout, here.stderr


def test_the_installed_lab_model_answers(installed: Path, tmp_path: Path) -> None:
    program = (
        "from holdfast.models.load import ModelConfig, lab_folder, load_model\n"
        "loaded = load_model(ModelConfig(source='lab'))\n"
        "print(lab_folder())\nprint(loaded.model.num_parameters())\n"
    )
    folder, parameters = run(installed, tmp_path, "-c", program).splitlines()
    assert Path(folder).is_relative_to(installed)
    assert int(parameters) > 1_000_000
