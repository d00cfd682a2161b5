"""``holdfast doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from holdfast.cli.output import print_json, print_table

EXTRAS = {
    "lm_eval": ("lm-eval", "harness: lm-eval"),
    "bitsandbytes": ("quant", "4-bit and 8-bit models (CUDA)"),
    "tensorboard": ("tensorboard", "trackers: [tensorboard]"),
    "mlflow": ("mlflow", "trackers: [mlflow]"),
    "wandb": ("wandb", "trackers: [wandb]"),
    "liger_kernel": ("kernels", "loss of tokens in Liger's kernel, from Python (CUDA)"),
    "cut_cross_entropy": ("kernels", "loss of tokens in Cut Cross-Entropy's kernel, from Python (CUDA)"),
    "causal_learn": ("verify", "causal discovery: holdfast verify causal"),
    "hyppo": ("verify", "independence tests to compare with"),
}
"""Optional packages: the extra that brings each, and what it is for."""
BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Instructions that multiply in bfloat16, of x86 and of ARM, as torch names them."""
HUB_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about this machine."""

    name: str
    available: bool
    detail: str
    install: str = ""
    """What to do where it is not available; empty where nothing can be done."""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False) -> None:
    """Say what this machine can do, and what to install for the rest."""
    found = list(findings())
    if as_json:
        print_json([asdict(finding) for finding in found])
        return
    print_table(
        ("what", "", "detail"),
        [
            (f.name, "yes" if f.available else "no", f.detail + (f" Do: {f.install}" if f.install else ""))
            for f in found
        ],
    )


def findings() -> Iterator[Finding]:
    """Everything that `doctor` looks at, in the order it is printed."""
    yield from _torch()
    yield _sandbox()
    yield _lab_model()
    yield _hub()
    for package, (extra, purpose) in EXTRAS.items():
        yield _extra(package, extra, purpose)


def _torch() -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Finding("torch", True, f"{torch.__version__}")
    yield Finding("cpu", True, f"{torch.get_num_threads()} of {os.cpu_count()} threads, {memory:.1f} GB of memory")
    if not torch.cuda.is_available():
        yield Finding("cuda", False, "torch sees no GPU; everything runs on the CPU.")
        yield cpu_bf16(torch.cpu.get_capabilities())
        return
    card = torch.cuda.get_device_properties(0)
    yield Finding("cuda", True, f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / 1e9:.0f} GB")
    yield Finding("bf16", torch.cuda.is_bf16_supported(), "mixed precision on the GPU")


def cpu_bf16(able: Mapping[str, object]) -> Finding:
    """Whether a CPU with these capabilities, as torch names them, multiplies in bfloat16; any can emulate it."""
    units = [name for name in BF16_UNITS if able.get(name)]
    if units:
        return Finding("bf16", True, f"mixed precision on the CPU ({', '.join(units)})")
    return Finding("bf16", False, "this CPU only emulates it, slowly.", "leave precision: fp32")


def _sandbox() -> Finding:
    from holdfast.evaluation.sandbox import capabilities

    able = asdict(capabilities())
    words = {True: "yes", False: "no"}
    facts = [f"{key.replace('_', ' ')}: {words.get(value, value)}" for key, value in able.items() if key != "notes"]
    return Finding("sandbox", True, "; ".join([*facts, *able["notes"]]))


def _lab_model() -> Finding:
    from importlib.resources import files

    folder = files("holdfast.assets") / "lab-model"
    there = (folder / "config.json").is_file()
    return Finding("lab model", there, "'lab' as a model", "" if there else "holdfast run lab")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        return Finding("hub", False, "HF_HUB_OFFLINE is set: only cached models and data.", "unset HF_HUB_OFFLINE")
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT

    address = os.environ.get("HF_ENDPOINT", ENDPOINT)
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError as answer:
        return Finding("hub", True, f"{address} answers with {answer.code}")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        return Finding("hub", False, f"{address} is not reachable ({reason}).", "use local folders and files")
    return Finding("hub", True, address)


def _extra(package: str, extra: str, purpose: str) -> Finding:
    name = package.replace("_", "-")
    try:
        return Finding(name, True, f"{version(name)}, for {purpose}")
    except PackageNotFoundError:
        return Finding(name, False, f"not installed, for {purpose}.", f"pip install 'holdfast[{extra}]'")
