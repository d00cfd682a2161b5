"""``holdfast export``: what a training made, in a layout that other programs read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.output import refuse_existing, say
from holdfast.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from holdfast.models.load import LoadedModel

LAYOUTS = ("hf", "medusa", "deepseek")


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a training: model or adapter in it, and heads beside.")],
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

    An adapter is merged into its base. Heads of kind medusa go into Medusa's layout, sequential ones into DeepSeek's.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"Unknown layout {layout!r}. {did_you_mean(layout, LAYOUTS)}")
    if served and layout != "medusa":
        raise ConfigError(f"--served has no effect with --layout {layout}. Do: take it out.")
    full = (folder / "model" / "config.json").is_file()
    if not full and not (folder / "adapter" / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} holds no training: got neither model/ nor adapter/ in it. Do: give the folder of a training "
            "step, e.g. runs/NAME/tuned."
        )
    if base and full:
        raise ConfigError(f"--base has no effect: {folder} holds a whole model. Do: take it out.")
    refuse_existing(out)
    if layout == "hf":
        _plain(folder, full, base, out)
    else:
        _heads(folder, full, base, layout, served, out)
    say(f"{layout}: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}.")


def _plain(folder: Path, full: bool, base: str, out: Path) -> None:
    from holdfast.core.files import folder_atomically
    from holdfast.models.sources import quiet

    loaded = None if full else _loaded(folder, full, base)
    with folder_atomically(out) as fresh:
        if loaded is None:
            shutil.copytree(folder / "model", fresh, dirs_exist_ok=True)
        else:
            with quiet():
                loaded.model.save_pretrained(fresh)
            loaded.save_tokenizer(fresh)


def _heads(folder: Path, full: bool, base: str, layout: str, served: str, out: Path) -> None:
    from holdfast.methods.token_weighting.objective import HEADS, base_of
    from holdfast.models.heads import export_deepseek, export_medusa, load_heads

    if not (folder / HEADS).is_dir():
        raise ConfigError(
            f"{folder} holds no heads to export: got no folder {HEADS} in it. Do: train with token_weighting at a "
            "horizon of 2 or more, or export with --layout hf."
        )
    if layout == "medusa" and not (served or full):
        raise ConfigError(
            "Medusa's layout names the model that the heads are served with, and this training made an adapter. "
            "Do: export it with --layout hf first, and give that folder as --served."
        )
    loaded = _loaded(folder, full, base)
    heads = load_heads(folder / HEADS, loaded.model, base=loaded.weights if full else base_of(folder / "adapter"))
    if layout == "medusa":
        export_medusa(heads, loaded.model, out, base=served or str((folder / "model").resolve()))
    else:
        export_deepseek(heads, loaded.model, out)


def _loaded(folder: Path, full: bool, base: str) -> LoadedModel:
    """What the training made, an adapter merged into its base."""
    from holdfast.models.adapter import BASE_FILE
    from holdfast.models.config import ModelConfig
    from holdfast.models.load import load_model

    if full:
        return load_model(ModelConfig(source=str(folder / "model")))
    recorded = folder / "adapter" / BASE_FILE
    if not base and not recorded.is_file():
        raise ConfigError(f"{folder / 'adapter'} does not say on which model it was trained. Do: add --base MODEL.")
    source = base or str(json.loads(recorded.read_text(encoding="utf-8"))["base"])
    return load_model(ModelConfig(source=source, adapter=str(folder / "adapter")))
