"""Read the records of a JSONL, JSON, CSV or Parquet file, gzipped or not; every problem is named by file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
CSV_FIELD_LIMIT = 1 << 26
"""Bytes of one CSV field; Python's default of 128 KiB is less than a long document."""

Records = list[dict[str, Any]]


def kind_of(path: Path) -> str:
    """The suffix that says how to read ``path``, with ``.gz`` taken off, or ``""`` for a kind we cannot read."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def stem_of(path: Path) -> str:
    """File name without suffixes we know: ``a_test.csv.gz`` is ``a_test``."""
    name = path.name
    for suffix in (".gz", *SUFFIXES):
        name = name.removesuffix(suffix)
    return name


def read_records(path: Path, headerless: Sequence[str] = (), needs: Sequence[str] = ()) -> Records:
    """All records of one file.

    Args:
        headerless: Column names for a CSV of exactly this width whose first line names none of ``needs``.
        needs: Columns by which a header line is recognised.
    Raises:
        DataError: missing, empty, truncated, wrongly encoded or of a kind we cannot read.
    """
    if not path.is_file():
        raise DataError(
            f"Cannot read {path}: no such file. Do: check the path; it is relative to the folder you run in."
        )
    kind = kind_of(path)
    if not kind:
        raise DataError(
            f"Cannot read {path}: got suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)} (or .gz)."
        )
    raw = _bytes(path)
    if kind == ".parquet":
        records = _parquet(path, raw)
    elif kind == ".csv":
        records = _csv(path, decode(path, raw), headerless, needs)
    else:
        records = _json(path, decode(path, raw))
    if not records:
        raise DataError(f"{path} has no rows, expected at least one. Do: check how it was written.")
    return records


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix.lower() == ".gz" and raw:
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as problem:
            raise DataError(f"Cannot unpack {path}: {problem}. Do: fetch the file again, it is damaged.") from problem
    if not raw.strip():
        raise DataError(f"{path} is empty, expected rows. Do: check how it was written.")
    return raw


def decode(path: Path, raw: bytes) -> str:
    """UTF-8 text, byte-order mark taken off; otherwise an error that names line and byte."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        guess = "utf-16" if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} else "latin-1"
        raise DataError(
            f"{path} is not UTF-8: line {line} has byte 0x{raw[problem.start]:02x} at offset {problem.start}. "
            f"Do: re-encode it, e.g. iconv -f {guess} -t utf-8 {path.name} > fixed{path.suffix}"
        ) from problem


def _json(path: Path, text: str) -> Records:
    if text.lstrip().startswith("["):
        return _json_array(path, text)
    _check_one_a_line(path, text)
    records: Records = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as problem:
            last = not any(rest.strip() for rest in lines[number:])
            state = "is cut off" if last else "is not JSON"
            raise DataError(
                f"{path} line {number} {state} ({problem.msg} at column {problem.colno}), expected one object a line. "
                "Do: fetch the file again, or delete that line."
            ) from problem
        records.append(_object(record, f"{path} line {number}"))
    return records


def _check_one_a_line(path: Path, text: str) -> None:
    """Refuse objects that are laid out over several lines: which of them are rows cannot be told."""
    bare = text.lstrip()
    try:
        first, end = json.JSONDecoder().raw_decode(bare)
    except json.JSONDecodeError:
        return  # the reader of lines says which one is damaged
    if "\n" not in bare[:end]:
        return
    lines, several = bare[:end].count("\n") + 1, bool(bare[end:].strip())
    got = f"objects over several lines, the first over {lines}" if several else f"one JSON object over {lines} lines"
    raise DataError(
        f"{path} has no row a line: got {got}, expected one object a line, or a list of objects. "
        f"Do: {_to_rows(path, {} if several else first, several)}"
    )


def _to_rows(path: Path, document: dict[str, Any], several: bool) -> str:
    """How to get rows out of a document."""
    if several:
        return f"put each on one line, e.g. jq -c . {path.name} > rows.jsonl"
    for key, value in document.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return f"if the rows are in {key!r}, take them out, e.g. jq '.[{json.dumps(key)}]' {path.name} > rows.json"
    return "name the file that has the rows, or put the object on one line if it is a row."


def _json_array(path: Path, text: str) -> Records:
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as problem:
        raise DataError(
            f"{path} is not a whole JSON array: {problem.msg} at line {problem.lineno}, column {problem.colno}. "
            "Do: fetch the file again; it may be cut off."
        ) from problem
    return [_object(record, f"{path} item {number}") for number, record in enumerate(listed, start=1)]


def _object(record: object, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(
            f"{where} is of type {type(record).__name__}, expected an object with named columns. Do: correct it."
        )
    return record


def _csv(path: Path, text: str, headerless: Sequence[str], needs: Sequence[str]) -> Records:
    before = csv.field_size_limit(CSV_FIELD_LIMIT)
    try:
        rows = list(_csv_rows(path, text))
    finally:
        csv.field_size_limit(before)
    if not rows:
        return []
    header, first = rows[0][1], 1
    known = {name for need in needs for name in need.split("|")}
    if headerless and len(header) == len(headerless) and not known & set(header):
        header, first = list(headerless), 0
    if len(set(header)) != len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise DataError(
            f"{path}: column {twice[0]!r} stands twice in the header, expected different names. Do: rename one."
        )
    for line, cells in rows[first:]:
        if len(cells) != len(header):
            raise DataError(
                f"{path} line {line}: got {len(cells)} cells, expected {len(header)} ({', '.join(header)}). "
                "Do: quote cells that contain commas or line breaks."
            )
    return [dict(zip(header, cells, strict=True)) for _, cells in rows[first:]]


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Non-empty rows with the line they end on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as problem:
        raise DataError(
            f"{path} line {reader.line_num}: {problem}. Do: fetch the file again; it may be cut off."
        ) from problem


def _parquet(path: Path, raw: bytes) -> Records:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(raw))
    except (pyarrow.ArrowException, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise DataError(
            f"Cannot read {path} as Parquet: {reason} Do: fetch the file again; it may be cut off."
        ) from problem
    records: Records = table.to_pylist()
    return records
