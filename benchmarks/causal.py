"""Verification of the causal method: the permutation test of HSIC, with labels and with numbers, against hyppo's.

Both sides permute 2,000 rows of 64 coordinates. hyppo takes 50 draws for our 1,000, so speeds are compared by draws a
second, set-up included; its statistic is the root of ours over its largest value, of one bandwidth for both variables.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import Result, Settings, peak_rss, worker

D, SEED = 64, 0
LIMIT = 20.0
"""Seconds that our test may take."""
ALIKE = 1e-9
"""Largest relative difference of the statistic, ours and hyppo's."""


def measure(settings: Settings) -> list[Result]:
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
    roles: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "hyppo": hyppo}
    print(json.dumps(roles[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
