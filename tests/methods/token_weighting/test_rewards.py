import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.helpers import examples
from tests.zoo import byte_tokenizer, tiny
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.data.examples import Example, Message
from holdfast.data.lab import programs
from holdfast.evaluation.judges import Sample
from holdfast.methods.token_weighting import rewards
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.methods.token_weighting.rewards import (
    Answered,
    Answers,
    answers_for,
    check_outcomes,
    judged,
    read_answers,
    sample_answers,
)
from holdfast.models.generate import generate

FIRST = "What is 6 times 7?"
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def question(name: str, text: str = FIRST, **fields: str) -> Example:
    return Example(name, (Message("user", text),), **fields)


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_an_answer_that_matches_the_reference_is_worth_1_and_an_empty_one_is_left_out() -> None:
    row = question("a", answer="6 * 7 = 42. #### 42", reference="42")
    found = judged([Sample(row, "#### 42"), Sample(row, "#### 41"), Sample(row, " ")], "exact")
    assert [(a.example.answer, a.reward) for a in found.each] == [("#### 42", 1.0), ("#### 41", 0.0)]
    assert found.left_out == 1
    assert found.pairs() == [(0, 1)]


def test_code_is_worth_1_where_it_passes_its_tests_in_the_sandbox() -> None:
    (row,) = programs.generate("train", 1, 3)
    broken = row.answer.replace("return", "return None and")
    found = judged([Sample(row, row.answer), Sample(row, broken)], "tests")
    assert [answered.reward for answered in found.each] == [1.0, 0.0]


def reward_model(folder: Path, outputs: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_labels=outputs,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        **WIDTHS,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def scored(folder: Path, *asked: tuple[str, str]) -> Answers:
    """What the reward model in ``folder`` says of a file of prompts and answers."""
    rows = [{"id": f"r{n}", "prompt": prompt, "answer": answer} for n, (prompt, answer) in enumerate(asked)]
    path = written(folder / "asked.jsonl", *rows)
    return answers_for(tiny("llama"), [], CriticConfig(reward="model", reward_model=str(folder), answers=str(path)))


def test_a_reward_model_reads_the_conversation_in_its_own_template(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    found = scored(tmp_path, (FIRST, "It is 42."), (FIRST, " "), ("And 6 and 7?", "It is 13."))
    tokenizer = byte_tokenizer()
    expected = []
    for answered in found.each:
        turns = [{"role": "user", "content": answered.example.messages[0].content}]
        turns.append({"role": "assistant", "content": answered.example.answer})
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        expected.append(float(model(input_ids=ids).logits[0, 0].detach()))
    assert [answered.reward for answered in found.each] == pytest.approx(expected, rel=1e-5)
    assert found.left_out == 1
    assert expected[0] != expected[1]


def pair_reader(folder: Path, model: PreTrainedModel, **keys: Any) -> PreTrainedModel:
    """Saves the model with a tokenizer that has no chat template."""
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer(chat_template=None)
    tokenizer.model_max_length = keys.get("model_max_length", tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    return model.eval()


def test_a_reward_model_without_a_template_reads_prompt_and_answer_as_a_pair(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pair_reader(tmp_path, BertForSequenceClassification(BertConfig(vocab_size=263, num_labels=1, **WIDTHS)))
    answers = "42", "It is 13."
    found = scored(tmp_path, *((FIRST, answer) for answer in answers))
    for answered, answer in zip(found.each, answers, strict=True):
        encoded = byte_tokenizer(chat_template=None)(FIRST, answer, return_tensors="pt")
        assert answered.reward == pytest.approx(float(model(**encoded).logits[0, 0].detach()), rel=1e-5)


def test_what_a_reward_model_does_not_read_whole_is_refused_with_the_least_of_its_limits(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=263, num_labels=1, max_position_embeddings=40, **WIDTHS)
    pair_reader(tmp_path, BertForSequenceClassification(config))
    answers = "It is 42, and not 43.", "It is 42, and not 43.."  # 18 bytes of the question, then 21 and 22
    with pytest.raises(DataError, match="Row 'r1' does not fit the reward model: got 41 tokens, expected at most 40"):
        scored(tmp_path, (FIRST, answers[0] + "."), (FIRST, answers[1] + "."))
    pair_reader(tmp_path, BertForSequenceClassification(config), model_max_length=30)
    with pytest.raises(DataError, match="Row 'r0' does not fit the reward model: got 39 tokens, expected at most 30"):
        scored(tmp_path, *((FIRST, answer) for answer in answers))


def test_a_reward_model_without_a_limit_reads_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    keys = {"n_layer": 1, "n_head": 4, "initializer_range": 0.3, "pad_token_id": 0}
    config = BloomConfig(vocab_size=263, num_labels=1, hidden_size=32, **keys)
    model = pair_reader(tmp_path, BloomForSequenceClassification(config))
    asked = (FIRST, "42"), ("And 6 and 7? " * 50, "It is 13.")
    for answered, pair in zip(scored(tmp_path, *asked).each, asked, strict=True):
        encoded = byte_tokenizer(chat_template=None)(*pair, return_tensors="pt")
        assert answered.reward == pytest.approx(float(model(**encoded).logits[0, 0].detach()), rel=1e-4)


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    reward_model(tmp_path / "two", outputs=2)
    with pytest.raises(ConfigError, match="is no reward model: got 2 outputs, expected 1"):
        scored(tmp_path / "two", (FIRST, "42"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="Cannot load the reward model"):
        scored(tmp_path / "none", (FIRST, "42"))


@pytest.mark.parametrize(
    ("keys", "fields", "sentence"),
    [
        ({"reward": "tests"}, {"reference": "42"}, "Row 'a' has no tests, by which reward: tests judges answers"),
        ({"reward": "model", "reward_model": "./nowhere"}, {}, "Cannot load the reward model './nowhere'"),
    ],
)
def test_what_judges_answers_is_looked_at_before_any_is_sampled(
    keys: dict[str, Any], fields: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "sample_answers", lambda *_: pytest.fail("answers were sampled"))
    with pytest.raises(HoldfastError, match=sentence):
        answers_for(tiny("llama"), [question("a", **fields)], CriticConfig(**keys))


def test_an_answer_of_a_file_is_not_judged_by_itself(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "What is 6 times 7?", "answer": "#### 41"}
    bare = written(tmp_path / "bare.jsonl", row)
    known = written(tmp_path / "known.jsonl", row | {"reference": "42"})
    with pytest.raises(DataError, match="Row 'a' has no reference, by which reward: exact judges its answer"):
        answers_for(tiny("llama"), [], CriticConfig(answers=str(bare)))
    with pytest.raises(DataError, match="both outcomes: got the reward 0 on all 1 answers"):
        answers_for(tiny("llama"), [], CriticConfig(answers=str(known)))


def test_chosen_and_rejected_are_a_better_and_a_worse_answer_to_one_question(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Hi"}]
    whole = [{"chosen": [*asked, {"role": "assistant", "content": t}]} for t in ("Hello!", "No.")]
    found = read_answers(
        written(
            tmp_path / "pairs.jsonl",
            {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."},
            {"chosen": whole[0]["chosen"], "rejected": whole[1]["chosen"]},
        )
    )
    assert [(a.example.answer, a.reward) for a in found.each] == [
        ("Hello.", 1.0),
        ("Go away.", 0.0),
        ("Hello!", 1.0),
        ("No.", 0.0),
    ]
    assert all(answered.example.messages == (Message("user", "Hi"),) for answered in found.each)
    assert sorted(found.pairs()) == [(0, 1), (0, 3), (2, 1), (2, 3)]


def test_rewards_may_stand_in_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path / "rewards.jsonl",
        {"prompt": "Hi", "answer": "Hello.", "reward": 0.75},
        {"prompt": "Hi", "answer": "Go.", "reward": -2},
    )
    found = answers_for(tiny("llama"), [], CriticConfig(reward="given", answers=str(path)))
    assert [answered.reward for answered in found.each] == [0.75, -2.0]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "Hi", "chosen": "Yes"}, "bad row 1: column 'rejected' is absent"),
        ({"chosen": "Yes", "rejected": "No"}, "bad row 1: column 'prompt' is absent"),
        ({"prompt": "Hi", "answer": "Yes"}, "bad row 1: column 'reward' is absent"),
        (
            {"prompt": "Hi", "answer": "Yes", "reward": "good"},
            "bad row 1: column 'reward' holds 'good', expected a number",
        ),
        ({"chosen": [{"role": "user", "content": "x"}], "rejected": "No"}, "column 'chosen' ends with user"),
        ({"chosen": ["Yes"], "rejected": "No"}, "got a turn 'Yes', expected one with 'role' and 'content'"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, record: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_answers(written(tmp_path / "bad.jsonl", record))


def test_sampled_answers_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    loaded, rows = tiny("llama"), examples(3)
    keys = {"samples": 3, "max_new_tokens": 6}
    first, again, other = (sample_answers(loaded, rows, CriticConfig(seed=seed, **keys)) for seed in (0, 0, 1))
    assert [sample.example.id for sample in first] == [row.id for row in rows for _ in range(3)]
    assert first == again
    assert [sample.output for sample in first] != [sample.output for sample in other]
    assert len({sample.output for sample in first[:3]}) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sampling_at_a_temperature_near_0_is_greedy_decoding(family: str) -> None:
    loaded, rows = tiny(family), examples(4)
    before = torch.get_rng_state()
    drawn = sample_answers(loaded, rows, CriticConfig(samples=2, temperature=1e-5, max_new_tokens=8))
    prompts = [loaded.chat.prompt(row.messages, id=row.id) for row in rows]
    greedy = generate(loaded, prompts, max_new_tokens=8, batch_size=2)
    assert [(s.output, s.finish) for s in drawn] == [(loaded.chat.said(g.text), g.finish) for g in greedy for _ in "12"]
    assert torch.equal(before, torch.get_rng_state())


def answers(*rewards: tuple[str, float]) -> Answers:
    return Answers(tuple(Answered(name, question(name, answer="x"), reward) for name, reward in rewards), 2)


def test_without_both_outcomes_there_is_no_critic() -> None:
    with pytest.raises(DataError, match=r"needs both outcomes: got the reward 1 on all 2 answers \(2 more could not"):
        check_outcomes(answers(("a", 1.0), ("b", 1.0)), pairwise=False)
    with pytest.raises(DataError, match="needs both outcomes: got no answers"):
        check_outcomes(answers(), pairwise=False)
    apart = answers(("a", 1.0), ("b", 0.0))
    check_outcomes(apart, pairwise=False)
    with pytest.raises(DataError, match="both outcomes on one question: got none among 2 questions"):
        check_outcomes(apart, pairwise=True)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"reward_model": "x"}, "reward_model has no effect with reward: exact"),
        ({"reward": "model"}, "reward: model needs reward_model"),
        ({"reward": "given"}, "reward: given needs answers"),
        ({"lam": 0.5}, "lam has no effect with objective: monte_carlo"),
        ({"objective": "pairwise", "gamma": 0.9}, "gamma has no effect with objective: pairwise"),
        ({"backbone_rate": 1e-4}, "backbone_rate has no effect with backbone: trunk"),
        ({"answers": "x.jsonl", "temperature": 0.5}, "temperature has no effect with answers"),
    ],
)
def test_a_key_without_effect_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CriticConfig(**keys)


def test_a_reward_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.jsonl"
    path.write_text('{"prompt": "Hi", "answer": "Yes", "reward": NaN}\n')
    with pytest.raises(DataError, match=rf"column 'reward' holds {math.nan}, expected a number"):
        read_answers(path)
