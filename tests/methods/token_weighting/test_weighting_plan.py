import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.token_weighting.weighted_cases import batch_of, column_of, few, planned
from tests.zoo import tiny

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.data.examples import Example, Message
from holdfast.methods.token_weighting import plan as planning
from holdfast.methods.token_weighting.apply import apply
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.critic import Critic, score_rows
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.methods.token_weighting.critic_figures import Figures
from holdfast.methods.token_weighting.plan import plan, training_rows
from holdfast.methods.token_weighting.reference import learnt_tokens
from holdfast.methods.token_weighting.store import load_plan, save_plan
from holdfast.models.heads import ValueHead


def test_contrast_keeps_the_share_of_all_tokens_that_are_least_the_degraded_models() -> None:
    loaded, rows = tiny("llama"), few(12)
    made = planned(loaded, rows, scorer="contrast", keep=0.25)
    kept = made.values_n != 0
    assert int(kept.sum()) == math.floor(0.25 * len(kept) + 0.5)
    assert_close(made.values_n[kept], torch.full((int(kept.sum()),), len(kept) / int(kept.sum())))
    swapped = plan(
        TokenWeightingConfig(scorer="contrast", keep=0.25),
        loaded,
        rows,
        {"degraded": tiny("llama", 2), "utility": tiny("llama", 1)},
    )
    assert not bool((kept & (swapped.values_n != 0)).any())  # the sign counts


def test_over_the_dataset_rho1_is_fixed_by_the_losses_before_training(tmp_path: Path) -> None:
    loaded, rows = tiny("llama"), few(12)
    keys = {"scope": "dataset", "keep": 0.5}
    made = planned(loaded, rows, **keys)
    again = plan(TokenWeightingConfig(**keys), loaded, rows, {"reference": tiny("llama", 1)}, cache=tmp_path)
    assert torch.equal(made.values_n, again.values_n)
    assert len(list(tmp_path.iterdir())) == 2, "the reference, and the model before training"
    assert made.statistics["kept_share"] == pytest.approx(0.5, abs=0.01)
    same = plan(TokenWeightingConfig(**keys), tiny("llama", 1), rows, {"reference": tiny("llama", 1)})
    assert same.statistics["mean"] == pytest.approx(1)


def test_references_that_differ_have_losses_of_their_own_in_one_cache(tmp_path: Path) -> None:
    loaded, rows = tiny("llama"), few(12)
    for seed in (1, 2, 1):
        made = plan(TokenWeightingConfig(), loaded, rows, {"reference": tiny("llama", seed)}, cache=tmp_path)
        alone = plan(TokenWeightingConfig(), loaded, rows, {"reference": tiny("llama", seed)})
        assert torch.equal(made.values_n, alone.values_n)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_critics_weights_are_those_of_its_changes_and_its_figures_are_kept() -> None:
    loaded, rows = tiny("llama"), few(6)
    head = ValueHead(32)
    with torch.no_grad():
        head.linear.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(2)))
    figures = Figures(6, 2, 0, 0, None, None, None, 1.0, 0.0, 1.0)
    critic = Critic(head, CriticConfig(), figures, loaded.fingerprint)
    made = plan(TokenWeightingConfig(scorer="critic"), loaded, rows, critic=critic)
    scored = score_rows(critic, loaded, [loaded.chat.training(row) for row in rows])
    raw_n = torch.cat(scored.weights)
    assert_close(made.values_n, raw_n / raw_n.mean())
    assert made.statistics["critic/delta_mean"] == scored.delta_mean
    objective = apply(loaded, made)
    loaded.model.train()
    objective.begin(0, 1)
    objective(loaded.model, batch_of(loaded, rows))
    assert objective.figures()["critic/value_variance"] == scored.value_variance


def test_rows_without_weight_are_left_out_and_said() -> None:
    loaded, rows = tiny("llama"), few(6)
    column = column_of(loaded, rows)
    column[rows[2].id] = [0.0] * len(column[rows[2].id])
    made = plan(TokenWeightingConfig(scorer="column"), loaded, rows, column=column)
    assert [row.id for row in training_rows(made, rows)] == [row.id for row in rows if row is not rows[2]]
    assert any("1 rows weigh nothing" in note for note in made.notes())
    with pytest.raises(DataError, match="not the rows of the plan: got 5, expected 6"):
        training_rows(made, rows[:5])


def test_a_table_and_notes_say_how_weights_are_spread(tmp_path: Path) -> None:
    made = planned(tiny("llama"), few(8))
    (row,) = made.table()
    assert row["scorer"] == "rho1"
    assert row["mean"] == pytest.approx(1)
    assert 0.5 < row["kept_share"] < 0.7
    assert row["ess"] == pytest.approx(row["kept_share"], abs=0.05)
    assert any("before training" in note for note in made.notes())
    save_plan(made, tmp_path)
    assert load_plan(tmp_path).table() == made.table()
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="Cannot read a token_weighting plan"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w[:-1], r"wrong length: got \d+, expected \d+"),
        (lambda w: [-1.0, *w[1:]], r"hold -1.0, expected numbers of 0 or more"),
        (lambda w: ["a", *w[1:]], "hold 'a'"),
        (lambda w: [float("nan"), *w[1:]], "hold nan"),
        (lambda w: [1e39, *w[1:]], r"hold 1e\+39, expected numbers of 0 or more, at most 3.4e\+38"),
        (lambda w: [10**400, *w[1:]], "hold 1000"),
        (lambda w: "0.5", "has no weights: got '0.5', .* CSV holds no lists"),
        (lambda w: None, "has no weights: got none"),
    ],
)
def test_a_column_that_does_not_fit_names_the_row(change: Any, sentence: str) -> None:
    loaded, rows = tiny("llama"), few(4)
    column: Any = column_of(loaded, rows)
    column[rows[1].id] = change(column[rows[1].id])
    with pytest.raises(DataError, match=rf"ow '{rows[1].id}' .*{sentence}|row '{rows[1].id}' {sentence}"):
        plan(TokenWeightingConfig(scorer="column"), loaded, rows, column=column)


def test_rows_of_the_same_tokens_with_other_weights_are_refused() -> None:
    loaded = tiny("llama")
    rows = [Example(name, (Message("user", "why?"),), "kelp") for name in "ab"]
    column = column_of(loaded, rows)
    column["b"] = [weight + 1 for weight in column["b"]]
    with pytest.raises(DataError, match="Rows 'a' and 'b' are the same tokens with other weights"):
        plan(TokenWeightingConfig(scorer="column"), loaded, rows, column=column)


@pytest.mark.parametrize("keys", [{"scorer": "contrast"}, {"scope": "dataset"}])
def test_rows_that_repeat_weigh_in_training_what_they_weigh_in_the_plan(keys: dict[str, Any]) -> None:
    loaded = tiny("llama")
    rows = [replace(row, id=f"{row.id}-{copy}") for copy in range(4) for row in few(3)]
    for keep in (0.05, 0.1, 0.3):
        made = planned(loaded, rows, keep=keep, **keys)
        used = [made.row(made.numbers()[key]) for key in made.keys]
        assert torch.equal(torch.cat(used), made.values_n)
        assert_close(made.values_n.mean(), torch.tensor(1.0))


@pytest.mark.parametrize("keys", [{}, {"scope": "dataset"}])
def test_a_score_that_is_no_number_names_its_own_row(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first of those whose mean it would spoil."""
    loaded, rows, plain = tiny("llama"), few(6), planning.look

    def look(model: Any, batch: Any, **options: Any) -> Any:
        loss_n, entropy_n = plain(model, batch, **options)
        return loss_n.index_fill(0, torch.tensor(len(loss_n) - 1), torch.nan), entropy_n

    monkeypatch.setattr(planning, "look", look)
    start = torch.full((sum(learnt_tokens(loaded.chat.training(row)) for row in rows),), 1.0)
    start[-1] = torch.nan
    monkeypatch.setattr(planning._Sources, "losses", lambda *_, **__: start)
    with pytest.raises(NumericsError, match=rf"1 of \d+ token scores are not numbers: .* in row '{rows[-1].id}'"):
        planned(loaded, rows, soft=1.0, **keys)


def test_what_a_scorer_needs_and_does_not_read_is_said() -> None:
    loaded, rows = tiny("llama"), few(4)
    with pytest.raises(ConfigError, match="scorer: rho1 has no reference model: got none"):
        plan(TokenWeightingConfig(), loaded, rows)
    with pytest.raises(ConfigError, match="has no utility model: got degraded"):
        plan(TokenWeightingConfig(scorer="contrast"), loaded, rows, {"degraded": tiny("llama", 1)})
    with pytest.raises(ConfigError, match="reads no model 'reference'"):
        plan(TokenWeightingConfig(scorer="dft"), loaded, rows, {"reference": tiny("llama", 1)})
    with pytest.raises(ConfigError, match="scorer: dft does not read a column"):
        plan(TokenWeightingConfig(scorer="dft"), loaded, rows, column={})
    with pytest.raises(ConfigError, match="scorer: critic needs a critic"):
        plan(TokenWeightingConfig(scorer="critic"), loaded, rows)


def test_rows_that_teach_nothing_are_refused() -> None:
    loaded = tiny("llama")
    uniform = TokenWeightingConfig(scorer="uniform")
    with pytest.raises(DataError, match="got 0 rows"):
        plan(uniform, loaded, [])
    with pytest.raises(DataError, match="Row 'x' has nothing to learn"):
        plan(uniform, loaded, [Example("x", (Message("user", "why?"),), " ")])
    with pytest.raises(DataError, match=r"shorter than the horizon: got 3 tokens ahead at most, expected 8"):
        plan(TokenWeightingConfig(scorer="uniform", horizon=8), loaded, [Example("x", (), "ab")])
    column = column_of(loaded, few(2))
    nothing = {name: [0.0] * len(each) for name, each in column.items()}
    with pytest.raises(DataError, match="learnt tokens weigh nothing"):
        plan(TokenWeightingConfig(scorer="column"), loaded, few(2), column=nothing)


def test_a_plan_of_another_model_is_refused() -> None:
    made = planned(tiny("llama"), few(4))
    with pytest.raises(ConfigError, match="The plan is of another model"):
        apply(tiny("llama", 3), made)
