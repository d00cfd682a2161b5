"""A column of a file beside its rows, for what no field of a row holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.core.errors import ConfigError, DataError, did_you_mean
from holdfast.data import files
from holdfast.data.sources import SourceConfig, adapted, check_source, parts_of


def read_column(sources: Sequence[SourceConfig], name: str) -> dict[str, Any]:
    """What column ``name`` of each source holds, by the id of the row that was made of each record.

    Raises:
        ConfigError: a source is no file or folder.
        DataError: nothing there, damaged, no such column, or a row of this id in two sources.
    """
    found: dict[str, Any] = {}
    for source in sources:
        own = _of_file(source, name)
        if both := sorted(found.keys() & own.keys()):
            raise DataError(
                f"Row {both[0]!r} stands in two sources, so its {name!r} cannot be told. Do: give the rows ids that "
                "differ."
            )
        found |= own
    return found


def _of_file(source: SourceConfig, name: str) -> dict[str, Any]:
    check_source(source)
    path = Path(source.source).expanduser()
    if source.source.startswith("lab/") or not (path.exists() or files.kind_of(path)):
        raise ConfigError(
            f"{source.source} has no column {name!r}: got no file, expected one. Do: write its rows to a file, with "
            "that column."
        )
    parts = parts_of(source, path)
    for part in parts:
        if name not in (present := {str(known) for record in part.records for known in record}):
            raise DataError(f"{part.where}: no column {name!r}. {did_you_mean(name, present)}")
    return {example.id: record.get(name) for record, example in adapted(parts, source)}
