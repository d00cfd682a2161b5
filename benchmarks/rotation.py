"""Rotation: what the hold costs a training step, and what planning costs beside one epoch over the same rows.

Every side runs the same optimizer step (`Stepper`) on the same batches from the same weights, in a process of its own;
sides take turns. Weight decay is 0, so that the hold of elements and the per-forward form of the same mask must give
one loss curve.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Settings, Wanted, peak_rss, take_turns, worker

SEED, SHARE = 0, 0.1
SHORTEST, LONGEST, BATCH = 48, 56, 172
"""Rows of these lengths make every step at least 8,256 tokens of one length or nearly so: little padding."""
WARM = 1
"""Steps before the clock starts."""
SIDES = ("plain", "column", "element", "osf", "forward")
BOUNDS = {"column": 1.05, "element": 1.15}
CURVE_BOUND = 1e-3
"""Largest relative difference of two losses of one step."""
EPOCH_BATCH = 16
"""Rows of a step of the epoch that planning is compared with, and of a batch of planning."""
WIDE = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
MODELS = {"lab": ("lab model", SIDES, 3, 4), "wide": ("width 1,024", ("plain", "column", "element"), 2, 2)}
"""By model its label, the sides that are run on it, how often, and the timed steps of each: the wide one takes long."""


def measure(settings: Settings) -> list[Result]:
    """The hold on both models, then planning."""
    with tempfile.TemporaryDirectory() as folder:
        results: list[Result] = []
        for model, (label, sides, rounds, timed) in MODELS.items():
            worker("rotation", ["prepare", folder, model], settings.threads)
            steps, turns = (WARM + 1, 1) if settings.quick else (WARM + timed, rounds)
            arguments = ["step", folder, model, str(BATCH), str(steps)]
            results += _hold_results(label, _in_turns(arguments, sides, turns, settings.threads))
        count = 64 if settings.quick else 1000
        results += [_planning_time(folder, importance, count, settings.threads) for importance in ("energy", "abs")]
        return [*results, _planning_memory(folder, settings.threads)]


def _in_turns(
    arguments: Sequence[str], sides: Sequence[str], rounds: int, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Every side once a round, so that a slow phase of the machine meets all."""
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            answers[side].append(worker("rotation", [*arguments, side], threads))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answers


def _hold_results(model: str, answers: dict[str, list[dict[str, Any]]]) -> list[Result]:
    """Time and memory of both holds against plain fine-tuning, and against the other ways for information."""
    tokens = answers["plain"][0]["tokens"]
    size = f"{min(tokens):,} to {max(tokens):,} tokens a step; {SHARE:.0%} frozen in every linear layer of the blocks"
    pairs: list[tuple[str, str, str, Wanted, list[str], bool]] = [
        ("column", "plain", "plain fine-tuning", "at most", [size], True),
        ("element", "plain", "plain fine-tuning", "at most", [size], True),
    ]
    if "osf" in answers:
        apart = _apart(answers["element"][0]["losses"], answers["forward"][0]["losses"])
        curve = f"loss curves of both: largest relative difference {apart:.1e} (at most {CURVE_BOUND:.0e})"
        pairs += [
            ("column", "osf", "PEFT OSF", "for information", ["OSF trains no embedding, norm or head"], True),
            ("element", "forward", "W = C Uᵀ per forward", "for information", [curve], apart <= CURVE_BOUND),
        ]
    results = []
    for ours, peer, name, wanted, remarks, agrees in pairs:
        for what, unit, key, scale in (("step", "s", "seconds", 1.0), ("peak memory", "MiB", "peak", 2.0**20)):
            mine, theirs = ([a[key] / scale for a in answers[side]] for side in (ours, peer))
            label = f"{what}, {ours} hold, {model}"
            said = remarks if key == "seconds" else []
            results.append(Result(label, unit, mine, theirs, name, wanted, BOUNDS[ours], said, agrees))
    return results


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) / y for x, y in zip(a, b, strict=True))


def _planning_time(folder: str, importance: str, count: int, threads: int) -> Result:
    rest = [folder, "lab", str(count)]
    answers = take_turns("rotation", ["plan", *rest, importance], ["epoch", *rest], threads)
    per_thousand = {side: [a["seconds"] * 1000 / count for a in each] for side, each in answers.items()}
    return Result(
        f"planning by {importance}, 1,000 rows",
        "s",
        per_thousand["ours"],
        per_thousand["peer"],
        "one training epoch",
        "at most",
        1.5,
        [f"lab model, {count:,} rows in batches of {EPOCH_BATCH}: basis, importance, mask and its stability"],
    )


def _planning_memory(folder: str, threads: int) -> Result:
    """What planning adds to running the same rows through the model, beside the largest group's second moment."""
    rest = [folder, "wide", str(4 * EPOCH_BATCH)]
    answers = take_turns("rotation", ["plan", *rest, "energy"], ["pass", *rest], threads)
    above = statistics.median(a["peak"] for a in answers["peer"])
    group = WIDE["intermediate_size"] ** 2 * 4  # type: ignore[operator]
    kept = answers["ours"][0]["kept"] / 2**20
    return Result(
        "memory of planning, width 1,024",
        "MiB",
        [(a["peak"] - above) / 2**20 for a in answers["ours"]],
        [group / 2**20],
        "largest group's second moment",
        "at most",
        1.0,
        [
            "peak of the whole process above that of one that only runs the same rows through the model; the plan that "
            f"is kept has {kept:.0f} MiB"
        ],
    )


def prepare(folder: Path, model: str) -> dict[str, Any]:
    """Write the model, and a plan of each unit for it."""
    from holdfast.methods.rotation.config import RotationConfig
    from holdfast.methods.rotation.plan import plan
    from holdfast.methods.rotation.store import save_plan
    from holdfast.models.build import new_model
    from holdfast.models.load import lab_folder, load_tokenizer

    if model == "wide":
        tokenizer = load_tokenizer(lab_folder())
        new_model(WIDE, tokenizer, SEED).save_pretrained(folder / model)
        tokenizer.save_pretrained(folder / model)
    loaded, safety = _load(folder, model), _rows(EPOCH_BATCH)
    for unit, importance in (("column", "energy"), ("element", "abs")):
        config = RotationConfig(unit=unit, importance=importance, frozen_share=SHARE, rest="free")
        save_plan(plan(config, loaded, safety), folder / f"{model}-{unit}")
    return {}


def step(folder: Path, model: str, batch: str, steps: str, side: str) -> dict[str, Any]:
    """Seconds a step, the losses, and the peak of the process, loading included."""
    from benchmarks.rotation_peers import orthogonal_subspace, per_forward
    from holdfast.methods.rotation.apply import apply
    from holdfast.methods.rotation.store import load_plan

    loaded, constraint = _load(folder, model), None
    examples = [row for row in _rows(20 * int(batch) * int(steps)) if SHORTEST <= _length(loaded, row) <= LONGEST]
    if side in ("column", "element"):
        constraint = apply(loaded, load_plan(folder / f"{model}-{side}"))
    elif side == "osf":
        loaded.model = orthogonal_subspace(loaded.model, load_plan(folder / f"{model}-column"), SHARE)
    elif side == "forward":
        loaded.model = per_forward(loaded.model, load_plan(folder / f"{model}-element"))
    if side in ("plain", "column", "element"):
        loaded.model.requires_grad_(True)
    answer = _train(loaded, examples[: int(batch) * int(steps)], int(batch), constraint)
    return answer | {"seconds": statistics.mean(answer["each"][WARM:]), "tokens": answer["tokens"][WARM:]}


def epoch(folder: Path, model: str, count: str) -> dict[str, Any]:
    """Seconds of one epoch of plain fine-tuning."""
    loaded = _load(folder, model)
    loaded.model.requires_grad_(True)
    answer = _train(loaded, _rows(int(count)), EPOCH_BATCH, None)
    return {"seconds": sum(answer["each"])}


def plan_rows(folder: Path, model: str, count: str, importance: str) -> dict[str, Any]:
    """Seconds of planning, the peak of the process, and the bytes of what the plan keeps."""
    from holdfast.methods.rotation.config import RotationConfig
    from holdfast.methods.rotation.plan import plan

    loaded, safety = _load(folder, model), _rows(int(count))
    unit = "column" if importance == "energy" else "element"
    began = time.perf_counter()
    made = plan(RotationConfig(unit=unit, importance=importance, frozen_share=SHARE), loaded, safety)
    seconds = time.perf_counter() - began
    kept = [*made.basis.vectors.values(), *made.basis.energies.values(), *made.basis.moments.values()]
    return {"seconds": seconds, "peak": peak_rss(), "kept": sum(t.nbytes for t in [*kept, *made.frozen.values()])}


def only_pass(folder: Path, model: str, count: str) -> dict[str, Any]:
    """The peak of running rows through the model in the batches that planning makes of them."""
    import torch

    from holdfast.curvature.passes import longest_first
    from holdfast.data.batches import collate

    loaded = _load(folder, model)
    rows = [loaded.chat.training(row) for row in _rows(int(count))]
    for half in (rows[::2], rows[1::2]):
        ordered = [half[n] for n in longest_first(half)]
        for start in range(0, len(ordered), EPOCH_BATCH):
            batch = collate(ordered[start : start + EPOCH_BATCH], loaded.chat.pad_id)
            with torch.no_grad():
                loaded.model(**batch.model_inputs(), logits_to_keep=1)
    return {"peak": peak_rss()}


def _load(folder: Path, model: str) -> Any:
    from holdfast.models.load import ModelConfig, load_model

    source = "lab" if model == "lab" else str(folder / model)
    return load_model(ModelConfig(source=source, attention="eager", device="cpu"))


def _rows(count: int) -> list[Any]:
    from holdfast.data.lab import rows

    return rows("alignment", "train", count, SEED)


def _length(loaded: Any, row: Any) -> int:
    return len(loaded.chat.training(row))


def _train(loaded: Any, examples: Sequence[Any], batch: int, constraint: Any) -> dict[str, Any]:
    """One pass over ``examples``: seconds, tokens and loss of every step, and the peak of the process."""
    from holdfast.data.batches import Batches
    from holdfast.training.config import TrainConfig
    from holdfast.training.objective import NextToken
    from holdfast.training.step import Stepper, make_accelerator

    config = TrainConfig(learning_rate=1e-4, warmup=0.0, epochs=1, batch_size=batch, weight_decay=0.0, seed=SEED)
    data = Batches([loaded.chat.training(row) for row in examples], batch, SEED, pad_id=loaded.chat.pad_id)
    stepper = Stepper(
        make_accelerator(loaded.model.device, (), Path()),
        loaded.model,
        config,
        NextToken(),
        constraint,
        data.steps_per_epoch,
    )
    each, losses, tokens = [], [], [0.0]
    for number in range(data.steps_per_epoch):
        began = time.perf_counter()
        values = stepper.step(number, data.step(number), False)
        each.append(time.perf_counter() - began)
        assert values is not None  # nobody asked to stop
        losses.append(values["loss"])
        tokens.append(stepper.tokens)
    counted = [round(b - a) for a, b in itertools.pairwise(tokens)]
    return {"each": each, "losses": losses, "tokens": counted, "peak": peak_rss()}


if __name__ == "__main__":
    role, where, *rest = sys.argv[1:]
    roles = {"prepare": prepare, "step": step, "epoch": epoch, "plan": plan_rows, "pass": only_pass}
    print(json.dumps(roles[role](Path(where), *rest)))  # type: ignore[operator]
