"""Self-speculative decoding on the lab model: heads are trained, then answers with and without them take turns.

Heads learn with the model detached from them; the model itself goes on learning the same rows. Plain decoding is the
project's own, one prompt at a time like the other. ``python -m benchmarks.decoding train parallel 3 200 FOLDER`` and
``... decode FOLDER 200`` run the parts by hand.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Settings, worker

MOST, BATCH, SEED, RATE = 64, 16, 0, 1e-3
"""New tokens at most; rows a step; seed; learning rate."""
KINDS = ("parallel", "sequential", "medusa")
HORIZON = 3


def measure(settings: Settings) -> list[Result]:
    """Tokens a second of each kind of heads against plain decoding, on prompts that were not trained on."""
    steps, count = (2, 8) if settings.quick else (200, 200)
    results = []
    with tempfile.TemporaryDirectory() as made:
        for kind in KINDS:
            folder = str(Path(made) / kind)
            worker("decoding", ["train", kind, str(HORIZON), str(steps), folder], settings.threads)
            results.append(_result(kind, steps, worker("decoding", ["decode", folder, str(count)], settings.threads)))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def _result(kind: str, steps: int, answer: dict[str, Any]) -> Result:
    same, count = answer["same"], answer["count"]
    rates = ", ".join(f"horizon {i} {rate:.0%}" for i, rate in enumerate(answer["rates"], start=2))
    remarks = [
        f"{same} of {count} answers identical; the closest choice was between logits {answer['closest']:.1g} apart",
        f"{answer['length']:.2f} tokens a pass; guesses that counted: {rates}",
        f"{answer['tokens'] / count:.1f} new tokens an answer, at most {MOST}; heads trained for {steps} steps",
    ]
    label = f"self-speculative decoding, {kind} heads up to horizon {HORIZON}"
    both = (answer["ours"], answer["plain"])
    name = "plain greedy decoding, one prompt at a time"
    return Result(label, "tokens/s", *both, name, "for information", 0, remarks, same == count)


def train(kind: str, horizon: str, steps: str, folder: str) -> dict[str, Any]:
    """Heads on the lab's own mix, with equal weights of all tokens; the model and heads are saved in ``folder``."""
    from holdfast.data.lab import rows
    from holdfast.methods.token_weighting import TOKEN_WEIGHTING, TokenWeightingConfig
    from holdfast.models.load import ModelConfig, load_model
    from holdfast.training.config import TrainConfig
    from holdfast.training.loop import train as run

    loaded = load_model(ModelConfig(device="cpu"))
    learnt = rows("alignment", "train", BATCH * int(steps), SEED)
    config = TokenWeightingConfig(
        scorer="uniform",
        horizon=int(horizon),
        heads=kind,
        lambda_heads=1.0,
        warmup=1.0,
        ramp=0.0,  # type: ignore[arg-type]
    )
    objective = TOKEN_WEIGHTING.apply(loaded, TOKEN_WEIGHTING.plan(config, loaded, learnt))
    settings = TrainConfig(steps=int(steps), batch_size=BATCH, learning_rate=RATE, max_length=512, seed=SEED)
    began = time.perf_counter()
    done = run(loaded, learnt, settings, out=Path(folder), objective=objective)
    print({name: curve[-1] for name, curve in done.curves.items()}, file=sys.stderr)
    return {"seconds": time.perf_counter() - began}


def decode(folder: str, count: str, turns: str = "3") -> dict[str, Any]:
    """Answers in both ways, in turns."""
    from holdfast.data.lab import rows
    from holdfast.models.generate import generate
    from holdfast.models.heads import load_heads
    from holdfast.models.load import ModelConfig, load_model
    from holdfast.models.speculative import acceptance, self_speculative

    loaded = load_model(ModelConfig(source=str(Path(folder) / "model"), device="cpu"))
    heads = load_heads(Path(folder) / "heads", loaded.model, base=loaded.weights)
    asked = [row for row in rows("alignment", "validation", 2 * int(count), SEED) if row.messages][: int(count)]
    prompts = [loaded.chat.prompt(row.messages, id=row.id) for row in asked]
    self_speculative(loaded, heads, prompts[:2], max_new_tokens=4)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(int(turns)):
        began = time.perf_counter()
        found = self_speculative(loaded, heads, prompts, max_new_tokens=MOST)
        between = time.perf_counter()
        plain = generate(loaded, prompts, max_new_tokens=MOST, batch_size=1)
        seconds["ours"].append(between - began)
        seconds["plain"].append(time.perf_counter() - between)
    seen, tokens = acceptance(found), sum(len(answer.token_ids) for answer in plain)
    differ = [i for i, (a, b) in enumerate(zip(found, plain, strict=True)) if a.completion != b]
    for i in differ:
        print(f"{prompts[i].id} differs, closest choice {found[i].closest:.2g}", file=sys.stderr)
    return {
        **{side: [tokens / each for each in taken] for side, taken in seconds.items()},
        "same": len(plain) - len(differ),
        "count": len(plain),
        "tokens": tokens,
        "length": seen.length,
        "rates": seen.rates,
        "closest": seen.closest,
    }


def main(arguments: Sequence[str]) -> None:
    """One role of this file, its answer as JSON."""
    roles: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "decode": decode}
    print(json.dumps(roles[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
