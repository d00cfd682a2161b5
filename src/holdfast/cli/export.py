"""``holdfast export``: what a training, a merge or a repair made, in a layout that other programs read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.output import Ticker, refuse_existing, say, size
from holdfast.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from holdfast.models.load import LoadedModel

LAYOUTS = ("hf", "medusa", "deepseek")


def export(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a training, model or adapter in it and heads beside; or an adapter itself."),
    ],
    layout: Annotated[str, typer.Option(help="hf (the model without heads), medusa or deepseek (the heads).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write.")],
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="What an adapter was trained on. Default: what its folder says.")
    ] = "",
    served: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="Of medusa: the model that the heads will be served with. Default: the training's."
        ),
    ] = "",
) -> None:
    """Write a trained model as a plain Hugging Face folder, or its heads as servers read them.

    An adapter, also one that a merge or a repair wrote, is merged into its base, a few tensors at a time: what it takes
    of disk and memory is printed first, and refused where the disk is too small. Heads of kind medusa go into Medusa's
    layout, sequential ones into DeepSeek's.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"Unknown layout {layout!r}. {did_you_mean(layout, LAYOUTS)}")
    if served and layout != "medusa":
        raise ConfigError(f"--served has no effect with --layout {layout}. Do: take it out.")
    adapter = _adapter(folder)
    if base and adapter is None:
        raise ConfigError(f"--base has no effect: {folder} holds a whole model. Do: take it out.")
    refuse_existing(out)
    if layout != "hf":
        _heads(folder, adapter, base, layout, served, out)
    elif adapter is None:
        _copied(folder / "model", out)
    else:
        _merged(adapter, base, out)
    say(f"{layout}: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}.")


def _adapter(folder: Path) -> Path | None:
    """The adapter that a training made or that the folder is; ``None`` where a whole model is in it."""
    if (folder / "model" / "config.json").is_file():
        return None
    for place in (folder / "adapter", folder):
        if (place / "adapter_config.json").is_file():
            return place
    raise ConfigError(
        f"{folder} holds no training: got neither model/ nor adapter/ in it, and it is no adapter. Do: give the folder "
        "of a training step, e.g. runs/NAME/tuned, or an adapter's own."
    )


def _copied(model: Path, out: Path) -> None:
    from holdfast.core.files import folder_atomically

    _announce(sum(path.stat().st_size for path in model.rglob("*") if path.is_file()), None, out)
    with folder_atomically(out) as fresh:
        shutil.copytree(model, fresh, dirs_exist_ok=True)


def _merged(adapter: Path, base: str, out: Path) -> None:
    """The base with the adapter in its weights, tensor by tensor where its files allow it."""
    from holdfast.layers import streamed
    from holdfast.layers.adapters import read_peft
    from holdfast.models.adapter import Base, check_base
    from holdfast.models.load import weights_of
    from holdfast.models.sources import check_weights
    from holdfast.recipes.estimate import RUNTIME_BYTES

    source = _base_of(adapter, base)
    folder = _base_folder(source, named=not base)
    check_weights(source, folder)
    if not streamed.has_safetensors(folder):
        _merged_whole(adapter, source, folder, out)
        return
    found = streamed.look(source, folder, read_peft(adapter))
    _announce(found.disk_bytes, RUNTIME_BYTES + found.memory_bytes, out)
    for note in check_base(adapter, Base(source, folder, weights_of(folder))):
        say(f"Note: {note}")
    streamed.write(found, out, Ticker())


def _merged_whole(adapter: Path, source: str, folder: Path, out: Path) -> None:
    """The same through a loaded model."""
    from holdfast.core.files import folder_atomically
    from holdfast.models.sources import quiet
    from holdfast.recipes.estimate import RUNTIME_BYTES

    weights = sum(path.stat().st_size for path in folder.glob("*.bin"))
    say(f"{source} has no safetensors files, which are read tensor by tensor: the whole model is loaded.")
    _announce(weights, RUNTIME_BYTES + weights, out)
    loaded = _loaded(source, adapter)
    with folder_atomically(out) as fresh:
        with quiet():
            loaded.model.save_pretrained(fresh)
        loaded.save_tokenizer(fresh)


def _announce(disk: int, memory: int | None, out: Path) -> None:
    """Say what it takes, and refuse what does not fit on the disk.

    Raises:
        ConfigError: it does not.
    """
    place = next(path for path in out.absolute().parents if path.is_dir())
    free = shutil.disk_usage(place).free
    held = "" if memory is None else f"; about {size(memory)} of memory"
    say(f"Takes {size(disk)} of disk ({size(free)} free){held}.")
    if disk > free:
        raise ConfigError(
            f"Cannot write {out}: got {size(free)} free on its disk, expected at least {size(disk)}. Do: give a folder "
            "on another disk with -o, or make room."
        )


def _heads(folder: Path, adapter: Path | None, base: str, layout: str, served: str, out: Path) -> None:
    from holdfast.methods.token_weighting.objective import HEADS, base_of
    from holdfast.models.heads import export_deepseek, export_medusa, load_heads

    if not (folder / HEADS).is_dir():
        raise ConfigError(
            f"{folder} holds no heads to export: got no folder {HEADS} in it. Do: train with token_weighting at a "
            "horizon of 2 or more, or export with --layout hf."
        )
    if layout == "medusa" and not (served or adapter is None):
        raise ConfigError(
            "Medusa's layout names the model that the heads are served with, and this training made an adapter. "
            "Do: export it with --layout hf first, and give that folder as --served."
        )
    loaded = _loaded(str(folder / "model") if adapter is None else _base_of(adapter, base), adapter)
    heads = load_heads(folder / HEADS, loaded.model, base=loaded.weights if adapter is None else base_of(adapter))
    if layout == "medusa":
        export_medusa(heads, loaded.model, out, base=served or str((folder / "model").resolve()))
    else:
        export_deepseek(heads, loaded.model, out)


def _loaded(source: str, adapter: Path | None) -> LoadedModel:
    """A model with the adapter merged into it."""
    from holdfast.models.config import ModelConfig
    from holdfast.models.load import load_model

    return load_model(ModelConfig(source=source, adapter=None if adapter is None else str(adapter)))


def _base_of(adapter: Path, base: str) -> str:
    """The base as the user names it, or else as the adapter's folder does."""
    from holdfast.models.adapter import base_named

    source = base or base_named(adapter)
    if not source:
        raise ConfigError(f"{adapter} does not say on which model it was trained. Do: add --base MODEL.")
    return source


def _base_folder(source: str, *, named: bool) -> Path:
    from holdfast.models.sources import local_folder

    try:
        return local_folder(source)
    except ConfigError as problem:
        if not named:
            raise
        raise ConfigError(f"{problem} The adapter names it as its base: where it has moved, add --base.") from problem
