"""What the step ``do: adapter`` does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from holdfast.core.files import folder_atomically
from holdfast.recipes.adapter_step import AdapterStep
from holdfast.recipes.context import ADAPTER_FOLDER, Context, Outcome, artifact, keep_base, name_of, resolve_model
from holdfast.recipes.merging import expert_of

COPIED = ("adapter_config.json", "adapter_model.safetensors")
"""What an adapter's folder must hold."""


def take(context: Context) -> Outcome:
    """Check that the adapter stands on the base, and copy it to where a training would have left it.

    Raises:
        AdapterError: it cannot be read, is no plain LoRA, was made for another base, or does not fit this one.
    """
    from holdfast.core.runtime import peak_bytes
    from holdfast.layers.adapters import check_fit
    from holdfast.layers.address import LayerMap
    from holdfast.models.adapter import record_base
    from holdfast.models.load import load_model
    from holdfast.models.sources import local_folder

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, AdapterStep)
    base = resolve_model(context.recipe, context.step_id, context.out)
    loaded = load_model(base)
    expert = expert_of(context, step.source, (), base, loaded, any_base=step.any_base)
    check_fit(LayerMap.of(loaded.model), expert.adapter)
    keep_base(context, base, loaded)
    given, folder = local_folder(step.source, marker=COPIED[0]), context.folder / ADAPTER_FOLDER
    with folder_atomically(folder) as fresh:
        for name in COPIED:
            shutil.copyfile(given / name, fresh / name)
        if step.any_base:
            _name_base(fresh / COPIED[0], expert.adapter.base)
        if loaded.weights:
            record_base(fresh, loaded.source, loaded.weights)
    ranks = sorted({delta.rank for delta in expert.adapter.deltas.values()})
    return Outcome(
        artifacts=(artifact(context, folder),),
        notes=(
            *loaded.notes,
            f"Taken from {step.source}: {len(expert.adapter.deltas)} layers, ranks {ranks[0]} to {ranks[-1]}.",
            *expert.notes,
        ),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _name_base(config: Path, base: str) -> None:
    """Let an adapter of another base name this one, so that it can be merged with others of it."""
    known = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    config.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
