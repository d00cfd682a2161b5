"""Read the cases that a source names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from holdfast.core.errors import ConfigError, DataError, did_you_mean
from holdfast.data import files
from holdfast.data.counterfactual.checks import check_cases
from holdfast.data.counterfactual.formats import CASE_FORMATS, CaseFormat
from holdfast.data.counterfactual.lab import lab_cases
from holdfast.data.counterfactual.row import Counterfactual
from holdfast.data.counterfactual.splits import check_held_out, with_splits
from holdfast.data.formats import Row
from holdfast.data.formats.injection import attacks_near, read_attacks
from holdfast.data.lab.splits import SPLITS
from holdfast.data.sources import (
    HUB_ID,
    LAB_ROWS,
    Part,
    SourceConfig,
    check_columns,
    drawn,
    files_in,
    from_hub,
    in_part,
    refuse_unused,
)

LAB = "lab/injection"


def named(word: str) -> str:
    """The source that a command's word for cases stands for: ``lab`` is `LAB`."""
    return LAB if word == "lab" else word


def read_cases(source: SourceConfig) -> tuple[Counterfactual, ...]:
    """The checked cases that ``source`` names: ``lab/injection``, a file or folder, or a set on the hub.

    ``split`` keeps the cases of one split: the file's own, or else by hash of the group (a hub set is read from its
    train split). Without it a file gives all its cases, and the lab its train split. ``format`` is one of
    `CASE_FORMATS`; without it the columns decide. ``part`` cuts by group.

    Raises:
        ConfigError: an unknown format, a lab family that holds no cases, or a key that the source does not use.
        DataError: nothing there, a column missing, a case with a fault (named by its id), fewer rows than asked for, or
            a test split without a held-out family.
    """
    refuse_unused(source)
    if source.source.startswith("lab/"):
        return _lab(source, source.split or "train")
    cases = _all(source)
    check_cases(cases, source.source)
    if source.split == "test":
        check_held_out(cases, source.source)
    kept = in_part([case for case in cases if source.split in {"", case.split}], source, lambda case: case.group)
    if not kept:
        present = sorted({case.split for case in cases})
        raise DataError(f"{source.source} has no case of split {source.split!r}, got {', '.join(present)}.")
    return tuple(drawn(kept, source))


def of_families(cases: Sequence[Counterfactual], families: Sequence[str]) -> tuple[Counterfactual, ...]:
    """Those of the named attack families; all of them where none is named.

    Raises:
        DataError: a family that no case has.
    """
    known = {case.attack for case in cases}
    if unknown := sorted(set(families) - known):
        raise DataError(f"No case of the attack family {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
    return tuple(case for case in cases if not families or case.attack in families)


def read_unchecked(source: SourceConfig) -> tuple[Counterfactual, ...]:
    """All cases in all splits, with their faults: what an audit looks at."""
    refuse_unused(source)
    if source.source.startswith("lab/"):
        return tuple(case for split in SPLITS for case in _lab(source, split))
    return tuple(_all(source))


def _lab(source: SourceConfig, split: str) -> tuple[Counterfactual, ...]:
    if source.source != LAB:
        raise ConfigError(f"{source.source!r} holds no attacked cases, expected {LAB!r}. Do: take that.")
    return lab_cases(split, source.rows or min(LAB_ROWS, source.at_most or LAB_ROWS), source.seed)


def _all(source: SourceConfig) -> list[Counterfactual]:
    parts, paths = _parts(source)
    chosen = _format(source, parts[0])
    for part in parts:
        check_columns(part, _present(part), chosen.columns, source)
    rows = [
        Row(_renamed(record, source.columns), index, part.stem, seed=source.seed, attacks=attacks)
        for part, attacks in zip(parts, _attacks(source, chosen, paths), strict=True)
        for index, record in enumerate(part.records)
    ]
    cases = chosen.read(rows)
    if not cases:
        raise DataError(f"{source.source} gave no cases, expected at least one. Do: give more rows.")
    return with_splits(cases)


def _parts(source: SourceConfig) -> tuple[list[Part], list[Path | None]]:
    """What is read, and from which files; no file where it comes from the hub."""
    path = Path(source.source).expanduser()
    if path.exists() or files.kind_of(path):
        paths = files_in(path) if path.is_dir() else [path]
        return [Part(files.read_records(each), files.stem_of(each), str(each)) for each in paths], [*paths]
    home = CASE_FORMATS[source.source].columns.home if source.source in CASE_FORMATS else None
    if home is None and not HUB_ID.fullmatch(source.source):
        raise DataError(
            f"Cannot find cases at {source.source!r}: no such file or folder, nor {LAB} or owner/name. "
            f"{did_you_mean(source.source, CASE_FORMATS)}"
        )
    ident, subset = (home.id, source.subset or home.subset) if home else (source.source, source.subset)
    return [Part(from_hub(ident, subset, "train"), subset or ident, ident)], [None]


def _format(source: SourceConfig, first: Part) -> CaseFormat:
    name = source.format or (source.source if source.source in CASE_FORMATS else "")
    if name:
        return CASE_FORMATS[name]
    present = _present(first) | set(source.columns)
    for each in CASE_FORMATS.values():
        if not each.columns.missing(present):
            return each
    raise DataError(
        f"{first.where}: no format of cases has these columns, got {', '.join(sorted(present))}. "
        f"Do: rename them, or map them with 'columns' in a recipe, for one of the formats {', '.join(CASE_FORMATS)}."
    )


def _present(part: Part) -> set[str]:
    return {str(name) for record in part.records for name in record}


def _renamed(record: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    return {**record, **{ours: record.get(theirs) for ours, theirs in columns.items()}}


def _attacks(
    source: SourceConfig, chosen: CaseFormat, paths: Sequence[Path | None]
) -> list[dict[str, tuple[str, ...]] | None]:
    """BIPIA's payloads for each file; nothing for other formats."""
    if chosen.columns.name != "bipia":
        return [None] * len(paths)
    if source.attacks:
        return [read_attacks(Path(source.attacks).expanduser())] * len(paths)
    return [read_attacks(attacks_near(path)) if path else None for path in paths]
