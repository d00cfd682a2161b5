"""``holdfast generate`` and ``holdfast export``: answers with and without heads, and layouts of a training."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.close import assert_close
from tests.methods.merging.expert_plans import adapter

from holdfast.data.examples import Message
from holdfast.layers.adapters import write_peft
from holdfast.methods.token_weighting.objective import base_of
from holdfast.models.adapter import record_base
from holdfast.models.chat import ChatFormat
from holdfast.models.config import ModelConfig
from holdfast.models.generate import generate
from holdfast.models.heads import Heads, Kind, save_heads
from holdfast.models.load import load_model, weights_of


def trained(model: Path, kind: Kind, folder: Path) -> Path:
    """What a training with heads leaves."""
    shutil.copytree(model, folder / "model")
    loaded = load_model(ModelConfig(source=str(model)))
    save_heads(Heads(loaded.model, kind, 3), loaded.model, folder / "heads", base=weights_of(folder / "model"))
    return folder


def adapted(model: Path, kind: Kind, folder: Path) -> Path:
    """What a training of an adapter with heads leaves."""
    loaded = load_model(ModelConfig(source=str(model)))
    heads = Heads(loaded.model, kind, 3)
    tuned = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(folder / "adapter")
    record_base(folder / "adapter", loaded.source, loaded.weights)
    save_heads(heads, tuned, folder / "heads", base=base_of(folder / "adapter"))
    return folder


def test_answers_are_printed_and_the_same_when_guessed_ahead(command, model, tmp_path):
    folder = trained(model, "medusa", tmp_path / "run")
    (tmp_path / "ask.txt").write_text("two\nlines\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "r1", "prompt": "a row", "answer": ""}) + "\n")
    asked = ["--prompt", "hello", "--prompt-file", str(tmp_path / "ask.txt"), "--max-new-tokens", "6"]
    code, plain, err = command("generate", str(folder / "model"), *asked)
    assert (code, err) == (0, "")
    loaded = load_model(ModelConfig(source=str(model)))
    prompts = [loaded.chat.prompt([Message("user", text)]) for text in ("hello", "two\nlines")]
    expected = generate(loaded, prompts, max_new_tokens=6, batch_size=1)
    assert plain == "\n\n".join(loaded.chat.said(answer.text) for answer in expected) + "\n"
    code, guessed, err = command("generate", str(folder / "model"), *asked, "--self-speculative")
    assert (code, guessed) == (0, plain)
    assert "tokens a pass over" in err
    assert "tokens/s" in err
    rows = ["--prompt-file", str(tmp_path / "rows.jsonl"), "--max-new-tokens", "3"]
    heads = ["--self-speculative", "--heads", str(folder / "heads"), "--json"]
    code, text, err = command("generate", str(model), *rows, *heads)
    assert (code, err) == (0, "")
    told = json.loads(text)
    assert told["answers"][0]["id"] == "r1"
    assert told["self_speculative"]["passes"] <= 2
    assert set(told["self_speculative"]["rates"]) == {"2", "3"}


def test_what_the_template_puts_before_an_answer_is_not_printed(command, model, monkeypatch):
    monkeypatch.setattr(ChatFormat, "said", lambda _, text: f"said{len(text)}")
    for more in ([], ["--json"]):
        code, out, _ = command("generate", str(model), "--prompt", "hello", "--max-new-tokens", "2", *more)
        assert (code, "said" in out) == (0, True)


def test_heads_of_an_adapter_go_with_that_adapter_alone(command, model, tmp_path):
    folder = adapted(model, "parallel", tmp_path / "run")
    asked = ["--prompt", "hello", "--max-new-tokens", "4"]
    on = ["--adapter", str(folder / "adapter")]
    code, plain, _ = command("generate", str(model), *on, *asked)
    assert code == 0
    assert command("generate", str(model), *on, *asked, "--self-speculative")[:2] == (0, plain)
    code, _, err = command("generate", str(model), *asked, "--self-speculative", "--heads", str(folder / "heads"))
    assert code == 2
    assert "are not for this model" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no prompt was given"),
        (["--prompt", " "], "prompt 1 is empty"),
        (["--prompt", "a", "--heads", "x"], "--heads has no effect without --self-speculative"),
        (["--prompt", "a", "--self-speculative"], "has no heads beside it"),
        (["--prompt", "a", "--self-speculative", "--heads", "nowhere"], "Cannot read the heads in nowhere"),
        (
            ["--prompt", "a", "--self-speculative", "--adapter", "owner/name"],
            "owner/name is not the folder of a training",
        ),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt"),
        (["--prompt", "a", "--max-new-tokens", "5000"], "does not fit the model"),
    ],
)
def test_what_cannot_be_answered_is_said(command, model, words, said):
    code, out, err = command("generate", str(model), *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_whole_training_is_exported_plain_and_for_servers_of_heads(command, model, tmp_path):
    folder = trained(model, "medusa", tmp_path / "run")
    assert command("export", str(folder), "--layout", "hf", "-o", str(tmp_path / "hf"))[0] == 0
    assert weights_of(tmp_path / "hf") == weights_of(model)
    assert load_model(ModelConfig(source=str(tmp_path / "hf"))).chat.fingerprint
    code, _, err = command("export", str(folder), "--layout", "medusa", "-o", str(tmp_path / "m"))
    assert code == 0, err
    about = json.loads((tmp_path / "m" / "config.json").read_text())
    assert about["base_model_name_or_path"] == str(folder / "model")
    assert len([name for name in load_file(tmp_path / "m" / "medusa_lm_head.safetensors") if "1.weight" in name]) == 2
    code, _, err = command("export", str(folder), "--layout", "deepseek", "-o", str(tmp_path / "d"))
    assert code == 2
    assert "train heads of kind sequential" in err
    code, _, err = command("export", str(folder), "--layout", "hf", "-o", str(tmp_path / "hf"))
    assert code == 2
    assert "exists already" in err


def test_a_trained_adapter_is_merged_before_it_is_exported(command, model, tmp_path):
    folder = adapted(model, "sequential", tmp_path / "run")
    code, _, err = command("export", str(folder), "--layout", "hf", "-o", str(tmp_path / "hf"))
    assert (code, err.count("\n")) == (0, 3), "estimate, files, result; no progress bars"
    merged = load_model(ModelConfig(source=str(model), adapter=str(folder / "adapter"))).model.state_dict()
    plain = load_model(ModelConfig(source=str(tmp_path / "hf"))).model.state_dict()
    assert plain.keys() == merged.keys()
    for name, tensor in plain.items():
        assert_close(tensor, merged[name], "exact")
    code, _, err = command("export", str(folder), "--layout", "deepseek", "-o", str(tmp_path / "d"))
    assert code == 0, err
    assert (tmp_path / "d" / "model-mtp.safetensors").is_file()
    code, _, err = command("export", str(folder), "--layout", "medusa", "-o", str(tmp_path / "m"))
    assert code == 2
    assert "export it with --layout hf first" in err


def test_what_cannot_be_exported_is_said(command, model, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(model, plain / "model")
    out = ["-o", str(tmp_path / "out")]
    for words, said in (
        ([str(tmp_path), "--layout", "hf"], "holds no training: got neither model/ nor adapter/ in it, and it is no"),
        ([str(plain), "--layout", "medusas"], "Did you mean 'medusa'?"),
        ([str(plain), "--layout", "medusa"], "holds no heads to export"),
        ([str(plain), "--layout", "hf", "--served", "x"], "--served has no effect"),
        ([str(plain), "--layout", "hf", "--base", "x"], "--base has no effect"),
    ):
        code, _, err = command("export", *words, *out)
        assert code == 2
        assert said in err
    assert not (tmp_path / "out").exists()


def merged(model: Path, home: Path) -> Path:
    """What ``holdfast merge -o`` leaves: an adapter's own folder."""
    loaded = load_model(ModelConfig(source=str(model)))
    write_peft(adapter(loaded, 2, seed=1), home / "one")
    record_base(home / "one", loaded.source, loaded.weights)
    return home / "one"


def test_a_merge_and_a_repair_become_a_model(command, model, tmp_path):
    one = merged(model, tmp_path)
    code, _, err = command("merge", str(one), str(one), "--rule", "average", "-o", str(tmp_path / "o4"))
    assert code == 0, err
    code, _, err = command("export", str(tmp_path / "o4"), "--layout", "hf", "-o", str(tmp_path / "hf"))
    assert code == 0, err
    assert err.splitlines()[0].startswith("Takes ")
    assert "of disk (" in err
    assert "of memory" in err
    expected = load_model(ModelConfig(source=str(model), adapter=str(tmp_path / "o4"))).model.state_dict()
    found = load_model(ModelConfig(source=str(tmp_path / "hf"))).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    code, _, err = command("export", str(one), "--layout", "medusa", "--served", "x", "-o", str(tmp_path / "m"))
    assert code == 2
    assert "holds no heads to export" in err


def test_the_base_of_an_adapter_is_named_by_its_files_or_by_the_user(command, model, tmp_path):
    one = merged(model, tmp_path)
    (one / "holdfast_base.json").unlink()
    words = ["export", str(one), "--layout", "hf", "-o", str(tmp_path / "hf")]
    about = json.loads((one / "adapter_config.json").read_text())
    for named, code, said in (
        (None, 2, "does not say on which model it was trained. Do: add --base MODEL."),
        ("/gone/model", 2, "where it has moved, add --base."),
        (str(model), 0, "Takes "),
    ):
        (one / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": named}))
        found, _, err = command(*words)
        assert found == code
        assert said in err
    shutil.rmtree(tmp_path / "hf")
    (one / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": "/gone/tiny"}))
    code, _, err = command(*words, "--base", str(model))
    assert code == 0
    assert "Note: Adapter one was made for /gone/tiny" in err
    shutil.rmtree(tmp_path / "hf")
    record_base(one, "/gone/tiny", "another")
    code, _, err = command(*words, "--base", str(model))
    assert code == 2
    assert "the SHA-256 of the weights differs" in err
    assert not (tmp_path / "hf").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(command, model, tmp_path, monkeypatch):
    whole = trained(model, "medusa", tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    for folder in (merged(model, tmp_path), whole):
        code, _, err = command("export", str(folder), "--layout", "hf", "-o", str(tmp_path / "hf"))
        assert code == 2
        assert "got 1.0 kB free on its disk, expected at least" in err
        assert not (tmp_path / "hf").exists()


def test_a_base_without_safetensors_is_loaded_whole_and_it_is_said(command, model, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(model, old)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    one = merged(model, tmp_path)
    expected = load_model(ModelConfig(source=str(model), adapter=str(one))).model.state_dict()
    record_base(one, str(old), weights_of(old))
    code, _, err = command("export", str(one), "--layout", "hf", "-o", str(tmp_path / "hf"))
    assert code == 0, err
    assert "has no safetensors files, which are read tensor by tensor: the whole model is loaded." in err
    found = load_model(ModelConfig(source=str(tmp_path / "hf"))).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
