"""Fine-tune a model with LoRA on lab arithmetic; measure it before and after, on the same prompts.

python examples/finetune.py [MODEL] [OUT] [STEPS]     leaves a plain PEFT adapter in OUT/adapter
"""

import sys
from pathlib import Path

from holdfast.data.sources import SourceConfig, load_examples
from holdfast.evaluation.compare import compare
from holdfast.evaluation.suite import evaluate
from holdfast.evaluation.tasks import choose_tasks
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model
from holdfast.training.config import LoraConfig, TrainConfig
from holdfast.training.loop import train

TASKS = choose_tasks(["lab/jailbreak", "lab/arithmetic"])


def main(source: str = "lab", out: str = "runs/finetune", steps: str = "100", limit: str = "100") -> None:
    """Evaluate, train, evaluate, compare."""
    folder = Path(out)
    loaded = load_model(ModelConfig(source=source))
    evaluate(loaded, TASKS, limit=int(limit), log=folder / "before.jsonl")

    rows = load_examples(SourceConfig(source="lab/arithmetic", rows=800))
    config = TrainConfig(params="lora", lora=LoraConfig(rank=16), learning_rate=2e-3, steps=int(steps))
    result = train(loaded, rows, config, out=folder)

    evaluate(result.model, TASKS, limit=int(limit), log=folder / "after.jsonl")
    changes = compare(folder / "before.jsonl", folder / "after.jsonl")
    for verdict in changes.verdicts:
        if verdict.name.endswith("changed"):  # the totals; breakdowns name their group
            p_value = "unknown" if verdict.p_value is None else f"{verdict.p_value:.2g}"
            print(f"{verdict.name}: {verdict.reason}; p-value {p_value}")
    print(f"Adapter: {result.folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
