"""What a command costs before it works: user and system CPU seconds of whole processes, torch not imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Result, Settings

REPEATS = 7
BOUND = 0.4
"""CPU seconds."""
START = "import sys; from holdfast.cli.main import main; main(sys.argv[1:])"
HEAVY = ("torch", "transformers")


def measure(settings: Settings) -> list[Result]:
    """``holdfast --help``, ``holdfast list`` and ``holdfast report`` on a small run."""
    from holdfast.core.results import Metric, RunRecord, StepRecord

    with tempfile.TemporaryDirectory() as folder:
        metric = Metric(name="utility/lab/arithmetic/exact", value=0.5, n=10, k=5, low=0.24, high=0.76)
        step = StepRecord(id="before", do="evaluate", config={}, metrics=(metric,))
        run = RunRecord(
            name="small", version="0", git="", packages={}, device="cpu", started="2026-01-01T00:00:00Z", steps=(step,)
        )
        run.save(Path(folder) / "run.json")
        repeats = 3 if settings.quick else REPEATS
        return [_measure(words, repeats) for words in (["--help"], ["list"], ["report", folder])]


def _measure(words: list[str], repeats: int) -> Result:
    heavy = _heavy_imports(words)
    costs = [_cpu_seconds(words) for _ in range(repeats)]
    remark = f"imports {', '.join(heavy)}" if heavy else f"{' and '.join(HEAVY)} are not imported"
    what = f"holdfast {words[0]}"
    return Result(what, "CPU s", costs, [], f"limit {BOUND} s", "at most", BOUND, [remark], not heavy)


def _heavy_imports(words: list[str]) -> list[str]:
    """Heavy packages that the command imports; this run also writes the byte code that the timed ones read."""
    command = [sys.executable, "-X", "importtime", "-c", START, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rsplit("|", 1)[1].strip() for line in lines}
    if "holdfast.cli.main" not in names:
        raise RuntimeError("the list of imports does not name holdfast.cli.main: it cannot be trusted")
    return [name for name in HEAVY if name in names]


def _cpu_seconds(words: list[str]) -> float:
    with Path(os.devnull).open("wb") as null:
        child = subprocess.Popen([sys.executable, "-c", START, *words], stdout=null)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"holdfast {' '.join(words)} failed with {child.returncode}")
    return used.ru_utime + used.ru_stime
