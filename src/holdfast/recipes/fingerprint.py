"""When may a finished step be reused? When its configuration, its inputs and the files it reads are unchanged."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.core.files import sha256_of
from holdfast.recipes.schema import Recipe

PATH_KEYS = ("source", "adapter", "tokenizer", "path", "file")
"""Settings that may name a local file or folder, whose bytes then count."""


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
        "config": config,
        "inputs": {name: earlier[name] for name in recipe.inputs_of(step_id)},
        "files": {name: sha256_of(Path(name)) for name in files},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _local_files(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key in PATH_KEYS and isinstance(value, str) and value and Path(value).exists():
                yield value
            else:
                yield from _local_files(value)
    elif isinstance(config, list):
        for value in config:
            yield from _local_files(value)
