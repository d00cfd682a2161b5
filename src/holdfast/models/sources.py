"""Where a model's files are: the package, a folder, or the hub's cache. Everything ends as a local folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from holdfast.core.errors import ConfigError, HoldfastError

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
"""What a hub model is made of here: configuration, weights, tokenizer and templates."""
_CODE = ["*.py"]
_WHAT = {
    "config.json": ("a model", "model.source"),
    "adapter_config.json": ("an adapter", "model.adapter"),
    "tokenizer_config.json": ("a tokenizer", "model.tokenizer"),
}
"""The file that marks a folder, what it makes the folder, and the key that named it."""
_TOKENIZERS = ("tokenizer*", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""Files of which a folder with a tokenizer holds at least one."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of which a folder with a model's weights holds one."""
_OTHER_COPIES = ["original/*", "onnx/*", "coreml/*", "openvino/*"]


def lab_folder() -> Path:
    """Folder of the model that ships with the package."""
    return Path(str(resources.files("holdfast.assets"))) / "lab-model"


def local_folder(
    source: str, *, revision: str | None = None, code: bool = False, weights: bool = True, marker: str = "config.json"
) -> Path:
    """The local folder with the files of ``source``; a hub model is fetched into the cache first.

    Args:
        source: ``lab``, a folder, or a hub name.
        revision: Branch, tag or commit; only for a hub name.
        code: Fetch Python files too.
        weights: Fetch weights too; without them this costs a few kilobytes.
        marker: The file that the folder must hold.
    Raises:
        ConfigError: there is no such folder or hub model, the hub cannot be reached, or ``marker`` is missing.
    """
    folder = lab_folder() if source == "lab" else Path(source).expanduser()
    if source != "lab" and not folder.is_dir():
        if _is_path(source):
            raise ConfigError(
                f"Cannot load {_WHAT[marker][0]} from {source}: no such folder. Do: check {_WHAT[marker][1]}."
            )
        folder = _fetch(source, revision, code=code, weights=weights, marker=marker)
    elif revision is not None:
        raise ConfigError(
            f"model.revision {revision!r} has no effect on {source}: it is not on the hub. Do: remove it."
        )
    if not (folder / marker).is_file():
        raise ConfigError(_without(source, folder, marker))
    return folder


def is_here(source: str) -> bool:
    """Whether ``source`` is the lab model or a folder, and not a name on the hub."""
    return source == "lab" or Path(source).expanduser().is_dir()


def check_weights(source: str, folder: Path) -> None:
    """Every file of a model's weights is in ``folder``.

    Raises:
        ConfigError: naming the file that is missing.
    """
    there = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if there is None:
        raise ConfigError(
            f"Cannot load the weights of {source}: got a folder without {_WEIGHTS[0]} (nor another of "
            f"{', '.join(_WEIGHTS[1:])}). Do: fetch or save the model again, with its weights."
        )
    if there.endswith(".index.json"):
        parts = sorted(set(shards(folder / there).values()))
        absent = [name for name in parts if not (folder / name).is_file()]
        if absent:
            raise ConfigError(
                f"Cannot load the weights of {source}: {len(absent)} of {len(parts)} files are missing, the first is "
                f"{absent[0]}. Do: fetch or save the model again."
            )


def shards(index: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as problem:
        raise ConfigError(
            f"Cannot read {index}: it is no list of weights ({first_line(problem)}) Do: fetch or save the model again."
        ) from problem
    return {str(name): str(file) for name, file in listed.items()}


def check_tokenizer(folder: Path) -> None:
    """There is a tokenizer in ``folder``; what Transformers says where there is none is about something else.

    Raises:
        ConfigError: there is none.
    """
    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise ConfigError(
            f"Cannot load a tokenizer from {folder}: got a folder without tokenizer.json or another tokenizer file. "
            "Do: save the tokenizer into the model's folder, or copy its tokenizer files there."
        )


def _without(source: str, folder: Path, marker: str) -> str:
    if source == "lab":
        return "The lab model is not in this installation. Do: run 'holdfast run recipes/lab.yaml', or reinstall."
    if marker == "config.json" and (folder / "adapter_config.json").is_file():
        return (
            f"Cannot load {source} as a model: it is an adapter. "
            "Do: give its base as model.source and this folder as model.adapter."
        )
    what, key = _WHAT[marker]
    return (
        f"Cannot load {what} from {source}: got a folder without {marker}. Do: point {key} to the folder that holds it."
    )


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~", os.sep)) or source.count("/") > 1 or Path(source).exists()


def _fetch(name: str, revision: str | None, *, code: bool, weights: bool, marker: str) -> Path:
    what, key = _WHAT[marker]
    noun = what.split()[-1]
    wanted = [p for p in _FILES + _CODE * code if weights or p != "*.safetensors"]
    at = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHER_COPIES))
    except GatedRepoError as problem:
        raise ConfigError(
            f"Cannot fetch {at}: its owner asks you to accept terms. Do: accept them on the hub, then 'hf auth login'."
        ) from problem
    except RevisionNotFoundError as problem:
        raise ConfigError(f"Cannot fetch {at}: the {noun} has no such revision. Do: check model.revision.") from problem
    except RepositoryNotFoundError as problem:
        raise ConfigError(
            f"Cannot fetch {at}: the hub has no such public {noun}. Do: check the name; 'hf auth login' if private."
        ) from problem
    except HFValidationError as problem:
        raise ConfigError(
            f"Cannot load {at}: neither a folder nor a hub name (owner/name). Do: check {key}."
        ) from problem
    except (OSError, HTTPError) as problem:
        raise _unreachable(at, noun) from problem


def _unreachable(at: str, noun: str) -> HoldfastError:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    instead = (
        ", give a folder, or use 'lab', which needs none." if noun == "model" else ", or give a folder that exists."
    )
    why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
    return ConfigError(
        f"Cannot fetch {at}: {why} and the {noun} is not in the local cache. "
        f"Do: fetch it once with a connection{instead}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter from Transformers and the hub inside; as it was afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        (enable_progress_bars if hub_bars else disable_progress_bars)()


def first_line(problem: BaseException) -> str:
    """What another library's error says, as one sentence: its first line that does not only announce the next."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = next((line for line in lines if not line.endswith(":")), type(problem).__name__)
    return text if text.endswith((".", "!", "?")) else f"{text}."
