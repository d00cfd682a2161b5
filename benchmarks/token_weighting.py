"""The loss of four heads over a vocabulary of 128,000: memory, and time against the matrix products that it must do.
Then training steps with rho1 weights against uniform ones, and decoding with trained heads, see `benchmarks.decoding`.

Hidden states, the vocabulary's weight and targets are random. Time and memory are measured in processes of their own.
The floor of time is the same matrix products alone, chunk by chunk into buffers made before the clock, in the same
process and in turns with the loss. Steps train the lab model on the same batches of sums, whose reference losses are
known, in one process, in turns. Memory is the high-water mark above what was held right before, gradients included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import decoding
from benchmarks.harness import Result, Settings, Wanted, peak_rss, worker
from benchmarks.merging import memory_now

HEADS, CHUNK, SEED, KEEP = 4, 256, 0, 0.6
ROWS, WARM = 16, 2
"""Rows of a training step, and steps before the clock starts."""
ALIKE = 1e-4
"""Largest relative difference of the loss, ours and the naive one's."""
PRODUCTS = {
    "once": ("logits", "states", "weight"),
    "frozen": ("logits", "states"),
    "any": ("logits", "logits", "states", "weight"),
    "fused": ("logits", "logits", "states", "weight"),
}
"""The matrix products of each way to the loss."""
KERNELS = "the kernels of Liger and of Cut Cross-Entropy were not run: they need CUDA, and benchmarks run on the CPU"
WAYS = {
    "once": "one weighted sum of all heads",
    "frozen": "vocabulary frozen (an adapter is trained)",
    "any": "losses of tokens with any gradient",
}


def measure(settings: Settings) -> list[Result]:
    """Memory of one and four heads, of the naive loss; time of three ways, of a share of the tokens, of torch's own."""
    import torch

    sizes = {"memory": ["512", "512", "128000"], "speed": ["256", "1024", "128000"]}
    if settings.quick:
        sizes = {kind: ["64", "128", "8000"] for kind in sizes}
    fused = hasattr(torch.nn.functional, "linear_cross_entropy")

    def run(*arguments: str) -> dict[str, Any]:
        answer = worker("token_weighting", [*arguments, *sizes[arguments[0]]], settings.threads)
        print(".", end="", file=sys.stderr, flush=True)
        return answer

    memory = {
        (way, heads): run("memory", way, str(heads))
        for way, heads in (("once", 1), ("once", HEADS), ("any", HEADS), ("naive", HEADS))
    }
    times = {way: run("speed", way, "1") for way in [*WAYS, *(["fused"] if fused else [])]}
    times["kept"] = run("speed", "once", str(KEEP))
    print(file=sys.stderr)
    losses = [*_memory(memory, _words(sizes["memory"])), *_time(times, _words(sizes["speed"])), _torch(times)]
    return [*losses, _steps(settings), *decoding.measure(settings)]


def _words(size: list[str]) -> str:
    tokens, width, vocabulary = map(int, size)
    return f"{HEADS} heads x {tokens} tokens, width {width}, vocabulary {vocabulary:,}, float32, chunks of {CHUNK}"


def _memory(answers: dict[tuple[str, int], dict[str, Any]], said: str) -> list[Result]:
    naive = answers["naive", HEADS]
    results = []
    rows: list[tuple[str, str, tuple[str, int], float]] = [
        ("against one head", "one head", ("once", 1), 1.25),
        ("against the naive one", "logits of all heads", ("naive", HEADS), 0.2),
    ]
    for way in ("once", "any"):
        ours = answers[way, HEADS]
        off = abs(ours["loss"] / naive["loss"] - 1)
        remarks = [said, f"loss {off:.0e} from the naive one (at most {ALIKE:g})"]
        for what, name, peer, bound in rows:
            label = f"peak memory of the {HEADS}-head loss, {WAYS[way]}, {what}"
            mine, theirs = [ours["grown"] / 2**20], [answers[peer]["grown"] / 2**20]
            results.append(Result(label, "MiB", mine, theirs, name, "at most", bound, remarks, off <= ALIKE))
    return results


def _time(answers: dict[str, dict[str, Any]], said: str) -> list[Result]:
    results = []
    for way, words in WAYS.items():
        count = len(PRODUCTS[way])
        name = f"its {count} matrix products"
        label = f"{HEADS}-head loss, {words}"
        ours, floor = answers[way]["seconds"], answers[way]["floor"]
        results.append(Result(label, "s", ours, floor, name, "at most", 1.1, [said]))
    label = f"{HEADS}-head loss, {WAYS['any']}, against one weighted sum"
    remarks = ["what it costs that the gradient of each token may be anything: logits are made twice"]
    both = (answers["any"]["seconds"], answers["once"]["seconds"])
    results.append(Result(label, "s", *both, "one weighted sum", "for information", 0, remarks))
    label = f"{HEADS}-head loss with keep = {KEEP:g}"
    remarks = [f"{1 - KEEP:.0%} of the tokens have weight 0"]
    both = (answers["kept"]["seconds"], answers["once"]["seconds"])
    return [*results, Result(label, "s", *both, "keep = 1", "at most", 0.75, remarks)]


def _torch(answers: dict[str, dict[str, Any]]) -> Result:
    label, name = f"{HEADS}-head loss, {WAYS['any']}", "torch linear_cross_entropy"
    wanted: Wanted = "for information"
    if "fused" not in answers:
        return Result(label, "s", [], [], name, wanted, 0, ["not run: this torch has none, 2.13 has", KERNELS], False)
    off = abs(answers["any"]["loss"] / answers["fused"]["loss"] - 1)
    remarks = [f"reduction none, the same chunks; losses {off:.0e} apart (at most {ALIKE:g})", KERNELS]
    both = (answers["any"]["seconds"], answers["fused"]["seconds"])
    return Result(label, "s", *both, name, wanted, 0, remarks, off <= ALIKE)


def _steps(settings: Settings) -> Result:
    """A training step with rho1 against one with uniform weights."""
    answer = worker("token_weighting", ["train", str(WARM + (2 if settings.quick else 40))], settings.threads)
    label, name = "training step with rho1 weights, reference losses known", "uniform weights"
    remarks = [f"the lab model, {ROWS} rows a step, keep = {KEEP:g}, by row; planning is not in it"]
    return Result(label, "s", answer["rho1"], answer["uniform"], name, "at most", 1.03, remarks)


def drawn(n: int, d: int, v: int, keep: float) -> tuple[Any, ...]:
    """Hidden states, weight, targets and weights of tokens: the same in every process."""
    import torch

    draw = torch.Generator().manual_seed(SEED)
    hidden_nd, weight_vd = torch.randn(n, d, generator=draw), torch.randn(v, d, generator=draw) / d**0.5
    targets_n = torch.randint(v, (n,), generator=draw)
    weights_n = torch.rand(n, generator=draw) + 0.5
    weights_n[: n - round(keep * n)] = 0
    return hidden_nd, weight_vd, targets_n, weights_n[torch.randperm(n, generator=draw)]


def step(way: str, hidden_nd: Any, weight_vd: Any, targets_n: Any, weights_n: Any) -> float:
    """The loss and all gradients in one way; returns the loss."""
    from torch.nn.functional import cross_entropy, linear

    from holdfast.methods.token_weighting.nll import per_token_nll, weighted_nll

    hidden_nd.grad = weight_vd.grad = None
    hidden_nd.requires_grad_()
    weight_vd.requires_grad_(way != "frozen")
    arguments = (hidden_nd, weight_vd, targets_n)
    if way == "once":
        loss = weighted_nll(*arguments, weights_n, chunk=CHUNK)[0]
    elif way == "naive":
        loss = (cross_entropy(linear(hidden_nd, weight_vd), targets_n, reduction="none") * weights_n).sum()
    else:
        backend: Any = "fused" if way == "fused" else "torch"
        loss = (per_token_nll(*arguments, weights_n=weights_n, chunk=CHUNK, backend=backend) * weights_n).sum()
    loss.backward()
    return float(loss.detach())


def products(way: str, hidden_nd: Any, weight_vd: Any) -> float:
    """Seconds of the matrix products alone."""
    import torch

    with torch.no_grad():
        logits_cv = torch.empty(CHUNK, len(weight_vd))
        states_nd, grad_vd = torch.empty_like(hidden_nd), torch.zeros_like(weight_vd)
        logits_cv.zero_()  # pages are there before the clock starts
        states_nd.zero_()
        began = time.perf_counter()
        for product in PRODUCTS[way]:
            for start in range(0, len(hidden_nd), CHUNK):
                hidden_cd = hidden_nd[start : start + CHUNK]
                chunk_cv = logits_cv[: len(hidden_cd)]
                if product == "logits":
                    torch.mm(hidden_cd, weight_vd.T, out=chunk_cv)
                elif product == "states":
                    torch.mm(chunk_cv, weight_vd, out=states_nd[start : start + CHUNK])
                else:
                    grad_vd.addmm_(chunk_cv.T, hidden_cd)
        return time.perf_counter() - began


def speed(way: str, keep: str, *size: str) -> dict[str, Any]:
    """Seconds of the loss and of its products, in turns."""
    n, d, v = map(int, size)
    step(way, *drawn(64, 64, 512, 1.0))
    tensors = drawn(HEADS * n, d, v, float(keep))
    seconds, floor, loss = [], [], 0.0
    for _ in range(4):
        began = time.perf_counter()
        loss = step(way, *tensors)
        seconds.append(time.perf_counter() - began)
        floor.append(products(way, *tensors[:2]))
    return {"seconds": seconds, "floor": floor, "loss": loss}


def memory(way: str, heads: str, *size: str) -> dict[str, Any]:
    """Bytes above the start."""
    n, d, v = map(int, size)
    step(way, *drawn(64, 64, 512, 1.0))
    tensors = drawn(int(heads) * n, d, v, 1.0)
    before = memory_now()
    loss = step(way, *tensors)
    return {"grown": peak_rss() - before, "loss": loss}


def train(steps: str) -> dict[str, Any]:
    """Seconds of every step by both scorers, which take turns on the same batches."""
    from holdfast.data.batches import Batches
    from holdfast.data.lab import rows
    from holdfast.methods.token_weighting import TOKEN_WEIGHTING, TokenWeightingConfig
    from holdfast.models.load import ModelConfig, load_model
    from holdfast.training.config import TrainConfig
    from holdfast.training.step import Stepper, make_accelerator

    settings = TrainConfig(learning_rate=1e-4, warmup=0.0, epochs=1, batch_size=ROWS, seed=SEED)
    learnt = rows("arithmetic", "train", ROWS * int(steps), SEED)
    sides = {}
    for scorer in ("rho1", "uniform"):
        loaded = load_model(ModelConfig(source="lab", attention="eager", device="cpu"))
        references = {"reference": loaded} if scorer == "rho1" else {}
        keys: dict[str, Any] = {"keep": KEEP} if references else {}
        made = TOKEN_WEIGHTING.plan(TokenWeightingConfig(scorer=scorer, **keys), loaded, learnt, references)
        loaded.model.requires_grad_(True)
        data = Batches([loaded.chat.training(row) for row in learnt], ROWS, SEED, pad_id=loaded.chat.pad_id)
        objective = TOKEN_WEIGHTING.apply(loaded, made)
        accelerator = make_accelerator(loaded.model.device, (), Path())
        sides[scorer] = (Stepper(accelerator, loaded.model, settings, objective, None, int(steps)), data)
    seconds: dict[str, list[float]] = {scorer: [] for scorer in sides}
    for number in range(int(steps)):
        for scorer in sorted(sides, reverse=number % 2 == 0):  # each goes first as often
            stepper, data = sides[scorer]
            began = time.perf_counter()
            stepper.step(number, data.step(number), False)
            seconds[scorer].append(time.perf_counter() - began)
    return {scorer: taken[WARM:] for scorer, taken in seconds.items()}


def main(arguments: Sequence[str]) -> None:
    """One role of this file, its answer as JSON."""
    roles: dict[str, Callable[..., dict[str, Any]]] = {"speed": speed, "memory": memory, "train": train}
    print(json.dumps(roles[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
