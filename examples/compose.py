"""One fine-tuning under three methods: tokens are weighted, injections are trained away, safety's directions are held.

python examples/compose.py [MODEL] [OUT] [STEPS]
"""

import sys
from pathlib import Path

from holdfast.data.counterfactual import read_cases
from holdfast.data.sources import SourceConfig, load_examples
from holdfast.evaluation.suite import evaluate
from holdfast.evaluation.tasks import choose_tasks
from holdfast.methods import causal, rotation, token_weighting
from holdfast.methods.causal.plan import training_rows
from holdfast.methods.rotation.certificate import certify
from holdfast.models.load import ModelConfig, load_model
from holdfast.training.config import TrainConfig
from holdfast.training.loop import train

WEIGHTED, STEADY, HELD = token_weighting.TOKEN_WEIGHTING, causal.CAUSAL, rotation.ROTATION


def main(source: str = "lab", out: str = "runs/compose", steps: str = "100") -> None:
    """Learn sums of which one in ten rows answers a harmful request; certify the hold, and measure the rest."""
    settings = TrainConfig(steps=int(steps), batch_size=16, max_length=512, learning_rate=5e-4)
    clean = load_examples(SourceConfig(source="lab/arithmetic", rows=800, seed=1))
    reference = train(load_model(ModelConfig(source=source)), clean, settings, out=Path(out, "reference")).model

    loaded = load_model(ModelConfig(source=source))
    safety = load_examples(SourceConfig(source="lab/requests/harmful", rows=400))
    task = load_examples(SourceConfig(source="lab/arithmetic", rows=1440))
    task += load_examples(SourceConfig(source="lab/requests/complied", rows=160))
    cases = read_cases(SourceConfig(source="lab/injection", rows=400, split="train"))
    rows = task + training_rows(cases)

    hold = HELD.plan(HELD.config(frozen_share=0.6), loaded, safety)
    focus = WEIGHTED.plan(WEIGHTED.config(scorer="rho1"), loaded, rows, {"reference": reference})
    steady = STEADY.plan(STEADY.config(lambda_task=0, gradient="both"), loaded, cases, plain=task)
    for part in (hold, focus, steady):
        print(*part.notes(), sep="\n")

    objective = WEIGHTED.apply(loaded, focus) + 0.3 * STEADY.apply(loaded, steady)
    tuned = train(loaded, rows, settings, out=Path(out), objective=objective, constraint=HELD.apply(loaded, hold))
    proofs = certify(tuned, hold, loaded)
    print(f"certified, of this training: outputs on safety rows moved by {max(p.drift for p in proofs):.0%} at most")

    tasks = choose_tasks(["lab/harmful", "lab/arithmetic", "lab/injection"])
    for metric in evaluate(tuned.model, tasks, limit=100, batch_size=50).metrics:
        if not metric.group:
            print(f"{metric.name}: {metric.value} [{metric.low}, {metric.high}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
