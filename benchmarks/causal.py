"""The causal method: a training step against plain fine-tuning, an attack against generation, HSIC against hyppo's.

A step of plain fine-tuning has the benign and the attacked view of its cases as rows; that of the objective has the
same cases, and makes the other views itself. Every side runs the same `Stepper` on the lab model.

An attack asks the lab model and judges and logs what it says; the other side is greedy generation alone, as evaluation
measures it, for the same prompts in batches of the same size.

Both sides of the permutation test take 2,000 rows of 64 coordinates. hyppo takes 50 draws for our 1,000, so speeds are
compared by draws a second, set-up included; its statistic is the root of ours over its largest value, of one bandwidth
for both variables.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Settings, Wanted, peak_rss, take_turns, worker

D, SEED = 64, 0
LIMIT = 20.0
"""Seconds that our test may take."""
FAMILIES = ("escape_separation", "completion_combined", "role_claim")
CASES, WARM = 16, 1
"""Cases of a step, and steps before the clock starts."""
TIME, MEMORY = 2.2, 1.6
"""What a step may take, as a multiple of plain fine-tuning on the same rows."""
SPEED, BATCH = 0.9, 32
"""Prompts a second of an attack, as a share of generation's, and prompts of a batch."""
STEPS: dict[str, tuple[str, Wanted]] = {
    "attacked": ("default", "at most"),
    "both": ("gradient: both", "for information"),
}
"""By the key `gradient`, how a step is called and whether its bound is binding."""
ALIKE = 1e-9
"""Largest relative difference of the statistic, ours and hyppo's."""


def measure(settings: Settings) -> list[Result]:
    """Training steps, attacked prompts, then the permutation test."""
    return [*_training(settings), _attacking(settings), *_permutation(settings)]


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


def _attacking(settings: Settings) -> Result:
    """Prompts a second of an attack, against generation alone."""
    count = 48 if settings.quick else 384
    answers = take_turns("causal", ["attack", str(count)], ["generate", str(count)], settings.threads)
    rates, peer = ([a["prompts"] / a["seconds"] for a in answers[side]] for side in ("ours", "peer"))
    same = answers["ours"][0]["said"] == answers["peer"][0]["said"]
    said = [f"{answers['ours'][0]['prompts']} prompts, batches of {BATCH}; answers {'' if same else 'not '}identical"]
    return Result(
        "attack, judged and logged", "prompts/s", rates, peer, "greedy generation alone", "at least", SPEED, said, same
    )


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


def _attacked(count: str) -> tuple[Any, Any, Any]:
    """The lab model, the settings of an attack without probes, and what it asks: attacked prompts, then benign ones."""
    from holdfast.data.sources import SourceConfig
    from holdfast.evaluation.attacks.config import AttackConfig
    from holdfast.evaluation.attacks.material import read_material
    from holdfast.models.load import ModelConfig, load_model

    config = AttackConfig(limit=int(count) // 3, families=FAMILIES, probes=0, batch_size=BATCH)
    loaded = load_model(ModelConfig(source="lab", device="cpu"))
    return loaded, config, read_material([SourceConfig(source="lab/injection", split="test")], config)


def _asked(loaded: Any, material: Any) -> list[dict[tuple[int, ...], Any]]:
    """Each part's prompts by their tokens: one that several cases share is answered once."""
    encoded = [[loaded.chat.prompt(row.messages, id=row.id) for row in rows] for rows in material.parts.values()]
    return [{row.ids: row for row in rows} for rows in encoded]


def _answers(loaded: Any, material: Any, most: int) -> list[str]:
    """What generation alone says to every row of every part."""
    from holdfast.models.generate import generate as generated

    said = []
    for rows, asked in zip(material.parts.values(), _asked(loaded, material), strict=True):
        made = generated(loaded, list(asked.values()), max_new_tokens=most, batch_size=BATCH)
        texts = dict(zip(asked, (loaded.chat.said(answer.text) for answer in made), strict=True))
        said += [texts[loaded.chat.prompt(row.messages, id=row.id).ids] for row in rows]
    return said


def attack(count: str) -> dict[str, Any]:
    """Seconds of an attack whole, how many prompts the model answered, and a digest of what it said."""
    from holdfast.evaluation.attacks.run import attack as attacked

    loaded, config, material = _attacked(count)
    _answers(loaded, material, 4)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        attacked(loaded, material, config, log=Path(folder) / "log.jsonl")
        seconds = time.perf_counter() - began
        lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    said = [json.loads(line)["output"] for line in lines]
    return {"seconds": seconds, "prompts": sum(map(len, _asked(loaded, material))), "said": said}


def generate(count: str) -> dict[str, Any]:
    """Seconds of greedy generation for the same prompts."""
    loaded, config, material = _attacked(count)
    _answers(loaded, material, 4)
    began = time.perf_counter()
    said = _answers(loaded, material, config.max_new_tokens)
    return {"seconds": time.perf_counter() - began, "prompts": sum(map(len, _asked(loaded, material))), "said": said}


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
    roles: dict[str, Callable[..., dict[str, Any]]] = {
        "step": step,
        "attack": attack,
        "generate": generate,
        "ours": ours,
        "hyppo": hyppo,
    }
    print(json.dumps(roles[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
