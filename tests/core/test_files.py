"""Files and folders are whole or as they were, whenever the writing stops."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from holdfast.core import files
from holdfast.core.errors import DataError


def folder(path: Path, text: str) -> None:
    with files.folder_atomically(path) as fresh:
        (fresh / "note").write_text(text)


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder(tmp_path / "model", "first")
    folder(tmp_path / "model", "second")
    assert (tmp_path / "model" / "note").read_text() == "second"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("rename", [1, 2])
def test_a_folder_stays_as_it_was_when_a_rename_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int, stop: BaseException
) -> None:
    folder(tmp_path / "model", "first")
    replace, calls = os.replace, []

    def stopped(source: object, target: object) -> None:
        calls.append(source)
        if len(calls) == rename:
            raise stop
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(type(stop)):
        folder(tmp_path / "model", "second")
    assert (tmp_path / "model" / "note").read_text() == "first"
    assert names(tmp_path) == ["model"]


def test_a_folder_that_fails_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.folder_atomically(tmp_path / "model") as fresh:
        (fresh / "missing").read_text()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("umask", "folders", "plain"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640), (0o077, 0o700, 0o600)]
)
def test_a_folder_is_as_readable_as_the_umask_says_whatever_a_library_does(
    tmp_path: Path, umask: int, folders: int, plain: int
) -> None:
    before = os.umask(umask)
    try:
        with files.folder_atomically(tmp_path / "model") as fresh:
            save_file({"a": torch.zeros(1)}, fresh / "model.safetensors")
            (fresh / "part").mkdir(mode=0o700)
            os.close(os.open(fresh / "part" / "private", os.O_CREAT, 0o600))
            os.close(os.open(fresh / "run.sh", os.O_CREAT, 0o700))
    finally:
        os.umask(before)
    found = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert found.pop("model/run.sh") == 0o700 | plain
    assert found == {
        "model": folders, "model/part": folders, "model/part/private": plain, "model/model.safetensors": plain
    }  # fmt: skip


KILLED_BETWEEN_THE_RENAMES = """
import os, signal, sys
from pathlib import Path
from holdfast.core import files
replace = os.replace
def rename(source, target):
    if Path(target) == Path(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = rename
with files.folder_atomically(Path(sys.argv[1])) as fresh:
    (fresh / "note").write_text("second")
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder whose replacement was killed when the old one was gone and the new one not yet there."""
    folder(tmp_path / "model", "first")
    words = [sys.executable, "-c", KILLED_BETWEEN_THE_RENAMES, str(tmp_path / "model")]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    return tmp_path / "model"


def test_a_folder_that_a_kill_took_away_is_put_back(killed: Path) -> None:
    files.put_back(killed.parent.parent)
    assert (killed / "note").read_text() == "first"
    assert ".model.old" not in names(killed.parent)


def test_a_write_after_a_kill_keeps_the_old_folder_where_it_fails_and_replaces_it_where_not(killed: Path) -> None:
    with pytest.raises(FileNotFoundError), files.folder_atomically(killed) as fresh:
        (fresh / "missing").read_text()
    assert (killed / "note").read_text() == "first"
    folder(killed, "third")
    assert (killed / "note").read_text() == "third"
    assert ".model.old" not in names(killed.parent)


def test_putting_back_leaves_a_folder_that_is_there(tmp_path: Path) -> None:
    folder(tmp_path / "model", "second")
    (tmp_path / ".model.old").mkdir()
    files.put_back(tmp_path)
    assert (tmp_path / "model" / "note").read_text() == "second"
    assert names(tmp_path) == ["model"]


def test_a_removed_folder_is_gone_and_one_that_stays_is_told(tmp_path: Path) -> None:
    folder(tmp_path / "model", "first")
    files.remove_folder(tmp_path / "model")
    files.remove_folder(tmp_path / "model")
    assert names(tmp_path) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Cannot remove .*/model, which an earlier run has left: .* symbolic link"):
        files.remove_folder(tmp_path / "model")


def test_a_file_stays_as_it_was_when_its_rename_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    files.write_atomically(file, "first")

    def stopped(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(OSError, match="No space left on device") as found:
        files.write_atomically(file, "second")
    assert (found.value.filename, file.read_text(), names(tmp_path)) == (str(file), "first", ["run.json"])


def test_the_hash_of_a_folder_follows_names_and_bytes(tmp_path: Path) -> None:
    folder(tmp_path / "a", "x")
    folder(tmp_path / "b", "x")
    assert files.sha256_of(tmp_path / "a") == files.sha256_of(tmp_path / "b")
    (tmp_path / "b" / "note").rename(tmp_path / "b" / "other")
    assert files.sha256_of(tmp_path / "a") != files.sha256_of(tmp_path / "b")
