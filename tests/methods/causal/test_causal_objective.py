from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.close import assert_close
from tests.methods.causal.made_cases import cases, planned
from tests.training.helpers import config, examples, largest_difference, weights
from tests.zoo import tiny
from torch import Tensor
from torch.nn.functional import cross_entropy

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.data.batches import Batch, Batches, Encoded, collate
from holdfast.layers.address import LayerMap
from holdfast.methods.causal import CAUSAL
from holdfast.methods.causal.cases import view_of
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.objective import CausalObjective
from holdfast.methods.causal.plan import plan, training_rows
from holdfast.models.load import LoadedModel
from holdfast.training.loop import train
from holdfast.training.objective import NextToken, Term

ALL: dict[str, Any] = {"lambda_preference": 0.3, "twin": True, "partners": 2}
EXACT = 1e-6


def objective(loaded: LoadedModel, **keys: Any) -> CausalObjective:
    made: CausalObjective = CAUSAL.apply(loaded, planned(loaded, **keys))
    return made


def batch_of(loaded: LoadedModel, numbers: range, extra: list[Encoded] | None = None) -> Batch:
    rows = [loaded.chat.training(row) for row in training_rows(cases(10))]
    return collate([rows[n] for n in numbers] + (extra or []), loaded.chat.pad_id)


def stock(loaded: LoadedModel, row: Encoded) -> tuple[float, int]:
    """Transformers' own loss of the concatenated text, the prompt masked: its sum over tokens."""
    labels = torch.tensor([[i if r else -100 for i, r in zip(row.ids, row.response, strict=True)]])
    loss = loaded.model(input_ids=torch.tensor([row.ids]), labels=labels, use_cache=False).loss
    return loss.item() * int((labels[0, 1:] != -100).sum()), int((labels[0, 1:] != -100).sum())


@torch.no_grad()
def test_the_task_term_is_the_stock_loss_of_benign_and_attacked_text() -> None:
    loaded = tiny("llama")
    term = objective(loaded)(loaded.model, batch_of(loaded, range(4)))["task"]
    each = [stock(loaded, loaded.chat.training(view_of(c, v))) for c in cases(4) for v in ("benign", "attacked")]
    assert term.weight == sum(n for _, n in each)
    expected = sum(total for total, _ in each) / term.weight
    assert abs(float(term.sum) / term.weight - expected) < EXACT * max(1.0, expected)


def slow_terms(loaded: LoadedModel, made: CausalObjective, numbers: range) -> dict[str, float]:
    """One row at a time, float64: the sum of each term, from the definitions."""
    plan, model = made.plan, loaded.model.double()
    keys, layers = plan.config, LayerMap.of(model).select(tuple(plan.groups))

    def run(view: str, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        row, seen = plan.cases.views[view][n], {}
        hooks = [
            layers.module(layer.name).register_forward_pre_hook(
                lambda _, args, group=layer.group: seen.__setitem__(group, args[0][0])
            )
            for layer in layers
        ]
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        at = [t for t in range(1, len(row)) if row.response[t]]
        R = {f"{g}/prompt": a[at[0] - 1] for g, a in seen.items()}
        R |= {f"{g}/response": a[at].mean(0) for g, a in seen.items()}
        logp = logits[[t - 1 for t in at]].log_softmax(-1)
        return torch.cat([logp, logp.gather(1, torch.tensor([row.ids[t] for t in at])[:, None])], 1), R

    sums = dict.fromkeys(("task", "invariance", "separation", "preference"), 0.0)
    for n in numbers:
        (p, R_b), (q, R_a) = run("benign", n), run("attacked", n)
        sums["task"] -= float(p[:, -1].sum() + q[:, -1].sum())
        sums["invariance"] += keys.lambda_causal * float((p[:, :-1].exp() * (p[:, :-1] - q[:, :-1])).sum())
        others = plan.partners[n].tolist()
        obeyed = [run("obeyed", m)[1] for m in (n, *others)]
        apart, twin = [run("benign", m)[1] for m in others], run("twin", n)[1]
        for name in R_a:
            like = lambda x: torch.cosine_similarity(R_a[name], x[name], dim=0) / keys.temperature  # noqa: B023,E731
            against = sum(like(o).exp() for o in obeyed)
            nce = sum(-torch.log(like(x).exp() / (like(x).exp() + against)) for x in (R_b, twin)) / 2
            half = sum((R_a[name] - x[name]).square().sum() for x in apart) / len(apart) / 2
            left = (half / plan.nulls[name].variance + 1e-8).sqrt()
            sums["separation"] += keys.lambda_spurious * float(nce + (1 - left / keys.guard).clamp(min=0)) / len(R_a)
        assert plan.start is not None
        gain = q[:, -1].sum() - run("payload", n)[0][:, -1].sum() - plan.start[n, 0] + plan.start[n, 1]
        sums["preference"] -= keys.lambda_preference * float(torch.nn.functional.logsigmoid(keys.beta * gain))
    return sums


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_term_agrees_with_its_definition_row_by_row(family: str) -> None:
    loaded = tiny(family)
    made = objective(loaded, **ALL, guard=0.9)
    with torch.no_grad():
        for parameter in loaded.model.parameters():  # away from the start, so that the preference says something
            parameter.mul_(1.05)
    terms = made(loaded.model, batch_of(loaded, range(3)))
    expected = slow_terms(loaded, made, range(3))
    for name, term in terms.items():
        assert_close(float(term.sum), expected[name])
    assert expected["invariance"] > 0


def gradient(loaded: LoadedModel, made: CausalObjective, parts: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of a step that is divided into ``parts``."""
    loaded.model.zero_grad()
    total = {name: sum(made.weights(part)[name] for part in parts) for name in made.weights(parts[0])}
    loss = 0.0
    for part in parts:
        terms: dict[str, Term] = made(loaded.model, part)
        assert {name: term.weight for name, term in terms.items()} == made.weights(part)
        share = sum(term.sum / total[name] for name, term in terms.items())
        share.backward()  # type: ignore[union-attr]
        loss += float(share.detach())  # type: ignore[union-attr]
    return loss, {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("over", ["tokens", "rows"])
def test_a_step_is_the_same_however_it_is_divided(over: Any) -> None:
    loaded = tiny("llama")
    plain = examples(1)
    made = CAUSAL.apply(loaded, plan(CausalConfig(samples=8, guard=0.9, **ALL), loaded, cases(10)), over, plain)
    loaded.model.double()
    extra = [loaded.chat.training(row) for row in plain]
    whole = gradient(loaded, made, [batch_of(loaded, range(8), extra)])
    row = loaded.chat.training(training_rows(cases(1))[0])
    blank = collate([Encoded(row.id, row.ids, (False,) * len(row))], loaded.chat.pad_id)
    single = [batch_of(loaded, range(n, n + 1)) for n in range(8)] + [collate(extra, loaded.chat.pad_id), blank]
    parts = gradient(loaded, made, single)
    assert abs(whole[0] - parts[0]) < EXACT
    assert largest_difference(whole[1], parts[1]) < EXACT


def test_weights_and_training_agree_through_the_loop(tmp_path: Path) -> None:
    results = []
    for part, keys in (("whole", {"batch_size": 4}), ("parts", {"batch_size": 1, "accumulate": 4})):
        loaded = tiny("llama")
        settings = config(steps=2, optimizer="sgd", learning_rate=0.01, **keys)
        made = objective(loaded, **ALL)
        results.append(train(loaded, training_rows(cases(10)), settings, out=tmp_path / part, objective=made))
    assert largest_difference(weights(results[0]), weights(results[1])) < EXACT
    assert {"task", "invariance", "separation", "preference"} <= results[0].curves.keys()


def test_checkpointing_and_adapters_change_no_gradient() -> None:
    found = []
    for checkpointed in (False, True):
        loaded = tiny("llama")
        made = objective(loaded, **ALL)
        torch.manual_seed(0)
        loaded.model = get_peft_model(
            loaded.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        )
        loaded.model.train()
        if checkpointed:
            loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found.append(gradient(loaded, made, [batch_of(loaded, range(3))]))
    assert abs(found[0][0] - found[1][0]) < EXACT
    assert largest_difference(found[0][1], found[1][1]) < EXACT


def test_the_benign_side_is_moved_only_where_that_is_asked_for() -> None:
    loaded = tiny("llama")
    keys: dict[str, Any] = {"lambda_task": 0, "lambda_spurious": 0}
    one, both = (objective(loaded, gradient=side, **keys) for side in ("attacked", "both"))
    batch = batch_of(loaded, range(2))
    loss, own = gradient(loaded, one, [batch])
    other_loss, other = gradient(loaded, both, [batch])
    assert loss == other_loss
    assert largest_difference(own, other) > 1e-4


def test_the_gradient_is_the_derivative_where_all_views_move() -> None:
    loaded = tiny("llama")
    made = objective(loaded, gradient="both", lambda_task=0, lambda_spurious=1.0, twin=True)
    batch, name, size = batch_of(loaded, range(4)), "model.layers.0.mlp.down_proj.weight", 1e-3
    slope = gradient(loaded, made, [batch])[1][name]
    losses = []
    for sign in (-1, 2):
        with torch.no_grad():
            loaded.model.get_parameter(name).add_(sign * size * slope / slope.norm())
        losses.append(gradient(loaded, made, [batch])[0])
    assert (losses[1] - losses[0]) / (2 * size) == pytest.approx(float(slope.norm()), rel=3e-3)


def test_it_composes_with_other_objectives() -> None:
    loaded = tiny("llama")
    steady = objective(loaded, lambda_task=0)
    batch = batch_of(loaded, range(3))
    both = NextToken() + 0.3 * steady
    assert both.weights(batch).keys() == {"loss", "invariance", "separation"}
    with torch.no_grad():
        assert_close(both(loaded.model, batch)["invariance"].sum, 0.3 * steady(loaded.model, batch)["invariance"].sum)


@torch.no_grad()
def test_packed_lines_are_the_same_rows() -> None:
    loaded = tiny("llama")
    made = objective(loaded)
    rows = [loaded.chat.training(row) for row in training_rows(cases(4))]
    packed = Batches(rows, 2, 0, pad_id=0, pack_to=250).step(0)
    plainly = made(loaded.model, collate(rows, 0))
    for name, expected in plainly.items():
        assert_close(sum(float(made(loaded.model, part)[name].sum) for part in packed), float(expected.sum))


def test_a_row_of_no_case_is_refused_and_a_plain_one_is_not() -> None:
    loaded = tiny("llama")
    stranger = loaded.chat.training(examples(1)[0])
    with pytest.raises(DataError, match=r"'row-0' is of no case of the plan"):
        objective(loaded).weights(batch_of(loaded, range(1), [stranger]))
    made = plan(CausalConfig(samples=8), loaded, cases(10))
    found = CAUSAL.apply(loaded, made, plain=examples(1)).weights(batch_of(loaded, range(1), [stranger]))
    assert found["separation"] == 2


def test_a_plain_row_may_not_have_the_id_of_a_case() -> None:
    with pytest.raises(DataError, match=r"Row 'case-train-1/benign' is in the plain rows and a case of the plan"):
        CAUSAL.apply(tiny("llama"), planned(), plain=[replace(examples(1)[0], id="case-train-1/benign")])


def test_a_row_with_other_tokens_than_planned_is_refused() -> None:
    loaded = tiny("llama")
    made = objective(loaded)
    row = loaded.chat.training(training_rows(cases(1))[0])
    with pytest.raises(DataError, match="not the benign view that was planned"):
        made.weights(collate([Encoded(row.id, (*row.ids, 5), (*row.response, True))], 0))


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="plan is of another model"):
        CAUSAL.apply(tiny("llama", seed=1), planned())


def test_validation_cases_are_measured_and_do_not_feed_the_gates(tmp_path: Path) -> None:
    loaded = tiny("llama")
    held_out = cases(4, "validation")
    made = CAUSAL.apply(loaded, plan(CausalConfig(samples=8), loaded, cases(10), held_out))
    settings = config(steps=1, batch_size=4, evaluate_every=1)
    rows = training_rows(held_out)
    result = train(loaded, training_rows(cases(10)), settings, out=tmp_path, objective=made, validation=rows)
    assert result.curves["validation/loss"][0][1] > 0
    assert not made.watch.latest  # 4 of the 8 cases of a window


def test_a_model_whose_representation_is_constant_is_stopped_before_the_step(tmp_path: Path) -> None:
    loaded = tiny("llama")
    made = objective(loaded, n=8, tokens="prompt")
    for block in loaded.model.model.layers:
        block.post_attention_layernorm.weight.data.zero_()  # what the MLP reads
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    with pytest.raises(NumericsError, match=r"collapsed at layers.1.mlp_input/prompt.*before the step"):
        train(loaded, training_rows(cases(8)), config(steps=1, batch_size=8), out=tmp_path, objective=made)
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_a_normal_training_is_not_stopped(tmp_path: Path) -> None:
    loaded = tiny("llama")
    made = objective(loaded)
    train(loaded, training_rows(cases(10)), config(steps=4, batch_size=8), out=tmp_path, objective=made)
    assert made.watch.latest["rank/layers.1.mlp_input/prompt"] > 1.5


def test_the_stock_sum_is_what_cross_entropy_gives_on_the_shifted_text() -> None:
    loaded = tiny("llama")
    row = loaded.chat.training(cases(1)[0].benign())
    logits = loaded.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
    at = [t for t in range(1, len(row)) if row.response[t]]
    total = cross_entropy(logits[[t - 1 for t in at]], torch.tensor([row.ids[t] for t in at]), reduction="sum")
    assert_close(stock(loaded, row)[0], float(total))
