"""The machine a run happens on: seeds, device, memory, versions. The one file of this floor that knows torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import resource
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "safetensors")
"""The packages whose versions can change a result."""
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def forget_peak() -> None:
    """Let `peak_bytes` count from now on, where the system can: CUDA and Linux."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if _STATUS.exists():
        _CLEAR.write_text("5")


def peak_bytes() -> int:
    """Largest memory since `forget_peak`: of the CUDA allocator where anything was on CUDA, else resident.

    Where the system cannot forget, since the process began.
    """
    import torch

    if torch.cuda.is_available() and (peak := int(torch.cuda.max_memory_allocated())):
        return peak
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def git_commit() -> str:
    """Commit of the working directory, ``-dirty`` where tracked files have changes; empty outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose versions can change a result."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def device_name() -> str:
    """E.g. ``NVIDIA A100-SXM4-80GB`` or ``x86_64, 2 threads``."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
