"""All four methods on one change to one model, beside plain fine-tuning on the same rows.

python examples/compose.py [MODEL] [OUT] [STEPS]
"""

import sys
from pathlib import Path

from holdfast.data.counterfactual import read_cases
from holdfast.data.sources import SourceConfig, load_examples
from holdfast.evaluation.compare import compare
from holdfast.evaluation.suite import evaluate
from holdfast.evaluation.tasks import choose_tasks
from holdfast.layers.adapters import read_peft, write_peft
from holdfast.methods import METHODS
from holdfast.methods.causal import plan, verify, verify_config, verify_rows
from holdfast.methods.merging.plan import Expert
from holdfast.methods.rotation.certificate import certify
from holdfast.models.load import ModelConfig, load_model
from holdfast.training.config import TrainConfig
from holdfast.training.loop import train


def main(source: str = "lab", out: str = "runs/compose", steps: str = "20") -> None:
    """Learn sums, one row in ten being harmful, by weight and under a hold; harden; refuse; merge; verify; compare."""
    rotation, merging, causal, weighting = (METHODS[n] for n in ("rotation", "merging", "causal", "token_weighting"))
    names = {"arithmetic": 180, "requests/complied": 20, "requests/harmful": 96, "requests/benign": 96}
    sums, complied, harmful, benign = (load_examples(SourceConfig(source=f"lab/{n}", rows=names[n])) for n in names)
    poisoned, folder, model = sums + complied, Path(out), ModelConfig(source=source)
    settings = TrainConfig(params="lora", steps=int(steps), batch_size=16, max_length=512, learning_rate=2e-3)
    plain = train(load_model(model), poisoned, settings, out=folder / "plain").model
    reference = train(load_model(model), sums, settings, out=folder / "reference").model

    loaded = load_model(model)
    hold = rotation.plan(rotation.config(frozen_share=0.6, unit="column"), loaded, harmful)
    focus = weighting.plan(weighting.config(scorer="rho1"), loaded, poisoned, {"reference": reference})
    parts = {"objective": weighting.apply(loaded, focus), "constraint": rotation.apply(loaded, hold)}
    proofs = certify(train(loaded, poisoned, settings, out=folder / "held", **parts), hold, load_model(model))
    print(f"certified, of held: outputs on safety rows moved by {max(p.drift for p in proofs):.1%} at most")

    injected, loaded = SourceConfig(source="lab/injection", rows=200), load_model(model)
    cases = read_cases(injected.model_copy(update={"split": "train"}))
    steady = causal.apply(loaded, causal.plan(causal.config(gradient="both"), loaded, cases))
    known = {"held": sums, "hardened": plan.training_rows(cases), "refusals": harmful + benign}
    train(loaded, known["hardened"], settings, out=folder / "hardened", objective=steady)
    train(load_model(model), known["refusals"], settings, out=folder / "refusals")
    experts = [Expert(name, read_peft(folder / name / "adapter"), rows[::4]) for name, rows in known.items()]
    made = merging.plan(merging.config(rule="sst"), base := load_model(model), experts)
    write_peft(merging.apply(base, made), folder / "merged")
    merged = load_model(ModelConfig(source=source, adapter=str(folder / "merged")))
    for each in verify.verify(merged, verify_rows.read(injected), verify_config.VerifyConfig(rows=30)).verdicts:
        print(f"{each.name}: {each.reason}")
    for name, tuned in (("plain", plain), ("merged", merged)):
        evaluate(tuned, choose_tasks(["lab/harmful", "lab/arithmetic"]), limit=50, log=folder / f"{name}.jsonl")
    for each in compare(folder / "plain.jsonl", folder / "merged.jsonl").verdicts:
        print(f"{each.name}: {each.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
