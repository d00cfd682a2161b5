"""Where rows come from: every kind of file gives the same rows, and every damage is named."""

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.files import sha256_of
from holdfast.data.examples import Message
from holdfast.data.sources import SourceConfig, check_answers, load_all, load_examples, read_source

ROWS = [
    {"prompt": f"Question {i}?", "answer": f"Answer, {i}\nwith “two” lines", "group": f"g{i % 3}"} for i in range(9)
]


def write(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"rows.{kind}"
    bare = kind.removesuffix(".gz")
    if bare == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if bare == "csv":
        with (folder / "plain").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        data = (folder / "plain").read_bytes()
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = (json.dumps(rows) if bare == "json" else lines).encode()
    path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


def load(path: Path, **keys: Any) -> list[Any]:
    return load_examples(SourceConfig(source=str(path), **keys))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    found = load(write(tmp_path, kind))
    assert [(e.messages, e.answer, e.group) for e in found] == [
        ((Message("user", row["prompt"]),), row["answer"], row["group"]) for row in ROWS
    ]
    assert [e.id for e in found] == [f"rows/{i}" for i in range(9)]


def test_columns_map_our_fields_to_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", [{"question": "Q", "reply": "A", "topic": "t"}])
    (found,) = load(path, columns={"prompt": "question", "answer": "reply", "group": "topic"})
    assert (found.messages[0].content, found.answer, found.group) == ("Q", "A", "t")


def test_columns_rename_for_a_format_too(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"q": "2 + 2?", "a": "It is 4.\n#### 4"}])
    (found,) = load(path, format="gsm8k", columns={"question": "q", "answer": "a"})
    assert found.reference == "4"


def test_a_drawn_subset_is_seeded_and_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    drawn = [[e.id for e in load(path, rows=4, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sorted(ids) == ids and len(set(ids)) == 4 for ids in drawn)


def test_every_answer_says_what_bytes_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    provenance = read_source(SourceConfig(source=str(path), rows=4, seed=3)).provenance
    assert provenance.sha256 == {"rows.jsonl": sha256_of(path)}
    assert (provenance.rows, provenance.of, provenance.seed) == (4, 9, 3)


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    found = read_source(SourceConfig(source=str(tmp_path)))
    assert [e.messages[0].content for e in found.examples] == ["a", "b"]
    assert set(found.provenance.sha256) == {"a.jsonl", "b.jsonl"}


def test_a_files_own_split_column_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test"}])
    assert [e.messages[0].content for e in load(path, split="test")] == ["b"]
    with pytest.raises(DataError, match="no row with split 'dev', got test, train"):
        load(path, split="dev")


def test_lab_rows_are_seeded_and_hashed() -> None:
    config = SourceConfig(source="lab/arithmetic", split="test", rows=5, seed=1)
    first, second = read_source(config), read_source(config)
    assert first == second
    assert len(first.examples) == 5
    assert read_source(config.model_copy(update={"seed": 2})).provenance.sha256 != first.provenance.sha256


def test_all_rows_of_several_sources_come_in_their_order() -> None:
    sources = [SourceConfig(source="lab/arithmetic", rows=count, seed=count) for count in (3, 1, 2)]
    assert [row.id for row in load_all(sources)] == [row.id for each in sources for row in read_source(each).examples]
    assert load_all(()) == []


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,answer\nq,a\n")
    assert load(path)[0].answer == "a"


BAD: list[tuple[str, bytes, str]] = [
    ("empty.jsonl", b"", "empty.jsonl is empty"),
    ("blank.csv", b"\n \n", "blank.csv is empty"),
    ("header.csv", b"prompt,answer\n", "header.csv has no rows"),
    ("none.json", b"[]", "none.json has no rows"),
    ("cut.jsonl", b'{"prompt": "a"}\n{"prompt": "b', "cut.jsonl line 2 is cut off"),
    ("bad.jsonl", b'{"prompt": "a"}\nnonsense\n{"prompt": "b"}\n', "bad.jsonl line 2 is not JSON"),
    ("one.json", b'{\n "Mail": ["Sing."]\n}\n', "one.json has no row a line: got one JSON object over 3 lines"),
    ("one.json", b'{\n "Mail": ["Sing."]\n}\n', "Do: name the file that has the rows"),
    ("in.json", b'{"n": 1,\n "a b": [{"prompt": "x"}]}', r"if the rows are in 'a b', .* jq '\.\[\"a b\"\]' in.json"),
    ("many.jsonl", b'{\n"prompt": "a"\n}\n{"prompt": "b"}', "many.jsonl has no row a line: got objects over several"),
    ("list.jsonl", b'{"prompt": "a"}\n3\n', "list.jsonl line 2 is of type int, expected an object"),
    ("cut.json", b'[{"prompt": "a"}, {"pro', "cut.json is not a whole JSON array"),
    ("latin.jsonl", b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', "line 2 has byte 0xe9 at offset 31.*iconv -f latin-1"),
    ("wide.csv", "prompt\nq\n".encode("utf-16"), "line 1 has byte 0xff at offset 0.*iconv -f utf-16"),
    ("quote.csv", b'prompt,answer\nq,"a\n', "quote.csv line 2: unexpected end of data"),
    ("cells.csv", b"prompt,answer\nq,a\nq,a,b\n", "cells.csv line 3: got 3 cells, expected 2"),
    ("twice.csv", b"prompt,prompt\nq,a\n", "column 'prompt' stands twice"),
    ("cut.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99)[:-9], "Cannot unpack"),
    ("cut.parquet", b"PAR1 and nothing else", "as Parquet"),
    ("rows.txt", b"hello", r"got suffix '\.txt', expected one of"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_damage_is_named_by_file_and_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        load(path)


def test_a_missing_column_is_named_beside_the_present_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", [{"promt": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"needs column 'prompt'\. Did you mean 'promt'\? Known: answer, promt\."):
        load(path)
    with pytest.raises(DataError, match=r"no column 'questoin' \(for 'prompt'\).*Known: answer, promt"):
        load(path, columns={"prompt": "questoin"})


def test_a_fitting_format_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", [{"instruction": "i", "output": "o"}])
    with pytest.raises(DataError, match="It would fit format alpaca"):
        load(path)


def test_an_empty_cell_is_named_by_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": "q"}, {"prompt": ""}])
    with pytest.raises(DataError, match="rows row 2: column 'prompt' is empty"):
        load(path)


def test_an_empty_cell_is_no_misspelt_column(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": ""}])
    with pytest.raises(DataError, match=r"'prompt' is empty, expected text\. Do: fill it in") as caught:
        load(path)
    assert "Did you mean" not in str(caught.value)


def test_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": "q", "id": "x"}, {"prompt": "r", "id": "x"}])
    with pytest.raises(DataError, match="id 'x' stands twice"):
        load(path)


def test_fewer_rows_than_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 9 rows, expected at least 10"):
        load(write(tmp_path, "jsonl"), rows=10)


def test_an_unknown_format_is_corrected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown format 'gsm8'\. Did you mean 'gsm8k'"):
        load(write(tmp_path, "jsonl"), format="gsm8")


@pytest.mark.parametrize("source", ["nowhere/rows.jsonl", "nowhere", "a b/c"])
def test_a_source_that_is_not_there_is_said(source: str) -> None:
    with pytest.raises(DataError, match=r"no such file|Cannot find rows"):
        load_examples(SourceConfig(source=source))


@pytest.mark.parametrize(
    ("keys", "unused"),
    [
        ({"source": "lab/arithmetic", "format": "gsm8k"}, "format"),
        ({"source": "lab/arithmetic", "columns": {"prompt": "q"}}, "columns"),
        ({"source": "rows.jsonl", "attacks": "a.json"}, "attacks"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(keys: dict[str, Any], unused: str) -> None:
    with pytest.raises(ConfigError, match=f"does not use '{unused}'"):
        load_examples(SourceConfig(**keys))


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"Cannot load openai/gsm8k .*Couldn't reach the hub Do: .*local copy"):
        load_examples(SourceConfig(source="gsm8k", split="test"))


def test_a_tasks_name_reads_its_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def hub(ident: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((ident, subset, split))
        return [{"question": "2 + 2?", "answer": "#### 4"}]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = read_source(SourceConfig(source="gsm8k", split="test"))
    assert asked == [("openai/gsm8k", "main", "test")]
    assert found.examples[0].reference == "4"
    assert found.examples[0].split == "test"
    assert list(found.provenance.sha256) == ["openai/gsm8k"]


def test_random_text_survives_every_kind_of_file(tmp_path: Path) -> None:
    rng = random.Random(0)
    alphabet = "ab\"',;\t\n é漢🙂\u2028{}[]\\"
    rows = [{"prompt": "x" + "".join(rng.choices(alphabet, k=30))} for _ in range(50)]
    wanted = [row["prompt"] for row in rows]
    for kind in ("jsonl", "json", "csv", "parquet"):
        assert [e.messages[0].content for e in load(write(tmp_path, kind, rows))] == wanted


def test_a_cap_draws_as_many_as_there_are_and_the_same_ones_as_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    assert load(path, at_most=4, seed=1) == load(path, rows=4, seed=1)
    assert load(path, at_most=50) == load(path)
    assert len(load_examples(SourceConfig(source="lab/textops", at_most=7))) == 7
    with pytest.raises(ConfigError, match="rows and at_most exclude each other"):
        load(path, rows=4, at_most=4)
    with pytest.raises(ConfigError, match="at_most must be at least 1"):
        load(path, at_most=0)


def test_a_mapping_to_a_name_that_the_format_does_not_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", [{"prompt": "Q", "reply": "A"}])
    with pytest.raises(ConfigError, match=r"columns names 'anwser', which format 'prompt_answer' .* mean 'answer'\?"):
        load(path, columns={"anwser": "reply"})
    with pytest.raises(ConfigError, match=r"which format 'gsm8k' does not read\. Did you mean 'question'"):
        load_examples(SourceConfig(source="gsm8k", columns={"questoin": "q"}))


@pytest.mark.parametrize(
    ("row", "keys", "sentence"),
    [
        ({"prompt": "b"}, {}, "no answer to learn in 1 of 2 rows, the first is row 'rows/1': column 'answer' or '"),
        ({"prompt": "b", "answer": None}, {}, "row 'rows/1': column 'answer'"),
        ({"prompt": "b", "answer": ""}, {}, "row 'rows/1': column 'answer'"),
        ({"prompt": "b", "answer": " \n"}, {}, "row 'rows/1': column 'answer'"),
        ({"prompt": "b", "id": "x", "r": ""}, {"columns": {"answer": "r"}}, "row 'x': column 'r' or 'response'"),
        ({"prompt": "b"}, {"format": "advbench"}, "rows of format 'advbench' have no answers to learn"),
    ],
)
def test_rows_without_an_answer_are_named_by_row_and_column(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], sentence: str
) -> None:
    config = SourceConfig(source=str(write(tmp_path, "jsonl", [{"prompt": "a", "answer": "A", "r": "A"}, row])), **keys)
    with pytest.raises(DataError, match=sentence):
        check_answers(config, load_examples(config))


def test_a_conversation_that_the_user_ends_has_no_answer(tmp_path: Path) -> None:
    config = SourceConfig(source=str(write(tmp_path, "jsonl", [{"messages": [{"role": "user", "content": "q"}]}])))
    with pytest.raises(DataError, match="nor is the last turn the assistant's"):
        check_answers(config, load_examples(config))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_no_text(tmp_path: Path, number: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": 42}\n{"prompt": "b", "answer": NUMBER}\n'.replace("NUMBER", number))
    with pytest.raises(DataError, match=r"rows row 2: column 'answer' holds the number -?(nan|inf), expected text"):
        load(path)


def test_parts_of_a_file_share_no_group_and_are_all_of_it_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "answer": "Yes.", "group": f"g{i // 3}"} for i in range(300)]
    path = write(tmp_path, "jsonl", rows)
    bounds = [(0.0, 0.5), (0.5, 0.8), (0.8, 1.0)]
    parts = [load(path, part=bound) for bound in bounds]
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in load(path))
    groups = [{row.group for row in part} for part in parts]
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]
    for found, (low, high) in zip(groups, bounds, strict=True):
        share, spread = high - low, (100 * (high - low) * (1 - high + low)) ** 0.5
        assert abs(len(found) - 100 * share) < 4 * spread


def test_a_prompt_is_in_the_same_part_of_every_file_and_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "answer": f"{i}"} for i in range(40)]
    (tmp_path / "other").mkdir()
    ours = write(tmp_path, "jsonl", rows)
    theirs = write(tmp_path / "other", "csv", [{**row, "answer": "No."} for row in reversed(rows)] + rows[:1])
    first, second = ({row.messages for row in load(path, part=(0.2, 0.7))} for path in (ours, theirs))
    assert first == second
    assert 0 < len(first) < 40


def test_rows_are_drawn_within_their_part(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": f"Question {i}?", "answer": "Yes."} for i in range(60)])
    whole = {row.id for row in load(path, part=(0.0, 0.5))}
    drawn = [load(path, part=(0.0, 0.5), rows=5, seed=seed) for seed in range(4)]
    assert all(len(rows) == 5 and {row.id for row in rows} <= whole for rows in drawn)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.5, 1.5)])
def test_a_part_that_is_no_stretch_is_refused(tmp_path: Path, part: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="part must be two shares between 0 and 1, the smaller one first"):
        load(write(tmp_path, "jsonl"), part=part)


def test_a_part_without_rows_is_an_error_and_the_lab_has_splits_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no row in part \[0.0, 1e-06\], got 9 rows in all"):
        load(write(tmp_path, "jsonl"), part=(0.0, 1e-6))
    with pytest.raises(ConfigError, match="source 'lab/arithmetic' does not use 'part'"):
        load_examples(SourceConfig(source="lab/arithmetic", part=(0.0, 0.5)))
