"""Files that are either whole or absent, and their hashes."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from holdfast.core.errors import DataError

OLD = ".old"
"""Ends the name of the hidden neighbour that holds what is being replaced."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a neighbour, flush it to disk, then rename it over ``path``.

    Raises:
        OSError: the disk is full or not writable; it names ``path``, which is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as problem:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(problem, OSError):
            raise OSError(problem.errno, problem.strerror, str(path)) from problem
        raise


@contextlib.contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty neighbour folder; on success it replaces ``path``, on any failure ``path`` stays as it was.

    Who may read the folder and its files follows from the umask, also where a library made them for their owner alone.
    A folder is replaced by two renames. What a kill between them leaves is put right by the next call for ``path``, or
    by `put_back`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}{OLD}")
    _settle(old, path)
    fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield fresh
        _open_up(fresh)
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)
    except BaseException:
        _settle(old, path)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; nothing where there is none.

    Raises:
        DataError: something in it cannot be removed, and would be taken for what comes after.
    """
    if not os.path.lexists(folder):
        return
    try:
        shutil.rmtree(folder)
    except OSError as problem:
        raise DataError(
            f"Cannot remove {folder}, which an earlier run has left: {problem}. Do: remove it by hand, or give "
            "another folder."
        ) from problem


def put_back(folder: Path) -> None:
    """Under ``folder``, bring back every folder that a kill took away while `folder_atomically` replaced it."""
    for old in sorted(folder.rglob(f".*{OLD}")):
        _settle(old, old.with_name(old.name[1:].removesuffix(OLD)))


def _open_up(fresh: Path) -> None:
    """Give ``fresh`` and all in it the rights that the umask leaves to new folders and files."""
    probe = fresh / ".probe"
    probe.mkdir()
    rights = probe.stat().st_mode & 0o777
    probe.rmdir()
    fresh.chmod(rights)
    for path in fresh.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (rights if path.is_dir() else rights & 0o666))


def _settle(old: Path, path: Path) -> None:
    """``old`` is what ``path`` was: it goes back where ``path`` is missing, and goes away where ``path`` is whole."""
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and bytes in sorted order."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file_path.relative_to(path).as_posix().encode() + b"\0")
        digest.update(sha256_of(file_path).encode())
    return digest.hexdigest()
