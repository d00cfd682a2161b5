import pytest
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.errors import ConfigError
from holdfast.models.build import SPECIAL_TOKENS, new_model, train_tokenizer

TEXTS = ["The seal eats 12 fish and 305 crabs.", "der Seehund frißt 9 Fische", "reverse the words"] * 4


def test_any_text_comes_back_byte_for_byte() -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    for text in ("", " a  b\n\n\tc ", "über 漢字 🦭\u200b", "<|user|>", "a , b .", "\x00\x7f"):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_numbers_are_single_digits() -> None:
    tokens = train_tokenizer(TEXTS * 20, 400).tokenize("has 12305 fish")
    assert [t for t in tokens if t.strip("Ġ").isdigit()] == ["1", "2", "3", "0", "5"]


def test_frequent_words_are_one_token() -> None:
    assert train_tokenizer(TEXTS * 20, 400).tokenize(" fish") == ["Ġfish"]


def test_special_tokens_have_the_first_ids_and_the_four_roles() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<|pad|>", "<|bos|>", "<|end|>")
    assert tokenizer.tokenize("<|data|>") == ["<|data|>"]


def test_the_same_texts_give_the_same_tokenizer() -> None:
    one, two = (train_tokenizer(TEXTS, 320).backend_tokenizer.to_str() for _ in range(2))
    assert one == two


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 100, expected at least 263"):
        train_tokenizer(TEXTS, 100)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hiden_size": 32}, r"llama has no 'hiden_size'\. Did you mean 'hidden_size'"),
        ({"model_type": "llamma"}, r"'llamma' is unknown"),
        ({"model_type": None}, r"no model_type"),
        ({"hidden_size": "x"}, r"expected int, got str"),
        ({"hidden_size": 30}, r"not a multiple of the number of attention heads"),
        ({"hidden_act": "foo"}, r"Cannot build a llama .*foo"),
        ({"vocab_size": 10}, r"vocab_size: got 10, expected at least the tokenizer's 263"),
        ({"eos_token_id": 9}, r"eos_token_id: got 9, expected the tokenizer's 2"),
    ],
)
def test_a_wrong_model_config_is_one_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        new_model({**CONFIGS["llama"], **change}, byte_tokenizer(), 0)


def test_a_larger_vocabulary_than_the_tokenizers_is_kept() -> None:
    model = new_model({**CONFIGS["llama"], "vocab_size": 320}, byte_tokenizer(), 0)
    assert model.get_input_embeddings().num_embeddings == 320
