"""Untrusted programs: right ones pass, hostile ones fail, and nothing outside is touched."""

import os
import threading
from pathlib import Path

import pytest

from holdfast.evaluation import sandbox
from holdfast.evaluation.sandbox import capabilities, run_code, run_many

HOSTILE = {
    "an endless loop": "while True:\n    pass",
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "a fork bomb that catches its errors": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    ),
    "an early exit": "import os\nos._exit(0)",
    "a polite early exit": "import sys\nsys.exit(0)",
    "one gigabyte in one print": "print('x' * 10**9)",
    "one gigabyte in many prints": "for _ in range(1024):\n    print('x' * 2**20)",
    "a deleted working folder": "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)",
    "two gigabytes of memory": "x = bytearray(2 * 10**9)",
    "a claim on every descriptor": (
        "import os\nfor d in range(3, 64):\n    try:\n        os.write(d, b'passed\\n|0|1')\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "an exception that cannot be described": "class E(Exception):\n    def __str__(self):\n        raise self\nraise E",
    "a patched exit and a forged end": "import os, sys\nos._exit = print\nsys.exit = print\nraise SystemExit(0)",
    "a failing test": "assert 1 + 1 == 3",
    "a syntax error": "def f(:",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_fails_and_the_parent_goes_on(name):
    before = (os.getcwd(), set(os.listdir(os.getcwd())), threading.active_count())
    outcome = run_code(HOSTILE[name], seconds=2, memory_mb=256)
    assert not outcome.passed
    assert outcome.reason
    assert (os.getcwd(), set(os.listdir(os.getcwd())), threading.active_count()) == before
    assert run_code("assert sorted([2, 1]) == [1, 2]", seconds=60).passed


def test_program_passes_only_by_reaching_its_last_line():
    assert run_code("def f(x):\n    return x + 1\n\nassert f(1) == 2", seconds=60).passed
    early = run_code("import os\nos._exit(0)\nassert False", seconds=60)
    assert (early.passed, early.reason) == (False, "ended before its last line")


def test_reason_names_exception_and_line():
    assert run_code("x = 1\nraise ValueError('no')", seconds=60).reason == "ValueError: no (line 2)"


def test_run_leaves_no_folder_and_no_process_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 1)
    assert run_code("import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        pass", seconds=60).passed
    assert list(tmp_path.iterdir()) == []
    if capabilities().processes_contained and Path("/proc").is_dir():
        left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
        assert left == []


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_environment_is_stripped(monkeypatch):
    monkeypatch.setenv("HOLDFAST_TEST_SECRET", "abc")
    assert run_code("import os\nassert 'HOLDFAST_TEST_SECRET' not in os.environ", seconds=60).passed


def test_network_is_cut_where_the_sandbox_says_so():
    source = "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = run_code(source.format(port=server.getsockname()[1]), seconds=60).passed
    assert reached != capabilities().network_cut


def test_files_outside_cannot_be_written_where_the_sandbox_says_so(tmp_path):
    target = tmp_path / "written"
    tmp_path.chmod(0o777)
    written = run_code(f"open({str(target)!r}, 'w').close()", seconds=60).passed
    assert written == target.exists()
    assert not (written and capabilities().files_read_only)


def test_set_order_does_not_differ_between_runs():
    source = "import sys\nraise ValueError(list({'ab', 'cd', 'ef', 'gh', 'ij', 'kl'}))"
    assert len({run_code(source, seconds=60).reason for _ in range(3)}) == 1


def test_many_programs_keep_their_order():
    outcomes = run_many([f"assert {i} % 3" for i in range(9)], workers=2, seconds=60)
    assert [o.passed for o in outcomes] == [bool(i % 3) for i in range(9)]


def test_what_a_program_says_just_before_its_end_is_read(monkeypatch):
    def waits(process):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is not None

    monkeypatch.setattr("holdfast.evaluation.sandbox._exited", waits)
    assert run_code("import time\ntime.sleep(0.2)", seconds=30).passed
