"""The certificate: what was frozen, that it did not move, and how the result is rebuilt bit for bit.

Two statements are kept apart. A hold of *directions* keeps every output's dependence on them, up to the rounding of the
stored weights (``leak``). A hold of *elements* keeps coefficients in the rotated frame, not outputs; ``drift`` says for
both how far outputs on the safety rows moved. `holdfast.methods.rotation.proof` measures.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from holdfast.core.errors import ConfigError, DataError, HoldfastError, NumericsError
from holdfast.core.files import sha256_of, write_atomically
from holdfast.methods.rotation.plan import RotationPlan
from holdfast.methods.rotation.proof import Files, LayerProof, Problem, examine
from holdfast.methods.rotation.store import save_plan
from holdfast.models.load import LoadedModel, weights_of
from holdfast.models.sources import lab_folder, local_folder
from holdfast.training.loop import HELD, HELD_FILE, TrainResult

FILE = "certificate.json"
PLAN_FOLDER = "plan"
RULE = "weight = start + hold.expand(coordinates), in float32, cast to the stored type"
SAME = 1e-6
"""Figures agree that differ by less, relatively: sums in float64 are rounded in the order of the machine."""
ABSENT = "no such file"
ROUNDING = 1e-12
"""The same as a share of the layer's largest change, for a leak that is itself rounding."""


def certify(result: TrainResult, made: RotationPlan, loaded: LoadedModel) -> list[LayerProof]:
    """Certify a training with ``constraint=apply(loaded, made)``: plan and certificate are put beside its result.

    Args:
        result: What `holdfast.training.loop.train` returned.
        loaded: The model it began with, as `load_model` gave it; read again from its folder.
    Raises:
        ConfigError: no folder holds that model.
        DataError: the training left no coordinates: it had no constraint.
        NumericsError: the files contradict the hold.
    """
    folder = result.folder.parent
    if not (folder / HELD / HELD_FILE).is_file():
        raise DataError(f"Cannot certify {folder}: got no {HELD}/{HELD_FILE}. Do: train with 'constraint'.")
    base = None if loaded.source == "new" or not loaded.weights else local_folder(loaded.source)
    if base is None or weights_of(base) != loaded.weights:
        raise ConfigError(
            f"Cannot certify {folder}: no folder holds the model that it began with, expected one to check against. "
            "Do: save the model and its tokenizer, load it from there, and train that."
        )
    save_plan(made, folder / PLAN_FOLDER)
    return certify_files(folder, Files(base, folder / PLAN_FOLDER, folder / HELD / HELD_FILE, result.folder))


def certify_files(folder: Path, files: Files) -> list[LayerProof]:
    """Write ``certificate.json`` into ``folder``.

    Raises:
        NumericsError: the files contradict the hold, so there is nothing to certify.
    """
    proofs, problems = examine(files)
    if problems:
        raise NumericsError(f"Cannot certify {files.result}: {problems[0]}. Do: report this; the hold is broken.")
    document = {
        "version": 1,
        "rule": RULE,
        "files": {
            name: {"path": _shown(path, folder), "sha256": sha256_of(path), "parts": _parts(path)}
            for name, path in asdict(files).items()
        },
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "layers": [asdict(proof) for proof in proofs],
    }
    write_atomically(folder / FILE, json.dumps(document, indent=1) + "\n")
    return proofs


def verify(folder: Path) -> tuple[list[LayerProof], list[Problem]]:
    """Check a certificate against the files it names: every hash, every bit that the rule gives, every figure.

    Raises:
        DataError: there is no certificate, or it is damaged.
    """
    document = _read(folder)
    found = {name: _found(entry["path"], entry["sha256"], folder) for name, entry in document["files"].items()}
    hashes = {name: str(entry["sha256"]) for name, entry in document["files"].items()}
    stated = {entry["layer"]: dict(entry) for entry in document["layers"]}
    files = Files(**{name: path for name, (path, _) in found.items()})
    changed = [
        Problem(f"{name} ({_changed(path, document['files'][name].get('parts', {}))})", got[:16], hashes[name][:16])
        for name, (path, got) in found.items()
        if got != hashes[name]
    ]
    try:
        with _threads(document["threads"]):
            proofs, broken = examine(files)
    except (HoldfastError, OSError, KeyError) as problem:
        if not changed:
            raise
        return [], [*changed, Problem("files", f"nothing to measure ({problem})", "files that can be read")]
    return proofs, [*changed, *broken, *_misstated(proofs, stated)]


def _read(folder: Path) -> dict[str, Any]:
    """A certificate with every key that verification needs."""
    try:
        document: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        needed = [document["files"][field.name][key] for field in fields(Files) for key in ("path", "sha256")]
        needed += [entry["layer"] for entry in document["layers"]]
        if not all(isinstance(value, str) for value in needed) or len(document["files"]) != len(fields(Files)):
            raise ValueError("a key is not what it should be")
        document["threads"] = int(document["threads"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"Cannot read a certificate in {folder}: {problem}. Do: give the folder of a held training step."
        ) from problem
    return document


def statement(proofs: Sequence[LayerProof]) -> str:
    """What the proofs say in one line. Only elements have coordinates that could have moved."""
    leak, drift = max(p.leak for p in proofs), max(p.drift for p in proofs)
    moved = [p.frozen_moved for p in proofs if p.frozen_moved is not None]
    elements = f"frozen coordinates moved by {max(moved):g}; " if moved else ""
    return (
        f"{elements}largest leak into what is frozen {leak:.1e}, after rounding; largest output drift on safety rows "
        f"{drift:.3f}"
    )


def certified_with_another(plan: Path, folder: Path) -> bool:
    """Whether the certificate in ``folder`` hangs on ``plan``, as it was before.

    Raises:
        DataError: the certificate is damaged.
    """
    entry = _read(folder)["files"]["plan"]
    return _place(entry["path"], folder) == plan.resolve() and entry["sha256"] != sha256_of(plan)


def _misstated(proofs: Sequence[LayerProof], stated: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Layers that are not in both, and figures that are not what was measured."""
    measured = {proof.layer: asdict(proof) for proof in proofs}
    for name in sorted(stated.keys() - measured.keys()):
        yield Problem(f"figures of {name}", "a layer that the plan does not hold", "none")
    for name, again in measured.items():
        there = stated.get(name, {})
        if there.keys() != again.keys() or not all(_agree(again, there, key) for key in again):
            yield Problem(f"figures of {name}", str(again), str(dict(there)))


def _agree(again: Mapping[str, Any], there: Mapping[str, Any], key: str) -> bool:
    if not isinstance(again[key], float) or not isinstance(there[key], int | float):
        return bool(again[key] == there[key])
    slack = ROUNDING * again["change"] if key == "leak" else 0.0
    return math.isclose(again[key], there[key], rel_tol=SAME, abs_tol=slack)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Sums are rounded in an order that the number of threads decides."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parts(path: Path) -> dict[str, str]:
    """The hash of every file of a folder."""
    return {file.relative_to(path).as_posix(): sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file()}


def _changed(path: Path, parts: Mapping[str, str]) -> str:
    """The file of a folder that is not as it was, as far as that is known."""
    now = _parts(path) if parts else {}
    other = [name for name in sorted(now.keys() | parts.keys()) if now.get(name) != parts.get(name)]
    return str(path / other[0] if other else path) + (f" and {len(other) - 1} more" if other[1:] else "")


def _shown(path: Path, folder: Path) -> str:
    """Beside the certificate relative, so that the run may be moved; elsewhere as it is."""
    run, absolute = folder.resolve().parent, path.resolve()
    return os.path.relpath(absolute, folder.resolve()) if absolute.is_relative_to(run) else str(absolute)


def _place(path: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder.resolve() / path))


def _found(path: str, wanted: str, folder: Path) -> tuple[Path, str]:
    """A file or folder and its hash, also where it now lies elsewhere: in this package, or in this hub cache."""
    places = [_place(path, folder)]
    if Path(path).is_absolute():
        places += [lab_folder(), *_in_this_cache(Path(path))]
    for place in places:
        got = sha256_of(place) if place.exists() else ABSENT
        if got == wanted:
            return place, got
    return places[0], sha256_of(places[0]) if places[0].exists() else ABSENT


def _in_this_cache(path: Path) -> list[Path]:
    """The same snapshot of a hub model in this machine's cache."""
    at = next((number for number, part in enumerate(path.parts) if part.startswith("models--")), None)
    return [] if at is None else [Path(constants.HF_HUB_CACHE, *path.parts[at:])]
