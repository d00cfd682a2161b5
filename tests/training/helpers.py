"""Small rows and runs for the tests of the training floor."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tests.zoo import tiny

from holdfast.data.examples import Example, Message
from holdfast.training.config import TrainConfig
from holdfast.training.loop import TrainResult, train

WORDS = ["kelp", "rock", "tide", "hold", "fast", "wave", "salt", "moss", "reef", "sand"]


def examples(n: int, seed: int = 0) -> list[Example]:
    """Rows of unequal length."""
    dice = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(low, high)))

    return [Example(f"row-{i}", (Message("user", words(1, 4)),), words(1, 7)) for i in range(n)]


def config(**keys: Any) -> TrainConfig:
    """Five steps of eight rows, small enough for a test."""
    return TrainConfig(**({"steps": 5, "batch_size": 8, "max_length": 256, "learning_rate": 1e-3} | keys))


def run(out: Path, settings: TrainConfig, n: int = 53, family: str = "llama", **keys: Any) -> TrainResult:
    """Train a tiny model from the same start."""
    return train(tiny(family), examples(n), settings, out=out, **keys)


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    """Every weight, by name."""
    return {name: p.detach().clone() for name, p in result.model.model.named_parameters()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all weights."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Over all weights."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def in_two_processes(worker: str, out: Path) -> None:
    """Run the module ``worker`` on two gloo processes, with ``out`` as its argument; none of them outlives the call."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", worker]
    process = subprocess.Popen(
        [sys.executable, *launcher, str(out)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."},
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]
