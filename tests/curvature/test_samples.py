"""Streamed per-sample gradients against one autograd backward a sample."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.curvature.oracles import assert_same_state, gradient_oracle, setting, state_of
from tests.zoo import FAMILIES, tiny
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, LayerError, NumericsError
from holdfast.curvature.samples import sample_gradients
from holdfast.data.batches import Encoded
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.capture import stream_pairs
from holdfast.models.load import LoadedModel

Found = dict[tuple[str, str], Tensor]


def collected(loaded: LoadedModel, rows: Sequence[Encoded], layers: LayerMap, **options: Any) -> Found:
    """Every gradient, by row id and layer name; each may come only once."""
    found: Found = {}

    def consume(layer: Layer, n: int, G_oi: Tensor) -> None:
        assert (rows[n].id, layer.name) not in found
        found[rows[n].id, layer.name] = G_oi

    sample_gradients(loaded, rows, layers, consume, **options)
    assert set(found) == {(row.id, layer.name) for row in rows for layer in layers}
    return found


def assert_equal_gradients(found: Found, expected: Found, tolerance: str = "float32") -> None:
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        scale = gradient.abs().max()
        assert_close(found[key] / scale, gradient / scale, tolerance)


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_one_backward_a_sample(family: str, loss: Any) -> None:
    loaded, rows, layers = setting(family, n=4, dtype=torch.float64)
    found = collected(loaded, rows, layers, loss=loss, batch_size=3)
    for row in rows:
        expected = {(row.id, name): G for name, G in gradient_oracle(loaded, row, layers, loss).items()}
        # the norms of the other families round to float32 whatever the model's type is
        assert_equal_gradients(
            {key: found[key] for key in expected}, expected, "float64" if family.startswith("gpt") else "float32"
        )


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("kinds", [None, "q_proj"])
def test_with_a_basis_gradients_are_those_of_the_coordinates(family: str, kinds: str | None) -> None:
    """One kind alone: then batch follows batch in the same group."""
    loaded, rows, layers = setting(family, n=5, dtype=torch.float64)
    layers = layers.select(kinds)
    dice = torch.Generator().manual_seed(0)
    widths = {group: members[0].in_features for group, members in layers.groups().items()}
    basis = {group: torch.randn(i, i, generator=dice, dtype=torch.float64) for group, i in widths.items()}
    plain, found = (collected(loaded, rows, layers, batch_size=2, **keys) for keys in ({}, {"basis": basis}))
    group = {layer.name: layer.group for layer in layers}
    assert_equal_gradients(found, {key: G @ basis[group[key[1]]] for key, G in plain.items()}, "float64")


def test_float32_gradients_are_those_of_float64() -> None:
    loaded, rows, layers = setting(n=4)
    found = collected(loaded, rows, layers)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    loaded.model.double()
    assert_equal_gradients(found, collected(loaded, rows, layers))


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_batch_size_padding_and_order_do_not_matter(batch_size: int) -> None:
    loaded, rows, layers = setting()
    expected = collected(loaded, rows, layers, batch_size=4)
    assert_equal_gradients(collected(loaded, rows[::-1], layers, batch_size=batch_size), expected)


def test_short_rows_go_together_and_no_batch_has_more_tokens_than_of_the_longest_rows() -> None:
    loaded, rows, layers = setting()
    rows = [replace(rows[0], id="short", ids=rows[0].ids[-4:], response=rows[0].response[-4:]), *rows] * 3
    rows = [replace(row, id=str(n)) for n, row in enumerate(rows)]
    shapes, predicted = [], 0

    def look(_: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal predicted
        predicted += given[0].shape[:-1].numel()

    embeddings = loaded.model.get_input_embeddings()
    handles = [
        embeddings.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape))),
        loaded.model.get_output_embeddings().register_forward_hook(look),
    ]
    collected(loaded, rows, layers, batch_size=2)
    for handle in handles:
        handle.remove()
    assert sum(b for b, _ in shapes) == len(rows)
    assert max(b * t for b, t in shapes) == 2 * max(map(len, rows))
    assert max(b for b, _ in shapes) > 2
    assert predicted == sum(sum(row.response[1:]) for row in rows)  # the head sees nothing else


def test_model_whose_head_is_not_run_last_is_refused() -> None:
    loaded, rows, layers = setting()
    whole = loaded.model.forward
    loaded.model.forward = lambda **given: replace_logits(whole(**given))

    def replace_logits(output: Any) -> Any:
        output.logits = output.logits.expand(2, -1, -1)
        return output

    with pytest.raises(LayerError, match="cannot read the predictions of LlamaForCausalLM"):
        collected(loaded, rows, layers)


def test_mean_gives_each_row_and_sum_each_token_the_same_say() -> None:
    loaded, rows, layers = setting(dtype=torch.float64)
    mean, total = (collected(loaded, rows, layers, loss=loss) for loss in ("mean", "sum"))
    learnt = {row.id: sum(row.response[1:]) for row in rows}
    assert len(set(learnt.values())) > 1
    assert_equal_gradients({key: gradient * learnt[key[0]] for key, gradient in mean.items()}, total)


def test_losses_of_response_tokens_add_up_and_prompt_tokens_have_none() -> None:
    loaded, rows, layers = setting("gpt2", n=1, dtype=torch.float64)
    layers = layers.select("layers.1.down_proj")
    row, cut = rows[0], rows[0].response.index(True)
    shorter = replace(row, response=(False,) * (cut + 1) + row.response[cut + 1 :])
    (whole,), (part,) = (collected(loaded, [r], layers, loss="sum").values() for r in (row, shorter))
    first = replace(row, response=tuple(t == cut for t in range(len(row))))
    (rest,) = collected(loaded, [first], layers, loss="sum").values()
    assert_close(part + rest, whole, "float64")
    assert rest.abs().max() > 1e-6


@pytest.mark.parametrize("how", ["bfloat16 model", "autocast"])
def test_products_are_in_float32_whatever_the_model_computes_in(how: str) -> None:
    loaded, rows, layers = setting(n=1, dtype=torch.bfloat16 if how == "bfloat16 model" else torch.float32)
    layers = layers.select(["layers.0.q_proj", "layers.1.down_proj"])
    pairs: dict[str, Tensor] = {}

    def keep(layer: Layer, a_bti: Tensor, g_bto: Tensor) -> None:
        pairs[layer.name] = g_bto[0].double().T @ a_bti[0].double()

    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = collected(loaded, rows, layers)
        with stream_pairs(layers, keep):
            row = rows[0]
            loaded.model.requires_grad_(False)
            logits = loaded.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
            at = [t for t in range(1, len(row)) if row.response[t]]
            logits = logits[[t - 1 for t in at]]
            torch.nn.functional.cross_entropy(logits, torch.tensor([row.ids[t] for t in at])).backward()
    for name, expected in pairs.items():
        gradient = found[rows[0].id, name]
        assert gradient.dtype == torch.float32
        assert_close(gradient / expected.abs().max(), expected / expected.abs().max())


@pytest.mark.parametrize("frozen", [False, True])
def test_model_is_left_as_it_was(frozen: bool) -> None:
    loaded, rows, layers = setting()
    loaded.model.train()
    loaded.model.lm_head.eval()
    loaded.model.requires_grad_(not frozen)
    loaded.model.lm_head.requires_grad_(frozen)
    weight = layers.parameter("layers.0.q_proj")
    weight.grad = None if frozen else torch.ones_like(weight)
    before = state_of(loaded.model)
    with torch.no_grad():
        collected(loaded, rows, layers)
    assert_same_state(loaded.model, before)


def test_model_is_left_as_it_was_when_the_consumer_fails() -> None:
    loaded, rows, layers = setting()
    loaded.model.train()
    before = state_of(loaded.model)

    def burst(*_: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        sample_gradients(loaded, rows, layers, burst)
    assert_same_state(loaded.model, before)


def test_loss_that_is_not_finite_names_the_row() -> None:
    loaded, rows, layers = setting()
    token = max(set(range(60, loaded.model.config.vocab_size)) - {i for row in rows for i in row.ids})
    bad = replace(rows[4], ids=(*rows[4].ids[:-2], token, rows[4].ids[-1]))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(NumericsError, match=rf"loss of row '{bad.id}' is not finite: got nan"):
        collected(loaded, [*rows[:4], bad, *rows[5:]], layers)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
def test_gradient_that_is_not_finite_names_layer_and_row_before_anyone_sees_it(value: float) -> None:
    loaded, rows, layers = setting()
    longest = max(rows, key=len)
    seen: set[str] = set()

    def poison(_: Any, inputs: Any, output: Tensor) -> None:
        def spoilt(g_bti: Tensor) -> Tensor:
            spoilt_bti = g_bti.clone()
            spoilt_bti[0, 1] = value
            return spoilt_bti

        output.register_hook(spoilt)

    handle = loaded.model.model.layers[0].register_forward_hook(poison)
    with pytest.raises(NumericsError, match=rf"gradient of layers.0.down_proj on row '{longest.id}' is not finite"):
        sample_gradients(loaded, rows, layers, lambda layer, n, G_oi: seen.add(layer.name))
    handle.remove()
    assert seen == {layer.name for layer in layers if layer.block == 1}


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"loss": "means"}, ConfigError, "Unknown loss 'means'. Did you mean 'mean'"),
        ({"batch_size": 0}, ConfigError, "batch_size is too small: got 0"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    loaded, rows, layers = setting()
    with pytest.raises(error, match=sentence):
        collected(loaded, rows, layers, **options)


def test_rows_without_a_loss_are_named() -> None:
    loaded, rows, layers = setting()
    mute = replace(rows[3], response=(True,) + (False,) * (len(rows[3]) - 1))
    with pytest.raises(DataError, match=rf"Row '{mute.id}' has no loss"):
        collected(loaded, [*rows, mute], layers)
    with pytest.raises(DataError, match="got 0 rows"):
        collected(loaded, [], layers)


def test_layers_of_another_model_are_refused() -> None:
    loaded, rows, _ = setting()
    with pytest.raises(LayerError, match="layers of another LlamaForCausalLM"):
        collected(loaded, rows, LayerMap.of(tiny("llama", seed=1).model))
