"""A merged adapter on disk: stock PEFT loads it, and it was checked that it does."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from holdfast.core.errors import AdapterError
from holdfast.core.files import folder_atomically
from holdfast.curvature.passes import untouched
from holdfast.layers.adapters import Adapter, added, check_place, read_peft, write_peft
from holdfast.methods.merging.apply import Merged
from holdfast.methods.merging.select import Selection
from holdfast.methods.merging.spectrum import Spectrum
from holdfast.models.adapter import record_base
from holdfast.models.load import LoadedModel

FILE = "merge.json"
PROBE = 48
"""Tokens that are run through both models when a saved adapter is checked."""


def save(
    merged: Merged,
    folder: Path,
    loaded: LoadedModel | None = None,
    spectra: Sequence[Spectrum] = (),
    selection: Selection | None = None,
) -> float | None:
    """Write the adapter and ``merge.json``, then read it back; with the base at hand, in PEFT, and compare answers.

    The folder appears when all of that is done, or not at all.

    Returns:
        `same_answers`, or ``None`` without a base.
    Raises:
        AdapterError: what was read back is not what was merged, or the folder holds something else.
    """
    check_place(folder)
    with folder_atomically(folder) as fresh:
        write_peft(merged.adapter, fresh)
        if loaded is not None and loaded.weights:
            record_base(fresh, loaded.source, loaded.weights)
        (fresh / FILE).write_text(json.dumps(_record(merged, spectra, selection), indent=1) + "\n", encoding="utf-8")
        _same_bits(merged.adapter, fresh, folder)
        return None if loaded is None else same_answers(loaded, merged.adapter, fresh, folder)


def _record(merged: Merged, spectra: Sequence[Spectrum], selection: Selection | None) -> dict[str, Any]:
    return {
        **merged.adapter.metadata,
        "truncation": merged.truncation,
        "spectra": [asdict(spectrum) for spectrum in spectra],
        "selection": None if selection is None else {"rule": selection.rule, **asdict(selection)},
    }


def _same_bits(adapter: Adapter, written: Path, folder: Path) -> None:
    back = read_peft(written)
    for name, delta in adapter.deltas.items():
        found = back.deltas.get(name)
        if found is None or not (torch.equal(found.A, delta.A.float()) and torch.equal(found.B, delta.B.float())):
            raise AdapterError(f"{folder} does not read back as it was merged: {name} differs. Do: check the disk.")


@torch.no_grad()
def same_answers(loaded: LoadedModel, adapter: Adapter, written: Path, folder: Path | None = None) -> float:
    """The largest difference of logits between stock PEFT on the base and the base with the deltas added.

    As a share of the largest change that the adapter makes. Rounding of a narrow type is allowed for: the second model
    rounds its sum to the type of the weights, PEFT does not.

    Args:
        written: Where the adapter is.
        folder: Where it will be, for messages.
    Raises:
        AdapterError: the two disagree.
    """
    ids = torch.arange(PROBE, device=loaded.model.device)[None] % int(loaded.model.config.vocab_size)
    before = _logits(loaded.model, ids)
    with added(loaded.model, adapter):
        ours = _logits(loaded.model, ids)
    with untouched(loaded.model), warnings.catch_warnings():  # PEFT freezes what it wraps
        warnings.simplefilter("ignore", FutureWarning)  # of Transformers, for PEFT's authors
        wrapped: Any = PeftModel.from_pretrained(loaded.model, str(written))
        try:
            theirs = _logits(wrapped.eval(), ids)
        finally:
            loaded.model = wrapped.unload()
    change = float((ours - before).abs().max())
    apart = float((ours - theirs).abs().max())
    slack = 1e3 * torch.finfo(loaded.model.dtype).eps * float(before.abs().max())
    if not apart <= 1e-3 * change + slack:
        raise AdapterError(
            f"{folder or written} does not do in PEFT what was merged: logits differ by {apart:.3g}, expected at most "
            f"{1e-3 * change + slack:.3g}. Do: report this with the adapters' adapter_config.json."
        )
    return apart / change if change else 0.0


def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits.float()
    return logits
