"""The causal method: a training step against plain fine-tuning, and the permutation test of HSIC against hyppo's.

A step of plain fine-tuning has the benign and the attacked view of its cases as rows; that of the objective has the
same cases, and makes the other views itself. Every side runs the same `Stepper` on the lab model.

Both sides of the permutation test take 2,000 rows of 64 coordinates. hyppo takes 50 draws for our 1,000, so speeds are
compared by draws a second, set-up included; its statistic is the root of ours over its largest value, of one bandwidth
for both variables.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Settings, Wanted, peak_rss, worker

D, SEED = 64, 0
LIMIT = 20.0
"""Seconds that our test may take."""
CASES, WARM = 16, 1
"""Cases of a step, and steps before the clock starts."""
TIME, MEMORY = 2.2, 1.6
"""What a step may take, as a multiple of plain fine-tuning on the same rows."""
STEPS: dict[str, tuple[str, Wanted]] = {
    "attacked": ("default", "at most"),
    "both": ("gradient: both", "for information"),
}
"""By the key `gradient`, how a step is called and whether its bound is binding."""
ALIKE = 1e-9
"""Largest relative difference of the statistic, ours and hyppo's."""


def measure(settings: Settings) -> list[Result]:
    """Training steps, then the permutation test."""
    return [*_training(settings), *_permutation(settings)]


def _training(settings: Settings) -> list[Result]:
    """Seconds and memory of a step of the objective, against plain fine-tuning on the same rows."""
    turns, steps = (1, WARM + 1) if settings.quick else (3, WARM + 5)
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in ("plain", *STEPS)}
    for _ in range(turns):
        for side, told in answers.items():
            told.append(worker("causal", ["step", side, str(steps)], settings.threads))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    results = []
    for side, (label, wanted) in STEPS.items():
        for what, unit, key, scale, bound in (
            ("step", "s", "seconds", 1.0, TIME),
            ("peak memory", "MiB", "peak", 2.0**20, MEMORY),
        ):
            ours, plain = ([a[key] / scale for a in answers[each]] for each in (side, "plain"))
            said = [f"{CASES} cases a step, benign and attacked; all terms but the preference"] if unit == "s" else []
            name = f"{what}, counterfactual training, {label}"
            results.append(Result(name, unit, ours, plain, "plain fine-tuning", wanted, bound, said))
    return results


def _permutation(settings: Settings) -> list[Result]:
    """Ours with labels and with numbers, and hyppo's."""
    n, draws, theirs = ("500", "200", "20") if settings.quick else ("2000", "1000", "50")
    sides = {"labels": ["ours", n, draws, "labels"], "numbers": ["ours", n, draws, "numbers"]}
    if importlib.util.find_spec("hyppo"):
        sides["hyppo"] = ["hyppo", n, theirs]
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(1 if settings.quick else 3):
        for side, arguments in sides.items():
            if side != "hyppo" or turn < 2:
                answers[side].append(worker("causal", arguments, settings.threads))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    size = f"n = {n}, d = {D}, B = {draws}"
    results = []
    for side in ("labels", "numbers"):
        seconds, peak = ([a[key] for a in answers[side]] for key in ("seconds", "peak"))
        said = [f"{size}; peak memory of the process {max(peak) / 2**20:.0f} MiB"]
        label = f"HSIC permutation test, {side}"
        results.append(Result(label, "s", seconds, [], f"limit {LIMIT:g} s", "at most", LIMIT, said))
    return [*results, _against_hyppo(answers, int(draws), int(theirs))]


def _against_hyppo(answers: dict[str, list[dict[str, Any]]], draws: int, theirs: int) -> Result:
    label, unit = "HSIC permutation test, numbers", "draws/s"
    if "hyppo" not in answers:
        said = ["not run: no hyppo. Do: pip install 'holdfast[verify]'"]
        return Result(label, unit, [], [], "hyppo Hsic", "for information", 0, said, False)
    rates = [draws / a["seconds"] for a in answers["numbers"]]
    peer = [theirs / a["seconds"] for a in answers["hyppo"]]
    off = abs(answers["numbers"][0]["statistic"] / answers["hyppo"][0]["statistic"] - 1)
    said = [f"statistics {off:.0e} apart (at most {ALIKE:g}); hyppo {theirs} draws, compiled before the clock starts"]
    return Result(label, unit, rates, peer, "hyppo Hsic", "at least", 1.0, said, off <= ALIKE)


def step(side: str, steps: str) -> dict[str, Any]:
    """Seconds of a step, their median, and the peak of the process."""
    from holdfast.data.batches import Batches
    from holdfast.data.counterfactual.lab import lab_cases
    from holdfast.methods.causal.apply import apply
    from holdfast.methods.causal.config import CausalConfig
    from holdfast.methods.causal.plan import plan, training_rows
    from holdfast.models.load import ModelConfig, load_model
    from holdfast.training.config import TrainConfig
    from holdfast.training.objective import NextToken
    from holdfast.training.step import Stepper, make_accelerator

    loaded = load_model(ModelConfig(source="lab", attention="eager", device="cpu"))
    cases = lab_cases("train", CASES * int(steps), SEED)
    objective: Any = NextToken()
    rows, size = [view for case in cases for view in (case.benign(), case.attacked())], 2 * CASES
    if side != "plain":
        objective = apply(loaded, plan(CausalConfig(gradient=side, samples=64), loaded, cases))
        rows, size = training_rows(cases), CASES
    loaded.model.requires_grad_(True)
    config = TrainConfig(learning_rate=1e-4, warmup=0.0, epochs=1, batch_size=size, seed=SEED)
    data = Batches([loaded.chat.training(row) for row in rows], size, SEED, pad_id=loaded.chat.pad_id)
    accelerator = make_accelerator(loaded.model.device, (), Path())
    stepper = Stepper(accelerator, loaded.model, config, objective, None, data.steps_per_epoch)
    each = []
    for number in range(data.steps_per_epoch):
        began = time.perf_counter()
        stepper.step(number, data.step(number), False)
        each.append(time.perf_counter() - began)
    return {"seconds": statistics.median(each[WARM:]), "peak": peak_rss()}


def drawn(n: str) -> tuple[Any, Any, Any]:
    """Two variables that hardly depend, and labels of ten levels: the same in every process."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    R_nd = rng.standard_normal((int(n), D))
    return R_nd, 0.05 * R_nd[:, :8] + rng.standard_normal((int(n), 8)), rng.integers(0, 10, int(n))


def ours(n: str, draws: str, kind: str) -> dict[str, Any]:
    """Seconds of a test, and the statistic as hyppo scales it."""
    from holdfast.evaluation.dependence import hsic, median_distance, residuals, squared_distances
    from holdfast.evaluation.independence import permutation_test

    R_nd, U_nd, labels = drawn(n)
    permutation_test(R_nd[:50], U_nd[:50], draws=9)
    began = time.perf_counter()
    permutation_test(R_nd, U_nd if kind == "numbers" else labels, draws=int(draws), seed=SEED)
    answer = {"seconds": time.perf_counter() - began, "peak": peak_rss()}
    width = median_distance(squared_distances(residuals(R_nd)))
    both = (width, width)
    with_self = hsic(R_nd, R_nd, bandwidths=both) * hsic(U_nd, U_nd, bandwidths=both)
    return answer | {"statistic": float((hsic(R_nd, U_nd, bandwidths=both) / with_self**0.5) ** 0.5)}


def hyppo(n: str, draws: str) -> dict[str, Any]:
    """Seconds of hyppo's own permutations, its approximation off."""
    from hyppo.independence import Hsic

    R_nd, U_nd, _ = drawn(n)
    statistic = float(Hsic(bias=True).statistic(R_nd, U_nd))
    Hsic(bias=True).test(R_nd[:50], U_nd[:50], reps=2, auto=False)  # permuted matrices are compiled for once more
    began = time.perf_counter()
    Hsic(bias=True).test(R_nd, U_nd, reps=int(draws), auto=False)
    return {"seconds": time.perf_counter() - began, "statistic": statistic, "peak": peak_rss()}


def main(arguments: Sequence[str]) -> None:
    """One role of this file, its answer as JSON."""
    roles: dict[str, Callable[..., dict[str, Any]]] = {"step": step, "ours": ours, "hyppo": hyppo}
    print(json.dumps(roles[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
