from pathlib import Path

import pytest
import torch
from tests.close import assert_close
from tests.training.helpers import config, run
from tests.zoo import FAMILIES, tiny
from torch.nn.functional import cross_entropy

from holdfast.core.errors import ConfigError, LayerError
from holdfast.data.batches import IGNORE, Batch, Encoded, collate, pack
from holdfast.training.objective import NextToken, Term


def some_rows(n: int = 6) -> list[Encoded]:
    dice = torch.Generator().manual_seed(1)
    out = []
    for i in range(n):
        length = 5 + 7 * i
        ids = tuple(torch.randint(10, 200, (length,), generator=dice).tolist())
        out.append(Encoded(f"r{i}", ids, tuple(j >= 2 + i for j in range(length))))
    return out


def oracle(model: torch.nn.Module, rows: list[Encoded]) -> tuple[float, int]:
    """One row at a time, the full logits, a Python loop over response tokens, float64."""
    total, n = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].double()
        for t in range(1, len(row)):
            if row.response[t]:
                total -= torch.log_softmax(logits[t - 1], -1)[row.ids[t]].item()
                n += 1
    return total, n


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_loss_is_over_response_tokens_only(family: str) -> None:
    model, rows = tiny(family).model, some_rows()
    term = NextToken()(model, collate(rows, 0))["loss"]
    total, n = oracle(model, rows)
    assert term.weight == n
    assert_close(term.sum / n, total / n)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_a_loss_over_rows_is_the_mean_of_each_rows_own_mean(packed: bool) -> None:
    model, rows = tiny("llama").model, some_rows()
    objective, batch = NextToken(over="rows"), collate(pack(rows, 64) if packed else rows, 0)
    term = objective(model, batch)["loss"]
    means = [total / n for total, n in (oracle(model, [row]) for row in rows)]
    assert term.weight == objective.weights(batch)["loss"] == len(rows)
    assert_close(term.sum / term.weight, sum(means) / len(means))


KERNELS = [
    (family, kernel) for family in FAMILIES for kernel in ("sdpa", "eager") if (family, kernel) != ("gemma2", "sdpa")
]
"""Gemma 2 caps its attention logits, which sdpa cannot do."""


@pytest.mark.parametrize(("family", "kernel"), KERNELS)
def test_packing_equals_not_packing_in_loss_and_gradient(family: str, kernel: str) -> None:
    model, rows = tiny(family).model, some_rows()
    model.set_attn_implementation(kernel)
    lines = pack(rows, 64)
    assert len(lines) < len(rows)
    found = {}
    for name, batch in {"packed": collate(lines, 0), "plain": collate(rows, 0)}.items():
        model.zero_grad()
        term = NextToken()(model, batch)["loss"]
        (term.sum / term.weight).backward()
        found[name] = (
            term.sum.item() / term.weight,
            {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        )
    assert abs(found["packed"][0] - found["plain"][0]) < 1e-5
    for name, gradient in found["plain"][1].items():
        assert_close(found["packed"][1][name], gradient)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_no_packed_row_sees_another(family: str) -> None:
    model = tiny(family).model
    a, b, changed = some_rows()[2], some_rows()[3], Encoded("x", tuple(range(50, 60)), (True,) * 10)
    one, two = collate([(changed, b)], 0), collate([(a, b)], 0)
    first, second = (model(**batch.model_inputs()).logits[0, -len(b) :] for batch in (one, two))
    assert_close(first, second)


@torch.no_grad()
def test_loss_equals_the_stock_loss() -> None:
    model, batch = tiny("llama").model, collate(some_rows(), 0)
    stock = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    term = NextToken()(model, batch)["loss"]
    assert abs(stock.item() - term.sum.item() / term.weight) < 1e-6


def test_weights_are_known_before_the_forward_pass() -> None:
    batch = collate(some_rows(), 0)
    term = NextToken()(tiny("llama").model, batch)["loss"]
    assert NextToken().weights(batch) == {"loss": term.weight}


def test_loss_is_float32_under_bf16_autocast() -> None:
    model, batch = tiny("llama").model, collate(some_rows(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        term = NextToken()(model, batch)["loss"]
    assert term.sum.dtype == torch.float32


def test_a_batch_without_targets_has_loss_zero_and_gradient_zero() -> None:
    model = tiny("llama").model
    term = NextToken()(model, collate([Encoded("a", (5, 6, 7), (False,) * 3)], 0))["loss"]
    term.sum.backward()
    assert term.weight == 0
    assert term.sum.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_sum_and_scale_act_on_sums_not_on_weights() -> None:
    model, batch = tiny("llama").model, collate(some_rows(), 0)
    plain = NextToken()(model, batch)["loss"]
    both = NextToken("a") + 0.25 * NextToken("b")
    terms = both(model, batch)
    assert both.weights(batch) == {"a": plain.weight, "b": plain.weight}
    assert_close(terms["a"].sum, plain.sum)
    assert_close(terms["b"].sum, 0.25 * plain.sum)
    assert terms["b"].weight == plain.weight


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="both have a term 'loss'"):
        (NextToken() + NextToken()).weights(collate(some_rows(), 0))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(LayerError, match="no output head"):
        NextToken()(tiny("llama").model.model, collate(some_rows(), 0))


@torch.no_grad()
def test_head_runs_on_learnt_positions_only() -> None:
    model, batch = tiny("llama").model, collate(some_rows(), 0)
    seen: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, out: seen.append(tuple(out.shape)))
    NextToken()(model, batch)
    hook.remove()
    learnt = int((batch.labels != IGNORE).sum())
    assert seen == [(1, learnt, model.config.vocab_size)]
    whole = model(**batch.model_inputs()).logits
    assert whole.shape[:2] == batch.input_ids.shape  # the hook is gone afterwards


def test_shift_agrees_with_a_hand_computed_value() -> None:
    """A model that always predicts token 3 with logit 2 and every other of 4 tokens with 0."""

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 4)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            logits = self.head(torch.zeros(*input_ids.shape, 1))
            return type("Out", (), {"logits": logits})

    model = Flat()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0]))
    batch: Batch = collate([Encoded("a", (1, 3, 2), (True, True, True))], 0)
    term = NextToken()(model, batch)["loss"]
    by_hand = cross_entropy(torch.tensor([[0.0, 0.0, 0.0, 2.0]] * 2), torch.tensor([3, 2]), reduction="sum")
    assert term.weight == 2
    assert_close(term.sum, by_hand)


class Beside(NextToken):
    """Trains one number beside the model, and says what happens to it."""

    def __init__(self, name: str, module: str = "bias") -> None:
        super().__init__(name)
        object.__setattr__(self, "own", {module: torch.nn.Linear(1, 1)})
        object.__setattr__(self, "seen", [])

    def __call__(self, model: torch.nn.Module, batch: Batch) -> dict[str, Term]:
        (own,) = self.own.values()  # type: ignore[attr-defined]
        term = super().__call__(model, batch)[self.name]
        return {self.name: Term(term.sum + term.weight * own(torch.ones(1)).square().sum(), term.weight)}

    def modules(self) -> dict[str, torch.nn.Module]:
        return dict(self.own)  # type: ignore[attr-defined]

    def begin(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))  # type: ignore[attr-defined]

    def figures(self) -> dict[str, float]:
        return {f"{self.name}/steps": float(len(self.seen))}  # type: ignore[attr-defined]

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        assert not hasattr(model, "beside")
        self.seen.append(folder.name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("params", ["full", "lora"])
def test_what_an_objective_trains_beside_the_model_learns_and_is_taken_out_again(tmp_path: Path, params: str) -> None:
    one, other = Beside("a"), Beside("b", "scale")
    before = [p.detach().clone() for each in (one, other) for m in each.modules().values() for p in m.parameters()]
    result = run(tmp_path, config(steps=2, params=params), n=8, objective=one + 0.5 * other)
    after = [p for each in (one, other) for m in each.modules().values() for p in m.parameters()]
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert one.seen == other.seen == [(0, 2), (1, 2), result.folder.name]  # type: ignore[attr-defined]
    assert result.curves["b/steps"] == [(1, 1.0), (2, 2.0)]
    assert not any("beside" in name for name, _ in result.model.model.named_parameters())


def test_two_modules_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="both have a module 'bias'"):
        (Beside("a") + Beside("b")).modules()
