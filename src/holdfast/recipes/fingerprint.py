"""When may a finished step be reused? When its configuration, inputs, files and Holdfast itself are unchanged."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast import __version__
from holdfast.core.files import sha256_of
from holdfast.models.sources import lab_folder
from holdfast.recipes.schema import Recipe

PATH_KEYS = ("source", "adapter", "tokenizer", "chat_template", "attacks", "constraint", "answers", "reward_model")
"""Settings that may name a local file or folder, whose bytes then count."""
FREE_KEYS = ("options",)
"""Settings of another program, in which any text may name a file."""


def step_fingerprint(recipe: Recipe, step_id: str, earlier: Mapping[str, str]) -> str:
    """SHA-256 over a step's complete configuration, its inputs' fingerprints and the bytes of local files it names.

    Args:
        recipe: The recipe as it runs.
        step_id: The step.
        earlier: Fingerprints of the steps before it.
    """
    step = recipe.steps[step_id]
    config = step.model_dump(mode="json", exclude={"quick"})
    if "model" in type(step).model_fields:
        config["model"] = recipe.model_of(step_id).model_dump(mode="json")
    files = sorted(set(_local_files(config)) - set(recipe.steps))
    parts = {
        "version": __version__,
        "config": config,
        "inputs": {name: earlier[name] for name in recipe.inputs_of(step_id)},
        "files": {name: sha256_of(Path(name)) for name in files},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _local_files(config: Any, key: str = "") -> Iterator[str]:
    """Existing files and folders under path keys, and existing files anywhere under a free key."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _local_files(value, key if key in FREE_KEYS else name)
    elif isinstance(config, list):
        for value in config:
            yield from _local_files(value, key)
    elif isinstance(config, str) and config:
        path = lab_folder() if (key, config) == ("source", "lab") else Path(config).expanduser()
        if (key in PATH_KEYS and path.exists()) or (key in FREE_KEYS and path.is_file()):
            yield str(path)
