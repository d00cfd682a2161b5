"""One short training with trackers, run by the Python of ``.peers/trackers``; prints what a server was told."""

import json
import sys
import time
from pathlib import Path

from tests.training.helpers import config, examples, run

FIGURES = {
    "weight/mean": 1.0,
    "weight/p25": 0.25,
    "weight/p75": 1.5,
    "weight/p95": 2.75,
    "weight/ess": 0.8,
    "weight/clipped": 0.0,
    "rho1/kept_share": 0.6,
    "critic/delta_mean": -0.01,
    "critic/value_variance": 0.2,
    "head_2/loss": 4.5,
    "nan_weights": 0.0,
    "extreme_weights": 3.0,
}
"""Every name that token weighting logs."""


def main(out: Path, trackers: tuple[str, ...]) -> dict[str, object]:
    """Train, and read MLflow's runs back with its own client."""
    import mlflow

    began = time.monotonic()
    settings = config(trackers=trackers, evaluate_every=1)
    result = run(out, settings, n=16, validation=examples(4, 1), watch=lambda step: FIGURES)
    told: dict[str, object] = {"notes": result.notes, "seconds": time.monotonic() - began}
    if "mlflow" in trackers and not result.notes:
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("holdfast")
        (found,) = client.search_runs([experiment.experiment_id])
        told["name"], told["status"], told["params"] = found.info.run_name, found.info.status, found.data.params
        told["curves"] = {
            name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
            for name in found.data.metrics
        }
    return told


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), tuple(sys.argv[2:]))))
