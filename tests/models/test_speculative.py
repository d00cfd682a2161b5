"""Answers that heads guess ahead are those without them, and guesses are what the heads say of the whole text."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.zoo import FAMILIES, tiny
from torch.nn.functional import cross_entropy

from holdfast.core.errors import DataError
from holdfast.data.batches import IGNORE, Batches, Encoded, collate
from holdfast.data.examples import Message
from holdfast.data.lab import rows
from holdfast.methods.token_weighting.alignment import targets_at
from holdfast.models.chat import ChatFormat
from holdfast.models.config import ModelConfig
from holdfast.models.generate import Completion, generate
from holdfast.models.heads import Heads, Kind
from holdfast.models.load import LoadedModel, load_model
from holdfast.models.speculative import Speculated, acceptance, self_speculative

KINDS: tuple[Kind, ...] = ("parallel", "sequential", "medusa")
MOST = 24


def repeating(family: str) -> LoadedModel:
    """A model of few words: guesses of random heads are right now and then. Its rarest word ends an answer."""
    loaded = tiny(family)
    draw = torch.Generator().manual_seed(3)
    weight = loaded.model.get_output_embeddings().weight
    words = torch.randn(4, weight.shape[1], generator=draw)
    with torch.no_grad():
        weight.copy_(words[torch.arange(len(weight)) % 4] * (0.2 + torch.rand(len(weight), 1, generator=draw)))
    said = generate(loaded, prompts_for(loaded, 8), max_new_tokens=MOST, batch_size=8)
    counts = Counter(token for answer in said for token in answer.token_ids)

    class Stops(ChatFormat):
        stop_ids = (min(counts, key=lambda token: (counts[token], token)),)

    return replace(loaded, chat=Stops(loaded.tokenizer))


def stirred(loaded: LoadedModel, kind: Kind, horizon: int) -> Heads:
    heads = Heads(loaded.model, kind, horizon)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in heads.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return heads


def prompts_for(loaded: LoadedModel, count: int, longest: int = 40) -> list[Encoded]:
    draw = random.Random(7)
    texts = ["".join(draw.choices("abc xyz 0123", k=draw.randint(1, longest))) for _ in range(count)]
    return [loaded.chat.prompt([Message("user", text)], id=f"row-{i}") for i, text in enumerate(texts)]


@torch.no_grad()
def by_hand(loaded: LoadedModel, heads: Heads, prompt: Encoded, answer: list[int]) -> list[int]:
    """Tokens that each pass gives where every guess is made from the whole text, without any cache.

    ``answer`` is what plain decoding says, its stop token included.
    """
    heads.eval()
    outputs, made, lengths = heads.unembeddings(loaded.model), 1, []
    while made < len(answer):
        known, guessed = [*prompt.ids, *answer[:made]], []
        for horizon in range(2, 1 + min(heads.horizon, MOST - made)):
            text = [*known, *guessed]
            batch = collate([Encoded("", tuple(text), (False,) * len(text))], pad_id=0)
            state = heads(loaded.model, batch)[horizon - 1][0, len(known) - 2]
            guessed.append(int(outputs[horizon - 1].logits(state).argmax()))
        right = 0
        while right < len(guessed) and guessed[right : right + 1] == answer[made + right : made + right + 1]:
            right += 1
        lengths.append(min(right + 1, len(answer) - made))
        made += lengths[-1]
    return lengths


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_lengths_are_those_of_plain_decoding_and_of_heads_without_a_cache(kind: Kind, family: str) -> None:
    loaded = repeating(family)
    heads, prompts = stirred(loaded, kind, 4), prompts_for(loaded, 8)
    found = self_speculative(loaded, heads, prompts, max_new_tokens=MOST)
    plain = generate(loaded, prompts, max_new_tokens=MOST, batch_size=1)
    assert [answer.completion for answer in found] == plain
    for answer, prompt in zip(found, prompts, strict=True):
        made = [*answer.completion.token_ids, *([-1] if answer.completion.finish == "stop" else [])]
        assert sum(answer.lengths) == len(made) - 1
        assert list(answer.lengths) == by_hand(loaded, heads, prompt, made)
    seen = acceptance(found)
    assert seen.length is not None
    assert (kind, family) == ("sequential", "gpt2") or 1 < seen.length < heads.horizon, (
        "guesses that are right now and then, else nothing is tested"
    )
    assert {answer.finish for answer in plain} == {"stop", "length"}


def test_a_bound_on_new_tokens_and_the_models_context_are_kept_to() -> None:
    loaded = repeating("gpt2")
    heads, prompts = stirred(loaded, "medusa", 4), prompts_for(loaded, 3)
    for most in (1, 2, 5):
        found = self_speculative(loaded, heads, prompts, max_new_tokens=most)
        assert [each.completion for each in found] == generate(loaded, prompts, max_new_tokens=most, batch_size=1)
    whole = [loaded.chat.prompt([Message("user", "x" * 239)], id="long-one")]
    assert len(whole[0]) == 244
    (found_whole,) = self_speculative(loaded, heads, whole, max_new_tokens=12)
    assert found_whole.completion == generate(loaded, whole, max_new_tokens=12, batch_size=1)[0]
    with pytest.raises(DataError, match="Row long-one does not fit the model"):
        self_speculative(loaded, heads, whole, max_new_tokens=13)


def test_figures_of_several_answers_are_over_all_their_passes() -> None:
    done = Completion("", (), "stop")
    one, two = Speculated(done, (3, 1), (2, 2), (1, 1), 0.5), Speculated(done, (1,), (1, 0), (0, 0), 0.25)
    seen = acceptance([one, two])
    assert (seen.passes, seen.length, seen.rates, seen.closest) == (3, 5 / 3, (1 / 3, 0.5), 0.25)
    unguessed = acceptance([Speculated(done, (), (0,), (0,), 1.0)])
    assert (unguessed.passes, unguessed.length, unguessed.rates) == (0, None, (None,))


def test_model_and_heads_are_left_in_the_mode_they_were_in_and_without_hooks() -> None:
    loaded = repeating("llama")
    heads = stirred(loaded, "parallel", 3).train()
    seen: list[int] = []
    self_speculative(loaded, heads, prompts_for(loaded, 2), max_new_tokens=3, progress=seen.append)
    assert seen == [1, 1]
    assert heads.training
    assert not loaded.model.training
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def fitted(loaded: LoadedModel, kind: Kind, steps: int) -> Heads:
    """Heads that have learnt a little of the lab's own rows, the model as it is."""
    heads = Heads(loaded.model, kind, 3)
    loaded.model.requires_grad_(False)
    learnt = [loaded.chat.training(row) for row in rows("alignment", "train", 8 * steps, 0)]
    batches = Batches(learnt, 8, 0, pad_id=loaded.chat.pad_id)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=2e-3)
    for number in range(steps):
        (batch,) = batches.step(number)
        loss = torch.zeros(())
        states, outputs = heads(loaded.model, batch), heads.unembeddings(loaded.model)
        for horizon in (2, 3):
            targets, _ = targets_at(batch, horizon)
            where = targets != IGNORE
            logits = outputs[horizon - 1].logits(states[horizon - 1][where])
            loss = loss + cross_entropy(logits, targets[where])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return heads


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_200_answers_of_the_lab_model_are_those_of_plain_decoding_where_guesses_count(kind: Kind) -> None:
    loaded = load_model(ModelConfig(device="cpu"))
    heads = fitted(loaded, kind, 30)
    asked = [row for row in rows("alignment", "validation", 400, 0) if row.messages][:200]
    prompts = [loaded.chat.prompt(row.messages, id=row.id) for row in asked]
    found = self_speculative(loaded, heads, prompts, max_new_tokens=64)
    plain = generate(loaded, prompts, max_new_tokens=64, batch_size=1)
    assert len(plain) == 200
    assert [answer.completion for answer in found] == plain
    assert sum(any(answer.accepted) for answer in found) >= 50, "guesses count in many of the answers"
