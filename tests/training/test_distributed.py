import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.training.helpers import config, in_two_processes, largest_difference, run
from tests.training.worker import CASES

EXACT = 1e-6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    in_two_processes("tests.training.worker", out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, pair: Path, tmp_path: Path) -> None:
    keys, options = CASES[case]
    single = run(tmp_path, config(**keys), **options())
    file = "adapter_model.safetensors" if keys.get("params") == "lora" else "model.safetensors"
    folder = single.folder.name
    assert largest_difference(load_file(pair / case / folder / file), load_file(single.folder / file)) < EXACT
    losses = [json.loads(line)["loss"] for line in (pair / case / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 5
    for a, (_, b) in zip(losses, single.curves["loss"], strict=True):
        assert abs(a - b) < EXACT * max(1.0, b)


def test_two_processes_resume_bit_for_bit(pair: Path) -> None:
    a, b = (load_file(pair / name / "model" / "model.safetensors") for name in ("plain", "resumed"))
    assert all(a[name].equal(b[name]) for name in a)
