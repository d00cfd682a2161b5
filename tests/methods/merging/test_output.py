"""A merged adapter on disk: what stock PEFT computes with it, and what is refused when it reads back otherwise."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.close import assert_close
from tests.curvature.oracles import assert_same_state, state_of
from tests.methods.merging.expert_plans import experts, planned
from tests.methods.merging.test_apply import logits
from tests.zoo import FAMILIES, tiny

from holdfast.core.errors import AdapterError
from holdfast.layers.adapters import LowRank, added, read_peft, write_peft
from holdfast.methods.merging import output
from holdfast.methods.merging.apply import Merged, merge
from holdfast.methods.merging.config import PAIRS, READS, MergingConfig
from holdfast.methods.merging.plan import Expert, plan
from holdfast.methods.merging.select import Tried, choose
from holdfast.methods.merging.spectrum import spectra
from holdfast.models.adapter import BASE_FILE, Base, check_base
from holdfast.models.load import LoadedModel


def merged(family: str = "llama", **keys: Any) -> Merged:
    loaded = tiny(family)
    return merge(plan(MergingConfig(**({"rule": "task_arithmetic"} | keys)), loaded, experts(loaded)))


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_peft_computes_with_it_what_was_merged(family: str, tmp_path: Path) -> None:
    loaded, made = tiny(family), merged(family)
    before = state_of(loaded.model)
    output.save(made, tmp_path / "a", loaded)
    assert_same_state(loaded.model, before)
    with added(loaded.model, made.adapter):
        expected = logits(loaded.model)
    stock = PeftModel.from_pretrained(tiny(family).model, tmp_path / "a").eval()
    assert (expected - logits(tiny(family).model)).abs().max() > 0.01
    assert_close(logits(stock), expected)


@pytest.mark.parametrize("rule", READS)
def test_every_rule_saves_an_adapter_that_stock_peft_loads(rule: str, tmp_path: Path) -> None:
    loaded = tiny("llama")
    output.save(merged(rule=rule), tmp_path / "a", loaded)
    record = json.loads((tmp_path / "a" / output.FILE).read_text())
    assert record["config"]["rule"] == rule
    assert set(record["truncation"]) == set(read_peft(tmp_path / "a").deltas)


def peft_adapter(folder: Path, seed: int, **options: Any) -> Path:
    """Saved by PEFT itself, with random factors."""
    model = get_peft_model(tiny("llama").model, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


PATTERNS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": True,
    "target_modules": ["q_proj", "down_proj"],
    "rank_pattern": {"layers.1.self_attn.q_proj": 2},
    "alpha_pattern": {"down_proj": 20},
}


@pytest.mark.parametrize("rule", [rule for rule in READS if rule != "iso_c"])
def test_by_every_rule_an_adapter_with_patterns_and_rslora_alone_does_what_peft_does_with_it(
    rule: str, tmp_path: Path
) -> None:
    """Identity, reload and logits at once; beside a silent adapter for rules of two. Iso-C flattens the spectrum."""
    folder = peft_adapter(tmp_path / "a", 1, **PATTERNS)
    loaded, whole = tiny("llama"), read_peft(folder)
    nothing = {name: LowRank(delta.A, 0 * delta.B) for name, delta in whole.deltas.items()}
    given = [Expert("a", whole, experts(loaded)[0].rows)]
    if rule in PAIRS:
        silent = Expert("silent", replace(whole, deltas=nothing), experts(loaded)[1].rows)
        given.insert(0 if rule == "alignguard" else 1, silent)  # of the first it takes what the second's rows forbid
    keys: dict[str, Any] = {key: value for key, value in {"density": 1.0, "gamma": 0.0}.items() if key in READS[rule]}
    made = merge(plan(MergingConfig(rule=rule, **keys), loaded, given))
    output.save(made, tmp_path / "merged", loaded)
    expected = logits(PeftModel.from_pretrained(tiny("llama").model, folder).eval())
    assert (expected - logits(loaded.model)).abs().max() > 0.1
    assert_close(logits(PeftModel.from_pretrained(tiny("llama").model, tmp_path / "merged").eval()), expected)


@pytest.mark.parametrize(
    ("rule", "kind", "keys"),
    [
        ("svd", "svd", {}),
        ("cat", "cat", {}),
        ("ties", "ties_svd", {"density": 0.4}),
        ("ties", "ties_svd", {"density": 0.4, "election": "count"}),
        ("magnitude_prune", "magnitude_prune_svd", {"density": 0.4}),
    ],
)
def test_peft_semantics_are_those_of_add_weighted_adapter(
    rule: str, kind: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    """Two adapters of one rank on a whole model, from files to the delta of each layer, with nothing cut off."""
    folders = [
        peft_adapter(tmp_path / f"{t}", t, r=3, lora_alpha=7, target_modules=["q_proj", "up_proj"]) for t in (1, 2)
    ]
    given = [Expert(folder.name, read_peft(folder)) for folder in folders]
    peer = {"majority_sign_method": "frequency"} if keys.get("election") == "count" else {}
    peer |= {"density": keys["density"]} if "density" in keys else {}
    ours: dict[str, Any] = {"semantics": "peft"} if "semantics" in READS[rule] else {}
    made = merge(plan(MergingConfig(rule=rule, weights=(0.6, 1.5), rank=32, **keys, **ours), None, given)).adapter
    model = PeftModel.from_pretrained(tiny("llama").model, folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    rank = {} if kind == "cat" else {"svd_rank": 32}
    model.add_weighted_adapter(["a", "b"], [0.6, 1.5], "c", combination_type=kind, **rank, **peer)
    for name, delta in made.deltas.items():
        theirs = model.base_model.model.get_submodule(made.paths[name]).get_delta_weight("c").detach()
        assert float((delta.dense() - theirs).abs().max()) <= 1e-6 * max(1.0, float(theirs.abs().max())), name


def test_unlike_ranks_alphas_and_modules_are_summed_as_what_peft_adds_for_each(tmp_path: Path) -> None:
    folders = [
        peft_adapter(tmp_path / "a", 1, r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], use_rslora=True),
        peft_adapter(
            tmp_path / "b",
            2,
            r=3,
            lora_alpha=7,
            target_modules=["q_proj", "down_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 2},
            alpha_pattern={"down_proj": 20},
        ),
    ]
    given = [Expert(folder.name, read_peft(folder)) for folder in folders]
    made = merge(plan(MergingConfig(rule="task_arithmetic", weights=(0.6, -1.5)), None, given))
    output.save(made, tmp_path / "merged", tiny("llama"))
    stock = PeftModel.from_pretrained(tiny("llama").model, folders[0], adapter_name="a")
    stock.load_adapter(folders[1], adapter_name="b")
    summed = tiny("llama")
    for path, module in stock.base_model.model.named_modules():
        for name, weight in (("a", 0.6), ("b", -1.5)):
            if name in getattr(module, "lora_A", ()):
                summed.model.get_submodule(path).weight.data += weight * module.get_delta_weight(name)
    reloaded = PeftModel.from_pretrained(tiny("llama").model, tmp_path / "merged").eval()
    assert_close(logits(reloaded), logits(summed.model))


def test_the_record_has_the_spectrum_the_choice_and_the_base(tmp_path: Path) -> None:
    loaded = tiny("llama")
    loaded.weights = "0a1b"
    found = planned(loaded, n=8)
    selection = choose([Tried(0.3, 0.8, 0.9), Tried(1.0, 0.9, 0.5)], 0.9, 0.02)
    output.save(merge(found), tmp_path / "a", loaded, spectra(found), selection)
    record = json.loads((tmp_path / "a" / output.FILE).read_text())
    assert record["origin"]["rows"] == list(found.origin.rows)
    assert [each["layer"] for each in record["spectra"]] == list(found.deltas)
    for each in record["spectra"]:
        assert each["values"] == sorted(each["values"], reverse=True)
        assert 0 <= each["stability"] <= 1
        assert each["k"] == 1
    assert record["selection"]["taken"] == {"value": 0.3, "settings": {}, "safety": 0.8, "utility": 0.9}
    assert record["selection"]["rule"].startswith("most safety")
    assert json.loads((tmp_path / "a" / BASE_FILE).read_text()) == {"base": loaded.source, "weights_sha256": "0a1b"}
    with pytest.raises(AdapterError, match="the SHA-256 of the weights differs"):
        check_base(tmp_path / "a", Base("tiny-llama", None, "another"))


def test_without_a_base_the_bits_are_compared_alone(tmp_path: Path) -> None:
    made = merged()
    output.save(made, tmp_path / "a")
    back = read_peft(tmp_path / "a")
    for name, delta in made.adapter.deltas.items():
        assert torch.equal(back.deltas[name].A, delta.A)
        assert torch.equal(back.deltas[name].B, delta.B)
    assert not (tmp_path / "a" / BASE_FILE).exists()
    assert back.metadata["config"]["rule"] == "task_arithmetic"


def test_without_a_base_the_one_that_is_recorded_of_all_adapters_is_recorded_of_the_merged_one(tmp_path: Path) -> None:
    for hashes, known in ((("0a", "0a"), "0a"), (("0a", ""), None), (("", ""), None)):
        given = [replace(e, base_weights=h) for e, h in zip(experts(tiny("llama")), hashes, strict=True)]
        folder = tmp_path / "-".join(hashes)
        output.save(merge(plan(MergingConfig(rule="svd"), None, given)), folder)
        found = json.loads((folder / BASE_FILE).read_text())["weights_sha256"] if known else None
        assert found == known
        assert (folder / BASE_FILE).exists() == (known is not None)


def spoilt(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    """A writer that changes one factor on its way to the disk."""

    def write(adapter: Any, folder: Path) -> None:
        write_peft(adapter, folder)
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        key = next(iter(tensors))
        safetensors.torch.save_file(tensors | {key: change(tensors[key])}, path)

    return write


def test_what_does_not_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "write_peft", spoilt(lambda factor: factor * 1.0000002))
    with pytest.raises(AdapterError, match=r"does not read back as it was merged: layers\.0\.\w+_proj differs"):
        output.save(merged(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == [], "nobody can take it for a merged adapter"


def test_an_older_adapter_stays_where_the_new_one_does_not_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.save(merged(), tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    monkeypatch.setattr(output, "write_peft", spoilt(lambda factor: -factor))
    with pytest.raises(AdapterError, match=f"{tmp_path / 'a'} does not read back"):
        output.save(merged(weights=(2.0, 1.0)), tmp_path / "a", tiny("llama"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_what_does_something_else_in_peft_is_refused_and_the_model_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, made = tiny("llama"), merged()
    before = state_of(loaded.model)
    output.save(made, tmp_path / "a", loaded)
    share = output.same_answers(loaded, made.adapter, tmp_path / "a")
    assert share < 1e-4
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 5.1}))
    with pytest.raises(
        AdapterError, match=r"does not do in PEFT what was merged: logits differ by .*, expected at most"
    ):
        output.same_answers(loaded, made.adapter, tmp_path / "a")
    assert_same_state(loaded.model, before)


NARROW = (torch.bfloat16, torch.float16)


def in_type(dtype: torch.dtype, family: str = "llama") -> LoadedModel:
    loaded = tiny(family)
    loaded.model.to(dtype)
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", NARROW)
def test_with_narrow_weights_peft_does_what_was_merged(dtype: torch.dtype, family: str, tmp_path: Path) -> None:
    loaded, made = in_type(dtype, family), merged(family)
    before = state_of(loaded.model)
    assert output.save(made, tmp_path / "a", loaded) == pytest.approx(0, abs=0.01)
    assert_same_state(loaded.model, before)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e-4], ids=["usual", "smaller than the rounding of the logits"])
@pytest.mark.parametrize("factor", [0, 3, -1, 1.1])
def test_a_scale_that_was_changed_is_refused_in_every_type_of_weights(
    factor: float, size: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    loaded, made = in_type(dtype), merged(weights=(size, size))
    output.save(made, tmp_path / "a", loaded)
    config = tmp_path / "a" / "adapter_config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"lora_alpha": factor * known["lora_alpha"], "alpha_pattern": {}}))
    with pytest.raises(AdapterError, match="does not do in PEFT what was merged: logits differ by"):
        output.same_answers(loaded, made.adapter, tmp_path / "a")


def test_a_module_that_peft_does_not_adapt_is_refused(tmp_path: Path) -> None:
    loaded, made = in_type(torch.bfloat16), merged(weights=(1e-4, 1e-4))
    output.save(made, tmp_path / "a", loaded)
    config = tmp_path / "a" / "adapter_config.json"
    known = json.loads(config.read_text())
    rest = [path for path in known["target_modules"] if path != made.adapter.paths["layers.1.v_proj"]]
    config.write_text(json.dumps(known | {"target_modules": rest}))
    with pytest.raises(AdapterError, match=r"the factors of layers\.1\.v_proj are others"):
        output.same_answers(loaded, made.adapter, tmp_path / "a")


def test_an_adapter_that_changes_nothing_is_saved_too(tmp_path: Path) -> None:
    made = merged()
    zero = {name: LowRank(delta.A, 0 * delta.B) for name, delta in made.adapter.deltas.items()}
    still = replace(made, adapter=replace(made.adapter, deltas=zero))
    output.save(still, tmp_path / "a", tiny("llama"))
    assert output.same_answers(tiny("llama"), still.adapter, tmp_path / "a") == 0


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="got something else there"):
        output.save(merged(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
