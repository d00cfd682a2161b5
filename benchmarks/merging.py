"""Merging: one wide layer against PEFT and mergekit, the eigenproblem of many samples, gradients of single samples.

The layer is random, as are the adapters; no base model is loaded. Each rule and number of adapters runs in a process of
its own. Memory of a merge is the high-water mark of the process above what it held right before. With CUDA, and
only then, two adapters of an 8B model of random weights are merged end to end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Settings, Wanted, peak_rss, worker

RANK, SEED = 16, 0
PROBES = 8
REPEATS = 5
"""Timed calls of a rule that takes milliseconds; one of a dense rule."""
ALIKE = 1e-2
"""Largest relative difference of what a rule keeps, ours and the peer's."""
COUNTS = (2, 8, 20)
PAIRS = {"task_arithmetic": "svd", "svd": "svd", "ties": "ties_svd", "dare_ties": "dare_ties_svd"}
"""Our rule and PEFT's way to combine."""
DENSE = ("ties", "dare_ties")
DENSITY = {"ties": 0.2, "dare_ties": 0.8}
MERGEKIT = Path(os.environ.get("HOLDFAST_MERGEKIT_PYTHON", ".peers/mergekit/bin/python"))
LOOPS: dict[str, tuple[str, Wanted]] = {
    "weights": ("batch of one, gradients of weights", "at least"),
    "cores": ("batch of one, gradients of core matrices", "for information"),
}
COORDINATES = 2**16
"""Core coordinates of a layer of the eigenproblem."""


LLAMAS: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
}
"""Shapes of the model that is merged end to end: Llama 3's of 8B, and one that shows that all of it runs."""


def measure(settings: Settings) -> list[Result]:
    """PEFT, mergekit, eigenproblem, gradients, an 8B model."""
    width, counts = (1024, COUNTS[:1]) if settings.quick else (4096, COUNTS)
    results: list[Result] = []
    for count in counts:
        results += _peft(width, count, 1 if settings.quick or count > COUNTS[0] else 2, settings.threads)
    for count in counts:
        results += _mergekit(width, count, settings.threads)
    d, n = (10**6, 128) if settings.quick else (10**7, 512)
    results += [*_gram(d, n, 1 if settings.quick else 2, settings.threads), *_fisher(settings)]
    return [*results, *_end_to_end(settings.quick)]


def _peft(width: int, count: int, turns: int, threads: int) -> list[Result]:
    """Ours, PEFT's, then ours again where there are two turns: with many adapters one run takes long enough."""
    size = [str(width), str(count)]
    ours: dict[str, list[dict[str, Any]]] = {rule: [] for rule in PAIRS}
    peer: dict[str, dict[str, Any]] = {}
    for turn in range(turns):
        for rule, each in ours.items():
            each.append(worker("merging", ["merge", *size, rule], threads))
        for kind in dict.fromkeys(PAIRS.values()) if turn == 0 else ():
            peer[kind] = worker("merging_peers", ["peft", *size, kind], threads)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [row for rule, kind in PAIRS.items() for row in _peft_rows(rule, kind, count, width, ours[rule], peer[kind])]


def _peft_rows(
    rule: str, kind: str, count: int, width: int, ours: list[dict[str, Any]], peer: dict[str, Any]
) -> list[Result]:
    label, name = f"{rule}, {count} adapters", f"PEFT {kind}"
    exact = rule == "task_arithmetic"
    off = abs(ours[0]["kept"] / peer["kept"] - 1)
    said = [
        f"one layer of {width:,} x {width:,}, adapters of rank {RANK}",
        "nothing is cut off; the peer cuts back to one adapter's rank"
        if exact
        else f"norm of the merged delta: {off:.1e} apart (at most {ALIKE:g})",
    ]
    figures: list[tuple[str, str, Wanted, float, Callable[[dict[str, Any]], float]]] = [
        ("", "layers/s", "at least", 5.0 if rule in DENSE else 200.0, lambda a: 1 / a["seconds"]),
        ("peak memory of ", "MiB", "at most", 0.2, lambda a: a["grown"] / 2**20),
    ]
    results = []
    for what, unit, wanted, bound, read in figures:
        mine, theirs, remarks = [read(a) for a in ours], [read(peer)], [] if what else said
        agrees = exact or off <= ALIKE
        results.append(Result(f"{what}{label}", unit, mine, theirs, name, wanted, bound, remarks, agrees))
    return results


def _mergekit(width: int, count: int, threads: int) -> list[Result]:
    """Memory and files of one layer, from files to a file."""
    if not MERGEKIT.exists():
        said = [f"not run: no {MERGEKIT}. Do: make peers"]
        return [
            Result(
                f"{what} of one layer, {count} adapters", "MiB", [], [], "mergekit", "for information", 0, said, False
            )
            for what in ("peak memory", "files")
        ]
    results = []
    for rule in ("task_arithmetic", "ties"):
        with tempfile.TemporaryDirectory() as folder:
            size = [str(width), str(count), rule, folder]
            ours = [worker("merging", ["files", *size], threads)]
            command = [str(MERGEKIT.absolute()), "-m", "benchmarks.merging_peers", "mergekit", *size]
            root = Path(__file__).resolve().parent.parent
            env = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env, timeout=400)
            if done.returncode:
                raise RuntimeError(f"mergekit failed with {done.returncode}:\n{done.stderr[-2000:]}")
            peer = [json.loads(done.stdout.strip().splitlines()[-1])]
        said = ["mergekit's own merge of the layer's full matrices, read from one file for each model; no base in ours"]
        for what, key in (("peak memory", "grown"), ("files", "files")):
            label = f"{what} of one layer, {rule}, {count} adapters"
            mine, theirs = ([a[key] / 2**20 for a in side] for side in (ours, peer))
            results.append(Result(label, "MiB", mine, theirs, "mergekit", "at most", 0.1, said))
    return results


def _gram(d: int, n: int, rounds: int, threads: int) -> list[Result]:
    answers = [worker("merging", ["gram", str(d), str(n)], threads) for _ in range(rounds)]
    off = max(a["off"] for a in answers)
    said = [
        f"d = {d:,} in layers of {COORDINATES:,}, n = {n}: random gradients, made outside the clock",
        f"V^T (F_u + eps I) V is {off:.0e} from the identity (at most 1e-08)",
    ]
    figures = [("s", [a["seconds"] for a in answers], 60.0), ("GB", [a["peak"] / 1e9 for a in answers], 4.0)]
    return [
        Result(
            "eigenproblem of two Fishers" if unit == "s" else "peak memory of the eigenproblem",
            unit,
            values,
            [],
            f"limit {bound:g} {unit}",
            "at most",
            bound,
            said if unit == "s" else ["of the whole process"],
            off <= 1e-8,
        )
        for unit, values, bound in figures
    ]


def _fisher(settings: Settings) -> list[Result]:
    """Ours and both loops, one after another, then ours again."""
    count = "48" if settings.quick else "256"
    sides = {"ours": ("merging", ["fisher", count])}
    sides |= {kind: ("merging_peers", ["loop", count, kind]) for kind in LOOPS}
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for side in ["ours", *LOOPS] if settings.quick else ["ours", *LOOPS, "ours", *LOOPS, "ours"]:
        answers[side].append(worker(*sides[side], settings.threads))
    rates = {side: [int(count) / a["seconds"] for a in each] for side, each in answers.items()}
    results = []
    for kind, (name, wanted) in LOOPS.items():
        traces = zip(answers["ours"][0]["traces"], answers[kind][0]["traces"], strict=True)
        off = max(abs(a / b - 1) for a, b in traces)
        said = [
            f"lab model, {count} rows in batches of 16, core space of two adapters of rank 8 on every linear layer",
            f"traces of the Fishers: {off:.0e} apart (at most 1e-03)",
        ]
        label = "gradients of single samples"
        results.append(Result(label, "samples/s", rates["ours"], rates[kind], name, wanted, 5.0, said, off <= 1e-3))
    return results


def _end_to_end(quick: bool) -> list[Result]:
    """Rows to adapter on one GPU, figures without a limit; nothing where there is none."""
    import torch

    size, count = ("tiny", 8) if quick else ("8b", 512)
    figures = (("sst, end to end", "s", "seconds", 1.0), ("GPU memory of sst, end to end", "GB", "peak", 1e9))
    if not torch.cuda.is_available():
        print("sst, end to end: not run, torch sees no GPU", file=sys.stderr)
        return []
    command = [sys.executable, "-m", "benchmarks.merging", "end_to_end", "cuda", size, str(count)]
    root = Path(__file__).resolve().parent.parent
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env, timeout=3600)
    if done.returncode:
        raise RuntimeError(f"end to end failed with {done.returncode}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    said = [
        f"Llama of random weights, {answer['parameters']:,} parameters in bfloat16, {answer['layers']} layers, two "
        f"adapters of rank {RANK}, {count} + {count} samples, on {answer['device']}",
        "reading the rows, Fisher matrices and one merge; the model is made outside the clock",
    ]
    return [
        Result(what, unit, [answer[key] / per], [], "no peer", "for information", 0, said if key == "seconds" else [])
        for what, unit, key, per in figures
    ]


def adapters(width: int, count: int) -> list[tuple[Any, Any]]:
    """Random factors ``A (r, i)`` and ``B (o, r)``: the same in every process."""
    import torch

    draw = torch.Generator().manual_seed(SEED)
    return [
        (torch.randn(RANK, width, generator=draw) / width**0.5, torch.randn(width, RANK, generator=draw) / RANK**0.5)
        for _ in range(count)
    ]


def memory_now() -> int:
    """Resident bytes of this process; its high-water mark starts anew from here where the system allows it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024


def merge(width: str, count: str, rule: str) -> dict[str, Any]:
    """Seconds of one layer, bytes above the start, and the norm of what came out."""
    import statistics

    from holdfast.layers.adapters import LowRank
    from holdfast.methods.merging.rules import RuleSettings, merge_layer

    settings = RuleSettings(density=DENSITY.get(rule), semantics="peft")
    rank = None if rule == "task_arithmetic" else RANK
    small, deltas = ([LowRank(*pair) for pair in adapters(size, int(count))] for size in (64, int(width)))
    merge_layer("warm", small, [1.0] * int(count), rule, settings, rank)
    before, each = memory_now(), []
    for _ in range(1 if rule in DENSE else REPEATS):
        began = time.perf_counter()
        made, _ = merge_layer("layer", deltas, [1.0] * int(count), rule, settings, rank)
        each.append(time.perf_counter() - began)
    kept = float((made.B.T @ made.B * (made.A @ made.A.T).T).sum()) ** 0.5
    return {"seconds": statistics.median(each), "grown": peak_rss() - before, "kept": kept}


def files(width: str, count: str, rule: str, folder: str) -> dict[str, Any]:
    """The layer's factors from one file for each adapter to one file."""
    from safetensors.torch import load_file, save_file

    from holdfast.layers.adapters import LowRank
    from holdfast.methods.merging.rules import RuleSettings, merge_layer

    where = Path(folder) / "ours"
    where.mkdir()
    for number, (A_ri, B_or) in enumerate(adapters(int(width), int(count))):
        save_file({"A": A_ri, "B": B_or}, where / f"{number}.safetensors")
    small = [LowRank(*pair) for pair in adapters(64, 2)]
    settings = RuleSettings(density=DENSITY.get(rule), semantics="mergekit")
    merge_layer("warm", small, [1.0, 1.0], rule, settings, None)
    before = memory_now()
    read = [load_file(path) for path in sorted(where.iterdir())]
    made, _ = merge_layer("layer", [LowRank(**pair) for pair in read], [1.0] * len(read), rule, settings, None)
    save_file({"A": made.A.contiguous(), "B": made.B.contiguous()}, where / "merged.safetensors")
    return {"grown": peak_rss() - before, "files": sum(path.stat().st_size for path in where.iterdir())}


def gram(d: str, n: str) -> dict[str, Any]:
    """Seconds and peak of both steps, and how far the vectors are from orthonormal in the damped Fisher."""
    import torch

    from holdfast.curvature.gram import gram_gevp, inner_products

    draw, drawing = torch.Generator().manual_seed(SEED), 0.0

    drawn_nd = torch.randn(int(n), COORDINATES, generator=draw)

    def layers() -> Iterator[torch.Tensor]:
        nonlocal drawing
        for start in range(0, int(d), COORDINATES):
            began = time.perf_counter()
            size_d = torch.rand(min(COORDINATES, int(d) - start), generator=draw)
            G_nd = drawn_nd[:, : len(size_d)] * size_d
            drawing += time.perf_counter() - began
            yield G_nd

    began = time.perf_counter()
    K_nn = inner_products(layers())
    found = gram_gevp(K_nn, int(n) // 2, damping=1e-2, d=int(d))
    seconds = time.perf_counter() - began - drawing
    unit_kk = found.alpha_nk.T @ K_nn @ found.dual_nk
    off = float((unit_kk - torch.eye(len(unit_kk))).abs().max())
    return {"seconds": seconds, "peak": peak_rss(), "off": off}


def lab(count: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """The lab model, encoded rows, and a core space for every linear layer."""
    import torch

    from holdfast.data.lab import rows
    from holdfast.layers.adapters import LowRank
    from holdfast.layers.address import LayerMap
    from holdfast.layers.core_space import CoreSpace
    from holdfast.models.load import ModelConfig, load_model

    loaded = load_model(ModelConfig(source="lab", attention="eager", device="cpu"))
    draw, spaces = torch.Generator().manual_seed(SEED), {}
    for layer in LayerMap.of(loaded.model):
        sizes = ((8, layer.in_features), (layer.out_features, 8))
        pairs = [[torch.randn(size, generator=draw) for size in sizes] for _ in range(2)]
        spaces[layer.name] = CoreSpace.of([LowRank(*pair) for pair in pairs])
    return loaded, [loaded.chat.training(row) for row in rows("alignment", "train", int(count), SEED)], spaces


def fisher(count: str) -> dict[str, Any]:
    """Seconds of all gradients, and each layer's trace."""
    from holdfast.curvature.fisher import core_gradients

    loaded, rows, spaces = lab(count)
    core_gradients(loaded, rows[:2], spaces)
    began = time.perf_counter()
    found = core_gradients(loaded, rows, spaces)
    return {"seconds": time.perf_counter() - began, "traces": [float(G.square().sum()) for G in found.values()]}


def end_to_end(device: str, size: str, count: str) -> dict[str, Any]:
    """Seconds and peak bytes on the device from rows to a merged adapter, all linear layers of a random Llama."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from holdfast.data.lab import rows
    from holdfast.layers.adapters import Adapter, LowRank
    from holdfast.layers.address import LayerMap
    from holdfast.methods.merging.apply import merge as merged
    from holdfast.methods.merging.config import MergingConfig
    from holdfast.methods.merging.plan import Expert, plan
    from holdfast.models.chat import ChatFormat
    from holdfast.models.load import LoadedModel, lab_folder, load_tokenizer

    tokenizer = load_tokenizer(lab_folder())
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMAS[size]), dtype=torch.bfloat16).eval()
    loaded = LoadedModel(model, tokenizer, ChatFormat(tokenizer), "random", "new", size)
    layers, draw, experts = LayerMap.of(model), torch.Generator().manual_seed(SEED), []
    for family in ("arithmetic", "requests/harmful"):
        deltas = {}
        for layer in layers:
            A_ri = torch.randn(RANK, layer.in_features, generator=draw) / layer.in_features**0.5
            deltas[layer.name] = LowRank(A_ri, 0.01 * torch.randn(layer.out_features, RANK, generator=draw))
        experts.append(Expert(family, Adapter.of(layers, deltas), rows(family, "train", int(count), SEED)))
    began = time.perf_counter()
    made = merged(plan(MergingConfig(rule="sst"), loaded, experts))
    assert len(made.adapter.deltas) == len(layers)
    cuda = device == "cuda"
    return {
        "seconds": time.perf_counter() - began,
        "peak": torch.cuda.max_memory_allocated() if cuda else peak_rss(),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": len(layers),
        "device": torch.cuda.get_device_name() if cuda else device,
    }


def main(arguments: Sequence[str]) -> None:
    """One role of this file, its answer as JSON."""
    roles: dict[str, Callable[..., dict[str, Any]]] = {
        "merge": merge,
        "files": files,
        "gram": gram,
        "fisher": fisher,
        "end_to_end": end_to_end,
    }
    print(json.dumps(roles[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
