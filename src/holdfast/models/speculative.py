"""Greedy decoding in which the heads guess ahead and the model checks: its own answers in fewer passes.

A pass reads the newest token and the guesses behind it. Row by row it says which token the model itself would have
chosen; guesses count as far as they are the same, and the model's own choice behind them comes on top. So every token
is the model's, whatever the heads guess (Stern et al., NeurIPS 2018; Leviathan et al., ICML 2023).

The same up to rounding: a pass over several tokens sums in another order than a pass over one. Where the best two
logits are closer than that, either may be chosen; `Speculated.closest` says how close they came. In float32 that is a
matter of 1e-5, in bfloat16 ties are common.

One prompt at a time. The blocks of heads keep keys and values of their own, in step with the model's; what was read
for guesses that did not count is taken back from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from holdfast.data.batches import Encoded
from holdfast.models.cache import BlockCache, SlotCache
from holdfast.models.generate import Completion, check_context, evaluating
from holdfast.models.heads.kinds import Heads, in_dtype, normed
from holdfast.models.heads.trunk import Trunk, Unembedding, bare_of, decoder_of, watched
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Speculated:
    """An answer, and how far the guesses were right."""

    completion: Completion
    lengths: tuple[int, ...]
    """Tokens that each pass over guesses gave: those that counted and the model's own; a stop token is one of them.
    The pass over the prompt, which has no guesses, is left out."""
    offered: tuple[int, ...]
    """Guesses of each head, from horizon 2; those for tokens behind the end of the answer are left out."""
    accepted: tuple[int, ...]
    """How many of them counted. A right guess behind a wrong one does not."""
    closest: float
    """The smallest difference between the best two logits where a token was chosen."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How far guesses were right, over several answers."""

    passes: int
    """Passes over guesses."""
    length: float | None
    """Tokens a pass, on average: 1 where no guess counts, the horizon where all do; none without a pass."""
    rates: tuple[float | None, ...]
    """Share of the guesses of each head that counted, from horizon 2; none where it made none."""
    closest: float
    """See `Speculated.closest`."""


def acceptance(answers: Sequence[Speculated]) -> Acceptance:
    """Over all passes of ``answers``, at least one."""
    passes = sum(len(answer.lengths) for answer in answers)
    tokens = sum(sum(answer.lengths) for answer in answers)
    offered = [sum(column) for column in zip(*(answer.offered for answer in answers), strict=True)]
    accepted = [sum(column) for column in zip(*(answer.accepted for answer in answers), strict=True)]
    rates = tuple(part / whole if whole else None for part, whole in zip(accepted, offered, strict=True))
    return Acceptance(passes, tokens / passes if passes else None, rates, min(answer.closest for answer in answers))


@torch.inference_mode()
def self_speculative(
    loaded: LoadedModel,
    heads: Heads,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Speculated]:
    """The greedy answers of `holdfast.models.generate.generate`, guessed ahead by ``heads``, one prompt at a time.

    Args:
        heads: Those trained with the model. They change how many passes there are, never the answers.
        progress: Called with 1 after each answer.
    Raises:
        DataError: a prompt and its answer do not fit the model's context; the message names the row.
        ConfigError: the model keeps something other than keys and values.
        LayerError: the model has no block or output head as the heads need it.
    """
    check_context(loaded, prompts, max_new_tokens)
    decoder = None if heads.kind == "medusa" else decoder_of(loaded.model)
    seen = (slice(None), slice(-heads.horizon, None))
    out = []
    with evaluating(loaded.model), evaluating(heads), watched(loaded.model, decoder, seen) as trunk:
        outputs = heads.unembeddings(loaded.model)[1:]
        for prompt in prompts:
            out.append(_Answer(loaded, prompt, max_new_tokens, _Guesses(loaded.model, heads, outputs, trunk)).whole())
            if progress is not None:
                progress(1)
    return out


class _Answer:
    """One answer in the making.

    ``known`` are prompt and answer so far; the first ``read`` of them stand in the caches. Of the others the newest
    has not been read yet, and heads that chain have the few before it read again.
    """

    def __init__(self, loaded: LoadedModel, prompt: Encoded, most: int, guesses: _Guesses) -> None:
        self._loaded, self._guesses, self._stops = loaded, guesses, set(loaded.chat.stop_ids)
        self._cache = SlotCache(loaded.model.config)
        self._known, self._read = list(prompt.ids), 0
        self._prompt, self._longest = len(prompt.ids), len(prompt.ids) + most
        self._lengths: list[int] = []
        self._offered, self._accepted = ([0] * guesses.most for _ in range(2))
        self._closest = math.inf

    def whole(self) -> Speculated:
        """Pass after pass until a stop token or the last token allowed."""
        guessed: list[int] = []
        while True:
            chosen, agreed = self._check(guessed)
            stop = next((i for i, token in enumerate(chosen) if token in self._stops), None)
            ended = stop is not None or len(self._known) + len(chosen) >= self._longest
            if len(self._known) > self._prompt:
                self._count(len(guessed), agreed, len(chosen), ended)
            self._known += chosen[:stop]
            if ended:
                return self._result("length" if stop is None else "stop")
            guessed = self._go_on(len(guessed) - agreed)

    def _check(self, guessed: list[int]) -> tuple[list[int], int]:
        """The model's own next tokens up to a stop, as far as guesses lead, and how many guesses are the same."""
        window, device = self._known[self._read :] + guessed, self._loaded.model.device
        end = self._read + len(window)
        logits = self._loaded.model(
            input_ids=torch.tensor([window], device=device),
            attention_mask=torch.ones(1, end, dtype=torch.long, device=device),
            position_ids=torch.arange(self._read, end, device=device)[None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[0, -1 - len(guessed) :]
        chosen = logits.argmax(-1).tolist()
        agreed = next((i for i, token in enumerate(guessed) if token != chosen[i]), len(guessed))
        given = next((i + 1 for i, token in enumerate(chosen[:agreed]) if token in self._stops), agreed + 1)
        best = logits[:given].float().topk(2).values
        self._closest = min(self._closest, float((best[:, 0] - best[:, 1]).min()))
        return chosen[:given], agreed

    def _go_on(self, wrong: int) -> list[int]:
        """New guesses; then what was read behind the last settled position leaves the caches."""
        left = self._longest - len(self._known)
        guessed = self._guesses.make(self._known, self._read, left - 1)
        end, self._read = len(self._known) - 1 + wrong, max(0, len(self._known) - 1 - self._guesses.back)
        caches: list[Cache] = [self._cache, *self._guesses.caches]
        for cache in caches:
            cache.crop(end - self._read)
        return guessed

    def _count(self, guessed: int, agreed: int, given: int, ended: bool) -> None:
        self._lengths.append(given)
        for i in range(min(guessed, given) if ended else guessed):
            self._offered[i] += 1
            self._accepted[i] += i < agreed

    def _result(self, finish: Literal["stop", "length"]) -> Speculated:
        made = tuple(self._known[self._prompt :])
        completion = Completion(self._loaded.chat.decode(made), made, finish)
        return Speculated(completion, tuple(self._lengths), tuple(self._offered), tuple(self._accepted), self._closest)


class _Guesses:
    """What the heads guess after each pass over the model, which ``trunk`` holds."""

    def __init__(self, model: Any, heads: Heads, outputs: Sequence[Unembedding], trunk: Trunk) -> None:
        self._model, self._heads, self._outputs, self._trunk = model, heads, outputs, trunk
        self._dtype = next(heads.parameters()).dtype
        self._norm = decoder_of(model).norm if heads.kind == "parallel" else None
        self.most = len(heads.heads)
        self.back = self.most - 1 if heads.kind == "sequential" else 0
        """How many settled positions a pass reads again: a head that chains has read guesses there."""
        self.caches = [] if heads.kind == "medusa" else [BlockCache() for _ in heads.heads]

    def make(self, known: list[int], start: int, count: int) -> list[int]:
        """Tokens that may follow ``known``, at most ``count`` of them.

        Args:
            known: All tokens, the newest of them not read yet.
            start: The position at which the pass over the model began.
            count: Never more than before.
        """
        count = min(count, self.most)
        del self.caches[count:]
        if not count:
            return []
        at = len(known) - 2 - start
        if self._heads.kind == "sequential":
            return self._chained(known, start, at, count)
        states = self._parallel(at, count) if self._heads.kind == "parallel" else self._medusa(at, count)
        return [self._token(i, state) for i, state in enumerate(states)]

    def _medusa(self, at: int, count: int) -> list[Tensor]:
        read = self._trunk.final[0, at].to(self._dtype)
        return [head(read) for head in self._heads.heads[:count]]

    def _parallel(self, at: int, count: int) -> list[Tensor]:
        assert self._norm is not None
        read = self._trunk.stream.to(self._dtype)
        return [normed(self._norm, self._heads.heads[i](read, *self._call(i))[0, at]) for i in range(count)]

    def _chained(self, known: list[int], start: int, at: int, count: int) -> list[int]:
        """Each head reads the guesses of those before it. What stands behind the known tokens is read, and taken back
        later."""
        previous, embeddings = self._trunk.final.to(self._dtype), bare_of(self._model).get_input_embeddings()
        guessed: list[int] = []
        width = previous.shape[1]
        for i in range(count):
            ids = (known + guessed)[start + i + 1 :][:width]
            ids += [0] * (width - len(ids))
            embedded = embeddings(torch.tensor([ids], device=previous.device)).to(self._dtype)
            previous, state = self._heads.heads[i](embedded, previous, *self._call(i))
            guessed.append(self._token(i, state[0, at]))
        return guessed

    def _call(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the model called its last block, with the head's own keys and values."""

        def own(value: Any) -> Any:
            return self.caches[i] if isinstance(value, Cache) else in_dtype(value, self._dtype)

        return tuple(map(own, self._trunk.args)), {name: own(value) for name, value in self._trunk.kwargs.items()}

    def _token(self, i: int, state: Tensor) -> int:
        output = self._outputs[i]
        return int(output.logits(state.to(output.weight_vd.dtype)).argmax())
