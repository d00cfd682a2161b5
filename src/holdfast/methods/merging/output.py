"""A merged adapter on disk: stock PEFT loads it, and it was checked that it does."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import linear

from holdfast.core.errors import AdapterError
from holdfast.core.files import folder_atomically
from holdfast.curvature.passes import untouched
from holdfast.layers.adapters import Adapter, LowRank, check_fit, check_place, read_peft, write_peft
from holdfast.layers.address import LayerMap
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
        elif loaded is None and (known := _recorded(merged.adapter)):
            record_base(fresh, merged.adapter.base, known)
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


def _recorded(adapter: Adapter) -> str:
    """The SHA-256 of the base's weights that is recorded of every adapter that was merged, or empty."""
    bases = set(adapter.metadata.get("origin", {}).get("bases", ()))
    return str(bases.pop()) if len(bases) == 1 else ""


def _same_bits(adapter: Adapter, written: Path, folder: Path) -> None:
    back = read_peft(written)
    for name, delta in adapter.deltas.items():
        found = back.deltas.get(name)
        if found is None or not (torch.equal(found.A, delta.A.float()) and torch.equal(found.B, delta.B.float())):
            raise AdapterError(f"{folder} does not read back as it was merged: {name} differs. Do: check the disk.")


@torch.no_grad()
def same_answers(loaded: LoadedModel, adapter: Adapter, written: Path, folder: Path | None = None) -> float:
    """The largest difference of logits between stock PEFT on the base and the base with the deltas beside its weights.

    As a share of the largest change that the adapter makes. Each delta is computed as PEFT computes it, in float32
    beside the product with the base's own weights, so the two differ by rounding alone in any type of weights: 5 % of
    the change, or one rounding of the largest logit. What that cannot see is held by the factors: PEFT's, times its
    scaling, must be the deltas' bit for bit.

    Args:
        written: Where the adapter is.
        folder: Where it will be, for messages.
    Raises:
        AdapterError: the two disagree.
    """
    ids = torch.arange(PROBE, device=loaded.model.device)[None] % int(loaded.model.config.vocab_size)
    with untouched(loaded.model):
        before = _logits(loaded.model, ids)
        with _beside(loaded.model, adapter):
            ours = _logits(loaded.model, ids)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Transformers, for PEFT's authors
            wrapped: Any = PeftModel.from_pretrained(loaded.model, str(written))  # freezes what it wraps
        try:
            theirs = _logits(wrapped.eval(), ids)
            odd = _other_factors(wrapped, adapter)
        finally:
            loaded.model = wrapped.unload()
    change = float((ours - before).abs().max())
    apart = float((ours - theirs).abs().max())
    allowed = 0.05 * change + torch.finfo(loaded.model.dtype).eps * float(before.abs().max())
    if not apart <= allowed or odd:
        told = "" if odd is None else f"; the factors of {odd} are others"
        raise AdapterError(
            f"{folder or written} does not do in PEFT what was merged: logits differ by {apart:.3g}, expected at most "
            f"{allowed:.3g}{told}. Do: report this with the adapters' adapter_config.json."
        )
    return apart / change if change else 0.0


@contextmanager
def _beside(model: Any, adapter: Adapter) -> Iterator[None]:
    """Inside, every module gives ``W x + B (A x)``, the second term and the sum in float32.

    Raises:
        AdapterError: the adapter belongs to another model.
    """
    check_fit(LayerMap.of(model), adapter)
    hooks = []
    for name, delta in adapter.deltas.items():

        def plus(_: Any, given: tuple[Tensor, ...], out: Tensor, delta: LowRank = delta) -> Tensor:
            A_ri, B_or = delta.A.to(out.device, torch.float32), delta.B.to(out.device, torch.float32)
            return (out + linear(linear(given[0].float(), A_ri), B_or)).to(out.dtype)

        hooks.append(model.get_submodule(adapter.paths[name]).register_forward_hook(plus))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _other_factors(wrapped: Any, adapter: Adapter) -> str | None:
    """The first layer whose factors in PEFT, times its scaling, are not the adapter's."""
    for name, delta in adapter.deltas.items():
        module = wrapped.base_model.model.get_submodule(adapter.paths[name])
        if not hasattr(module, "lora_A"):
            return name
        A_ri, B_or = module.lora_A["default"].weight.cpu(), module.lora_B["default"].weight.cpu()
        scaled = B_or * module.scaling["default"]
        if not (torch.equal(A_ri, delta.A.cpu().float()) and torch.equal(scaled, delta.B.cpu().float())):
            return name
    return None


def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits.float()
    return logits
