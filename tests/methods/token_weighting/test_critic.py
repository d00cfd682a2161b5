import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.zoo import tiny

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.data.batches import Encoded
from holdfast.data.examples import Example, Message
from holdfast.methods.token_weighting.advantages import HIGH, LOW
from holdfast.methods.token_weighting.critic import (
    Critic,
    load_critic,
    save_critic,
    score_rows,
    split,
    train_critic,
)
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.methods.token_weighting.critic_figures import check_values, check_weights
from holdfast.methods.token_weighting.rewards import Answered, Answers, encoded
from holdfast.models.load import LoadedModel

LETTERS = "abcdefgh"


def made(questions: int = 16, each: int = 4) -> Answers:
    """Answers of random letters and then a sign, several times: ``+`` is right, ``-`` is wrong."""
    dice = random.Random(0)
    found = []
    for number in range(questions):
        asked = (Message("user", f"Question {number}"),)
        for turn in range(each):
            letters = dice.choices(LETTERS, k=dice.randint(3, 6))
            signs = "-+"[turn % 2] * dice.randint(3, 6)
            example = Example(f"{number}/{turn}", asked, "".join(letters) + signs)
            found.append(Answered(str(number), example, float(turn % 2)))
    return Answers(tuple(found))


@cache
def trained(**keys: Any) -> tuple[LoadedModel, Critic]:
    """A critic of a tiny model."""
    loaded = tiny("llama")
    config = CriticConfig(**{"epochs": 20, "learning_rate": 1e-2, "ridge": 1e-3, "held_out": 0.25} | keys)
    return loaded, train_critic(loaded, made(), config)


def at_first(loaded: LoadedModel, rows: list[Encoded], of: list[torch.Tensor], sign: str) -> torch.Tensor:
    """What ``of`` has at the first learnt token of each row that is ``sign``."""
    token = loaded.tokenizer.convert_tokens_to_ids(sign)
    found = []
    for row, value_t in zip(rows, of, strict=True):
        learnt = [i for i, r in zip(row.ids[1:], row.response[1:], strict=True) if r]
        if token in learnt:
            found.append(float(value_t[learnt.index(token)]))
    assert len(found) == len(rows) // 2
    return torch.tensor(found)


OBJECTIVES = [
    {"objective": "monte_carlo"},
    {"objective": "lambda", "lam": 0.9},
    {"objective": "pairwise"},
    {"objective": "monte_carlo", "backbone": "own", "backbone_rate": 1e-3, "epochs": 6},
]


@pytest.mark.parametrize("keys", OBJECTIVES, ids=lambda keys: "-".join(map(str, list(keys.values())[:2])))
def test_the_token_that_decides_the_outcome_changes_the_value(keys: dict[str, Any]) -> None:
    loaded, critic = trained(**keys)
    rows = encoded(loaded, made())
    weights = score_rows(critic, loaded, rows).weights
    mean = torch.cat(weights).mean()
    assert at_first(loaded, rows, weights, "+").mean() > 1.5 * mean
    assert at_first(loaded, rows, weights, "-").mean() < mean
    figures = critic.figures
    assert (figures.n_held_out, figures.n_pairs) == (16, 16)
    assert figures.n_right >= 15
    assert figures.low is not None
    assert 0.25 < figures.low < 1


def test_there_is_a_weight_for_each_learnt_token_and_it_is_between_the_bounds() -> None:
    loaded, critic = trained()
    rows = encoded(loaded, made())[:20]
    said = score_rows(critic, loaded, rows)
    assert [len(each) for each in said.weights] == [sum(row.response[1:]) for row in rows]
    every = torch.cat(said.weights)
    assert every.dtype == torch.float32
    assert not every.requires_grad
    assert float(every.min()) >= LOW
    assert float(every.max()) <= HIGH
    values = critic.values(loaded, rows)
    changes = [
        v[t] - v[t - 1] for v, row in zip(values, rows, strict=True) for t in range(1, len(v)) if row.response[t]
    ]
    assert said.delta_mean == pytest.approx(float(torch.stack(changes).mean()), abs=1e-6)


def test_the_value_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    loaded, critic = trained()
    rows = encoded(loaded, made())[:9]
    together, alone = critic.values(loaded, rows), [critic.values(loaded, [row])[0] for row in rows]
    assert [len(v) for v in together] == [len(row) for row in rows]
    assert_close(torch.cat(together), torch.cat(alone))


def test_the_saved_head_reads_the_states_of_the_model_as_they_are() -> None:
    loaded, critic = trained()
    _, held = split(made(), critic.config)
    answers = made()
    rows = encoded(loaded, answers)
    last = torch.stack([v[-1] for v in critic.values(loaded, [rows[n] for n in held])]).double()
    reward = torch.tensor([answers.each[n].reward for n in held]).double()
    expected = 1 - (reward - last).square().mean() / reward.var(correction=0)
    assert critic.figures.explained == pytest.approx(float(expected), abs=1e-4)


def test_a_monte_carlo_critic_solves_ridge_regression() -> None:
    answers, loaded = made(12), tiny("llama")
    config = CriticConfig(epochs=150, batch_size=1000, ridge=0.05, learning_rate=1e-2)
    critic = train_critic(loaded, answers, config)
    rows = encoded(loaded, answers)
    learnt, _ = split(answers, config)
    states = {n: _states_of(loaded, row) for n, row in enumerate(rows)}
    every = torch.cat(list(states.values())).double()
    shift, scale = every.mean(0), every.std(0, correction=0)
    X = torch.cat([(states[n].double() - shift) / scale for n in learnt])
    X = torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], 1)
    y = torch.cat([torch.full((len(states[n]),), answers.each[n].reward, dtype=torch.float64) for n in learnt])
    penalty = torch.eye(X.shape[1], dtype=torch.float64) * 0.05 * len(X)
    penalty[-1, -1] = 0
    w = torch.linalg.solve(X.T @ X + penalty, X.T @ y)
    expected = torch.cat([(states[n].double() - shift) / scale @ w[:-1] + w[-1] for n in learnt])
    got = torch.cat([critic.values(loaded, [rows[n]])[0][-len(states[n]) :] for n in learnt]).double()
    assert float((got - expected).square().mean() / expected.var()) < 1e-3


def _states_of(loaded: LoadedModel, row: Encoded) -> torch.Tensor:
    """Before the first learnt token and after each one, from the model itself."""
    with torch.no_grad():
        out = loaded.model.base_model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
    return out[row.response[1:].index(True) :]


def test_training_is_the_same_for_a_seed_and_leaves_the_model_and_the_random_state_alone() -> None:
    loaded = tiny("llama")
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    state = torch.get_rng_state()
    config = CriticConfig(epochs=3, backbone="own", backbone_rate=1e-3)
    one, two = (train_critic(loaded, made(6), config) for _ in "12")
    assert torch.equal(one.head.linear.weight, two.head.linear.weight)
    assert one.figures == two.figures
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert one.backbone is not None
    assert any(not torch.equal(p, before[name]) for name, p in one.backbone.model.named_parameters())


@pytest.mark.parametrize("keys", [{}, OBJECTIVES[-1]], ids=["trunk", "own"])
def test_a_critic_survives_disk(keys: dict[str, Any], tmp_path: Path) -> None:
    loaded, critic = trained(**keys)
    save_critic(critic, tmp_path / "critic")
    again = load_critic(tmp_path / "critic")
    rows = encoded(loaded, made())[:5]
    assert_close(torch.cat(again.values(loaded, rows)), torch.cat(critic.values(loaded, rows)), "exact")
    assert (again.config, again.figures, again.model) == (critic.config, critic.figures, critic.model)


def test_a_damaged_critic_and_one_of_another_model_are_refused(tmp_path: Path) -> None:
    _, critic = trained()
    with pytest.raises(DataError, match="Cannot read a critic in"):
        load_critic(tmp_path)
    save_critic(critic, tmp_path / "critic")
    (tmp_path / "critic" / "critic.json").write_text('{"config": {"epochs": 0}}')
    with pytest.raises(DataError, match="epochs: should be greater than or equal to 1"):
        load_critic(tmp_path / "critic")
    with pytest.raises(ConfigError, match="reads the states of another model"):
        critic.values(tiny("llama", seed=1), [])


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_a_constant_critic_trips_the_gate(constant: float) -> None:
    loaded, critic = trained()
    head = type(critic.head)(critic.head.linear.in_features)
    torch.nn.init.constant_(head.linear.bias, constant)
    with pytest.raises(NumericsError, match="Uninformative critic: its values hardly change within an answer"):
        score_rows(replace(critic, head=head), loaded, encoded(loaded, made())[:5])


def test_values_that_differ_only_between_rows_trip_the_gate() -> None:
    with pytest.raises(NumericsError, match="its values hardly change"):
        check_values([torch.full((9,), 0.1), torch.full((5,), 0.9)], 0.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_values_and_weights_that_follow_the_place_trip_the_gate(sign: int) -> None:
    generator = torch.Generator().manual_seed(0)
    follow = [sign * torch.linspace(0, 1, n) + 0.2 * torch.randn(n, generator=generator) for n in (30, 12, 21)]
    free = [torch.randn(n, generator=generator) for n in (30, 12, 21)]
    check_values(follow, 1.0)
    check_values(free, 1.0, by_place=True)
    check_weights(free)
    with pytest.raises(NumericsError, match=r"its values follow the place in the answer: got a correlation of -?0\.8"):
        check_values(follow, 1.0, by_place=True)
    with pytest.raises(NumericsError, match=r"its weights follow the place in the row: got a correlation of -?0\.8"):
        check_weights(follow)


def test_weights_that_are_all_the_same_trip_the_gate() -> None:
    with pytest.raises(NumericsError, match="its weights are all the same: got a spread of"):
        check_weights([torch.tensor([1.0, 1.00005]), torch.tensor([1.00002])])


def test_all_answers_to_a_question_are_on_one_side_of_the_split() -> None:
    answers = made(10)
    learnt, held = split(answers, CriticConfig(held_out=0.3))
    assert sorted([*learnt, *held]) == list(range(40))
    assert len(held) == 12
    assert not {answers.each[n].question for n in learnt} & {answers.each[n].question for n in held}
    assert split(answers, CriticConfig(held_out=0.3, seed=1))[1] != held


def test_a_critic_that_could_not_be_measured_is_refused() -> None:
    assert [len(part) for part in split(made(2), CriticConfig(held_out=0.1))] == [4, 4]
    with pytest.raises(DataError, match="not seen: got answers to 1 questions, expected at least 2"):
        train_critic(tiny("llama"), made(1), CriticConfig())


def test_questions_to_learn_from_without_both_outcomes_are_refused() -> None:
    one_sided = Answers(tuple(replace(answered, reward=1.0) for answered in made(4).each))
    with pytest.raises(DataError, match="needs both outcomes: got the reward 1 on all 12 answers"):
        train_critic(tiny("llama"), one_sided, CriticConfig())


def test_figures_are_metrics_with_their_counts_and_a_missing_one_has_a_reason() -> None:
    _, critic = trained(objective="pairwise")
    pairs, explained, variance = critic.figures.metrics()
    assert (pairs.name, pairs.k, pairs.n) == ("critic/pair_accuracy", critic.figures.n_right, 16)
    assert pairs.low is not None
    assert pairs.low <= pairs.value <= pairs.high
    assert (explained.value, explained.reason) == (None, "values of pairs have no unit, or all rewards are equal")
    assert variance.value > 0


def test_a_critic_that_does_not_tell_held_out_answers_apart_says_so() -> None:
    _, critic = trained()
    known = replace(critic.figures, low=0.51)
    assert known.notes() == ()
    guessing = replace(known, n_right=9, low=0.3, high=0.8)
    assert guessing.notes() == (
        "The critic is not shown to tell right from wrong: the better answer has the higher value in 9 of 16 pairs, "
        "interval 0.30 to 0.80. Its weights may be noise.",
    )
    (said,) = replace(known, n_pairs=0, n_right=0, low=None, high=None).notes()
    assert "no question held out has both outcomes" in said
