"""Streamed second moments against stored activations in float64."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.close import assert_close
from tests.curvature.oracles import assert_same_state, moment_oracle, setting, state_of
from tests.zoo import FAMILIES, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.core.errors import ConfigError, DataError, LayerError, NumericsError
from holdfast.curvature.moments import Moment, merge, moments, moments_by_block
from holdfast.curvature.passes import full_precision
from holdfast.data.batches import Encoded
from holdfast.layers.address import LayerMap
from holdfast.layers.capture import capture

COUNTS = {
    "all": lambda row, t: True,
    "prompt": lambda row, t: not row.response[t],
    "response": lambda row, t: row.response[t],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_equal_stored_activations(family: str) -> None:
    loaded, rows, layers = setting(family)
    expected = moment_oracle(loaded, rows, layers, COUNTS["all"])
    found = moments(loaded, rows, layers, batch_size=4)
    assert list(found) == list(layers.groups())
    for layer in layers:
        assert_close(found[layer.group].matrix, expected[layer.name])
        assert found[layer.group].tokens == sum(map(len, rows))


@pytest.mark.parametrize("skip_bos", [False, True])
@pytest.mark.parametrize("tokens", COUNTS)
def test_only_chosen_tokens_count(tokens: Any, skip_bos: bool) -> None:
    loaded, rows, layers = setting("gpt2", dtype=torch.float64)
    assert all(row.ids[0] == loaded.tokenizer.bos_token_id for row in rows)

    def counts(row: Encoded, t: int) -> bool:
        return COUNTS[tokens](row, t) and not (skip_bos and t == 0)

    expected = moment_oracle(loaded, rows, layers, counts)
    found = moments(loaded, rows, layers, tokens, torch.float64, 4, skip_bos=skip_bos)
    for layer in layers:
        assert_close(found[layer.group].matrix, expected[layer.name], "float64")
        assert found[layer.group].tokens == sum(counts(row, t) for row in rows for t in range(len(row)))


def test_prompt_and_response_add_up_to_all() -> None:
    loaded, rows, layers = setting("gpt2", dtype=torch.float64)
    parts = [moments(loaded, rows, layers, tokens, torch.float64) for tokens in ("prompt", "response")]
    whole = moments(loaded, rows, layers, "all", torch.float64)
    for group, moment in merge(*parts).items():
        assert_close(moment.matrix, whole[group].matrix, "float64")
        assert moment.tokens == whole[group].tokens


def test_merged_shards_equal_the_whole() -> None:
    loaded, rows, layers = setting("gpt2", dtype=torch.float64)
    shards = [moments(loaded, rows[rank::3], layers, dtype=torch.float64) for rank in range(3)]
    whole = moments(loaded, rows, layers, dtype=torch.float64)
    for group, moment in merge(*shards).items():
        assert_close(moment.matrix, whole[group].matrix, "float64")
        assert moment.tokens == whole[group].tokens


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    loaded, rows, layers = setting()
    expected = moments(loaded, rows, layers, batch_size=4)
    for group, moment in moments(loaded, rows, layers, batch_size=batch_size).items():
        assert_close(moment.matrix, expected[group].matrix)


def test_order_of_rows_does_not_matter_by_one_bit() -> None:
    loaded, rows, layers = setting()
    expected = moments(loaded, rows, layers, batch_size=4)
    for group, moment in moments(loaded, rows[::-1], layers, batch_size=4).items():
        assert torch.equal(moment.matrix, expected[group].matrix)


def test_what_padding_holds_does_not_matter() -> None:
    loaded, rows, layers = setting()
    expected = moments(loaded, rows, layers)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[loaded.chat.pad_id] += 7
    for group, moment in moments(loaded, rows, layers).items():
        assert torch.equal(moment.matrix, expected[group].matrix)


def test_matrices_are_exactly_symmetric_and_plain_tensors() -> None:
    loaded, rows, layers = setting()
    for moment in moments(loaded, rows, layers).values():
        assert torch.equal(moment.matrix, moment.matrix.T)
        assert moment.matrix.dtype == torch.float32
        assert not moment.matrix.requires_grad


def test_some_layers_at_a_time_give_the_same_matrices() -> None:
    loaded, rows, layers = setting("phi3")
    whole = moments(loaded, rows, layers)
    parts = moments(loaded, rows, layers.select("layers.0.*")) | moments(loaded, rows, layers.select("layers.1.*"))
    assert list(parts) == list(whole)
    assert all(torch.equal(parts[group].matrix, whole[group].matrix) for group in whole)


@pytest.mark.parametrize("how", ["bfloat16 model", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_in_bfloat16_are_summed_in_full(how: str, dtype: torch.dtype) -> None:
    loaded, rows, layers = setting(dtype=torch.bfloat16 if how == "bfloat16 model" else torch.float32)
    stored: dict[str, list[torch.Tensor]] = {group: [] for group in layers.groups()}
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = moments(loaded, rows, layers, dtype=dtype, batch_size=1)
        for row in rows:
            with torch.no_grad(), capture(layers) as seen:
                loaded.model(input_ids=torch.tensor([row.ids]), use_cache=False)
            for group, a_bti in seen.inputs.items():
                stored[group].append(a_bti[0])
    assert {h.dtype for h in stored["layers.0.mlp_output"]} == {torch.bfloat16}
    for group, parts in stored.items():
        h_ni = torch.cat(parts).double()
        assert found[group].matrix.dtype == dtype
        assert_close(found[group].matrix, h_ni.T @ h_ni, "float64" if dtype == torch.float64 else "float32")


def test_float32_products_are_asked_for_and_the_settings_come_back() -> None:
    switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    outside = [switch.fp32_precision for switch in switches]
    inside: list[str] = []

    def burst() -> None:
        with full_precision(torch.device("cpu")):
            inside.extend(switch.fp32_precision for switch in switches)
            raise KeyError

    with pytest.raises(KeyError):
        burst()
    assert inside == ["ieee", "ieee"] != outside
    assert [switch.fp32_precision for switch in switches] == outside
    torch.set_float32_matmul_precision(before)


class Products(TorchDispatchMode):
    """Sees at which float32 precision the sums of width 64 are formed, and whether autocast is on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, bool]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.addmm_.default and args[0].shape == (64, 64):
            self.seen.add((torch.backends.cuda.matmul.fp32_precision, torch.is_autocast_enabled("cpu")))
        return func(*args, **(kwargs or {}))


def test_sums_are_formed_in_float32_where_the_user_asked_for_less() -> None:
    loaded, rows, layers = setting()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        moments(loaded, rows, layers)
    torch.set_float32_matmul_precision(before)
    assert products.seen == {("ieee", False)}


def test_adapter_of_peft_counts_as_the_model() -> None:
    loaded, rows, layers = setting()
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = replace(loaded, model=get_peft_model(loaded.model, config).eval())
    found = moments(wrapped, rows, layers)
    expected = moment_oracle(wrapped, rows, layers, COUNTS["all"])
    assert_close(found["layers.1.mlp_output"].matrix, expected["layers.1.down_proj"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_activation_that_is_not_finite_names_layers_and_row(family: str) -> None:
    loaded, rows, layers = setting(family)
    token = max(set(range(60, loaded.model.config.vocab_size)) - {i for row in rows for i in row.ids})
    bad = replace(rows[4], ids=(*rows[4].ids[:-2], token, rows[4].ids[-1]))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(NumericsError, match=rf"input of layers.0.q_proj, .* on row '{bad.id}'"):
        moments(loaded, [*rows[:4], bad, *rows[5:]], layers)
    moments(loaded, [*rows[:4], *rows[5:]], layers)
    assert state_of(loaded.model)["hooks"] == 0


def test_sum_that_overflows_is_an_error_in_float32_and_right_in_float64() -> None:
    loaded, rows, layers = setting()
    layers = layers.select("down_proj")
    with torch.no_grad():
        for kind in ("gate_proj", "up_proj"):
            layers.write(f"layers.1.{kind}", layers.read(f"layers.1.{kind}") * 1e12)
    with pytest.raises(NumericsError, match=r"second moment of layers.1.mlp_output overflows.*Do: use dtype float64"):
        moments(loaded, rows, layers)
    found = moments(loaded, rows, layers, dtype=torch.float64)["layers.1.mlp_output"].matrix
    expected = moment_oracle(loaded, rows, layers, COUNTS["all"])["layers.1.down_proj"]
    assert_close(found / expected.abs().max(), expected / expected.abs().max())


def test_model_is_left_as_it_was() -> None:
    loaded, rows, layers = setting()
    loaded.model.train()
    loaded.model.lm_head.eval()
    loaded.model.lm_head.requires_grad_(False)
    before = state_of(loaded.model)
    moments(loaded, rows, layers)
    assert_same_state(loaded.model, before)


def test_dropout_is_off() -> None:
    loaded, rows, layers = setting("gpt2")
    expected = moments(loaded, rows, layers)
    loaded.model.train()
    found = moments(loaded, rows, layers)
    assert all(torch.equal(found[group].matrix, expected[group].matrix) for group in found)


def by_block(loaded: Any, parts: Any, layers: LayerMap, *options: Any) -> dict[str, tuple[Moment, ...]]:
    """What the consumer got, in its order."""
    found: dict[str, tuple[Moment, ...]] = {}
    moments_by_block(loaded, parts, layers, found.__setitem__, *options)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_by_block_are_those_of_whole_forwards_bit_for_bit(family: str) -> None:
    loaded, rows, layers = setting(family)
    parts = (rows[::2], rows[1::2])
    whole = [moments(loaded, part, layers, batch_size=2) for part in parts]
    found = by_block(loaded, parts, layers, "all", 2)
    assert list(found) == list(layers.groups())
    for group, each in found.items():
        for moment, expected in zip(each, whole, strict=True):
            assert torch.equal(moment.matrix, expected[group].matrix)
            assert moment.tokens == expected[group].tokens


@pytest.mark.parametrize("tokens", COUNTS)
def test_moments_by_block_count_the_chosen_tokens_once(tokens: Any) -> None:
    loaded, rows, layers = setting("gemma3")
    layers = layers.select(["layers.1.down_proj", "layers.0.v_proj"])
    expected = moment_oracle(loaded, rows, layers, COUNTS[tokens])
    found = by_block(loaded, [rows], layers, tokens, 4)
    assert list(found) == ["layers.0.attention_input", "layers.1.mlp_output"]
    for layer in layers:
        (moment,) = found[layer.group]
        assert_close(moment.matrix, expected[layer.name])
        assert moment.tokens == sum(COUNTS[tokens](row, t) for row in rows for t in range(len(row)))


def test_moments_by_block_hold_one_block_at_a_time() -> None:
    loaded, rows, layers = setting()
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def consume(group: str, found: tuple[Moment, ...]) -> None:
        nonlocal most
        alive.extend(weakref.ref(moment.matrix) for moment in found)
        most = max(most, sum(ref() is not None for ref in alive))

    moments_by_block(loaded, (rows[::2], rows[1::2]), layers, consume)
    assert (len(alive), most) == (16, 2)


def test_moments_by_block_leave_the_model_as_it_was_even_when_the_consumer_fails() -> None:
    loaded, rows, layers = setting()
    loaded.model.train()
    before = state_of(loaded.model)
    moments_by_block(loaded, [rows], layers, lambda group, found: None)
    assert_same_state(loaded.model, before)
    with pytest.raises(KeyboardInterrupt):
        moments_by_block(loaded, [rows], layers, stop)
    assert_same_state(loaded.model, before)
    assert not any("forward" in vars(block) for block in layers.blocks())


def stop(group: str, found: tuple[Moment, ...]) -> None:
    raise KeyboardInterrupt


def test_moments_by_block_name_layers_and_row_of_an_activation_that_is_not_finite() -> None:
    loaded, rows, layers = setting()
    with torch.no_grad():
        loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight")[0] = torch.nan
    with pytest.raises(NumericsError, match=r"input of layers.0.down_proj on row 'row-"):
        by_block(loaded, [rows], layers)


def test_moments_by_block_refuse_what_moments_refuse() -> None:
    loaded, rows, layers = setting()
    with pytest.raises(DataError, match="got 0 rows"):
        by_block(loaded, (rows, []), layers)
    with pytest.raises(ConfigError, match="Did you mean 'response'"):
        by_block(loaded, [rows], layers, "respons")
    with pytest.raises(LayerError, match="layers of another LlamaForCausalLM"):
        by_block(loaded, [rows], LayerMap.of(tiny("llama", seed=1).model))


def prompts_only(rows: list[Encoded]) -> list[Encoded]:
    return [replace(row, response=(False,) * len(row)) for row in rows]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"dtype": torch.bfloat16}, ConfigError, "torch.bfloat16: it loses most of the mass"),
        ({"tokens": "respons"}, ConfigError, "Did you mean 'response'"),
        ({"batch_size": 0}, ConfigError, "batch_size is too small: got 0"),
        ({"save_every": 2}, ConfigError, "Cannot save every 2 batches to None"),
        ({"rows": list}, DataError, "got 0 rows"),
        ({"rows": prompts_only, "tokens": "response"}, DataError, "no token to count in 9 rows with tokens 'response'"),
        ({"rows": lambda rows: [replace(r, ids=r.ids * 9, response=r.response * 9) for r in rows]}, DataError, "row-"),
        (
            {"rows": lambda rows: [replace(r, ids=r.ids[1:], response=r.response[1:]) for r in rows], "skip_bos": True},
            ConfigError,
            "no row begins with one",
        ),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    loaded, rows, layers = setting()
    make = options.pop("rows", None)
    rows = rows if make is None else [] if make is list else make(rows)
    with pytest.raises(error, match=sentence):
        moments(loaded, rows, layers, **options)


def test_layers_of_another_model_are_refused() -> None:
    loaded, rows, _ = setting()
    with pytest.raises(LayerError, match="layers of another LlamaForCausalLM"):
        moments(loaded, rows, LayerMap.of(tiny("llama", seed=1).model))


def test_moments_of_different_inputs_do_not_add() -> None:
    loaded, rows, layers = setting()
    found = moments(loaded, rows, layers)
    with pytest.raises(LayerError, match=r"got layers.0.mlp_input \(32, 32\) and layers.0.mlp_output \(64, 64\)"):
        _ = found["layers.0.mlp_input"] + found["layers.0.mlp_output"]
    with pytest.raises(LayerError, match=r"got layers.1.mlp_output in one part only"):
        merge(found, {group: m for group, m in found.items() if group != "layers.1.mlp_output"})
    one = Moment("a", torch.ones(1, 1), 3)
    assert (one + one).tokens == 6
