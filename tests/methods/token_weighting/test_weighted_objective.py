from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.token_weighting.weighted_cases import batch_of, column_of, few, objective_of
from tests.zoo import tiny
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.data.batches import Batch, Encoded, collate
from holdfast.data.examples import Example
from holdfast.methods.token_weighting import gates, maths
from holdfast.methods.token_weighting.apply import apply
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.objective import WeightedObjective
from holdfast.methods.token_weighting.plan import plan
from holdfast.models.load import LoadedModel
from holdfast.training.objective import NextToken, Term

KINDS: dict[str, dict[str, Any]] = {
    "rho1": {},
    "soft": {"soft": 0.5},
    "dataset": {"scope": "dataset"},
    "contrast": {"scorer": "contrast"},
    "entropy": {"scorer": "entropy", "keep": 0.4},
    "dft": {"scorer": "dft"},
    "column": {"scorer": "column"},
    "shuffled": {"scorer": "shuffled"},
    "random": {"scorer": "random_matched", "soft": 0.8},
    "heads": {"horizon": 3, "heads": "medusa"},
    "own": {"horizon": 3, "heads": "sequential", "horizon_weights": "per_head"},
    "known heads": {"scorer": "contrast", "horizon": 3},
}


def trained(family: str = "llama") -> LoadedModel:
    loaded = tiny(family)
    loaded.model.train()
    return loaded


def wide(loaded: LoadedModel, objective: WeightedObjective) -> None:
    """Model and heads in float64, heads with weights that are not their start."""
    loaded.model.double()
    if objective.heads is not None:
        objective.heads.double()
        dice = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in objective.heads.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=dice, dtype=torch.float64))


def gradients(model: nn.Module, terms: dict[str, Term], *more: nn.Module) -> dict[str, Tensor]:
    """Of the terms divided by their weights; the model's own."""
    for each in (model, *more):
        each.zero_grad()
    torch.stack([term.sum / term.weight for term in terms.values()]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(
    loaded: LoadedModel, objective: WeightedObjective, batch: Batch, weight_of: dict[int, dict[tuple[str, int], float]]
) -> dict[str, tuple[Tensor, float]]:
    """Every head's weighted sum and the sum of its weights, by loops over rows and tokens; weights by horizon."""
    states = [loaded.model(**batch.model_inputs(), output_hidden_states=True).hidden_states[-1]]
    if objective.heads is not None:
        states = objective.heads(loaded.model, batch)
    out: dict[str, tuple[Tensor, float]] = {}
    for h, state in enumerate(states, start=1):
        logp = loaded.model.lm_head(state).log_softmax(-1)
        total, divisor = torch.zeros((), dtype=torch.float64), 0.0
        for line, name in enumerate(batch.row_ids):
            for t in range(h, batch.labels.shape[1]):
                if batch.labels[line, t] >= 0 and batch.owner[line, t] == batch.owner[line, t - h]:
                    weight = weight_of[h][name, t]
                    total = total - weight * logp[line, t - h, batch.labels[line, t]]
                    divisor += weight
        out[f"head_{h}"] = (total, divisor)
    return out


def placed(batch: Batch, value_n: Tensor) -> dict[tuple[str, int], float]:
    """A value of each learnt token, by its row and place; a line holds one row."""
    where = (batch.labels >= 0).nonzero().tolist()
    return {(batch.row_ids[line], t): float(v) for (line, t), v in zip(where, value_n, strict=True)}


def by_rank(score: dict[tuple[str, int], float], keep: float) -> dict[tuple[str, int], float]:
    """1 over the share on the tokens of a row that have the highest scores, 0 on the others."""
    best = sorted(score, key=lambda at: -score[at])[: max(1, int(keep * len(score) + 0.5))]
    return {at: len(score) / len(best) if at in best else 0.0 for at in score}


def at_mean_one(weight: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """The weights of a row at mean 1, or all 0."""
    mean = sum(weight.values()) / max(1, len(weight))
    return {at: each / mean if mean else 0.0 for at, each in weight.items()}


def weights_by_loops(
    loaded: LoadedModel, objective: WeightedObjective, batch: Batch
) -> dict[int, dict[tuple[str, int], float]]:
    """Weights of a hard share of rho1 for each head, row by row, in float64 and then rounded to float32.

    Of a control the first head's are those that it drew: what they must be is tested elsewhere.
    """
    keys = objective.plan.config
    reference = placed(batch, objective.plan.values_n.double())
    drawn = placed(batch, objective._watch._weights[0].double()) if keys.is_control else {}
    assert objective.heads is not None
    out: dict[int, dict[tuple[str, int], float]] = {}
    for h, state in enumerate(objective.heads(loaded.model, batch), start=1):
        logp, out[h] = loaded.model.lm_head(state).log_softmax(-1).detach(), {}
        for line, name in enumerate(batch.row_ids):
            sees = [t for t in range(h, batch.labels.shape[1]) if batch.labels[line, t] >= 0]
            loss = {(name, t): -float(logp[line, t - h, batch.labels[line, t]]) for t in sees}
            if keys.horizon_weights == "shared" and h > 1:
                own = at_mean_one({at: out[1][at] for at in loss})
            elif drawn:
                own = {at: drawn[at] for at in loss}
            else:
                own = by_rank({at: loss[at] - reference[at] for at in loss}, keys.keep)
            out[h] |= own
    return {h: {at: float(torch.tensor(w).float()) for at, w in each.items()} for h, each in out.items()}


@pytest.mark.parametrize(
    "keys",
    [
        {"scorer": "column", "heads": "medusa"},
        {"scorer": "column", "heads": "parallel"},
        {"scorer": "column", "heads": "sequential"},
        {"heads": "medusa"},
        {"heads": "sequential", "keep": 0.3},
        {"scorer": "shuffled", "heads": "parallel"},
        {"scorer": "random_matched", "heads": "medusa"},
        {"heads": "parallel", "horizon_weights": "per_head"},
    ],
    ids=lambda keys: " ".join(map(str, keys.values())),
)
def test_every_heads_loss_and_all_gradients_equal_loops_in_float64(keys: dict[str, Any]) -> None:
    """Rows short enough that labels vanish at the far horizon, and tokens of weight 0.

    Weights that follow the model are divided by the number of tokens, also of a row whose weighted tokens a head does
    not see: it is known before the forward pass.
    """
    loaded = trained()
    rows = [*few(4), Example("short", (), "ab")]
    objective = objective_of(loaded, rows, horizon=4, lambda_heads=0.5, **keys)
    wide(loaded, objective)
    objective.begin(9, 10)
    batch = batch_of(loaded, rows)
    assert objective.heads is not None
    announced = objective.weights(batch)
    terms = objective(loaded.model, batch)
    found = gradients(loaded.model, terms, objective.heads)
    of_heads = {name: p.grad.clone() for name, p in objective.heads.named_parameters() if p.grad is not None}
    if objective.plan.config.follows:
        weight_of = weights_by_loops(loaded, objective, batch)
    else:
        weight_of = dict.fromkeys(range(1, 5), placed(batch, objective.plan.values_n))
    expected = naive(loaded, objective, batch, weight_of)
    for name, (total, summed) in expected.items():
        factor = 1.0 if name == "head_1" else 0.5
        follows = objective.plan.config.follows
        divisor = len(weight_of[int(name.removeprefix("head_"))]) if follows else summed
        assert terms[name].weight == announced[name] == pytest.approx(divisor, rel=1e-6)
        assert_close(terms[name].sum, factor * total, "float64")
    again = {name: Term((1 if name == "head_1" else 0.5) * t, terms[name].weight) for name, (t, _) in expected.items()}
    for name, gradient in gradients(loaded.model, again, objective.heads).items():
        assert_close(found[name], gradient, "float64")
    for name, parameter in objective.heads.named_parameters():
        assert_close(of_heads[name], parameter.grad, "float64")


@pytest.mark.parametrize("over", ["tokens", "rows"])
def test_equal_weights_and_no_heads_are_plain_fine_tuning_bit_for_bit(over: Any) -> None:
    for keys in ({"scorer": "uniform"}, {"scorer": "uniform", "horizon": 4, "lambda_heads": 0}):
        loaded = trained()
        objective, batch = objective_of(loaded, few(), over, **keys), batch_of(loaded, few())
        assert not objective.modules()
        found = gradients(loaded.model, terms := objective(loaded.model, batch))
        plain = NextToken("head_1", over)
        expected = gradients(loaded.model, other := plain(loaded.model, batch))
        assert torch.equal(terms["head_1"].sum, other["head_1"].sum)
        assert terms["head_1"].weight == other["head_1"].weight
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_equal_weights_by_a_column_are_plain_fine_tuning() -> None:
    for over in ("tokens", "rows"):
        loaded, rows = trained(), few()
        column = {name: [2.0] * len(each) for name, each in column_of(loaded, rows).items()}
        made = plan(TokenWeightingConfig(scorer="column"), loaded, rows, column=column)
        batch = batch_of(loaded, rows)
        term, other = (
            each(loaded.model, batch)["head_1"] for each in (apply(loaded, made, over), NextToken("head_1", over))
        )
        assert_close(term.sum / term.weight, other.sum / other.weight)


@pytest.mark.parametrize("scope", ["sequence", "dataset"])
def test_a_factor_for_each_token_changes_the_loss_and_a_constant_does_not(scope: Any) -> None:
    loaded, rows = trained(), few()
    column = column_of(loaded, rows)
    batch = batch_of(loaded, rows)

    def loss(factor: Any) -> float:
        mine = {name: [w * factor(n) for n, w in enumerate(each)] for name, each in column.items()}
        made = plan(TokenWeightingConfig(scorer="column", scope=scope), loaded, rows, column=mine)
        term = apply(loaded, made)(loaded.model, batch)["head_1"]
        return term.sum.item() / term.weight

    assert loss(lambda _: 7.0) == pytest.approx(loss(lambda _: 1.0), rel=1e-6)
    assert abs(loss(lambda n: 1.0 + n) - loss(lambda _: 1.0)) > 1e-3


@pytest.mark.parametrize("kind", ["rho1", "soft", "dft", "entropy"])
def test_weights_that_follow_the_model_carry_no_gradient(kind: str) -> None:
    """The gradient is that of the same weights written down as numbers."""
    loaded = trained()
    objective, batch = objective_of(loaded, few(), **KINDS[kind]), batch_of(loaded, few())
    wide(loaded, objective)
    objective.begin(0, 1)
    found = gradients(loaded.model, objective(loaded.model, batch))
    weight_n = objective._watch._weights[0]
    place = placed(batch, weight_n)
    assert len({round(w, 6) for w in place.values()}) > 1
    (total, divisor) = naive(loaded, objective, batch, {1: place})["head_1"]
    assert divisor == pytest.approx(len(weight_n), rel=1e-6)
    for name, gradient in gradients(loaded.model, {"head_1": Term(total, float(len(weight_n)))}).items():
        assert_close(found[name], gradient, "float32")


@pytest.mark.parametrize(
    ("kind", "over"), [*((kind, "tokens") for kind in KINDS), *((kind, "rows") for kind in ("rho1", "column", "own"))]
)
def test_a_step_is_the_same_however_it_is_divided(kind: str, over: Any) -> None:
    loaded = trained()
    objective = objective_of(loaded, few(8), over, **KINDS[kind])
    wide(loaded, objective)
    objective.begin(9, 10)
    whole = objective(loaded.model, batch_of(loaded, few(8)))
    blank = Encoded("blank", (5, 6, 7), (False,) * 3)
    parts = [batch_of(loaded, few(8)[n : n + 1]) for n in range(8)] + [collate([blank], 0)]
    each = [(objective.weights(part), objective(loaded.model, part)) for part in parts]
    assert whole.keys() == each[0][1].keys()
    for name, term in whole.items():
        assert all(terms[name].weight == pytest.approx(announced[name], rel=1e-6) for announced, terms in each)
        assert sum(terms[name].weight for _, terms in each) == pytest.approx(term.weight, rel=1e-6)
        assert sum(terms[name].sum.item() for _, terms in each) == pytest.approx(term.sum.item(), rel=1e-6)
    lines = [tuple(loaded.chat.training(row) for row in few(8)[:3]), tuple(map(loaded.chat.training, few(8)[3:]))]
    for name, term in objective(loaded.model, collate(lines, 0)).items():
        assert term.sum.item() == pytest.approx(whole[name].sum.item(), rel=1e-6)  # packed rows do not know each other


@pytest.mark.parametrize("kind", ["medusa", "parallel", "sequential"])
def test_while_heads_warm_up_the_models_gradient_is_that_of_its_own_head_alone(kind: str) -> None:
    loaded = trained()
    batch = batch_of(loaded, few())
    alone = gradients(loaded.model, objective_of(loaded, few())(loaded.model, batch))
    objective = objective_of(loaded, few(), horizon=3, heads=kind, lambda_heads=1.0, warmup=0.5, ramp=0.25)
    objective.begin(4, 10)
    found = gradients(loaded.model, objective(loaded.model, batch))
    assert found.keys() == alone.keys()
    assert all(torch.allclose(found[name], alone[name], rtol=1e-4, atol=1e-7) for name in alone)
    assert objective.heads is not None
    assert any(bool(p.grad.any()) for p in objective.heads.parameters() if p.grad is not None)
    objective.begin(8, 10)
    after = gradients(loaded.model, objective(loaded.model, batch))
    assert any(not torch.allclose(after[name], alone[name], rtol=1e-2, atol=1e-6) for name in alone)


def test_the_weight_of_heads_is_whole_while_they_warm_up_then_rises_from_nothing() -> None:
    objective = objective_of(tiny("llama"), few(), horizon=2, heads="medusa", warmup=0.3, ramp=0.4)
    factors = []
    for step in range(10):
        objective.begin(step, 10)
        factors.append((objective._detached, round(objective._ramp, 2)))
    assert factors == [(True, 1.0)] * 3 + [(False, 0.2), (False, 0.4), (False, 0.6), (False, 0.8)] + [(False, 1.0)] * 3


def test_in_evaluation_the_loss_is_plain_for_rows_of_any_kind() -> None:
    loaded = tiny("llama")
    objective = objective_of(loaded, few(4), horizon=2, heads="medusa")
    others = batch_of(loaded, few(9)[4:])
    terms, plain = objective(loaded.model, others), NextToken("head_1")(loaded.model, others)
    assert terms.keys() == plain.keys()
    assert torch.equal(terms["head_1"].sum, plain["head_1"].sum)


def test_a_row_that_was_not_planned_is_named() -> None:
    loaded = trained()
    objective = objective_of(loaded, few(4))
    with pytest.raises(DataError, match="Row 'row-4' is not one of the plan's"):
        objective(loaded.model, batch_of(loaded, few(9)[4:]))


def test_shares_over_a_step_need_one_forward_pass() -> None:
    loaded = trained()
    objective = objective_of(loaded, few(), scope="batch")
    batch = batch_of(loaded, few())
    objective.begin(0, 2)
    assert objective.weights(batch)["head_1"] == objective(loaded.model, batch)["head_1"].weight
    objective.begin(1, 2)
    objective.weights(batch)
    with pytest.raises(ConfigError, match="must be one forward pass: got several forward passes"):
        objective.weights(batch)


def test_shares_over_a_step_need_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = trained()
    objectives = [objective_of(loaded, few(), **keys) for keys in ({"scope": "batch"}, {"scope": "sequence"})]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for objective in objectives:
        objective.begin(0, 2)
    with pytest.raises(ConfigError, match=r"scope: batch .* must be one forward pass: got 2 processes"):
        objectives[0].weights(batch_of(loaded, few()))
    assert objectives[1].weights(batch_of(loaded, few()))


def test_figures_are_those_of_the_tokens_of_the_step() -> None:
    loaded = trained()
    objective = objective_of(loaded, few(8), horizon=2, heads="medusa")
    objective.begin(9, 10)
    terms = [objective(loaded.model, batch_of(loaded, few(8)[n : n + 4])) for n in (0, 4)]
    figures = objective.figures()
    assert figures.keys() == {
        *(f"weight/{name}" for name in ("mean", "p25", "p75", "p95", "ess", "clipped")),
        *("rho1/kept_share", "nan_weights", "extreme_weights", "head_1/loss", "head_2/loss"),
    }
    assert figures["weight/mean"] == pytest.approx(1)
    assert figures["rho1/kept_share"] == pytest.approx(0.6, abs=0.05)
    for head, factor in (("head_1", 1), ("head_2", 0.3)):
        total = sum(float(each[head].sum) for each in terms) / factor
        assert figures[f"{head}/loss"] == pytest.approx(total / sum(each[head].weight for each in terms))


def test_weights_on_a_few_tokens_stop_the_run() -> None:
    loaded = trained()
    objective = objective_of(loaded, few(30), soft=1e-3, scope="batch", clip=(0, 1e6))
    objective.begin(0, 1)
    objective(loaded.model, batch_of(loaded, few(30)))
    with pytest.raises(NumericsError, match=r"have collapsed: got an effective sample size of .* expected at least 5%"):
        objective.figures()


def test_weights_that_are_no_numbers_name_the_row_unless_the_loss_is_none() -> None:
    weight_n, row_n = torch.tensor([1.0, float("nan"), 1.0]), torch.tensor([0, 1, 1])
    with pytest.raises(NumericsError, match=r"1 of 3 token weights are not numbers: got nan, first in row 'b'"):
        gates.check_numbers("weights", weight_n, row_n, ["a", "b"], None)
    gates.check_numbers("weights", weight_n, row_n, ["a", "b"], torch.tensor([0.0, float("nan"), 0.0]))


def test_a_score_that_is_no_number_names_its_own_row_and_not_the_first_of_the_step() -> None:
    loaded, rows = trained(), few(4)
    objective = objective_of(loaded, rows, scope="batch", soft=1.0)
    objective.plan.values_n[-1] = torch.nan
    with pytest.raises(NumericsError, match=rf"1 of \d+ token scores are not numbers: .* in row '{rows[-1].id}'"):
        objective(loaded.model, batch_of(loaded, rows))


def test_an_effective_share_that_is_no_number_stops_the_run() -> None:
    for weights in ([0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(NumericsError, match=r"have collapsed: got an effective sample size of nan% of 2"):
            gates.check_share(maths.effective_share(torch.tensor(weights)), 2)
    gates.check_share(gates.LEAST_SHARE, 2)
