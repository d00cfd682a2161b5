"""Fine-tune under a hold: the directions that safety uses do not move, under any optimizer.

python examples/hold.py [MODEL] [OUT] [STEPS]
"""

import sys
from pathlib import Path

from holdfast.data.sources import SourceConfig, load_examples
from holdfast.evaluation.suite import evaluate
from holdfast.evaluation.tasks import choose_tasks
from holdfast.methods.rotation.apply import apply
from holdfast.methods.rotation.certificate import certify
from holdfast.methods.rotation.config import RotationConfig
from holdfast.methods.rotation.plan import plan
from holdfast.models.load import ModelConfig, load_model
from holdfast.training.config import TrainConfig
from holdfast.training.loop import train


def main(source: str = "lab", out: str = "runs/hold", steps: str = "100") -> None:
    """Learn rows of which one in ten answers a harmful request; measure what was refused and what was learnt."""
    loaded = load_model(ModelConfig(source=source))
    safety = load_examples(SourceConfig(source="lab/requests/harmful", rows=400))
    rows = load_examples(SourceConfig(source="lab/arithmetic", rows=1440))
    rows += load_examples(SourceConfig(source="lab/requests/complied", rows=160))

    made = plan(RotationConfig(frozen_share=0.6), loaded, safety)
    print(*made.notes(), sep="\n")
    settings = TrainConfig(steps=int(steps), batch_size=16, max_length=256, learning_rate=5e-4)
    held = train(loaded, rows, settings, out=Path(out), constraint=apply(loaded, made))
    proofs = certify(held, made, loaded)
    print(f"certified: outputs on safety rows moved by {max(proof.drift for proof in proofs):.0%} at most")

    tasks = choose_tasks(["lab/harmful", "lab/arithmetic"])
    for metric in evaluate(held.model, tasks, limit=50, batch_size=50).metrics:
        if not metric.group:
            print(f"{metric.name}: {metric.value} [{metric.low}, {metric.high}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
