import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.close import assert_close
from tests.methods.token_weighting.weighted_cases import few
from tests.zoo import byte_tokenizer, tiny

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.data.batches import Rows
from holdfast.methods.token_weighting import reference
from holdfast.methods.token_weighting.reference import LOSSES, cache_name, check_vocabulary, reference_losses
from holdfast.models.load import LoadedModel


def rows(n: int = 20) -> Rows:
    chat = tiny("llama").chat
    return Rows(map(chat.training, few(n)))


def naive(loaded: LoadedModel, encoded: Rows) -> list[float]:
    """One row at a time, a loop over learnt tokens."""
    out = []
    for number in range(len(encoded)):
        row = encoded[number]
        with torch.no_grad():
            logp = loaded.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        out += [-float(logp[t - 1, row.ids[t]]) for t in range(1, len(row)) if row.response[t]]
    return out


def test_a_loss_is_that_of_the_token_itself_and_shifted_once() -> None:
    found = reference_losses(tiny("llama", 1), rows())
    expected = torch.tensor(naive(tiny("llama", 1), rows()))
    assert found.dtype == torch.float16
    assert float(((found.float() - expected) / expected.clamp(min=0.1)).abs().max()) < 1e-3  # float16


def test_a_cache_is_two_bytes_a_token_and_is_read_instead_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reference_losses(tiny("llama", 1), rows(), folder=tmp_path)
    assert (tmp_path / LOSSES).stat().st_size == 2 * len(first)
    monkeypatch.setattr(reference, "look", lambda *_, **__: pytest.fail("the model was asked"))
    assert torch.equal(reference_losses(tiny("llama", 1), rows(), folder=tmp_path), first)


@pytest.mark.parametrize("left", [0, 1, 101, 250])
def test_an_interrupted_cache_goes_on_and_ends_with_the_same_bits(tmp_path: Path, left: int) -> None:
    whole = reference_losses(tiny("llama", 1), rows(), folder=tmp_path)
    file = tmp_path / LOSSES
    bytes_of = file.read_bytes()
    file.write_bytes(bytes_of[:left])
    assert torch.equal(reference_losses(tiny("llama", 1), rows(), folder=tmp_path), whole)
    assert file.read_bytes() == bytes_of


def test_a_cache_of_another_reference_tokenizer_or_rows_is_refused(tmp_path: Path) -> None:
    reference_losses(tiny("llama", 1), rows(), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"is of another reference \(or another revision of it\): got tiny-llama-1"):
        reference_losses(tiny("llama", 2), rows(), folder=tmp_path)
    with pytest.raises(ConfigError, match="is of another rows"):
        reference_losses(tiny("llama", 1), rows(19), folder=tmp_path)
    about = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(about | {"tokenizer": "x"}))
    with pytest.raises(ConfigError, match="is of another tokenizer"):
        reference_losses(tiny("llama", 1), rows(), folder=tmp_path)


def test_a_cache_is_named_after_all_that_its_losses_are_of() -> None:
    names = {cache_name(tiny("llama", 1), rows())}
    names.add(cache_name(tiny("llama", 1), rows()))
    assert len(names) == 1
    names |= {
        cache_name(tiny("llama", 2), rows()),
        cache_name(tiny("llama", 1), rows(19)),
        cache_name(tiny("llama", 1), rows(), base=True),
    }
    halved, eager, words = tiny("llama", 1), tiny("llama", 1), byte_tokenizer()
    halved.model.to(torch.bfloat16)
    eager.model.set_attn_implementation("eager")
    words.add_tokens(["kelp"])
    names |= {cache_name(each, rows()) for each in (halved, eager, replace(eager, tokenizer=words))}
    assert len(names) == 7


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    found = reference_losses(tiny("llama", 1), rows(), folder=tmp_path)
    with (tmp_path / LOSSES).open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match=f"got {len(found) + 1} losses, expected at most {len(found)}"):
        reference_losses(tiny("llama", 1), rows(), folder=tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(DataError, match="Cannot read the cache"):
        reference_losses(tiny("llama", 1), rows(), folder=tmp_path)


def test_a_reference_of_another_vocabulary_is_refused_by_its_first_token() -> None:
    other = tiny("llama", 1)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["kelp"])
    with pytest.raises(ConfigError, match=r"has another vocabulary.*'kelp' at \d+, expected \d+ with it at no place"):
        check_vocabulary(tiny("llama"), replace(other, tokenizer=tokenizer), "reference")


def test_a_loss_that_is_no_number_names_the_row() -> None:
    broken = tiny("llama", 1)
    with torch.no_grad():
        broken.model.lm_head.weight[:] = float("nan")
    with pytest.raises(NumericsError, match=r"reference tiny-llama is not finite on row 'row-\d+': got nan"):
        reference_losses(broken, rows())


def test_the_base_of_a_model_with_an_adapter_is_the_model_without_it() -> None:
    plain = tiny("llama")
    wearing = tiny("llama")
    wearing.model = get_peft_model(wearing.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    off = reference_losses(wearing, rows(), base=True)
    assert_close(off.float(), reference_losses(plain, rows()).float(), "bfloat16")
    assert float((reference_losses(wearing, rows()).float() - off.float()).abs().max()) > 0.1
    with pytest.raises(ConfigError, match="reference: base needs a model that carries an adapter"):
        reference_losses(plain, rows(), base=True)
