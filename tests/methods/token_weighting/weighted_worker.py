"""What two processes run in `test_weighted_training.py`: each case as one process runs it, with half the batch size."""

import sys
from pathlib import Path
from typing import Any

from tests.methods.token_weighting.weighted_cases import objective_of
from tests.training.helpers import config, examples
from tests.zoo import tiny

from holdfast.training.loop import TrainResult, train

ROWS = 21
"""Three steps of at most eight rows: the last is smaller, and with two processes one line of it is a copy."""
CASES: dict[str, dict[str, Any]] = {
    "heads": {"horizon": 3, "heads": "medusa", "warmup": 0.3, "ramp": 0.5},
    "known": {"scorer": "contrast", "keep": 0.7},
}


def train_case(case: str, out: Path, **keys: Any) -> TrainResult:
    """Train a tiny model from the same start."""
    loaded = tiny("llama")
    objective = objective_of(loaded, examples(ROWS), **CASES[case])
    # AdamW moves by the learning rate also where a gradient is all rounding
    settings = config(steps=3, learning_rate=3e-2, optimizer="sgd", **keys)
    return train(loaded, examples(ROWS), settings, out=out, objective=objective)


def main(out: Path) -> None:
    """Run all cases."""
    for case in CASES:
        train_case(case, out / case, batch_size=4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
