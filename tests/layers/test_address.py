"""Names and storage of every family's layers, checked through what the model computes."""

import copy
import sys
import types

import pytest
import torch
from tests.zoo import CONFIGS, FAMILIES, byte_tokenizer, tiny
from torch import Tensor, nn

from holdfast.core.errors import LayerError, NumericsError
from holdfast.layers.address import Layer, LayerMap, layer_name
from holdfast.layers.capture import capture
from holdfast.models.build import new_model

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNGATED = ("gpt2", "gpt_neox")
FUSED = {"phi3": ("qkv_proj", "gate_up_proj"), "gpt2": ("qkv_proj",), "gpt_neox": ("qkv_proj",)}
IDS = torch.arange(12).reshape(2, 6) * 7


def without_biases(family: str) -> LayerMap:
    """A map of a fresh tiny model whose attention and MLP have no bias left, so that weights alone speak."""
    layers = LayerMap.of(tiny(family).model)
    for layer in layers:
        if getattr(layers.module(layer.name), "bias", None) is not None:
            nn.init.zeros_(layers.module(layer.name).bias)
    return layers


@torch.no_grad()
def logits(layers: LayerMap) -> Tensor:
    return layers.base(input_ids=IDS).logits


@torch.no_grad()
def input_of(layers: LayerMap, name: str) -> Tensor:
    with capture(layers) as seen:
        layers.base(input_ids=IDS)
    return seen.input_of(layers[name])


def state(layers: LayerMap) -> dict[str, Tensor]:
    return copy.deepcopy(layers.base.state_dict())


def randn_like_layer(layer: Layer, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layer.out_features, layer.in_features, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_every_kind_in_reading_order(family: str) -> None:
    layers = LayerMap.of(tiny(family).model)
    kinds = [kind for kind in KINDS if family not in UNGATED or kind != "gate_proj"]
    assert [layer.name for layer in layers] == [f"layers.{block}.{kind}" for block in range(2) for kind in kinds]


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_map_of_read_weight_is_what_the_module_computes(family: str) -> None:
    layers = without_biases(family)
    for layer in layers:
        probe = torch.randn(3, layer.in_features)
        computed = layers.module(layer.name)(probe)
        if layer.rows is not None:
            computed = computed[:, layer.rows.index()]
        torch.testing.assert_close(probe @ layers.read(layer.name).T, computed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_then_writing_changes_no_bit_of_the_model(family: str) -> None:
    layers = LayerMap.of(tiny(family).model)
    before = state(layers)
    for name in [layer.name for layer in layers] + [f"layers.0.{kind}" for kind in FUSED.get(family, ())]:
        layers.write(name, layers.read(name))
    after = layers.base.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_write_changes_its_own_layer_and_nothing_else(family: str) -> None:
    for layer in LayerMap.of(tiny(family).model):
        layers = LayerMap.of(tiny(family).model)
        before, weights = state(layers), {other.name: layers.read(other.name) for other in layers}
        layers.write(layer.name, randn_like_layer(layer))
        assert torch.equal(layers.read(layer.name), randn_like_layer(layer))
        assert all(torch.equal(layers.read(name), weight) for name, weight in weights.items() if name != layer.name)
        changed = [key for key, value in layers.base.state_dict().items() if not torch.equal(value, before[key])]
        assert changed == [f"{layer.path}.weight"]


@pytest.mark.parametrize("family", FAMILIES)
def test_v_proj_is_what_attention_carries_and_nothing_flows_without_it(family: str) -> None:
    layers = without_biases(family)
    before = input_of(layers, "layers.0.o_proj")
    layers.write("layers.0.v_proj", 2 * layers.read("layers.0.v_proj"))
    torch.testing.assert_close(input_of(layers, "layers.0.o_proj"), 2 * before)


@pytest.mark.parametrize(("silent", "moved"), [("q_proj", "k_proj"), ("k_proj", "q_proj")])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_ignores_queries_without_keys_and_keys_without_queries(family: str, silent: str, moved: str) -> None:
    layers = without_biases(family)
    full = logits(layers)
    layers.write(f"layers.1.{silent}", torch.zeros_like(layers.read(f"layers.1.{silent}")))
    uniform = logits(layers)
    layers.write(f"layers.1.{moved}", randn_like_layer(layers[f"layers.1.{moved}"]))
    assert not torch.equal(full, uniform)
    torch.testing.assert_close(logits(layers), uniform)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNGATED])
def test_up_proj_is_linear_in_the_mlp_and_gate_proj_is_not(family: str) -> None:
    layers = without_biases(family)
    before = input_of(layers, "layers.0.down_proj")
    layers.write("layers.0.up_proj", 2 * layers.read("layers.0.up_proj"))
    doubled = input_of(layers, "layers.0.down_proj")
    torch.testing.assert_close(doubled, 2 * before)
    layers.write("layers.0.gate_proj", 2 * layers.read("layers.0.gate_proj"))
    assert not torch.allclose(input_of(layers, "layers.0.down_proj"), 2 * doubled, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_a_group_read_the_same_input(family: str) -> None:
    layers = LayerMap.of(tiny(family).model)
    for members in layers.groups().values():
        seen = []
        for layer in members:
            with torch.no_grad(), capture(layers.select(layer.name)) as captured:
                layers.base(input_ids=IDS)
            seen.append(captured.input_of(layer))
        assert all(torch.equal(seen[0], other) for other in seen)
        assert {layer.in_features for layer in members} == {seen[0].shape[-1]}


@pytest.mark.parametrize("family", FUSED)
def test_parts_of_a_fused_layer_are_its_rows_without_overlap(family: str) -> None:
    layers = LayerMap.of(tiny(family).model)
    for kind in FUSED[family]:
        whole = layers.read(f"layers.1.{kind}")
        parts = [layer for layer in layers if layer.rows is not None and layer.path == layers[f"layers.1.{kind}"].path]
        rows = torch.cat([layer.rows.index() for layer in parts])
        assert sorted(rows.tolist()) == list(range(whole.shape[0]))
        assert torch.equal(torch.cat([layers.read(layer.name) for layer in parts]), whole[rows])


def test_heads_of_neox_hold_their_rows_one_after_the_other() -> None:
    layers = LayerMap.of(tiny("gpt_neox").model)
    stored = layers.parameter("layers.0.k_proj").view(4, 3, 8, 32)
    assert torch.equal(layers.read("layers.0.k_proj"), stored[:, 1].reshape(32, 32))


@pytest.mark.parametrize("model_type", ["gemma", "granite", "olmo2", "smollm3"])
def test_kin_of_llama_are_mapped_like_llama(model_type: str) -> None:
    config = CONFIGS["llama"] | {"model_type": model_type} | ({"head_dim": 8} if model_type == "gemma" else {})
    layers = LayerMap.of(new_model(config, byte_tokenizer(), 0).eval())
    assert [(layer.name, layer.path) for layer in layers] == [
        (layer.name, layer.path) for layer in LayerMap.of(tiny("llama").model)
    ]
    carried = input_of(layers, "layers.0.o_proj")
    layers.write("layers.0.v_proj", 2 * layers.read("layers.0.v_proj"))
    torch.testing.assert_close(input_of(layers, "layers.0.o_proj"), 2 * carried)


def test_selection_by_kind_name_glob_and_list_keeps_model_order() -> None:
    layers = LayerMap.of(tiny("llama").model)
    assert [layer.name for layer in layers.select("o_proj")] == ["layers.0.o_proj", "layers.1.o_proj"]
    assert [layer.name for layer in layers.select("layers.1.[qk]_proj")] == ["layers.1.q_proj", "layers.1.k_proj"]
    chosen = layers.select(["down_proj", "layers.0.q_proj"])
    assert [layer.name for layer in chosen] == ["layers.0.q_proj", "layers.0.down_proj", "layers.1.down_proj"]
    assert list(layers.select(None)) == list(layers)
    assert list(chosen.groups()) == ["layers.0.attention_input", "layers.0.mlp_output", "layers.1.mlp_output"]


def test_glob_takes_the_parts_and_only_their_name_takes_fused_layers() -> None:
    layers = LayerMap.of(tiny("phi3").model)
    assert [layer.kind for layer in layers.select("layers.0.*")] == list(KINDS)
    assert [layer.name for layer in layers.select("qkv_proj")] == ["layers.0.qkv_proj", "layers.1.qkv_proj"]
    with pytest.raises(LayerError, match=r"selection overlaps: got layers.0.qkv_proj and its part layers.0.k_proj"):
        layers.select(["layers.0.qkv_proj", "k_proj"])


def test_unknown_pattern_names_the_nearest_kind_and_all_known() -> None:
    expected = (
        "no layer matches 'qproj' in LlamaForCausalLM. Did you mean 'q_proj'? "
        "Known: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."
    )
    layers = LayerMap.of(tiny("llama").model)
    with pytest.raises(LayerError) as caught:
        layers.select(["o_proj", "qproj"])
    assert str(caught.value) == expected
    with pytest.raises(LayerError, match=r"'layers.2.q_proj' in LlamaForCausalLM"):
        layers.read("layers.2.q_proj")
    with pytest.raises(LayerError, match="no layer matches 'gate_proj' in GPT2LMHeadModel"):
        LayerMap.of(tiny("gpt2").model).select("gate_proj")


def test_unknown_architecture_is_refused_by_name() -> None:
    model = tiny("llama").model
    model.config.model_type = "lama"
    with pytest.raises(LayerError, match=r"got model_type 'lama'.*Did you mean 'llama'"):
        LayerMap.of(model)


def test_wrong_shape_and_overflow_are_refused_and_leave_the_weight() -> None:
    layers = LayerMap.of(tiny("llama").model.half())
    before = layers.read("layers.0.k_proj")
    with pytest.raises(LayerError, match=r"got shape \(32, 16\), expected \(16, 32\)"):
        layers.write("layers.0.k_proj", before.T)
    with pytest.raises(NumericsError, match=r"layers.0.k_proj: got 512 entries that are not finite in torch.float16"):
        layers.write("layers.0.k_proj", torch.full((16, 32), 1e6))
    assert torch.equal(layers.read("layers.0.k_proj"), before)


def test_read_weight_is_a_copy_and_write_rounds_to_storage() -> None:
    layers = LayerMap.of(tiny("gpt2").model.bfloat16())
    weight = layers.read("layers.0.up_proj")
    weight.zero_()
    assert layers.read("layers.0.up_proj").abs().sum() > 0
    value = randn_like_layer(layers["layers.0.up_proj"])
    layers.write("layers.0.up_proj", value)
    assert torch.equal(layers.read("layers.0.up_proj"), value.bfloat16())


class Params4bit(nn.Parameter):
    """A stand-in with the class name of bitsandbytes' packed weight."""


class Int8Params(nn.Parameter):
    """A stand-in with the class name of bitsandbytes' 8-bit weight."""

    SCB = None


def quantised(weight: nn.Parameter, **attributes: object) -> LayerMap:
    layers = LayerMap.of(tiny("llama").model)
    for name, value in attributes.items():
        setattr(weight, name, value)
    layers.module("layers.0.q_proj").weight = weight
    return layers


def test_quantised_weight_is_dequantised_on_reading_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    clear = torch.randn(32, 32)
    functional = types.SimpleNamespace(
        dequantize_4bit=lambda packed, state: state.clear if packed.shape == (512, 1) else None,
        int8_vectorwise_dequant=lambda stored, scales: stored * scales[:, None] / 127,
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(functional=functional))
    packed = Params4bit(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    four = quantised(packed, quant_state=types.SimpleNamespace(clear=clear))
    assert torch.equal(four.read("layers.0.q_proj"), clear)
    assert (four["layers.0.q_proj"].out_features, four["layers.0.q_proj"].in_features) == (32, 32)
    eight = quantised(Int8Params(torch.full((32, 32), 127, dtype=torch.int8), requires_grad=False), SCB=clear[0])
    torch.testing.assert_close(eight.read("layers.0.q_proj"), clear[0][:, None].expand(32, 32))
    for layers, kind in ((four, "Params4bit"), (eight, "Int8Params")):
        with pytest.raises(LayerError, match=rf"cannot write layers.0.q_proj: got a quantised weight \({kind}\)"):
            layers.write("layers.0.q_proj", clear)


def test_repacked_and_unknown_quantisations_are_refused_rather_than_misread() -> None:
    repacked = types.SimpleNamespace(packing_format_for_cpu=True)
    four = quantised(Params4bit(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False), quant_state=repacked)
    with pytest.raises(LayerError, match=r"layers.0.q_proj: got a 4-bit weight that its first forward repacked"):
        four.read("layers.0.q_proj")
    other = quantised(nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False))
    with pytest.raises(LayerError, match=r"got a weight of Parameter stored as torch.int8, expected floating point"):
        other.read("layers.0.q_proj")


def test_module_paths_of_any_family_give_the_name_of_the_whole_module() -> None:
    for family in CONFIGS:
        layers = LayerMap.of(tiny(family).model)
        fused = [layers[f"layers.{block}.{kind}"] for kind in FUSED.get(family, ()) for block in range(2)]
        for layer in [*fused, *(layer for layer in layers if layer.rows is None)]:
            assert layer_name(layer.path) == layer.name
            assert layer_name(f"vision.{layer.path}") is None
