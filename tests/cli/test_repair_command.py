"""``holdfast repair``: an adapter and two files of rows in, a repaired adapter and a table of before and after out."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
from tests.methods.merging.expert_plans import adapter

from holdfast.layers.adapters import read_peft, write_peft
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model

Command = Callable[..., tuple[int, str, str]]
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture(scope="module", autouse=True)
def any_answer_can_be_judged() -> Iterator[None]:
    """The tiny model babbles, and where no answer can be judged no value of the dial can be taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.evaluation.judges.refusal.incoherent", lambda output: "")
        yield


def written(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows))
    return str(path)


@pytest.fixture(scope="module")
def given(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An adapter of the tiny model, and rows of three kinds in two files."""
    home = tmp_path_factory.mktemp("given")
    write_peft(adapter(load_model(ModelConfig(source=str(model))), 2, seed=1), home / "adapter")
    harmful = [(f"How do I break lock {n}?", REFUSAL) for n in range(12)]
    harmless = [(f"What is a kind word for {n}?", f"A kind word is tide {n}.") for n in range(12)]
    return {
        "adapter": str(home / "adapter"),
        "safety": written(home / "safety.jsonl", harmful + harmless),
        "utility": written(home / "utility.jsonl", [(f"{n} + {n}?", f"{n} + {n} = {2 * n}") for n in range(16)]),
        "harmless": written(home / "harmless.jsonl", harmless),
    }


def words(given: dict[str, str], model: Path, out: Path, **changed: str) -> list[str]:
    keys = {"base": str(model), "safety": given["safety"], "utility": given["utility"], "out": str(out), **changed}
    return ["repair", given["adapter"], *(word for key, value in keys.items() for word in (f"--{key}", value))]


def test_it_writes_an_adapter_and_prints_before_and_after(
    given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mended"
    code, said, _ = command(*words(given, model, out, values="1,3", judge="exact"))
    assert code == 0
    head, *lines = said.splitlines()
    assert head.split() == ["on", "the", "rows", "held", "out", "n", "before", "after"]
    assert [line.partition("  ")[0] for line in lines[:3]] == [
        "harmful requests answered",
        "harmless requests refused",
        "utility (exact)",
    ]
    assert any(line.startswith("Note: mu ") and "by the rule: most safety" in line for line in lines)
    assert read_peft(out).deltas.keys() == read_peft(Path(given["adapter"])).deltas.keys()
    recorded = json.loads((out / "merge.json").read_text())
    assert recorded["dial"]["mu"] in {1.0, 3.0}
    looked, held = recorded["origin"]["n_rows"], 24 + 16
    assert 0.5 * held < sum(looked) < held


def test_json_is_the_same_and_an_adapter_that_is_there_is_not_replaced(
    given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mended"
    asked = [*words(given, model, out, values="0.5", judge="exact", method="scale"), "--json"]
    code, said, _ = command(*asked)
    assert code == 0
    found = json.loads(said)
    assert found["dial"] == 0.5
    assert set(found["figures"]) == {"harmful requests answered", "harmless requests refused", "utility (exact)"}
    for place in (out, Path(given["adapter"])):
        kept = {path.name: path.read_bytes() for path in place.iterdir()}
        code, said, error = command(*words(given, model, place, values="0.5", judge="exact", method="scale"))
        assert (code, said) == (2, "")
        assert f"Output folder {place} exists already. Do: give another with -o, or remove it." in error
        assert {path.name: path.read_bytes() for path in place.iterdir()} == kept
    (before,) = [d.dense() for n, d in read_peft(Path(given["adapter"])).deltas.items() if n == "layers.0.q_proj"]
    assert (read_peft(out).delta("layers.0.q_proj") - 0.5 * before).abs().max() < 1e-6


def test_plan_says_what_it_takes_loads_no_weights_and_writes_nothing(
    given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    asked = [*words(given, model, tmp_path / "mended"), "--plan"]
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(b"no weights")
    try:
        code, said, error = command(*asked)
        found = json.loads(command(*asked, "--json")[1])
        without = [word for word in asked if word not in {"--out", str(tmp_path / "mended")}]
        assert command(*without)[1] == said
    finally:
        (model / "model.safetensors").write_bytes(weights)
    assert code == 0, error
    assert "Nothing was written" in error
    assert not (tmp_path / "mended").exists()
    assert "parameters; rows: " in said
    assert " of memory and " in said.splitlines()[-1]
    rows = found["steps"][0]["rows"]
    assert {"utility", "safety"} < rows.keys()
    assert sum(rows.values()) == 24 + 16
    code, _, error = command(*[word for word in without if word != "--plan"])
    assert code == 2
    assert "No folder to write to. Do: add -o FOLDER, or --plan to see what it takes." in error


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"values": "a,b"}, "Cannot read --values 'a,b': expected numbers with commas"),
        ({"judge": "rouge"}, "Unknown judge 'rouge'. Did you mean 'rouge_l'?"),
        ({"method": "safe_lora"}, "method safe_lora needs 'unaligned'"),
        ({"method": "scael"}, "unknown 'scael', did you mean 'scale'?"),
        ({"values": "-1"}, "greater than or equal to 0"),
    ],
)
def test_words_that_do_not_fit_are_a_sentence(
    changed: dict[str, str], line: str, given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    code, said, error = command(*words(given, model, tmp_path / "mended", **changed))
    assert (code, said) == (2, "")
    assert line in error
    assert not (tmp_path / "mended").exists()


def test_safety_rows_without_a_refusal_and_a_folder_of_something_else_are_refused(
    given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    code, _, error = command(*words(given, model, tmp_path / "mended", safety=given["harmless"]))
    assert code == 2
    assert "got no refusals among those held out of" in error
    (tmp_path / "notes.txt").write_text("mine")
    code, _, error = command(*words(given, model, tmp_path))
    assert code == 2
    assert f"Output folder {tmp_path} exists already" in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"use_dora": True}, "use_dora: DoRA also trains magnitudes"),
        ({"bias": "all"}, "bias is 'all': biases were trained"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: whole modules were trained"),
        ({"r": 0, "lora_alpha": 0}, "expected rank 0 as in adapter_config.json, at least 1"),
        ({"base_model_name_or_path": "org/other"}, "was made for org/other, got"),
        (None, "got a folder without adapter_config.json"),
    ],
)
def test_an_adapter_that_cannot_be_repaired_is_one_sentence(
    change: dict[str, object] | None, line: str, given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(given["adapter"], bad)
    config = bad / "adapter_config.json"
    if change is None:
        config.unlink()
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    code, said, error = command(*words(given | {"adapter": str(bad)}, model, tmp_path / "mended"))
    assert (code, said) == (2, "")
    assert line in error
    assert "Traceback" not in error
    assert not (tmp_path / "mended").exists()


def test_an_adapter_of_another_base_is_repaired_where_that_is_asked_for_and_it_is_said(
    given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    other = tmp_path / "other"
    shutil.copytree(given["adapter"], other)
    config = other / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/other"}))
    changed = {"values": "0.5", "judge": "exact", "method": "scale"}
    asked = words(given | {"adapter": str(other)}, model, tmp_path / "mended", **changed)
    assert command(*asked)[0] == 2
    code, said, error = command(*asked, "--any-base")
    assert code == 0, error
    assert "Note: Adapter other was made for org/other and is used on" in said
    assert "it was asked to take any base" in said


def test_nan_weights_rows_that_are_empty_and_one_file_for_both_are_one_sentence(
    given: dict[str, str], model: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "none.jsonl").write_text("")
    shutil.copytree(given["adapter"], tmp_path / "nan")
    file = tmp_path / "nan" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    key = next(iter(tensors))
    safetensors.torch.save_file(tensors | {key: tensors[key] * float("nan")}, file)
    for asked, line in (
        (words(given | {"adapter": str(tmp_path / "nan")}, model, tmp_path / "x"), "got NaN or infinity in"),
        (words(given, model, tmp_path / "x", safety=str(tmp_path / "none.jsonl")), "is empty, expected rows"),
        (words(given, model, tmp_path / "x", utility=given["safety"]), "utility and safety rows are the same"),
    ):
        code, said, error = command(*asked)
        assert (code, said) == (2, "")
        assert line in error
        assert not (tmp_path / "x").exists()
