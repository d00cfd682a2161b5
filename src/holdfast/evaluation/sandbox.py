"""Run untrusted Python: a separate process with nothing to reach, little to use, and no way to fake success."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from holdfast.core.errors import HoldfastError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_OUTPUT_CAP = 1 << 20
_HARMLESS = "import socket, threading, decimal\nopen('note', 'w').close()\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the program ran to its last line without an exception, else why not."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this machine's sandbox keeps from a program. `holdfast doctor` prints it."""

    level: str
    """``root-namespaces``, ``user-namespaces``, ``other-user`` or ``limits-only``."""
    network_cut: bool
    files_read_only: bool
    """The file system is read-only but for a small memory file system."""
    processes_contained: bool
    """Own process namespace: nothing outlives the run, and no outside process can be seen."""
    process_count_limited: bool
    notes: tuple[str, ...] = ()
    """Why stronger levels did not work here."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """Raw facts about one run."""

    proved: bool
    """The secret was written, and nothing else: the last line was reached."""
    message: str
    """What was written instead."""
    ending: str
    """``status|whole`` from the keeper; empty where it was killed or never came to be."""
    errors: bytes
    stopped: str
    """``timeout`` or ``output`` where the run was killed by us, else empty."""


def run_code(source: str, *, seconds: float = 10.0, memory_mb: int = 512) -> Outcome:
    """Run one Python program, tests included, at the strongest isolation this machine allows.

    The program passes only if its last line is reached: the harness then writes a secret that was handed over before
    the program started. ``os._exit(0)``, ``sys.exit()``, a killed process or a removed working folder are failures.
    The secret guards against early exits and printed claims; a program that searches the interpreter's memory for it
    could still find it, but would gain nothing but its own verdict.

    Args:
        source: Python source; only the standard library can be imported.
        seconds: Wall-clock limit, and the limit of CPU seconds a process.
        memory_mb: Limit of address space a process.

    Returns:
        Passed, or the reason in words.

    Raises:
        HoldfastError: the sandbox itself could not be set up.
    """
    level = capabilities().level
    return _verdict(_run(source, level, seconds=seconds, memory_mb=memory_mb), level, seconds)


def run_many(sources: Sequence[str], *, workers: int = 2, seconds: float = 10.0, memory_mb: int = 512) -> list[Outcome]:
    """`run_code` on many programs, ``workers`` at a time; outcomes in the order of ``sources``."""
    capabilities()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda source: run_code(source, seconds=seconds, memory_mb=memory_mb), sources))


@lru_cache(maxsize=1)
def capabilities() -> Capabilities:
    """Find the strongest isolation level that works here, by trying each once with a harmless program.

    Raises:
        HoldfastError: not even a limited process can be started.
    """
    notes: list[str] = []
    for level in _candidates():
        ended = _run(_HARMLESS, level, seconds=30.0, memory_mb=512)
        if ended.proved and ended.ending == "0|1":
            namespaces = level.endswith("namespaces")
            counted = level != "limits-only" and not (level == "user-namespaces" and os.geteuid() == 0)
            return Capabilities(level, namespaces, namespaces, namespaces, counted, tuple(notes))
        notes.append(f"{level}: {_last_line(ended.errors) or ended.message}")
    raise HoldfastError(f"The sandbox cannot run any program: {'; '.join(notes)}. Do: run on Linux or macOS.")


def _candidates() -> tuple[str, ...]:
    """Levels worth trying, strongest first. Root never runs a program with its own rights over everyone's files."""
    root = os.geteuid() == 0
    if sys.platform != "linux":
        return ("other-user",) if root else ("limits-only",)
    return ("root-namespaces", "user-namespaces", "other-user") if root else ("user-namespaces", "limits-only")


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _run(source: str, level: str, *, seconds: float, memory_mb: int) -> _Ended:
    """Start the child, feed it the secret and the program, and see it to its end."""
    work = tempfile.mkdtemp(prefix="holdfast-sandbox-")
    token = secrets.token_hex(16).encode()
    read_end, write_end = os.pipe()
    arguments = [level, work, str(write_end), str(seconds), str(memory_mb)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    try:
        process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(_CHILD), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        os.close(write_end)
        written, errors, stopped = _watch(process, token + source.encode("utf-8", "surrogatepass"), read_end, seconds)
    finally:
        os.close(read_end)
        shutil.rmtree(work, ignore_errors=True)
    body, _, ending = written.rpartition(b"\n|")
    message = "" if body == token else body.decode(errors="replace")
    return _Ended(body == token, message, ending.decode(errors="replace"), errors, stopped)


def _exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended, without reaping it: its process group must stay ours until it was killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _watch(process: subprocess.Popen[bytes], data: bytes, result: int, seconds: float) -> tuple[bytes, bytes, str]:
    """Feed and read the child until it ends, is too slow or says too much; then kill its whole group.

    Returns what it wrote to the result channel, what it printed, and why it was stopped, if it was.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    outputs = {result: bytearray(), process.stdout.fileno(): bytearray()}
    stopped, ended = "", False
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(data)
    with selectors.DefaultSelector() as selector:
        for descriptor in outputs:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and not stopped:
            ready = selector.select(timeout=0 if ended else 0.05)
            for key, _ in ready:
                _take(selector, key.fd, outputs[key.fd])
            if any(len(text) > _OUTPUT_CAP for text in outputs.values()):
                stopped = "output"
            elif time.monotonic() > deadline:
                stopped = "timeout"
            elif not ready and ended:
                break  # only now: it may have written between the wait and its end
            elif not ready:
                ended = _exited(process)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    errors = bytes(outputs[process.stdout.fileno()])
    process.stdout.close()
    return bytes(outputs[result]), errors, stopped


def _take(selector: selectors.BaseSelector, descriptor: int, into: bytearray) -> None:
    chunk = os.read(descriptor, 1 << 16)
    into.extend(chunk)
    if not chunk:
        selector.unregister(descriptor)


def _verdict(ended: _Ended, level: str, seconds: float) -> Outcome:
    """Turn the facts of a run into passed or a reason in words."""
    if ended.stopped == "timeout":
        return Outcome(False, f"timeout after {seconds:g} s")
    if ended.stopped == "output":
        return Outcome(False, f"more than {_OUTPUT_CAP} bytes of output")
    status, _, whole = ended.ending.partition("|")
    if not status.lstrip("-").isdigit():
        if level == "limits-only":  # here, and only here, a program may signal its keeper
            return Outcome(False, "killed its keeper")
        raise HoldfastError(
            f"The sandbox failed before the program ran: got {_last_line(ended.errors) or 'no message'}, "
            "expected a started process. Do: run 'holdfast doctor'."
        )
    if whole != "1":
        return Outcome(False, "deleted its working folder")
    if ended.proved and status == "0":
        return Outcome(True)
    if "\n|" in ended.message:
        return Outcome(False, "wrote to the harness's own channel")
    if status.startswith("-"):
        return Outcome(False, f"killed by {signal.Signals(-int(status)).name}")
    return Outcome(False, ended.message or "ended before its last line")
