import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.close import assert_close
from tests.zoo import FAMILIES, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig

from holdfast.core.errors import AdapterError, ConfigError, LayerError
from holdfast.data.batches import Batch, Encoded, collate
from holdfast.models.heads import (
    Heads,
    Kind,
    ValueHead,
    export_deepseek,
    export_medusa,
    load_heads,
    read_trunk,
    save_heads,
    unembedding,
)

KINDS: tuple[Kind, ...] = ("parallel", "sequential", "medusa")


def row(name: str, length: int, seed: int) -> Encoded:
    ids = torch.randint(7, 263, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(name, tuple(ids), tuple(i >= 2 for i in range(length)))


ROWS = (row("a", 9, 1), row("b", 7, 2), row("c", 13, 3))


def packed() -> Batch:
    return collate([(ROWS[0], ROWS[1]), (ROWS[2],)], pad_id=0)


def stirred(heads: Heads, seed: int = 5) -> Heads:
    """The heads with weights that do something: zeros and ones become random."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in heads.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return heads.eval()


def with_one_more_block(model: Any, block: nn.Module) -> Any:
    """The model, one block deeper."""
    deep = copy.deepcopy(model)
    core, block = deep.base_model, copy.deepcopy(block)
    blocks = next(m for m in core.children() if isinstance(m, nn.ModuleList))
    for part in block.modules():
        if hasattr(part, "config"):
            part.config = deep.config
    blocks.append(block)
    if getattr(deep.config, "layer_types", None):
        deep.config.layer_types = [*deep.config.layer_types, deep.config.layer_types[-1]]
    deep.config.num_hidden_layers = len(blocks)
    return deep


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_output_head_make_the_models_own_logits(family: str) -> None:
    model, batch = tiny(family).model, packed()
    expected = model(**batch.model_inputs()).logits
    assert_close(unembedding(model).logits(read_trunk(model, batch).final), expected)
    for kind in KINDS:
        heads = Heads(model, kind, 2)
        assert_close(heads.unembeddings(model)[0].logits(heads(model, batch)[0]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parallel_head_is_the_model_with_one_more_block(family: str) -> None:
    model, batch = tiny(family).model, packed()
    heads = stirred(Heads(model, "parallel", 3))
    states, outputs = heads(model, batch), heads.unembeddings(model)
    assert len(states) == len(outputs) == 3
    for head, state, output in zip(heads.heads, states[1:], outputs[1:], strict=True):
        expected = with_one_more_block(model, head.block)(**batch.model_inputs()).logits
        real = batch.owner >= 0
        assert_close(output.logits(state)[real], expected[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_medusa_heads_start_as_the_models_own_prediction_and_follow_their_formula(family: str) -> None:
    model, batch = tiny(family).model, packed()
    heads = Heads(model, "medusa", 3, own_output=True)
    states = heads(model, batch)
    assert_close(states[1], states[0], "exact")
    plain = unembedding(model)
    assert torch.equal(heads.unembeddings(model)[2].weight_vd, plain.weight_vd)
    stirred(heads)
    states = heads(model, batch)
    for head, state in zip(heads.heads, states[1:], strict=True):
        z = states[0] @ head.linear.weight.T + head.linear.bias
        assert_close(state, states[0] + z * z.sigmoid())


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_sequential_heads_chain_as_in_deepseek(family: str) -> None:
    """Row by row: a model of the head's block alone runs on the projection of both norms."""
    model = tiny(family).model
    heads = stirred(Heads(model, "sequential", 3))
    found, eps = heads(model, packed()), model.config.rms_norm_eps
    for line, start, each in ((0, 0, ROWS[0]), (0, 9, ROWS[1]), (1, 0, ROWS[2])):
        batch = collate([each], pad_id=0)
        previous = read_trunk(model, batch).final
        for ahead, (head, states) in enumerate(zip(heads.heads, found[1:], strict=True), start=1):
            tokens = len(each)
            embedded = torch.zeros_like(previous)
            embedded[:, : tokens - ahead] = model.get_input_embeddings()(batch.input_ids)[:, ahead:]
            both = [rms(embedded, head.enorm.weight, eps), rms(previous, head.hnorm.weight, eps)]
            single = with_one_more_block(model, head.block).base_model
            single.layers = single.layers[-1:]
            single.norm, single.config.num_hidden_layers = nn.Identity(), 1
            single.layers[0].self_attn.layer_idx = 0
            previous = single(inputs_embeds=torch.cat(both, -1) @ head.eh_proj.weight.T).last_hidden_state
            assert_close(states[line, start : start + tokens], rms(previous, head.norm.weight, eps)[0], "float32")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_do_not_see_one_another(kind: Kind, family: str) -> None:
    model = tiny(family).model.double()  # random blocks of one head after another magnify rounding
    heads = stirred(Heads(model, kind, 4)).double()
    together = heads(model, packed())
    alone = [heads(model, collate([each], pad_id=0)) for each in ROWS]
    for h in range(4):
        assert_close(together[h][0, :9], alone[0][h][0], "float32")
        assert_close(together[h][0, 9:16], alone[1][h][0], "float32")
        assert_close(together[h][1, :13], alone[2][h][0], "float32")


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_sees_no_token_that_it_is_to_predict(kind: Kind, family: str) -> None:
    model = tiny(family).model
    heads = stirred(Heads(model, kind, 3))
    batch, at = collate([ROWS[2]], pad_id=0), 8
    changed = copy.deepcopy(batch)
    changed.input_ids[0, at] = 11
    for h, (before, after) in enumerate(zip(heads(model, batch), heads(model, changed), strict=True), start=1):
        first = int((before != after).any(-1)[0].float().argmax())
        assert first == (at - (h - 1) if kind == "sequential" else at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_detached_trunk_gets_no_gradient_from_any_head(kind: Kind) -> None:
    model = tiny("llama").model
    heads = stirred(Heads(model, kind, 3))

    def gradients(detach: bool, horizon: int) -> list[Tensor | None]:
        model.zero_grad()
        heads.zero_grad()
        state = heads(model, packed(), detach_trunk=detach)[horizon - 1]
        heads.unembeddings(model, detach_trunk=detach)[horizon - 1].logits(state).square().sum().backward()
        return [p.grad for p in model.parameters()]

    for horizon in (2, 3):
        assert all(g is None for g in gradients(True, horizon))
        assert all(p.grad is not None for p in heads.heads[horizon - 2].parameters())
        assert any(g is not None and bool(g.any()) for g in gradients(False, horizon))
    assert any(g is not None and bool(g.any()) for g in gradients(True, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_wrappers_change_nothing(kind: Kind, tmp_path: Path) -> None:
    model = tiny("llama").model
    heads = stirred(Heads(model, kind, 3))
    expected = heads(model, packed())
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear"))
    for got, wanted in zip(heads(adapted, packed()), expected, strict=True):
        assert_close(got, wanted)
    again = stirred(Heads(adapted, kind, 3))
    for got, wanted in zip(again(adapted, packed()), expected, strict=True):
        assert_close(got, wanted)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/pg", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(adapted)
        for got, wanted in zip(heads(parallel, packed()), expected, strict=True):
            assert_close(got, wanted)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_blocks_give_the_same_states_and_gradients(kind: Kind) -> None:
    model = tiny("llama").model
    heads = stirred(Heads(model, kind, 3))

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(heads(model, packed())[2].square().sum(), list(model.base_model.layers.parameters()))

    model.train()
    expected = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for got, wanted in zip(gradients(), expected, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_stay_float32_on_a_model_in_bfloat16(kind: Kind, family: str) -> None:
    model = tiny(family).model.bfloat16()
    heads = stirred(Heads(model, kind, 3))
    states = heads(model, packed())
    assert states[0].dtype == torch.bfloat16
    assert {s.dtype for s in states[1:]} == {torch.float32}
    exact = heads(copy.deepcopy(model).float(), packed())
    for got, wanted in zip(states[1:], exact[1:], strict=True):
        assert float(((got - wanted).norm() / wanted.norm()).detach()) < 0.1


def test_same_seed_same_heads_and_the_global_generator_is_left_alone() -> None:
    model = tiny("llama").model
    before = torch.get_rng_state()
    one, two, other = (Heads(model, "parallel", 3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["heads.0.block.mlp.up_proj.weight"], one["heads.1.block.mlp.up_proj.weight"])


def test_a_value_head_is_zero_at_first_and_learns_a_linear_value_in_float32() -> None:
    value = ValueHead(8)
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        first = value(states)
    assert first.shape == (2, 5)
    assert first.dtype == torch.float32
    assert_close(first, torch.zeros(2, 5), "exact")
    wanted = states.float() @ torch.arange(8.0) + 3
    features = torch.cat([states.float().reshape(10, 8), torch.ones(10, 1)], 1)
    solution = torch.linalg.lstsq(features, wanted.reshape(10, 1)).solution[:, 0]
    with torch.no_grad():
        value.linear.weight.copy_(solution[None, :8])
        value.linear.bias.copy_(solution[8:])
    assert float((value(states) - wanted).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_heads_come_back_from_disk_as_they_were(kind: Kind, tmp_path: Path) -> None:
    model = tiny("qwen3").model
    heads = stirred(Heads(model, kind, 3, own_output=kind == "medusa"))
    save_heads(heads, model, tmp_path / "heads", base="abc")
    back = load_heads(tmp_path / "heads", model, base="abc")
    assert (back.kind, back.horizon, back.own_output, back.training) == (kind, 3, kind == "medusa", False)
    for got, wanted in zip(back(model, packed()), heads(model, packed()), strict=True):
        assert_close(got, wanted, "exact")


def test_heads_of_another_model_are_refused(tmp_path: Path) -> None:
    model = tiny("llama").model
    save_heads(Heads(model, "medusa", 2), model, tmp_path / "heads", base="abc")
    with pytest.raises(AdapterError, match=r"trained on base 'abc', got 'xyz'\. Do: give the model"):
        load_heads(tmp_path / "heads", model, base="xyz")
    with pytest.raises(AdapterError, match="trained on model_type 'llama', got 'mistral'"):
        load_heads(tmp_path / "heads", tiny("mistral").model, base="abc")
    about = json.loads((tmp_path / "heads" / "heads.json").read_text())
    (tmp_path / "heads" / "heads.json").write_text(json.dumps(about | {"horizon": 3}))
    with pytest.raises(AdapterError, match="do not fit this model"):
        load_heads(tmp_path / "heads", model, base="abc")
    (tmp_path / "heads" / "heads.safetensors").write_bytes(b"torn")
    with pytest.raises(AdapterError, match="Cannot read the heads"):
        load_heads(tmp_path / "heads", model, base="abc")


class Block(nn.Module):
    """Medusa's residual block as its loaders name it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.linear(x))


@pytest.mark.parametrize("own_output", [False, True])
def test_medusas_loader_reads_the_export_and_predicts_the_same(own_output: bool, tmp_path: Path) -> None:
    model = tiny("llama").model
    heads = stirred(Heads(model, "medusa", 4, own_output=own_output))
    export_medusa(heads, model, tmp_path / "out", base="org/base")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["base_model_name_or_path"] == "org/base"
    d, v = about["hidden_size"], about["vocab_size"]
    made = [
        nn.Sequential(*(Block(d) for _ in range(about["medusa_num_layers"])), nn.Linear(d, v, bias=False))
        for _ in range(about["medusa_num_heads"])
    ]
    reader = nn.ModuleList(made)
    reader.load_state_dict(load_file(tmp_path / "out" / "medusa_lm_head.safetensors"))
    states = heads(model, packed())
    for head, state, output in zip(reader, states[1:], heads.unembeddings(model)[1:], strict=True):
        assert_close(head(states[0]), output.logits(state))


def test_the_deepseek_layout_has_every_key_a_loader_looks_for(tmp_path: Path) -> None:
    model = tiny("llama").model
    heads = stirred(Heads(model, "sequential", 3))
    export_deepseek(heads, model, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (about["num_nextn_predict_layers"], "_name_or_path" in about) == (2, False)
    tensors = load_file(tmp_path / "out" / "model-mtp.safetensors")
    shared = {
        "embed_tokens.weight": model.get_input_embeddings().weight,
        "shared_head.head.weight": model.lm_head.weight,
    }
    for k, head in enumerate(heads.heads):
        expected = {f"{n}.weight": getattr(head, n).weight for n in ("enorm", "hnorm", "eh_proj")} | shared
        expected |= {"shared_head.norm.weight": head.norm.weight} | dict(head.block.named_parameters())
        mine = {name.split(".", 3)[3]: t for name, t in tensors.items() if name.startswith(f"model.layers.{2 + k}.")}
        assert mine.keys() == expected.keys()
        assert "self_attn.q_proj.weight" in mine
        for name, tensor in expected.items():
            assert_close(mine[name], tensor.detach(), "exact")
    assert len(tensors) == 2 * len(mine)


def test_what_cannot_be_built_or_exported_is_said(tmp_path: Path) -> None:
    model = tiny("llama").model
    with pytest.raises(ConfigError, match="Unknown kind of heads 'serial'"):
        Heads(model, "serial", 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="begin at horizon 2: got 1"):
        Heads(model, "medusa", 1)
    with pytest.raises(ConfigError, match="own_output is for medusa"):
        Heads(model, "parallel", 2, own_output=True)
    with pytest.raises(ConfigError, match="kind 'medusa' in DeepSeek"):
        export_deepseek(Heads(model, "medusa", 2), model, tmp_path)
    with pytest.raises(ConfigError, match="kind 'parallel' in Medusa"):
        export_medusa(Heads(model, "parallel", 2), model, tmp_path, base="x")
    gpt2 = tiny("gpt2").model
    with pytest.raises(LayerError, match=r"its blocks are not model\.layers"):
        export_deepseek(Heads(gpt2, "sequential", 2), gpt2, tmp_path)
    with pytest.raises(LayerError, match="has no output head"):
        Heads(model.base_model, "medusa", 2)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(LayerError, match="leave the output head out of the adapter"):
        Heads(adapted, "medusa", 2)


def test_an_architecture_without_one_stack_of_blocks_gets_medusa_heads_only() -> None:
    config = OPTConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=32
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    batch = collate([ROWS[0]], pad_id=0)
    states = Heads(model, "medusa", 2)(model, batch)
    assert_close(unembedding(model).logits(states[1]), model(input_ids=batch.input_ids).logits)
    with pytest.raises(LayerError, match="use heads of kind medusa"):
        Heads(model, "parallel", 2)
