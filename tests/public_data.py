"""Real public data beside the repository; a test that needs it is skipped where it is absent."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"


def public(name: str) -> Path:
    """The path of one file or folder of public data."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"public test data is not here: ../shared/data/{name}")
    return path
