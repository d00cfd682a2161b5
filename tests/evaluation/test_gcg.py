"""The search by gradients: its gradient is right, its loss never rises, and what it finds is a text."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tests.close import assert_close
from tests.evaluation.attack_cases import case
from tests.zoo import tiny
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.data.examples import Example
from holdfast.evaluation.attacks.config import GcgConfig
from holdfast.evaluation.attacks.defences import DEFENCES
from holdfast.evaluation.attacks.gcg import Searcher, Suffix, gcg
from holdfast.evaluation.attacks.gcg_maths import substitutions, target_loss
from holdfast.evaluation.attacks.perplexity import build_guard
from holdfast.evaluation.attacks.tasks import ATTACK_TASKS, LOSS, QUERIES, AttackTask
from holdfast.evaluation.judges.injection import INJECTION
from holdfast.evaluation.log import Record
from holdfast.models.load import LoadedModel

TASK = AttackTask(name="attack/gcg", max_new_tokens=4).task
BUDGET = GcgConfig(steps=4, width=8, candidates=8, length=3, cases=2)


def searcher(loaded: LoadedModel, defence: str = "none") -> Searcher:
    return Searcher(loaded, build_guard(defence, loaded, (), 0.01, 8), TASK, INJECTION, BUDGET)


def in_float64(family: str) -> LoadedModel:
    loaded = tiny(family)
    loaded.model = deepcopy(loaded.model).double()
    return loaded


def with_slopes(loaded: LoadedModel) -> tuple[Searcher, Suffix, Tensor]:
    search = searcher(loaded)
    suffix = search.suffix(case(1))
    assert suffix is not None
    return search, suffix, search.gradient(suffix)


def whole_of(search: Searcher, suffix: Suffix) -> tuple[Tensor, Tensor, int]:
    """The embeddings of the vocabulary, all tokens of prompt and target, and how many logits at the end count."""
    embed = search._loaded.model.get_input_embeddings()
    table_vd = embed(torch.arange(embed.num_embeddings)).detach()
    return table_vd, torch.tensor([[*suffix.whole(suffix.ids_l), *suffix.target]]), len(suffix.target) + 1


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_gradient_is_that_of_the_loss_by_one_hot_rows(family: str) -> None:
    """By autograd through the product of one-hot rows and table, in float64 but for what the family does in float32."""
    search, suffix, slopes_lv = with_slopes(in_float64(family))
    table_vd, ids_t, kept = whole_of(search, suffix)
    chosen_lv = one_hot(torch.tensor(suffix.ids_l), len(table_vd)).double().requires_grad_()
    rows_td = table_vd[ids_t[0]]
    start, end = len(suffix.before), len(suffix.before) + len(suffix.ids_l)
    rows_td = torch.cat([rows_td[:start], chosen_lv @ table_vd, rows_td[end:]])
    logits = search._loaded.model(inputs_embeds=rows_td[None], use_cache=False).logits[:, -kept:-1]
    torch.autograd.backward(target_loss(logits, ids_t[0, 1 - kept :])[0])
    assert_close(slopes_lv, chosen_lv.grad)


def test_the_gradient_is_the_slope_that_small_changes_show() -> None:
    """Central differences in float64."""
    search, suffix, slopes_lv = with_slopes(in_float64("gpt2"))
    table_vd, ids_t, kept = whole_of(search, suffix)

    def loss(place: int, token: int, change: float) -> float:
        rows_td = table_vd[ids_t]
        rows_td[0, len(suffix.before) + place] += change * table_vd[token]
        with torch.no_grad():
            logits = search._loaded.model(inputs_embeds=rows_td, use_cache=False).logits[:, -kept:-1]
        return float(target_loss(logits, ids_t[0, 1 - kept :])[0])

    for place, token in ((0, 40), (1, 90), (2, 200)):
        step = 1e-5
        numeric = (loss(place, token, step) - loss(place, token, -step)) / (2 * step)
        assert float(slopes_lv[place, token]) == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("defence", ["none", "spotlighting", "sandwich"])
def test_the_loss_never_rises_and_the_suffix_is_a_text_that_is_read_as_its_tokens(defence: str) -> None:
    loaded = tiny("llama")
    search = searcher(loaded, defence)
    suffix = search.suffix(case(1))
    assert suffix is not None
    first, _ = search.look(suffix, [suffix.ids_l], 8)
    suffix.losses.append(float(first[0]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        search.step(suffix, generator, 8)
    assert suffix.losses == sorted(suffix.losses, reverse=True)
    assert suffix.losses[-1] < suffix.losses[0]
    (text,) = search.texts(suffix, [suffix.ids_l])
    change = DEFENCES[defence].change
    assert change is not None
    shown = change(case(1).with_injection(case(1).injection + text).attacked())
    assert shown is not None
    prompt = loaded.chat.prompt(shown.messages)
    assert prompt.ids == suffix.whole(suffix.ids_l)
    last, _ = search.look(suffix, [prompt.ids[len(suffix.before) :][: len(suffix.ids_l)]], 8)
    assert_close(last[0], suffix.losses[-1])


def test_losses_of_a_batch_are_those_of_one_by_one() -> None:
    search = searcher(tiny("llama"))
    suffix = search.suffix(case(1))
    assert suffix is not None
    many = [(40 + n, 50, 60) for n in range(7)]
    whole, _ = search.look(suffix, many, 7)
    alone = torch.cat([search.look(suffix, [ids], 1)[0] for ids in many])
    assert_close(whole, alone)
    assert suffix.queries == 14


def test_substitutions_change_one_allowed_place_to_one_of_the_steepest() -> None:
    generator = torch.Generator().manual_seed(1)
    slopes_lv = torch.randn(4, 30, generator=generator)
    allowed_v = torch.ones(30, dtype=torch.bool)
    allowed_v[:10] = False
    suffix_l = torch.tensor([10, 11, 12, 13])
    made = substitutions(slopes_lv, allowed_v, suffix_l, candidates=3, width=200, generator=generator)
    for row in made:
        (place,) = (row != suffix_l).nonzero()[:, 0].tolist()
        steepest = sorted((v for v in range(10, 30) if v != suffix_l[place]), key=lambda v: float(slopes_lv[place, v]))
        assert int(row[place]) in steepest[:3]
    assert len(made) == len({tuple(row.tolist()) for row in made}) == 12


def test_a_case_that_falls_at_once_needs_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda row: row.payload_answer)
    (record,) = run(tiny("llama"))
    assert record.scores[INJECTION.name].outcome == "followed"
    assert record.scores[QUERIES].value == 2


def test_a_case_that_never_falls_costs_its_budget_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda row: row.reference)
    (record,) = run(tiny("llama"))
    assert record.scores[INJECTION.name].outcome == "task_done"
    assert BUDGET.steps < (record.scores[QUERIES].value or 0) <= 2 + BUDGET.steps * (BUDGET.width + 1)
    assert (record.scores[LOSS].value or 0) > 0
    assert record.sample.example == case(1).attacked()
    assert "zx1." in record.prompt


def test_a_filter_that_takes_the_suffix_out_leaves_nothing_to_search(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda row: row.payload_answer)
    (record,) = run(tiny("llama"), "keyword_block")
    assert record.scores[INJECTION.name].outcome == "refused"
    assert record.scores[LOSS].value is None


def run(loaded: LoadedModel, defence: str = "none") -> list[Record]:
    guard = build_guard(defence, loaded, (), 0.01, 8)
    return gcg(loaded, guard, TASK, INJECTION, [case(1)], BUDGET, batch_size=8, seed=0)


def answers(monkeypatch: pytest.MonkeyPatch, say: Callable[[Example], str]) -> None:
    from holdfast.evaluation.judges.base import Sample

    monkeypatch.setattr(
        "holdfast.evaluation.attacks.guard.answer",
        lambda loaded, task, asked, *_: [Sample(one.example, say(one.example), "stop") for one in asked],
    )


def test_the_search_is_a_part_of_the_attack() -> None:
    assert TASK.max_new_tokens == 4
    assert ATTACK_TASKS["attack/gcg"].metric == "followed"
