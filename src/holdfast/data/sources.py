"""Where rows come from: a file, a folder of files, the hub or the lab; always with a hash of what was read."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from holdfast.core.config import Config
from holdfast.core.errors import ConfigError, DataError, did_you_mean
from holdfast.core.files import sha256_of
from holdfast.data import files, lab
from holdfast.data.examples import Example
from holdfast.data.formats import FORMATS, Format, Row
from holdfast.data.formats.injection import attacks_near, read_attacks

LAB_ROWS = 500
"""Rows of a lab family when ``rows`` is not given: a generator has no end of its own."""
T = TypeVar("T")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class SourceConfig(Config):
    """Rows to read."""

    source: str
    """``lab/<family>``; a task's name (``gsm8k``: its public set on the hub); a file or folder of .jsonl, .json, .csv
    or .parquet (also .gz); or a hub id (``owner/name``)."""
    format: str | None = None
    """Row format (``gsm8k``, ``messages``, ...). Default: ``messages`` where the rows have such a column, else
    ``prompt_answer``; for a task's name, that task's."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names the format reads, each with the file's name for it: ``{prompt: question, group: topic}``."""
    subset: str | None = None
    """Hub only: the configuration of the set, e.g. ``main``."""
    split: str = ""
    """Lab and hub: which split (default ``train``). A file: keep the rows whose own ``split`` says so."""
    part: tuple[float, float] | None = None
    """Files and hub: a stretch of the rows, ``[0, 0.6]`` for about the first 60 %, in the order of a hash of each row's
    ``group``, or else of its prompt. Stretches that do not overlap share no prompt and no group."""
    rows: int | None = None
    """How many, drawn by ``seed`` and kept in order. Default: all (lab: 500). Fewer present is an error."""
    at_most: int | None = None
    """The same without the demand: where fewer are present, all of them."""
    seed: int = 0
    """For the draw of rows, for lab generators and for pairing contexts with attacks."""
    attacks: str | None = None
    """BIPIA only: the JSON file of attack instructions. Default: ``text_attack_<train or test>.json`` near by."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What was read, so that a number can be traced to bytes."""

    source: str
    format: str
    split: str
    rows: int
    """Examples kept."""
    of: int
    """Examples that were there."""
    seed: int
    sha256: Mapping[str, str]
    """Hash by file name; for hub and lab, of the rows as JSON under the name of the source."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Examples with their provenance."""

    examples: list[Example]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Part:
    """Records of one file or one hub split."""

    records: Sequence[Mapping[str, Any]]
    stem: str
    where: str
    split: str = ""


def load_examples(config: SourceConfig) -> list[Example]:
    """The rows of `read_source`, without their provenance."""
    return read_source(config).examples


def load_all(configs: Iterable[SourceConfig]) -> list[Example]:
    """The rows of all sources, in order."""
    return [example for config in configs for example in load_examples(config)]


def check_answers(config: SourceConfig, examples: Sequence[Example]) -> None:
    """Refuse rows that training would learn nothing from but to end the answer.

    Raises:
        DataError: naming the first such row, and the columns of ``config`` that hold the answer.
    """
    empty = [example for example in examples if not example.answer.strip()]
    if not empty:
        return
    adapter = _named_format(config) or FORMATS["prompt_answer"]
    if not adapter.answers:
        raise DataError(
            f"{config.source}: rows of format {adapter.name!r} have no answers to learn. Do: take rows with answers."
        )
    columns = " or ".join(repr(config.columns.get(name, name)) for name in adapter.answers)
    turn = " (nor is the last turn the assistant's)" if config.format in {None, "messages"} else ""
    raise DataError(
        f"{config.source}: no answer to learn in {len(empty)} of {len(examples)} rows, the first is row "
        f"{empty[0].id!r}: column {columns} is absent or empty{turn}, expected text. "
        f"Do: fill it in, or name the column that holds it, columns: {{{adapter.answers[0]}: <name in the file>}}."
    )


def check_source(config: SourceConfig) -> None:
    """Find what is wrong with the settings themselves, without reading a row.

    Raises:
        ConfigError: an unknown format, lab family or column, or a key that this kind of source does not use.
    """
    refuse_unused(config)
    if config.source.startswith("lab/"):
        lab.FAMILIES[config.source.removeprefix("lab/")]
    elif adapter := _named_format(config):
        _check_names(adapter, config)


def read_source(config: SourceConfig) -> Loaded:
    """Read, adapt and draw the rows that ``config`` names.

    Raises:
        DataError: nothing there, damaged, a column missing, or fewer rows than asked for.
        ConfigError: an unknown format or lab family, or a key that this kind of source does not use.
    """
    check_source(config)
    if config.source.startswith("lab/"):
        return _lab(config)
    if config.source in FORMATS:
        return _home(config)
    path = Path(config.source).expanduser()
    if path.exists() or files.kind_of(path):
        return _local(config, path)
    if HUB_ID.fullmatch(config.source):
        return _hub(config, config.source, config.subset, config.split or "train", _format(config))
    raise DataError(
        f"Cannot find rows at {config.source!r}: no such file or folder, nor lab/<family> or owner/name. "
        f"{did_you_mean(config.source, FORMATS)}"
    )


def refuse_unused(config: SourceConfig) -> None:
    """Refuse keys that this kind of source does not use, and settings that exclude each other."""
    in_lab = config.source.startswith("lab/")
    unused = [key for key in ("format", "columns", "subset", "part", "attacks") if in_lab and getattr(config, key)]
    if config.attacks and config.format != "bipia":
        unused.append("attacks")
    if config.subset and Path(config.source).expanduser().exists():
        unused.append("subset")
    if unused:
        raise ConfigError(f"source {config.source!r} does not use {unused[0]!r}. Do: take it out.")
    if config.part is not None and not 0 <= config.part[0] < config.part[1] <= 1:
        raise ConfigError(
            f"source {config.source!r}: part must be two shares between 0 and 1, the smaller one first, got "
            f"{list(config.part)}. Do: give e.g. part: [0, 0.6]."
        )
    for key in ("rows", "at_most"):
        if (count := getattr(config, key)) is not None and count < 1:
            raise ConfigError(f"{key} must be at least 1, got {count}. Do: leave it out for all rows.")
    if config.rows is not None and config.at_most is not None:
        raise ConfigError(
            f"source {config.source!r}: rows and at_most exclude each other, got {config.rows} and {config.at_most}. "
            "Do: take one of them out."
        )


def _lab(config: SourceConfig) -> Loaded:
    split = config.split or "train"
    wanted = config.rows or min(LAB_ROWS, config.at_most or LAB_ROWS)
    examples = list(lab.rows(config.source.removeprefix("lab/"), split, wanted, config.seed))
    if not examples:
        raise DataError(f"{config.source} gave no rows for split {split!r}.")
    digest = _digest([example.as_dict() for example in examples])
    n = len(examples)
    return Loaded(examples, Provenance(config.source, "lab", split, n, n, config.seed, {config.source: digest}))


def _home(config: SourceConfig) -> Loaded:
    """A task's own public set, on the hub."""
    adapter = FORMATS[config.format or config.source]
    home = FORMATS[config.source].home
    if home is None:
        raise DataError(
            f"{config.source} has no home on the hub, expected a file. "
            f"Do: set source to your copy's path and format to {config.source!r}."
        )
    return _hub(config, home.id, config.subset or home.subset, home.split(config.split or "train"), adapter)


def _format(config: SourceConfig) -> Format | None:
    return FORMATS[config.format] if config.format else None


def _named_format(config: SourceConfig) -> Format | None:
    """The format that ``config`` names, by itself or by a task's name; ``None`` where the rows decide."""
    name = config.format or config.source
    return FORMATS[name] if config.format or name in FORMATS else None


def parts_of(config: SourceConfig, path: Path) -> list[Part]:
    """The records of a file, or of each file in a folder."""
    adapter = _format(config)
    paths = files_in(path) if path.is_dir() else [path]
    headerless, needs = (adapter.headerless, adapter.needs) if adapter else ((), ())
    return [Part(files.read_records(p, headerless, needs), files.stem_of(p), str(p)) for p in paths]


def _local(config: SourceConfig, path: Path) -> Loaded:
    adapter = _format(config)
    paths = files_in(path) if path.is_dir() else [path]
    parts = parts_of(config, path)
    hashes = {p.name: sha256_of(p) for p in paths}
    attacks = None
    if adapter and adapter.name == "bipia":
        attack_file = Path(config.attacks).expanduser() if config.attacks else attacks_near(paths[0])
        attacks, hashes[attack_file.name] = read_attacks(attack_file), sha256_of(attack_file)
    examples = _adapt(parts, config, attacks)
    if config.split:
        examples = _only(examples, config)
    return _loaded(examples, config, hashes, adapter, config.split)


def files_in(folder: Path) -> list[Path]:
    """The files of rows in a folder, by name."""
    found = sorted(p for p in folder.iterdir() if p.is_file() and files.kind_of(p))
    if not found:
        raise DataError(
            f"{folder} holds no rows, expected files of {', '.join(files.SUFFIXES)}. Do: name the file itself."
        )
    return found


def _only(examples: list[Example], config: SourceConfig) -> list[Example]:
    kept = [example for example in examples if example.split == config.split]
    if not kept:
        present = sorted({example.split for example in examples if example.split})
        raise DataError(
            f"{config.source} has no row with split {config.split!r}, got {', '.join(present) or 'no split column'}. "
            "Do: leave 'split' out to read the whole file, or name the file of that split."
        )
    return kept


def _hub(config: SourceConfig, ident: str, subset: str | None, split: str, adapter: Format | None) -> Loaded:
    records = from_hub(ident, subset, split)
    part = Part(records, subset or ident, f"{ident} ({split})", split)
    examples = _adapt([part], config, None)
    return _loaded(examples, config, {ident: _digest(records)}, adapter, split)


def from_hub(ident: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    """The records of one split of a set on the hub."""
    import datasets

    try:
        table = datasets.load_dataset(ident, subset, split=split)
    except (OSError, ValueError, RuntimeError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DataError(
            f"Cannot load {ident} (split {split!r}) from the hub: {reason} "
            "Do: check the name and the connection, or set source to a local copy (.jsonl, .csv, .parquet)."
        ) from problem
    return [dict(record) for record in table]


def _digest(records: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


def _adapt(parts: Sequence[Part], config: SourceConfig, attacks: Mapping[str, tuple[str, ...]] | None) -> list[Example]:
    return _distinct([example for _, example in adapted(parts, config, attacks)])


def adapted(
    parts: Sequence[Part], config: SourceConfig, attacks: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[tuple[Mapping[str, Any], Example]]:
    """Every record with each example that is made of it."""
    adapter = _named_format(config)
    for part in parts:
        present = {str(name) for record in part.records for name in record}
        chosen = adapter or FORMATS["messages" if "messages" in {*present, *config.columns} else "prompt_answer"]
        check_columns(part, present, chosen, config)
        for index, record in enumerate(part.records):
            renamed = {**record, **{ours: record.get(theirs) for ours, theirs in config.columns.items()}}
            row = Row(renamed, index, part.stem, split=part.split, seed=config.seed, attacks=attacks)
            for example in chosen.read(row):
                yield record, example


def check_columns(part: Part, present: set[str], adapter: Format, config: SourceConfig) -> None:
    """Every mapped column is one the format reads and exists, and every one it needs is there or mapped."""
    _check_names(adapter, config)
    for ours, theirs in config.columns.items():
        if theirs not in present:
            raise DataError(f"{part.where}: no column {theirs!r} (for {ours!r}). {did_you_mean(theirs, present)}")
    missing = adapter.missing({*present, *config.columns})
    if missing:
        fitting = [name for name, other in FORMATS.items() if not other.missing(present)]
        hint = f"It would fit format {', '.join(fitting)}. " if fitting else ""
        raise DataError(
            f"{part.where}: format {adapter.name!r} needs column {missing[0]!r}. {did_you_mean(missing[0], present)} "
            f"{hint}Do: map it, columns: {{{missing[0]}: <name in the file>}}, or name another format."
        )


def _check_names(adapter: Format, config: SourceConfig) -> None:
    unknown = [ours for ours in config.columns if ours not in adapter.columns]
    if unknown:
        raise ConfigError(
            f"source {config.source!r}: columns names {unknown[0]!r}, which format {adapter.name!r} does not read. "
            f"{did_you_mean(unknown[0], adapter.columns)}"
        )


def _distinct(examples: list[Example]) -> list[Example]:
    """Rows are matched by id later, so an id may stand only once."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"id {example.id!r} stands twice, expected each id once. Do: make the ids of the rows different."
            )
        seen.add(example.id)
    return examples


def in_part(rows: Sequence[T], config: SourceConfig, key: Callable[[T], str]) -> list[T]:
    """Those whose place lies in ``part``, all of them without one; a row's place is the hash of its ``key``."""
    if config.part is None:
        return list(rows)
    low, high = config.part
    kept = [row for row in rows if low <= _place(key(row)) < high]
    if rows and not kept:
        raise DataError(
            f"{config.source} has no row in part {[low, high]}, got {len(rows)} rows in all. "
            "Do: widen the part, or take a larger file."
        )
    return kept


def drawn(rows: Sequence[T], config: SourceConfig) -> list[T]:
    """The seeded subset of ``rows`` or ``at_most``, in file order."""
    if not rows:
        raise DataError(f"{config.source} gave no examples, expected at least one. Do: check the file and its format.")
    if config.rows is not None and len(rows) < config.rows:
        raise DataError(
            f"{config.source} has {len(rows)} rows, expected at least {config.rows}. "
            f"Do: lower 'rows' to {len(rows)} or leave it out."
        )
    count = config.rows or config.at_most
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(f"rows/{config.seed}").sample(range(len(rows)), count))]


def _key(example: Example) -> str:
    """The same for all rows of one group, and for one prompt in any file."""
    return example.group or json.dumps([(message.role, message.content) for message in example.messages])


def _place(key: str) -> float:
    """Where a row stands between 0 and 1."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _loaded(
    examples: list[Example], config: SourceConfig, hashes: Mapping[str, str], adapter: Format | None, split: str
) -> Loaded:
    examples = in_part(examples, config, _key)
    kept = drawn(examples, config)
    name = adapter.name if adapter else "auto"
    return Loaded(kept, Provenance(config.source, name, split, len(kept), len(examples), config.seed, dict(hashes)))
