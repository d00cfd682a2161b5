"""Captured inputs and output gradients against autograd's own weight gradients."""

import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.zoo import FAMILIES, tiny
from torch import Tensor, nn

from holdfast.core.errors import LayerError
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.capture import capture, stream_pairs

IDS = torch.arange(21).reshape(3, 7) * 5


def model_of(family: str, *, frozen: bool = False) -> nn.Module:
    return tiny(family).model.requires_grad_(not frozen)


def loss_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def hooks_in(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def weight_gradients(family: str) -> dict[str, Tensor]:
    """Autograd's gradient of each layer's weight, read like the weight itself."""
    model = model_of(family)
    loss_of(model).backward()
    layers = LayerMap.of(model)
    with torch.no_grad():
        for module in {layers.module(layer.name) for layer in layers}:
            module.weight.copy_(module.weight.grad)
    return {layer.name: layers.read(layer.name) for layer in layers}


def assert_gradient(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_sum_over_tokens_of_gradient_times_input_is_the_weight_gradient(family: str, frozen: bool) -> None:
    model = model_of(family, frozen=frozen)
    layers = LayerMap.of(model)
    with capture(layers, output_gradients=True) as seen:
        loss_of(model).backward()
    for name, expected in weight_gradients(family).items():
        a_bti, g_bto = seen.input_of(layers[name]), seen.output_gradients[name]
        assert a_bti.shape == (3, 7, layers[name].in_features)
        assert g_bto.shape == (3, 7, layers[name].out_features)
        assert_gradient(torch.einsum("bto,bti->oi", g_bto, a_bti), expected)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_streamed_pairs_sum_to_the_weight_gradient_and_come_once_a_layer(family: str) -> None:
    model = model_of(family, frozen=True)
    layers = LayerMap.of(model).select(["q_proj", "v_proj", "down_proj"])
    gradients: dict[str, Tensor] = {}

    def consume(layer: Layer, a_bti: Tensor, g_bto: Tensor) -> None:
        assert layer.name not in gradients
        gradients[layer.name] = torch.einsum("bto,bti->oi", g_bto, a_bti)

    with stream_pairs(layers, consume):
        loss_of(model).backward()
    expected = weight_gradients(family)
    assert set(gradients) == {layer.name for layer in layers}
    for name, gradient in gradients.items():
        assert_gradient(gradient, expected[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_per_sample_gradients_agree_with_one_backward_a_sample(family: str) -> None:
    model = model_of(family)
    layers = LayerMap.of(model).select("layers.0.v_proj")
    with capture(layers, output_gradients=True) as seen:
        logits = model(input_ids=IDS).logits
        (logits.log_softmax(-1)[..., 3].sum()).backward()
    batched = torch.einsum("bto,bti->boi", seen.output_gradients["layers.0.v_proj"], seen.input_of(layers.layers[0]))
    for row in range(3):
        with capture(layers, output_gradients=True) as alone:
            (model(input_ids=IDS[row : row + 1]).logits.log_softmax(-1)[..., 3].sum()).backward()
        single = torch.einsum("bto,bti->oi", alone.output_gradients["layers.0.v_proj"], *alone.inputs.values())
        assert_gradient(batched[row], single)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_capturing_changes_neither_loss_nor_weight_gradients(family: str) -> None:
    plain, watched = model_of(family), model_of(family)
    expected = loss_of(plain)
    expected.backward()
    with capture(LayerMap.of(watched), output_gradients=True):
        found = loss_of(watched)
        found.backward()
    assert torch.equal(found, expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_shared_input_is_seen_once_a_group_and_nothing_is_kept_when_consumed() -> None:
    model = model_of("phi3")
    layers = LayerMap.of(model).select(["k_proj", "v_proj", "up_proj"])
    calls: Counter[str] = Counter()
    with torch.no_grad(), capture(layers, consume=lambda layer, a_bti: calls.update([layer.name])) as seen:
        model(input_ids=IDS)
        model(input_ids=IDS)
    assert calls == {f"layers.{block}.{kind}": 2 for block in range(2) for kind in ("k_proj", "up_proj")}
    assert seen.inputs == seen.output_gradients == {}


def test_only_what_is_selected_and_asked_for_is_kept() -> None:
    model = model_of("llama")
    layers = LayerMap.of(model).select("layers.1.down_proj")
    with capture(layers) as inputs:
        loss_of(model).backward()
    assert (list(inputs.inputs), list(inputs.output_gradients)) == (["layers.1.mlp_output"], [])
    with capture(layers, inputs=False, output_gradients=True) as gradients:
        loss_of(model).backward()
    assert (list(gradients.inputs), list(gradients.output_gradients)) == ([], ["layers.1.down_proj"])


def test_streamed_gradients_come_without_inputs() -> None:
    model = model_of("gpt2", frozen=True)
    shapes: dict[str, tuple[int, ...]] = {}
    streaming = capture(
        LayerMap.of(model).select("layers.1.*"),
        inputs=False,
        output_gradients=True,
        consume=lambda layer, g_bto: shapes.update({layer.kind: tuple(g_bto.shape)}),
    )
    with streaming:
        loss_of(model).backward()
    assert shapes == dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"), (3, 7, 32)) | {
        "up_proj": (3, 7, 128)
    }


def test_streamed_inputs_are_let_go_when_consumed() -> None:
    model = model_of("llama", frozen=True)
    alive: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    def consume(layer: Layer, a_bti: Tensor, g_bto: Tensor) -> None:
        held.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(a_bti))

    with stream_pairs(LayerMap.of(model).select("down_proj"), consume):
        loss = loss_of(model)
        loss.backward()
        gc.collect()
        assert held == [0, 0]
        assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("where", ["body", "consumer", "backward"])
def test_hooks_are_gone_after_any_exception(where: str) -> None:
    model = model_of("llama")
    layers = LayerMap.of(model)

    def burst(*arguments: Any) -> None:
        raise KeyError(where)

    def run() -> None:
        if where == "body":
            with capture(layers, output_gradients=True):
                assert hooks_in(model) > 0
                burst()
        elif where == "consumer":
            with capture(layers, consume=burst):
                model(input_ids=IDS)
        else:
            with stream_pairs(layers, burst):
                loss_of(model).backward()

    with pytest.raises(KeyError, match=where):
        run()
    assert hooks_in(model) == 0


def test_backward_after_the_block_is_not_seen() -> None:
    model = model_of("llama")
    with capture(LayerMap.of(model), output_gradients=True) as seen:
        loss = loss_of(model)
    loss.backward()
    assert seen.output_gradients == {}
    assert hooks_in(model) == 0


def test_second_backward_through_one_forward_is_refused_when_pairs_were_streamed() -> None:
    model = model_of("llama")
    with stream_pairs(LayerMap.of(model).select("layers.1.o_proj"), lambda layer, a_bti, g_bto: None):
        loss = loss_of(model)
        loss.backward(retain_graph=True)
        with pytest.raises(LayerError, match=r"layers.1.o_proj: got a second backward through one forward"):
            loss.backward()


def test_peft_wrapped_model_gives_the_input_and_gradient_of_the_whole_layer() -> None:
    model = tiny("llama").model
    layers = LayerMap.of(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    wrapped.eval()
    with capture(layers.select(["q_proj", "down_proj"]), output_gradients=True) as seen:
        loss_of(wrapped).backward()
    for name, path in (("layers.0.q_proj", "self_attn.q_proj"), ("layers.1.down_proj", "mlp.down_proj")):
        lora = wrapped.base_model.model.model.layers[layers[name].block].get_submodule(path)
        up, scaling = lora.lora_B["default"].weight, lora.scaling["default"]
        expected = torch.einsum("bto,bti->oi", seen.output_gradients[name], seen.input_of(layers[name]))
        assert_gradient(scaling * up.detach().T @ expected, lora.lora_A["default"].weight.grad)


def test_gradients_without_autograd_are_refused() -> None:
    model = model_of("llama")
    with (
        pytest.raises(LayerError, match=r"output gradient of layers.0.q_proj: got a forward without autograd"),
        torch.no_grad(),
        capture(LayerMap.of(model), output_gradients=True),
    ):
        model(input_ids=IDS)
    assert hooks_in(model) == 0


def test_gradient_checkpointing_is_refused_in_training_and_harmless_in_eval() -> None:
    model = model_of("llama")
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(LayerError, match="got gradient checkpointing, which runs each forward twice"):
        capture(LayerMap.of(model)).__enter__()
    model.eval()
    with capture(LayerMap.of(model)) as seen:
        model(input_ids=IDS)
    assert len(seen.inputs) == 8


@pytest.mark.parametrize("options", [{"inputs": False}, {"output_gradients": True, "consume": print}])
def test_asking_for_nothing_or_for_both_kinds_in_one_stream_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(LayerError, match=r"expected one kind. To stream both, stream_pairs"):
        capture(LayerMap.of(model_of("llama")), **options).__enter__()
