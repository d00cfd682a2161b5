"""Losses of a reference model on every learnt token: computed once, kept at 2 bytes a token, resumed where cut off.

A cache is a folder of two files: what the losses are of, and the losses as little-endian float16, appended batch by
batch in an order that the rows alone decide. What stands after the last whole batch is cut off and computed again, in
the same batches: the end is bit for bit that of an uninterrupted pass. One process writes a cache at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.core.files import write_atomically
from holdfast.core.sizes import PLANNING_ROWS
from holdfast.curvature.passes import at_least_float32, digest, full_precision, untouched
from holdfast.data.batches import IGNORE, Encoded, Rows, collate
from holdfast.methods.token_weighting import maths
from holdfast.models.generate import check_context
from holdfast.models.load import LoadedModel
from holdfast.training.objective import logits_at, targets_of

HEADER, LOSSES = "cache.json", "losses.f16"
"""Rows of one forward."""
_DTYPE = "<f2"


def learnt_tokens(row: Encoded) -> int:
    """How many tokens of a row are learnt. Its first never is: nothing predicts it."""
    return sum(row.response[1:])


def vocabulary(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's tokens and their numbers."""
    known = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


class Speaker(Protocol):
    """A model, or as much of it as is known before it loads."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""


def check_vocabulary(loaded: Speaker, reference: Speaker, name: str) -> None:
    """The reference knows the tokens by the same numbers.

    Raises:
        ConfigError: it has another vocabulary; names the first token that differs.
    """
    own, other = loaded.tokenizer.get_vocab(), reference.tokenizer.get_vocab()
    if own == other:
        return
    first = min(dict(own.items() ^ other.items()), key=lambda token: (own.get(token, len(own)), token))
    at, expected = (known.get(first, "no place") for known in (other, own))
    raise ConfigError(
        f"The {name} {reference.name} has another vocabulary than {loaded.name}: got {len(other)} tokens with "
        f"{first!r} at {at}, expected {len(own)} with it at {expected}. Do: give a reference made from the same base."
    )


@contextmanager
def switched_off(loaded: LoadedModel) -> Iterator[None]:
    """The adapter that the model carries is off inside.

    Raises:
        ConfigError: it carries none.
    """
    switch = getattr(loaded.model, "disable_adapter", None)
    if switch is None or not hasattr(loaded.model, "peft_config"):
        raise ConfigError(
            f"reference: base needs a model that carries an adapter: got {loaded.name} without one, expected a PEFT "
            "model. Do: give the reference model beside the plan."
        )
    with switch():
        yield


@torch.no_grad()
def look(loaded: LoadedModel, rows: Sequence[Encoded], *, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
    """The loss of each learnt token of ``rows``, one after the other, in nats, and the entropy of its prediction.

    Both ``(n,)``, at least float32, on the CPU; the model is as before.
    """
    device = loaded.model.device
    with untouched(loaded.model), full_precision(device):
        batch = collate(rows, loaded.chat.pad_id).to(device)
        targets, _ = targets_of(batch)
        where = targets != IGNORE
        logits_nv = at_least_float32(logits_at(loaded.model, batch, where))
        loss_n = cross_entropy(logits_nv, targets[where], reduction="none").cpu()
        return loss_n, maths.entropy(logits_nv).cpu() if entropies else None


def reference_losses(
    reference: LoadedModel, rows: Rows, *, name: str = "reference", folder: Path | None = None, base: bool = False
) -> Tensor:
    """The reference's loss of each learnt token of all rows, one row after the other, float16, ``(n,)``.

    Args:
        name: For people.
        folder: A cache, see `cache_name`; without one nothing is kept.
        base: Switch off the adapter that the reference carries.
    Raises:
        ConfigError: the cache is of another reference, tokenizer, arithmetic or rows; or ``base`` without an adapter.
        DataError: a row does not fit the model's context, or the cache is damaged.
        NumericsError: a loss is not a number that float16 holds; names the row.
    """
    each = cast(Sequence[Encoded], rows)  # unpacked one by one, never all at once
    check_context(reference, each, 0)
    lengths = rows.lengths
    order = sorted(range(len(each)), key=lambda n: -lengths[n])
    batches = [order[start : start + PLANNING_ROWS] for start in range(0, len(order), PLANNING_ROWS)]
    sizes = [[learnt_tokens(each[n]) for n in batch] for batch in batches]
    done = [] if folder is None else _resumed(folder, _header(reference, each, base), list(map(sum, sizes)))
    with switched_off(reference) if base else nullcontext():
        for batch in batches[len(done) :]:
            half_n = look(reference, [each[n] for n in batch])[0].to(torch.float16)
            _check_finite(half_n, [each[n] for n in batch], f"{name} {reference.name}")
            done.append(half_n)
            if folder is not None:
                with (folder / LOSSES).open("ab") as file:
                    file.write(half_n.numpy().astype(_DTYPE).tobytes())
    place: dict[int, Tensor] = {}
    for batch, parts, half_n in zip(batches, sizes, done, strict=True):
        place |= dict(zip(batch, torch.split(half_n, parts), strict=True))
    return torch.cat([place[n] for n in range(len(each))])


def cache_name(reference: LoadedModel, rows: Rows, *, base: bool = False) -> str:
    """The name of a cache after all that its losses are of, so that plans which ask for the same ones find them."""
    header = _header(reference, cast(Sequence[Encoded], rows), base)
    return hashlib.sha256(json.dumps(header).encode()).hexdigest()[:32]


def _header(reference: LoadedModel, rows: Sequence[Encoded], base: bool) -> dict[str, str]:
    return {
        "tokenizer": vocabulary(reference.tokenizer),
        "reference": reference.fingerprint + ("/base" if base else ""),
        "arithmetic": _arithmetic(reference.model),
        "rows": digest(rows),
    }


def _arithmetic(model: Any) -> str:
    """What losses of the same weights depend on beside them: type, device, attention kernel, quantization."""
    config = model.config
    kernel, quantized = (getattr(config, key, None) for key in ("_attn_implementation", "quantization_config"))
    return f"{model.dtype} {model.device.type} {kernel} {quantized}".removeprefix("torch.")


def _check_finite(half_n: Tensor, rows: Sequence[Encoded], name: str) -> None:
    first = 0
    for row in rows:
        own_n = half_n[first : first + learnt_tokens(row)]
        first += len(own_n)
        if bad := own_n[~own_n.isfinite()].tolist():
            raise NumericsError(
                f"The loss of the {name} is not finite on row {row.id!r}: got {bad[0]}, expected a number below 65504. "
                "Do: look at this row, or load the reference in float32 or bfloat16."
            )


def _resumed(folder: Path, header: dict[str, str], sizes: Sequence[int]) -> list[Tensor]:
    """The whole batches that a cache holds, ``sizes`` being the learnt tokens of each; the file ends after them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOSSES
    if not (folder / HEADER).is_file():
        file.unlink(missing_ok=True)
        write_atomically(folder / HEADER, json.dumps(header, indent=1) + "\n")
    _check_header(folder, header)
    found = np.fromfile(file, dtype=_DTYPE) if file.is_file() else np.empty(0, dtype=_DTYPE)
    if len(found) > sum(sizes):
        raise DataError(
            f"The cache {folder} is damaged: got {len(found)} losses, expected at most {sum(sizes)}. Do: remove it."
        )
    ends = np.cumsum(sizes)
    whole = int(np.searchsorted(ends, len(found), side="right"))
    kept = int(ends[whole - 1]) if whole else 0
    if file.is_file():
        os.truncate(file, kept * np.dtype(_DTYPE).itemsize)
    losses = torch.from_numpy(found[:kept].astype(np.float16))
    return list(torch.split(losses, list(sizes[:whole]))) if whole else []


def _check_header(folder: Path, header: dict[str, str]) -> None:
    try:
        stored = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        parts = {what: str(stored[what]) for what in header}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"Cannot read the cache {folder}: {problem}. Do: remove it.") from problem
    for what, expected in header.items():
        if parts[what] != expected:
            raise ConfigError(
                f"The cache {folder} is of another {what} (or another revision of it): got {parts[what][:24]}, "
                f"expected {expected[:24]}. Do: give another folder, or remove this one."
            )
