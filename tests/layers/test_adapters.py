"""Adapters against stock PEFT: what it saved is read, what is written it loads, logits decide."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tests.zoo import FAMILIES, tiny
from torch import Tensor, nn

from holdfast.core.errors import AdapterError, NumericsError
from holdfast.layers.adapters import Adapter, LowRank, added, merge_into, read_peft, write_peft
from holdfast.layers.address import LayerMap

IDS = torch.arange(12).reshape(2, 6) * 7
MIXED = {"r": 4, "lora_alpha": 6, "rank_pattern": {"layers.1.mlp.up_proj": 2}, "alpha_pattern": {"q_proj": 20}}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def modules_of(layers: LayerMap) -> list[str]:
    return sorted({layer.path for layer in layers})


def trained(folder: Path, family: str, **options: Any) -> Tensor:
    """Save a PEFT adapter with random factors on every layer of the family; return the logits that PEFT computes."""
    model = tiny(family).model
    options = {"r": 4, "target_modules": modules_of(LayerMap.of(model))} | options
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    wrapped.base_model.model.name_or_path = "some/base"
    wrapped.eval()
    wrapped.save_pretrained(folder)
    return logits(wrapped)


def assert_same_logits(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_base_plus_deltas_computes_what_peft_computes(family: str, tmp_path: Path) -> None:
    expected = trained(tmp_path / "a", family)
    model = tiny(family).model
    assert (logits(model) - expected).abs().max() > 0.1
    merge_into(model, read_peft(tmp_path / "a"))
    assert_same_logits(logits(model), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_written_adapter_loads_in_stock_peft_with_the_same_logits(family: str, tmp_path: Path) -> None:
    options = {"fan_in_fan_out": True} if family == "gpt2" else {}
    expected = trained(tmp_path / "a", family, **options)
    write_peft(read_peft(tmp_path / "a"), tmp_path / "b")
    reloaded = PeftModel.from_pretrained(tiny(family).model, tmp_path / "b").eval()
    assert_same_logits(logits(reloaded), expected)


@pytest.mark.parametrize("options", [MIXED, MIXED | {"use_rslora": True}, {"r": 4, "lora_alpha": 0.5}])
def test_rank_and_alpha_patterns_and_rslora_are_folded_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    expected = trained(tmp_path / "a", "llama", **options)
    adapter = read_peft(tmp_path / "a")
    model = tiny("llama").model
    merge_into(model, adapter)
    assert_same_logits(logits(model), expected)
    write_peft(adapter, tmp_path / "b")
    assert_same_logits(logits(PeftModel.from_pretrained(tiny("llama").model, tmp_path / "b").eval()), expected)


def test_delta_is_scaling_times_b_times_a_by_hand(tmp_path: Path) -> None:
    trained(tmp_path / "a", "llama", **MIXED, use_rslora=True)
    factors = safetensors.torch.load_file(tmp_path / "a" / "adapter_model.safetensors")
    adapter = read_peft(tmp_path / "a")
    cases = {"layers.0.q_proj": (4, 20), "layers.1.up_proj": (2, 6), "layers.0.up_proj": (4, 6)}
    for name, (rank, alpha) in cases.items():
        key = f"base_model.model.{adapter.paths[name]}.lora_"
        down, up = factors[f"{key}A.weight"].double(), factors[f"{key}B.weight"].double()
        assert adapter.deltas[name].rank == rank
        torch.testing.assert_close(
            adapter.delta(name).double(), alpha / math.sqrt(rank) * up @ down, rtol=1e-5, atol=1e-6
        )


def test_writing_and_reading_gives_the_same_bits_and_the_same_files(tmp_path: Path) -> None:
    trained(tmp_path / "a", "qwen2", **MIXED)
    first = replace(read_peft(tmp_path / "a"), metadata={"method": "average", "seeds": [1, 2]})
    write_peft(first, tmp_path / "b")
    second = read_peft(tmp_path / "b")
    write_peft(second, tmp_path / "c")
    assert (second.base, second.paths, second.metadata) == ("some/base", first.paths, first.metadata)
    for name, change in first.deltas.items():
        assert torch.equal(second.deltas[name].A, change.A)
        assert torch.equal(second.deltas[name].B, change.B)
    targets = json.loads((tmp_path / "b" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(first.paths.values())
    files = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "holdfast.json"]
    assert all((tmp_path / "b" / file).read_bytes() == (tmp_path / "c" / file).read_bytes() for file in files)


def test_fused_modules_keep_their_fused_names(tmp_path: Path) -> None:
    trained(tmp_path / "a", "phi3")
    adapter = read_peft(tmp_path / "a")
    assert adapter.paths["layers.1.qkv_proj"] == "model.layers.1.self_attn.qkv_proj"
    assert sorted({name.split(".")[-1] for name in adapter.deltas}) == [
        "down_proj",
        "gate_up_proj",
        "o_proj",
        "qkv_proj",
    ]


def test_adapter_of_computed_deltas_gets_the_models_paths_and_refuses_parts(tmp_path: Path) -> None:
    model = tiny("gpt_neox").model
    layers = LayerMap.of(model)
    change = LowRank(torch.randn(2, 32), torch.randn(96, 2))
    adapter = Adapter.of(layers, {"layers.0.qkv_proj": change})
    write_peft(adapter, tmp_path / "a")
    reloaded = PeftModel.from_pretrained(tiny("gpt_neox").model, tmp_path / "a").eval()
    merge_into(model, adapter)
    assert_same_logits(logits(model), logits(reloaded))
    with pytest.raises(AdapterError, match=r"cannot adapt layers.0.q_proj: got a part of the module"):
        Adapter.of(layers, {"layers.0.q_proj": LowRank(torch.randn(2, 32), torch.randn(32, 2))})
    with pytest.raises(AdapterError, match=r"got a delta for layers.7.o_proj, expected one of its 12 layers"):
        Adapter.of(layers, {"layers.7.o_proj": change})


def test_merging_into_another_model_is_refused_before_any_write(tmp_path: Path) -> None:
    trained(tmp_path / "a", "llama")
    adapter = read_peft(tmp_path / "a")
    misfit = replace(adapter, deltas=adapter.deltas | {"layers.1.o_proj": LowRank(torch.ones(1, 8), torch.ones(32, 1))})
    model = tiny("llama").model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AdapterError, match=r"got \(32, 8\) for layers.1.o_proj, expected \(32, 32\).*base, some/base"):
        merge_into(model, misfit)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(AdapterError, match="does not belong to this GPTNeoXForCausalLM"):
        merge_into(tiny("gpt_neox").model, adapter)


def test_layer_map_of_a_peft_model_reads_and_writes_the_base_weights(tmp_path: Path) -> None:
    model = tiny("gpt2").model
    before = LayerMap.of(model)
    weights = {layer.name: before.read(layer.name) for layer in before}
    config = LoraConfig(r=2, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    for layers in (before, LayerMap.of(wrapped)):
        assert all(torch.equal(layers.read(name), weight) for name, weight in weights.items())
    after = LayerMap.of(wrapped)
    after.write("layers.0.k_proj", weights["layers.0.q_proj"])
    assert torch.equal(before.read("layers.0.k_proj"), weights["layers.0.q_proj"])
    wrapped.merge_adapter()
    with pytest.raises(Exception, match=r"got a weight with \['default'\] merged into it"):
        after.write("layers.0.k_proj", weights["layers.0.q_proj"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora: DoRA also trains magnitudes"),
        ({"bias": "lora_only"}, "bias is 'lora_only': biases were trained"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: whole modules were trained"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: token embeddings were trained"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': it changes the base weights"),
        (
            {"target_modules": ["model.embed_tokens"]},
            "got the weight base_model.model.model.embed_tokens.lora_",
        ),
    ],
)
def test_adapter_that_is_not_plain_lora_is_refused_with_the_reason(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    trained(tmp_path / "a", "qwen2", **options)
    with pytest.raises(AdapterError, match=reason):
        read_peft(tmp_path / "a")


def test_another_peft_method_is_refused(tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny("llama").model, config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="peft_type is 'PREFIX_TUNING'; expected plain LoRA"):
        read_peft(tmp_path)


def rewrite_weights(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)


def rewrite_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_damaged_folders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with pytest.raises(AdapterError, match=r"got no adapter_config.json"):
        read_peft(folder)
    trained(folder, "llama")
    q_key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    rewrite_weights(folder, lambda weights: weights | {q_key: weights[q_key] * math.nan})
    with pytest.raises(AdapterError, match=r"got NaN or infinity in model.layers.0.self_attn.q_proj"):
        read_peft(folder)
    rewrite_weights(folder, lambda weights: {key: value for key, value in weights.items() if key != q_key})
    with pytest.raises(AdapterError, match=r"got only lora_B.weight of model.layers.0.self_attn.q_proj"):
        read_peft(folder)
    rewrite_weights(folder, lambda weights: {"base_model.model.lm_head.weight": torch.ones(2, 2)})
    with pytest.raises(AdapterError, match=r"got the weight base_model.model.lm_head.weight, expected only lora_A"):
        read_peft(folder)
    moe_key = "base_model.model.model.layers.0.mlp.experts.lora_"
    experts = {f"{moe_key}A.weight": torch.ones(4, 2), f"{moe_key}B.weight": torch.ones(2, 4)}
    rewrite_weights(folder, lambda weights: experts)
    with pytest.raises(AdapterError, match=r"got an adapter of the module model.layers.0.mlp.experts, expected"):
        read_peft(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(AdapterError, match="cannot read the weights in"):
        read_peft(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"got no adapter_model.safetensors and no adapter_model.bin"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="got damaged JSON"):
        read_peft(folder)


@pytest.mark.parametrize("rank", [0, 8])
def test_rank_zero_or_unlike_the_weights_is_refused(rank: int, tmp_path: Path) -> None:
    trained(tmp_path, "llama")
    rewrite_config(tmp_path, r=rank)
    with pytest.raises(AdapterError, match=rf"got A \(4, 64\) and B \(32, 4\).*expected rank {rank}"):
        read_peft(tmp_path)


def test_pickled_weights_of_older_peft_are_read(tmp_path: Path) -> None:
    trained(tmp_path, "llama")
    expected = read_peft(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(weights, tmp_path / "adapter_model.bin")
    found = read_peft(tmp_path)
    assert all(torch.equal(found.deltas[name].A, change.A) for name, change in expected.deltas.items())


def test_failed_write_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "a", "llama")
    adapter = read_peft(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_peft(adapter, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_refuses_nothing_nan_and_a_folder_of_other_things(tmp_path: Path) -> None:
    good = LowRank(torch.ones(1, 32), torch.ones(32, 1))
    paths = {"layers.0.q_proj": "model.layers.0.self_attn.q_proj"}
    with pytest.raises(AdapterError, match="got no deltas"):
        write_peft(Adapter({}, "", {}), tmp_path / "a")
    bad = LowRank(torch.full((1, 32), math.inf), torch.ones(32, 1))
    with pytest.raises(AdapterError, match=r"got NaN or infinity in layers.0.q_proj"):
        write_peft(Adapter({"layers.0.q_proj": bad}, "", paths), tmp_path / "a")
    (tmp_path / "thesis.tex").write_text("keep me")
    with pytest.raises(AdapterError, match="got something else there"):
        write_peft(Adapter({"layers.0.q_proj": good}, "", paths), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "keep me"


@pytest.mark.parametrize(("down", "up"), [((2, 8), (8, 3)), ((0, 8), (8, 0)), ((8,), (8, 1))])
def test_factors_that_do_not_fit_are_no_low_rank_pair(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(AdapterError, match="not a low-rank pair"):
        LowRank(torch.ones(down), torch.ones(up))


def test_missing_delta_names_the_layers_that_have_one() -> None:
    adapter = Adapter({"layers.0.q_proj": LowRank(torch.ones(1, 2), torch.ones(2, 1))}, "", {})
    with pytest.raises(AdapterError, match=r"no delta for 'layers.1.q_proj': got an adapter of layers.0.q_proj"):
        adapter.delta("layers.1.q_proj")


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_the_weights_hold_the_scaled_deltas_and_afterwards_each_bit_is_as_before(
    family: str, tmp_path: Path
) -> None:
    trained(tmp_path / "a", family)
    adapter, model = read_peft(tmp_path / "a"), tiny(family).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layers = LayerMap.of(model)
    plain = {name: layers.read(name) for name in adapter.deltas}
    for scale in (1.0, -0.3):
        with added(model, adapter, scale):
            for name, delta in adapter.deltas.items():
                assert torch.equal(layers.read(name), plain[name] + scale * delta.dense())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with added(model, adapter, 0.0):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_inside_the_model_computes_what_peft_computes(tmp_path: Path) -> None:
    for family in ("llama", "gpt2", "gpt_neox"):
        expected = trained(tmp_path / family, family)
        model = tiny(family).model
        with added(model, read_peft(tmp_path / family)):
            assert_same_logits(logits(model), expected)


def test_what_fails_inside_leaves_the_weights_as_they_were_before(tmp_path: Path) -> None:
    trained(tmp_path / "a", "llama")
    adapter, model = read_peft(tmp_path / "a"), tiny("llama").model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), added(model, adapter):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    huge = replace(adapter, deltas={name: LowRank(d.A * 1e30, d.B * 1e30) for name, d in adapter.deltas.items()})
    with pytest.raises(NumericsError, match="entries that are not finite"), added(model, huge):
        pass
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(AdapterError, match="does not belong to this GPTNeoXForCausalLM"):
        added(tiny("gpt_neox").model, adapter).__enter__()


def test_narrow_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    trained(tmp_path / "a", "llama")
    adapter, model = read_peft(tmp_path / "a"), tiny("llama").model.to(torch.bfloat16)
    layers = LayerMap.of(model)
    before = {name: layers.read(name) for name in adapter.deltas}
    with added(model, adapter):
        for name, delta in adapter.deltas.items():
            assert torch.equal(layers.read(name), (before[name].float() + delta.dense()).bfloat16())
    assert all(torch.equal(layers.read(name), weight) for name, weight in before.items())
