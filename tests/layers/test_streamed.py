"""A base and an adapter streamed into one model: the bits of the loaded and merged one, a shard in memory."""

import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.close import assert_close
from tests.zoo import CONFIGS, byte_tokenizer, tiny_folder
from torch import Tensor
from transformers import AutoModelForCausalLM

from holdfast.core.errors import AdapterError, DataError, NumericsError
from holdfast.layers import streamed
from holdfast.layers.adapters import Adapter, LowRank, merge_into, write_peft
from holdfast.layers.address import LayerMap
from holdfast.models.build import new_model
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model


def quiet(what: str, done: int, of: int) -> None:
    """No progress."""


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def change(folder: Path, size: float = 0.1) -> Adapter:
    """A change of rank 2 of every whole module of the model in ``folder``."""
    model = loaded(folder)
    layers, draw = LayerMap.of(model), torch.Generator().manual_seed(3)
    whole = {layer.path: layer for layer in layers if layer.rows is None}
    fused = {layers[n].path: layers[n] for b in range(2) for n in (f"layers.{b}.qkv_proj",) if n in layers}
    return Adapter.of(
        layers,
        {
            layer.name: LowRank(
                size * torch.randn(2, layer.in_features, generator=draw),
                size * torch.randn(layer.out_features, 2, generator=draw),
            )
            for layer in (whole | fused).values()
        },
    )


def exported(folder: Path, adapter: Adapter, out: Path, shard_bytes: int = streamed.SHARD_BYTES) -> streamed.Streaming:
    found = streamed.look("base", folder, adapter, shard_bytes)
    streamed.write(found, out, quiet)
    return found


def assert_same(got: Any, expected: Any) -> None:
    found, wanted = got.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "gemma3"])
def test_a_streamed_model_has_the_bits_of_the_merged_one_in_every_storage(family: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, family)
    adapter = change(base)
    exported(base, adapter, tmp_path / "out")
    expected = loaded(base)
    merge_into(expected, adapter)
    assert_same(loaded(tmp_path / "out"), expected)
    write_peft(adapter, tmp_path / "adapter")
    assert_same(
        loaded(tmp_path / "out"), PeftModel.from_pretrained(loaded(base), tmp_path / "adapter").merge_and_unload()
    )
    assert load_model(ModelConfig(source=str(tmp_path / "out"))).chat.fingerprint


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_embeddings_stay_tied_and_sixteen_bits_stay_sixteen(family: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    config = CONFIGS[family] | {"tie_word_embeddings": True}
    new_model(config, byte_tokenizer(), seed=0).to(torch.bfloat16).save_pretrained(base)
    adapter = change(base)
    exported(base, adapter, tmp_path / "out")
    found, expected = loaded(tmp_path / "out"), loaded(base)
    merge_into(expected, adapter)
    assert found.dtype == torch.bfloat16
    assert found.get_input_embeddings().weight is found.get_output_embeddings().weight
    assert_same(found, expected)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


def test_no_more_than_one_shard_of_tensors_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_folder(tmp_path, "llama")
    alive: dict[int, int] = {}
    most = 0
    read = streamed._tensor

    def counted(streaming: streamed.Streaming, name: str) -> Tensor:
        nonlocal most
        tensor = read(streaming, name)
        alive[id(tensor)] = tensor.nbytes
        weakref.finalize(tensor, alive.pop, id(tensor))
        most = max(most, sum(alive.values()))
        return tensor

    monkeypatch.setattr(streamed, "_tensor", counted)
    bound = 35_000
    found = exported(base, change(base), tmp_path / "out", bound)
    largest = max(each.bytes for each in found.tensors.values())
    whole = sum(each.bytes for each in found.tensors.values())
    assert largest < bound < whole / 3
    assert most <= bound
    assert not alive
    sizes = [sum(t.nbytes for t in load_file(tmp_path / "out" / file).values()) for file in found.shards]
    assert len(sizes) >= math.ceil(whole / bound)
    assert max(sizes) == most


def test_shards_and_their_index_load_as_one_model_from_several_files_too(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, "llama")
    adapter = change(base)
    exported(base, adapter, tmp_path / "first", 20_000)
    expected = loaded(base)
    merge_into(expected, adapter)
    assert_same(loaded(tmp_path / "first"), expected)
    exported(tmp_path / "first", adapter, tmp_path / "second", 50_000)
    merge_into(expected, adapter)
    assert_same(loaded(tmp_path / "second"), expected)
    index = json.loads((tmp_path / "second" / streamed.INDEX).read_text())
    files = {path.name for path in (tmp_path / "second").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in expected.state_dict().values())


def test_the_estimate_is_what_is_written(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, "llama")
    found = exported(base, change(base), tmp_path / "out", 20_000)
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert found.disk_bytes <= written <= 1.2 * found.disk_bytes, "headers and the index are small"
    assert 20_000 <= found.memory_bytes < 3 * found.disk_bytes


def test_what_belongs_to_the_model_goes_along_and_nothing_of_an_adapter(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, "llama")
    adapter = change(base)
    apart = {"adapter_config.json", "holdfast_base.json", "trainer_state.json", "optimizer.pt", "README.md"}
    for name in apart:
        (base / name).write_text("{}")
    (base / "additional_chat_templates").mkdir()
    for name in ("LICENSE", "modeling_own.py", "additional_chat_templates/tools.jinja"):
        (base / name).write_text("its own")
    exported(base, adapter, tmp_path / "out")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"LICENSE", "modeling_own.py", "additional_chat_templates/tools.jinja", "tokenizer.json"} < written
    assert {"config.json", "generation_config.json", "model.safetensors"} < written
    assert not written & {
        "adapter_config.json",
        "holdfast_base.json",
        "trainer_state.json",
        "optimizer.pt",
        "README.md",
    }


def test_files_of_a_model_without_its_head_are_read_by_their_shorter_names(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, "gpt2")
    adapter = change(base)
    expected = loaded(base)
    merge_into(expected, adapter)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    exported(base, adapter, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    name = "h.1.attn.c_attn.weight"
    assert_close(written[name], expected.state_dict()[f"transformer.{name}"], "exact")


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    llama, gpt2 = tiny_folder(tmp_path, "llama"), tiny_folder(tmp_path, "gpt2")
    with pytest.raises(AdapterError, match=r"no tensor transformer\.h\.0\.attn"):
        streamed.look("base", llama, change(gpt2))
    adapter = change(llama)
    name = next(iter(adapter.deltas))
    wide = {name: LowRank(torch.ones(1, 5), torch.ones(7, 1))}
    with pytest.raises(AdapterError, match=r"got \(7, 5\) for .*, which is \(32, 32\)"):
        streamed.look("base", llama, Adapter(wide, "", adapter.paths))
    tensors = load_file(llama / "model.safetensors")
    key = f"{adapter.paths[name]}.weight"
    save_file(tensors | {key: tensors[key].to(torch.int8)}, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="stored quantized"):
        streamed.look("base", llama, adapter)


def test_a_weight_that_overflows_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    new_model(CONFIGS["llama"], byte_tokenizer(), seed=0).to(torch.float16).save_pretrained(base)
    with pytest.raises(NumericsError, match=r"not finite in torch\.float16"):
        exported(base, change(base, 1e3), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_damaged_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, "llama")
    adapter, file = change(base), base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="the file is damaged"):
        streamed.look("base", base, adapter)
