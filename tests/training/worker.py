"""What two processes run in `test_distributed.py`: each case as one process runs it, with half the batch size."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.columns import Columns
from tests.training.helpers import config, run

from holdfast.training.objective import NextToken

CASES: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "plain": ({}, dict),
    "two_terms": ({}, lambda: {"objective": NextToken("a") + 0.5 * NextToken("b")}),
    "lora": ({"params": "lora", "learning_rate": 1e-1, "optimizer": "sgd"}, dict),
    "held": ({"weight_decay": 0.1}, lambda: {"constraint": Columns()}),
}
"""Name to (keys of the configuration, options of `train`)."""


def main(out: Path) -> None:
    """Run all cases, then the plain one in two parts."""
    for name, (keys, options) in CASES.items():
        run(out / name, config(batch_size=2, accumulate=2, **keys), **options())
    settings = config(batch_size=2, accumulate=2, save_every=2)
    run(out / "resumed", settings)
    run(out / "resumed", settings, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
