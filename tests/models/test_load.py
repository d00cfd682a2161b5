import json
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from tests.close import assert_close
from tests.zoo import CONFIGS, byte_tokenizer, tiny, tiny_folder

from holdfast.core.errors import AdapterError, ConfigError, DataError, MissingExtra
from holdfast.data.examples import Message
from holdfast.models import sources
from holdfast.models.adapter import BASE_FILE, record_base
from holdfast.models.load import ModelConfig, load_model

IDS = torch.arange(40)[None] % 200


def adapter(folder: Path, base: str = "llama", **changes: object) -> Path:
    """A LoRA with random weights, made by PEFT on a tiny model and saved by it."""
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **changes}
    tuned = peft.get_peft_model(tiny(base).model, peft.LoraConfig(**settings))
    tuned.save_pretrained(folder)
    return folder


def test_a_folder_loads_with_the_same_logits_and_in_evaluation_mode(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(source=str(tiny_folder(tmp_path, "qwen3"))))
    assert_close(loaded.model(IDS).logits, tiny("qwen3").model(IDS).logits, "exact")
    assert not loaded.model.training
    assert loaded.name == "tiny-qwen3-0"
    assert loaded.chat.text([Message("user", "hi")]) == "<|bos|><|user|> hi<|end|><|assistant|>"


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path, "llama")
    capfd.readouterr()
    load_model(ModelConfig(source=str(folder)))
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_follows_weights_and_adapter(tmp_path: Path) -> None:
    one, two = tiny_folder(tmp_path, "llama", 0), tiny_folder(tmp_path, "llama", 1)
    prints = [load_model(ModelConfig(source=str(f))).fingerprint for f in (one, two)]
    prints.append(load_model(ModelConfig(source=str(one), adapter=str(adapter(tmp_path / "a")))).fingerprint)
    assert len(set(prints)) == 3
    assert load_model(ModelConfig(source=str(one))).fingerprint == prints[0]


def test_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "llama"))
    assert load_model(ModelConfig(source=folder)).model.dtype == torch.float32
    assert load_model(ModelConfig(source=folder, dtype="bfloat16")).model.dtype == torch.bfloat16


def test_a_new_model_depends_on_its_seed_only(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "llama"))

    def logits(seed: int) -> torch.Tensor:
        config = ModelConfig(source="new", config=CONFIGS["gpt2"], tokenizer=folder, seed=seed)
        return load_model(config).model(IDS).logits

    state = torch.get_rng_state()
    first = logits(3)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    torch.manual_seed(99)
    assert_close(logits(3), first, "exact")
    assert not torch.equal(logits(4), first)


def test_a_merged_adapter_gives_the_logits_that_peft_gives(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    saved = adapter(tmp_path / "tuned")
    loaded = load_model(ModelConfig(source=str(folder), adapter=str(saved)))
    stock = peft.PeftModel.from_pretrained(tiny("llama").model, saved).eval()
    assert_close(loaded.model(IDS).logits, stock(IDS).logits)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.name == "tiny-llama-0 + tuned"
    assert (loaded.model(IDS).logits - tiny("llama").model(IDS).logits).abs().max() > 0.1


def named(saved: Path, base: str) -> Path:
    """The adapter with another base recorded by PEFT."""
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    return saved


def test_an_adapter_is_known_by_the_name_of_its_base_where_no_hash_is_kept(tmp_path: Path) -> None:
    folder, saved = tiny_folder(tmp_path, "llama"), adapter(tmp_path / "tuned")
    for recorded, notes in (("org/Tiny-Llama-0", 1), ("/elsewhere/tiny-llama-0", 1), (str(folder), 0)):
        assert len(load_model(ModelConfig(source=str(folder), adapter=str(named(saved, recorded)))).notes) == notes
    given = {"source": str(folder), "adapter": str(named(saved, "someone/else"))}
    with pytest.raises(AdapterError, match=r"was made for someone/else, got .*names differ\)\. Do: give the model"):
        load_model(ModelConfig(**given))
    (note,) = load_model(ModelConfig(**given, adapter_base="any")).notes
    assert "was made for someone/else" in note


def test_an_adapter_with_a_hash_follows_its_base_and_no_other_of_that_name(tmp_path: Path) -> None:
    folder, saved = tiny_folder(tmp_path, "llama"), adapter(tmp_path / "tuned")
    record_base(
        named(saved, "/gone/checkpoint-3"), "/gone/checkpoint-3", load_model(ModelConfig(source=str(folder))).weights
    )
    moved = folder.rename(tmp_path / "moved")
    (moved / "config.json").write_text(json.dumps(json.loads((moved / "config.json").read_text()) | {"other": 1}))
    assert load_model(ModelConfig(source=str(moved), adapter=str(saved))).notes == ()
    other = tiny_folder(tmp_path, "llama", seed=1).rename(tmp_path / "checkpoint-3")
    with pytest.raises(AdapterError, match=r"SHA-256 of the weights differs"):
        load_model(ModelConfig(source=str(other), adapter=str(saved)))
    (saved / BASE_FILE).write_text("{}")
    with pytest.raises(AdapterError, match="is damaged"):
        load_model(ModelConfig(source=str(moved), adapter=str(saved)))


def test_any_base_without_an_adapter_is_refused() -> None:
    with pytest.raises(ValidationError, match="adapter_base has no effect without adapter"):
        ModelConfig(source="lab", adapter_base="any")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path, family: str) -> None:
    config = ModelConfig(source=str(tiny_folder(tmp_path, family)), adapter=str(adapter(tmp_path / "tuned")))
    with pytest.raises(AdapterError, match=r"does not fit .*Do: give the model it was trained on"):
        load_model(config)


def test_an_adapter_of_other_shapes_is_refused(tmp_path: Path) -> None:
    saved = adapter(tmp_path / "tuned", r=8)
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 4}))
    with pytest.raises(AdapterError, match="size mismatch"):
        load_model(ModelConfig(source=str(tiny_folder(tmp_path, "llama")), adapter=str(saved)))


def test_an_adapter_with_tensors_that_the_model_would_ignore_is_refused(tmp_path: Path) -> None:
    saved = adapter(tmp_path / "tuned")
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(AdapterError, match=r"4 tensors differ, .*down_proj.* in the file only"):
        load_model(ModelConfig(source=str(tiny_folder(tmp_path, "llama")), adapter=str(saved)))


def test_a_pickled_adapter_is_put_on_its_base_as_the_same_one_in_safetensors(tmp_path: Path) -> None:
    folder, plain = tiny_folder(tmp_path, "llama"), adapter(tmp_path / "plain")
    pickled = adapter(tmp_path / "pickled")
    weights = pickled / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    weights.unlink()
    file = pickled / "adapter_model.bin"
    torch.save(tensors, file)
    expected, found = (load_model(ModelConfig(source=str(folder), adapter=str(saved))) for saved in (plain, pickled))
    assert_close(found.model(IDS).logits, expected.model(IDS).logits, "exact")
    torch.save(tensors | {"base_model.model.odd.lora_A.weight": torch.ones(1)}, file)
    with pytest.raises(AdapterError, match=r"1 tensors differ, the first is base_model\.model\.odd"):
        load_model(ModelConfig(source=str(folder), adapter=str(pickled)))
    for damaged in (b"", b"no pickle", file.read_bytes()[:900]):
        file.write_bytes(damaged)
        with pytest.raises(AdapterError, match="does not fit"):
            load_model(ModelConfig(source=str(folder), adapter=str(pickled)))


def test_unreadable_adapters_are_refused(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "llama"))
    saved = adapter(tmp_path / "tuned")
    with pytest.raises(ConfigError, match=r"without adapter_config\.json\. Do: point model\.adapter"):
        load_model(ModelConfig(source=folder, adapter=folder))
    with pytest.raises(ConfigError, match=r"Cannot load an adapter from .*no such folder"):
        load_model(ModelConfig(source=folder, adapter=str(tmp_path / "missing")))
    weights = saved / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="does not fit"):
        load_model(ModelConfig(source=folder, adapter=str(saved)))
    weights.unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors and no adapter_model\.bin"):
        load_model(ModelConfig(source=folder, adapter=str(saved)))
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not a PEFT configuration"):
        load_model(ModelConfig(source=folder, adapter=str(saved)))


def test_an_adapter_given_as_a_model_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it is an adapter\. Do: give its base as model\.source"):
        load_model(ModelConfig(source=str(adapter(tmp_path / "tuned"))))


def test_missing_folders_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder\. Do: check model\.source"):
        load_model(ModelConfig(source=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match=r"without config\.json"):
        load_model(ModelConfig(source=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"model\.revision 'v1' has no effect"):
        load_model(ModelConfig(source=str(tiny_folder(tmp_path, "llama")), revision="v1"))


def test_a_hub_model_that_is_not_cached_is_one_sentence_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **_: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(sources, "snapshot_download", unreachable)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ConfigError, match=r"^Cannot fetch owner/name: the hub cannot be reached.* Do: .*'lab'"):
        load_model(ModelConfig(source="owner/name"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="Cannot fetch owner/name@v2: HF_HUB_OFFLINE is set"):
        load_model(ModelConfig(source="owner/name", revision="v2"))
    with pytest.raises(ConfigError, match="the adapter is not in the local cache") as caught:
        load_model(ModelConfig(source="lab", adapter="nofolder"))
    assert "model" not in str(caught.value)
    assert "'lab'" not in str(caught.value)


def test_a_hub_model_loads_from_the_folder_that_the_hub_client_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path, "llama")
    asked = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, revision, "*.py" in allow_patterns))
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", fetch)
    loaded = load_model(ModelConfig(source="owner/name", revision="v1"))
    assert asked == [("owner/name", "v1", False)]
    assert loaded.name == loaded.source == "owner/name"


def test_names_that_are_neither_folder_nor_hub_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither a folder nor a hub name"):
        load_model(ModelConfig(source="owner/na me"))


def test_truncated_weights_are_one_sentence(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"Cannot read the weights of .*truncated"):
        load_model(ModelConfig(source=str(folder)))


def test_weights_that_lack_a_tensor_are_refused_instead_of_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_folder(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"incomplete: 1 .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(ModelConfig(source=str(folder)))


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(DataError, match="Cannot read the weights"):
        load_model(ModelConfig(source=str(folder)))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(
        ConfigError,
        match=r"Cannot load a tokenizer from .*: got a folder without tokenizer\.json|Cannot read the tokenizer",
    ):
        load_model(ModelConfig(source=str(folder)))


def test_a_folder_whose_tokenizer_has_no_template_loads_with_the_plain_one(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    tiny("llama").model.save_pretrained(folder)
    byte_tokenizer(chat_template=None, pad=False).save_pretrained(folder)
    with pytest.raises(ConfigError, match="no chat template"):
        load_model(ModelConfig(source=str(folder)))
    loaded = load_model(ModelConfig(source=str(folder), chat_template="plain"))
    assert loaded.chat.text([Message("user", "hi")]) == "User: hi\n\nAssistant:"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_what_needs_cuda_says_so_on_a_machine_without(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path, "llama"))
    with pytest.raises(ConfigError, match="'cuda' is not available"):
        load_model(ModelConfig(source=folder, device="cuda"))
    with pytest.raises(ConfigError, match="'4bit' needs CUDA"):
        load_model(ModelConfig(source=folder, quantization="4bit"))


def test_quantization_without_bitsandbytes_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("holdfast.models.load.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'8bit' needs .*holdfast\[quant\]"):
        load_model(ModelConfig(source="lab", quantization="8bit"))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"source": "new"}, "needs both config and tokenizer"),
        ({"source": "lab", "seed": 3}, "seed has no effect on source 'lab'"),
        ({"source": "lab", "config": {"model_type": "llama"}}, "config has no effect"),
        (
            {"source": "new", "config": {"model_type": "llama"}, "tokenizer": "lab", "quantization": "4bit"},
            "quantization has no effect",
        ),
    ],
)
def test_keys_without_effect_are_refused(keys: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ModelConfig(**keys)


def test_the_attention_kernel_is_chosen_by_its_key() -> None:
    eager = load_model(ModelConfig(source="lab", attention="eager"))
    assert eager.model.config._attn_implementation == "eager"
    assert load_model(ModelConfig(source="lab")).model.config._attn_implementation == "sdpa"


def test_an_attention_kernel_that_is_not_installed_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"model\.attention 'flash_attention_2' cannot be used here"):
        load_model(ModelConfig(source="lab", attention="flash_attention_2"))


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    for path in [*folder.glob("tokenizer*"), *folder.glob("*.jinja"), *folder.glob("special_tokens*")]:
        path.unlink()
    with pytest.raises(ConfigError, match=r"Cannot load a tokenizer from .*: got a folder without tokenizer\.json"):
        load_model(ModelConfig(source=str(folder)))


def test_a_folder_without_weights_names_the_missing_file(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    whole = folder / "model.safetensors"
    whole.rename(folder / "kept")
    with pytest.raises(ConfigError, match=r"Cannot load the weights of .*: got a folder without model\.safetensors"):
        load_model(ModelConfig(source=str(folder)))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors", "b": "kept"}}')
    with pytest.raises(ConfigError, match=r"1 of 2 files are missing, the first is part-1\.safetensors"):
        load_model(ModelConfig(source=str(folder)))
