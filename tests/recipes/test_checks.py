"""What would stop a run later is found before anything loads, all of it at once."""

import json

import pytest
import torch
from tests.zoo import tiny_folder

from holdfast.core.errors import ConfigError
from holdfast.recipes.estimate import estimate
from holdfast.recipes.schema import parse_recipe

ROWS = [{"prompt": "Why?", "answer": "Because."}, {"prompt": "Where?", "answer": "Here, where the kelp holds fast."}]
TRAIN = {"do": "train", "steps": 2, "max_length": 256}
EVALUATE = {"do": "evaluate", "tasks": ["lab/harmful"], "limit": 2}


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path, "llama")


@pytest.fixture
def checked(tmp_path, folder, monkeypatch):
    """The problems that ``check`` finds in a recipe of these steps, on a machine without a GPU and without extras."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in ("holdfast.training.trackers", "holdfast.training.parameters", "holdfast.models.load"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)

    def check(*, rows=ROWS, **steps):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for step in steps.values():
            if step["do"] == "train":
                step.setdefault("data", [str(path)])
            if isinstance(step.get("model"), dict) and "source" not in step["model"]:
                step["model"] = {"source": str(folder), **step["model"]}
        document = {"name": "r", "model": str(folder), "steps": steps}
        try:
            estimate(parse_recipe(document, "r.yaml"), "r.yaml")
        except ConfigError as problem:
            return [line.strip() for line in str(problem).splitlines()[1:]]
        return []

    return check


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"model": {"device": "cuda"}}, "model.device 'cuda' is not available: torch sees no GPU"),
        ({"model": {"quantization": "8bit"}, "params": "lora"}, "model.quantization '8bit' needs CUDA"),
        ({"model": {"attention": "flash_attention_2"}}, "model.attention 'flash_attention_2' cannot be used here"),
        ({"params": "lora", "lora": {"targets": ["qproj"]}}, "no layer matches 'qproj' in LlamaForCausalLM. Did you"),
        ({"params": "qlora"}, "params: qlora needs a 4-bit base: got an unquantized model"),
        ({"trackers": ["wandb"]}, "Tracker 'wandb' needs an optional dependency. Do: pip install 'holdfast[wandb]'"),
        ({"max_length": 512}, "max_length is beyond the model's context: got 512, expected at most 256"),
        ({"max_length": 2}, "rows are too long: row 'rows/1' got"),
        ({"max_length": 2, "too_long": "drop"}, "no row fits max_length 2: row 'rows/0', of the shortest"),
        ({"max_length": 2, "data": ["lab/textops"]}, "rows are too long: row 'textops"),
        ({"model": {"chat_template": "/none.jinja"}}, "Cannot read the chat template /none.jinja: no such file"),
    ],
)
def test_what_would_stop_a_training_is_found(checked, step, line):
    (found,) = checked(tuned={**TRAIN, **step})
    assert found.startswith(f"steps.tuned: {line}")


def test_what_would_stop_no_training_is_let_through(checked):
    dropped = {**TRAIN, "params": "lora", "lora": {"targets": ["q_proj"]}, "max_length": 40, "too_long": "drop"}
    assert checked(tuned=dropped, after={**EVALUATE, "model": "tuned"}) == []


def test_a_repair_finds_the_layers_of_a_training_whose_targets_are_the_ends_of_paths(checked):
    tuned = {**TRAIN, "params": "lora", "lora": {"targets": ["self_attn.q_proj"]}}
    mended = {"do": "repair", "method": "scale", "adapter": "tuned", "layers": ["q_proj"]}
    assert checked(tuned=tuned, mended=mended) == []
    (found,) = checked(tuned=tuned, mended={**mended, "layers": ["k_proj"]})
    assert found.startswith("steps.mended: no layer matches 'k_proj'")


def test_all_problems_of_all_steps_come_at_once(checked):
    tuned = {**TRAIN, "model": {"device": "cuda"}, "params": "lora", "lora": {"targets": ["qproj", "kproj"]}}
    tuned |= {"trackers": ["wandb", "mlflow"], "max_length": 999, "data": ["lab/textps", "/none.jsonl"]}
    found = checked(tuned=tuned, after={**EVALUATE, "model": {"source": "tuned", "attention": "flash_attention_2"}})
    assert [line.split(": ")[0] for line in found] == ["steps.tuned"] * 7 + ["steps.after"]
    for word in ("'cuda'", "'wandb'", "'mlflow'", "'qproj'", "context", "'textps'", "/none.jsonl"):
        assert sum(word in line for line in found[:7]) == 1, word
    assert found[0].endswith("(and 1 other step)"), "an adapter runs where its base does"
    assert "flash_attention_2" in found[7]


def test_a_sentence_that_is_true_of_many_steps_stands_once(checked):
    steps = {name: {**TRAIN, "data": ["/none.jsonl"]} for name in ("one", "two", "three")}
    (line,) = checked(**steps)
    assert line.startswith("steps.one: ")
    assert line.endswith("(and 2 other steps)")


@pytest.mark.parametrize("answer", [{}, {"answer": None}, {"answer": ""}])
def test_rows_without_an_answer_are_found_where_they_are_learnt(checked, answer):
    rows = [*ROWS, {"prompt": "What?", **answer}]
    (found,) = checked(rows=rows, tuned=dict(TRAIN))
    assert "no answer to learn in 1 of 3 rows, the first is row 'rows/2': column 'answer'" in found


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("tokenizer*", "got a folder without tokenizer.json"),
        ("model.safetensors", "got a folder without model.safetensors"),
    ],
)
def test_a_models_missing_files_are_found(checked, folder, pattern, line):
    for path in folder.glob(pattern):
        path.unlink()
    (found,) = checked(measured=dict(EVALUATE))
    assert line in found


def test_a_misspelt_column_is_found_on_the_hub_too(checked):
    source = {"source": "openai/gsm8k", "format": "gsm8k", "columns": {"questoin": "q"}}
    (found,) = checked(tuned={**TRAIN, "data": [source]})
    assert "columns names 'questoin', which format 'gsm8k' does not read. Did you mean 'question'?" in found
