"""The YAML border: numbers, duplicate keys, overrides, and every problem of a document at once."""

from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, ValidationError

from holdfast.core.config import Config, apply_overrides, explain, load_yaml, parse_yaml
from holdfast.core.errors import ConfigError


class Hold(Config):
    do: Literal["hold"]
    frozen_share: float = Field(0.1, lt=1)
    kind: Literal["full", "lora"] = "full"


class Train(Config):
    do: Literal["train"]
    learning_rate: float = 1e-4
    rows: tuple[int, ...] = ()


def _word(value: object) -> str:
    return "name" if isinstance(value, str) else "settings"


class Doc(Config):
    steps: dict[str, Annotated[Hold | Train, Field(discriminator="do")]]
    hold: Annotated[Annotated[str, Tag("name")] | Annotated[Hold, Tag("settings")], Discriminator(_word)] = "none"


class Settings(Config):
    learning_rate: float = Field(1e-4, gt=0)
    rows: tuple[int, ...] = ()


def problems(document: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Doc.model_validate(document)
    return str(explain(caught.value, "quickstart.yaml", Doc))


def test_all_problems_are_reported_at_once_in_the_form_of_the_design():
    document = {"steps": {"hold": {"do": "hold", "frozen_share": 1.4}, "tuned": {"do": "trian"}}}
    assert problems(document) == (
        "quickstart.yaml: 2 problems\n"
        "  steps.hold.frozen_share: should be less than 1 (got 1.4)\n"
        "  steps.tuned.do: unknown 'trian', did you mean 'train'?"
    )


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"do": "train", "learning_rat": 1}, "steps.a.learning_rat: unknown key, did you mean 'learning_rate'?"),
        ({"do": "train", "zzz": 1}, "steps.a.zzz: unknown key. Known: do, learning_rate, rows."),
        ({"do": "hold", "kind": "lorra"}, "steps.a.kind: unknown 'lorra', did you mean 'lora'?"),
        ({}, "steps.a.do: missing"),
        (3, "steps.a: should be a mapping of 'key: value' lines (got 3)"),
        ({"do": "train", "rows": [1, "x"]}, "steps.a.rows.1: should be a valid integer"),
        ({"do": "train", "learning_rate": "fast"}, "steps.a.learning_rate: should be a valid number (got 'fast')"),
        ({"do": "train", "learning_rate": True}, "steps.a.learning_rate: should be a valid number (got True)"),
        ({"do": "train", "learning_rate": float("inf")}, "steps.a.learning_rate: should be a finite number (got inf)"),
        (
            {"do": "train", "learning_rate": -1e300},
            "steps.a.learning_rate: should be at least -4294967295 (got -1e+300",
        ),
        ({"do": "train", "rows": 3}, "steps.a.rows: should be a list (got 3)"),
        ({"do": ["hold"]}, "steps.a.do: unknown ['hold']"),
    ],
)
def test_a_problem_names_its_path_and_the_nearest_word(step, line):
    message = problems({"steps": {"a": step}})
    assert message.startswith(f"quickstart.yaml: 1 problem\n  {line}")


def test_a_union_with_a_plain_word_does_not_put_its_tags_into_the_path():
    message = problems({"steps": {}, "hold": {"do": "hold", "frozen_shar": 0.5}})
    assert message.endswith("  hold.frozen_shar: unknown key, did you mean 'frozen_share'?")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("-3", -3),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ('"1e-4"', "1e-4"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text, value):
    read = parse_yaml(f"key: {text}", "x.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x:\n  a: 1\n  b: 2\n  a: 3"])
def test_a_duplicate_key_is_refused_with_both_lines(text):
    last = text.count("\n") + 1
    with pytest.raises(ConfigError, match=rf"x.yaml: line {last}: duplicate key 'a', first given on line {last - 2}"):
        parse_yaml(text, "x.yaml")


def test_merge_keys_and_anchors_still_work():
    assert parse_yaml("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3", "x")["b"] == {"p": 1, "q": 3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1, 2\n", r"r.yaml: line \d+: not valid YAML"),
        (b"\ta: 1\n", r"r.yaml: line 1: not valid YAML"),
        (b"a: \xff\xfe\n", "r.yaml: byte 3 is not UTF-8"),
        (b"- 1\n- 2\n", "r.yaml: got list at the top level"),
        (b"", "r.yaml: got nothing at the top level"),
        (b"? [1]\n: 2\n", "r.yaml: line 1: not valid YAML"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_yaml(path)


def test_an_absent_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read .*absent\.yaml: No such file"):
        load_yaml(tmp_path / "absent.yaml")


def test_overrides_reach_into_mappings_and_lists_and_leave_the_document_alone():
    document = {"steps": {"tuned": {"data": [{"rows": 1}, {"rows": 2}]}}}
    changed = apply_overrides(document, ["steps.tuned.data.1.rows=9", "steps.tuned.lora.rank=4", "seed=3", "note=a=b"])
    assert changed == {
        "steps": {"tuned": {"data": [{"rows": 1}, {"rows": 9}], "lora": {"rank": 4}}},
        "seed": 3,
        "note": "a=b",
    }
    assert document == {"steps": {"tuned": {"data": [{"rows": 1}, {"rows": 2}]}}}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "expected key.key=value"),
        ("=3", "expected key.key=value"),
        ("a..b=3", "expected key.key=value"),
        ("list.7=1", "got '7' for a list, expected a position 0 to 1"),
        ("list.x=1", "got 'x' for a list"),
        ("seed.x=1", "'x' would stand inside 3, which is not a mapping"),
        ("seed={a: 1, a: 2}", "duplicate key 'a'"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(override, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        apply_overrides({"seed": 3, "list": [1, 2]}, [override])


def test_a_merged_mapping_may_itself_merge_wherever_it_stands():
    text = "deep: {down: {base: &x {p: 1}, arm: &y {<<: *x, p: 2}}}\ntop: {<<: *y, q: 3}"
    assert parse_yaml(text, "x")["top"] == {"p": 2, "q": 3}
    with pytest.raises(ConfigError, match="line 2: duplicate key 'q', first given on line 2"):
        parse_yaml("base: &x {p: 1}\narm: {<<: *x, q: 1, q: 2}", "x")


def test_an_override_of_one_alias_leaves_the_others_alone():
    document = parse_yaml("a: &x {rows: [1, 2]}\nb: {<<: *x}\nc: *x", "x")
    changed = apply_overrides(document, ["b.rows.0=9"])
    assert [changed[key]["rows"] for key in "abc"] == [[1, 2], [9, 2], [1, 2]]


def test_an_alias_inside_of_what_it_stands_for_is_refused():
    with pytest.raises(ConfigError, match="x: a value holds an alias of itself"):
        parse_yaml("a: &x {b: *x}", "x")


def test_the_keys_of_one_kind_are_those_that_were_given_and_checked_anew():
    step = Train(do="train", rows=(3,))
    assert step.only(Settings).model_fields_set == {"rows"}
    assert step.only(Settings, learning_rate=0.5).model_dump() == {"learning_rate": 0.5, "rows": (3,)}
    assert step.only(Settings, {"rows"}) == Settings()
    with pytest.raises(ValidationError, match="greater than 0"):
        Train(do="train", learning_rate=-1).only(Settings)
