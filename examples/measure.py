"""Measure a model on two lab tasks and print every total with its interval.

python examples/measure.py [MODEL] [LIMIT]     MODEL: lab (default), a folder, or owner/name on the hub
"""

import sys

from holdfast.evaluation.suite import evaluate
from holdfast.evaluation.tasks import choose_tasks
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model


def main(source: str = "lab", limit: str = "50") -> None:
    """Load, ask, print."""
    loaded = load_model(ModelConfig(source=source))
    result = evaluate(loaded, choose_tasks(["lab/harmful", "lab/arithmetic"]), limit=int(limit))
    for metric in result.metrics:
        if metric.group:
            continue
        if metric.value is None or metric.low is None or metric.high is None:
            print(f"{metric.name}: unknown ({metric.reason})")
        else:
            print(f"{metric.name}: {metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}], n = {metric.n}")


if __name__ == "__main__":
    main(*sys.argv[1:])
