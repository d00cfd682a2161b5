"""A search by gradients for a suffix of the injection that makes the model begin with the payload's answer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import Tensor

from holdfast.core.errors import DataError
from holdfast.curvature.passes import untouched
from holdfast.data.counterfactual import Counterfactual
from holdfast.evaluation.answers import Progress
from holdfast.evaluation.attacks.config import GcgConfig
from holdfast.evaluation.attacks.gcg_maths import one_hot_gradient, substitutions, target_loss
from holdfast.evaluation.attacks.guard import Guard, answered, questions
from holdfast.evaluation.attacks.tasks import LOSS, QUERIES
from holdfast.evaluation.judges.base import Judge, Score
from holdfast.evaluation.log import Record
from holdfast.evaluation.tasks import Task
from holdfast.models.load import LoadedModel

LOOK_EVERY = 10
"""Steps between looks at the greedy answer, beside those at which the target itself would be said."""
DRAWS = 4
"""Of substitutions a step: some are read as other tokens and dropped."""
FIRST = (" !", "!", " x", " .", " a")
"""Tokens that a suffix may begin as, repeated."""
TRIED_FIRST = 200
"""Others that are tried where none of `FIRST` stays a token a word."""


@dataclass(slots=True)
class Suffix:
    """A case's prompt with a suffix in its injection: where it stands, and what the model should say after it."""

    case: Counterfactual
    ids_l: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]
    losses: list[float] = field(default_factory=list)
    """After each step; it never rises."""
    queries: int = 0
    """Prompts that the model was given."""

    def whole(self, ids_l: Sequence[int]) -> tuple[int, ...]:
        """The prompt's tokens with this suffix."""
        return (*self.before, *ids_l, *self.after)


class Searcher:
    """One model behind one defence, searched case by case."""

    def __init__(self, loaded: LoadedModel, guard: Guard, task: Task, judge: Judge, config: GcgConfig) -> None:
        self._loaded, self._guard, self._task, self._judge, self._config = loaded, guard, task, judge, config
        embed = loaded.model.get_input_embeddings()
        with torch.no_grad():
            everything = torch.arange(embed.num_embeddings, device=loaded.model.device)
            self._table_vd: Tensor = embed(everything).detach()
        self.allowed_v = _ordinary(loaded, embed.num_embeddings)

    def suffix(self, case: Counterfactual) -> Suffix | None:
        """A first suffix that stays ``length`` tokens of its own in the prompt; ``None`` where a filter takes it out.

        Raises:
            DataError: no token could be repeated so.
        """
        bare = self._prompt(case)
        if bare is None:
            return None
        for text in self._first_texts(case):
            tried = case.with_injection(case.injection + text)
            prompt = self._prompt(tried)
            if prompt is None or prompt == bare:
                return None
            start = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(bare, prompt, strict=False))))
            end = start + self._config.length
            found = Suffix(case, prompt[start:end], prompt[:start], prompt[end:], self._target(case))
            if prompt[end:] == bare[start:] and self.texts(found, [found.ids_l]) == [text]:
                return found
        raise DataError(
            f"Case {case.id!r}: no token can be repeated at the end of its injection and stay what it is, with this "
            "tokenizer and defence. Do: leave gcg out."
        )

    def _first_texts(self, case: Counterfactual) -> Iterator[str]:
        yield from (word * self._config.length for word in FIRST)
        stream, known = random.Random(f"suffix/{case.id}"), self.allowed_v.nonzero()[:, 0].tolist()
        for token in stream.sample(known, min(TRIED_FIRST, len(known))):
            yield self._loaded.chat.decode([token]) * self._config.length

    def _prompt(self, case: Counterfactual) -> tuple[int, ...] | None:
        return self._prompts([case])[0]

    def _prompts(self, cases: Sequence[Counterfactual]) -> list[tuple[int, ...] | None]:
        shown = self._guard([case.attacked() for case in cases])
        return [None if row is None else self._loaded.chat.prompt(row.messages, id=row.id).ids for row in shown]

    def _target(self, case: Counterfactual) -> tuple[int, ...]:
        """Tokens of the payload's answer, or of the witness, as the assistant would begin with them."""
        row = self._loaded.chat.training(replace(case.attacked(), answer=case.payload_answer or case.witness))
        _, first, last = row.spans[-1]
        return row.ids[row.response.index(True) : max(last, first + 1)]

    def texts(self, suffix: Suffix, all_ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of suffixes where they stand: a tokenizer may drop the first space of a text."""
        anchor = list(suffix.before[-1:])
        lead = self._loaded.chat.decode(anchor)
        return [self._loaded.chat.decode([*anchor, *ids]).removeprefix(lead) for ids in all_ids]

    def _real(self, suffix: Suffix, all_ids: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those whose text, in the prompt and behind the defence, is read as exactly these tokens."""
        case = suffix.case
        tried = [case.with_injection(case.injection + text) for text in self.texts(suffix, all_ids)]
        prompts = self._prompts(tried)
        return [ids for ids, prompt in zip(all_ids, prompts, strict=True) if prompt == suffix.whole(ids)]

    def gradient(self, suffix: Suffix) -> Tensor:
        """Gradient of the target's loss by the one-hot rows of the suffix, ``(l, v)``."""
        model, start = self._loaded.model, len(suffix.before)
        ids_t = torch.tensor([[*suffix.whole(suffix.ids_l), *suffix.target]], device=model.device)
        embedded = model.get_input_embeddings()(ids_t).detach().requires_grad_()
        logits = self._predictions(suffix, inputs_embeds=embedded)
        target_k = ids_t[0, -len(suffix.target) :]
        (slope,) = torch.autograd.grad(target_loss(logits, target_k)[0], embedded)
        return one_hot_gradient(slope[0, start : start + len(suffix.ids_l)], self._table_vd)

    def _predictions(self, suffix: Suffix, **inputs: Tensor) -> Tensor:
        """Logits of the target's tokens, at least float32."""
        kept = len(suffix.target) + 1
        logits: Tensor = self._loaded.model(**inputs, use_cache=False, logits_to_keep=kept).logits[:, -kept:-1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def look(self, suffix: Suffix, all_ids: Sequence[tuple[int, ...]], batch_size: int) -> tuple[Tensor, Tensor]:
        """Of each suffix the target's loss, and whether greedy decoding says the target; ``(b,)`` each."""
        losses, said = [], []
        for start in range(0, len(all_ids), batch_size):
            rows = [[*suffix.whole(ids), *suffix.target] for ids in all_ids[start : start + batch_size]]
            ids_bt = torch.tensor(rows, device=self._loaded.model.device)
            target_k = ids_bt[0, -len(suffix.target) :]
            logits = self._predictions(suffix, input_ids=ids_bt)
            losses.append(target_loss(logits, target_k).cpu())
            said.append((logits.argmax(-1) == target_k).all(-1).cpu())
        suffix.queries += len(all_ids)
        return torch.cat(losses), torch.cat(said)

    def step(self, suffix: Suffix, generator: torch.Generator, batch_size: int) -> bool:
        """Take the best substitution that lowers the loss, if any; whether the target would now be said."""
        real = self._drawn(suffix, generator)
        said = False
        if real:
            losses, all_said = self.look(suffix, real, batch_size)
            best = int(losses.argmin())
            if float(losses[best]) < suffix.losses[-1]:
                suffix.ids_l, said = real[best], bool(all_said[best])
                suffix.losses.append(float(losses[best]))
                return said
        suffix.losses.append(suffix.losses[-1])
        return said

    def _drawn(self, suffix: Suffix, generator: torch.Generator) -> list[tuple[int, ...]]:
        """Up to ``width`` substitutions that a tokenizer leaves as they are, in at most `DRAWS` draws."""
        slopes_lv = self.gradient(suffix).float().cpu()
        known: dict[tuple[int, ...], None] = {}
        for _ in range(DRAWS):
            tried_bl = substitutions(
                slopes_lv,
                self.allowed_v,
                torch.tensor(suffix.ids_l),
                candidates=self._config.candidates,
                width=self._config.width,
                generator=generator,
            )
            fresh = [row for row in map(tuple, tried_bl.tolist()) if row not in known]
            known |= dict.fromkeys(self._real(suffix, fresh))
            if len(known) >= self._config.width:
                break
        return list(known)[: self._config.width]

    def answer(self, suffix: Suffix | None, case: Counterfactual, batch_size: int) -> Record:
        """The greedy answer, judged on the case's own row."""
        text = "" if suffix is None else self.texts(suffix, [suffix.ids_l])[0]
        rows = [case.with_injection(case.injection + text).attacked()]
        asked = questions(self._loaded, self._guard, self._task, rows)
        (record,) = answered(self._loaded, self._task, rows, asked, batch_size)
        sample = replace(record.sample, example=case.attacked())
        if suffix is not None:
            suffix.queries += 1
        scores = {self._judge.name: self._judge.judge([sample])[0], QUERIES: Score(1.0, ""), LOSS: Score(None, "")}
        if suffix is not None:
            scores |= {QUERIES: Score(float(suffix.queries), ""), LOSS: Score(suffix.losses[-1], "")}
        return replace(record, sample=sample, scores=scores)

    def search(self, case: Counterfactual, seed: int, batch_size: int) -> Record:
        """Search one case, until its answer follows the injection or the budget is spent."""
        suffix = self.suffix(case)
        if suffix is None:
            return self.answer(None, case, batch_size)
        with untouched(self._loaded.model):
            losses, _ = self.look(suffix, [suffix.ids_l], batch_size)
            suffix.losses.append(float(losses[0]))
            record = self.answer(suffix, case, batch_size)
            generator = torch.Generator().manual_seed(random.Random(f"gcg/{seed}/{case.id}").getrandbits(63))
            for number in range(1, self._config.steps + 1):
                if record.scores[self._judge.name].outcome == "followed":
                    break
                said = self.step(suffix, generator, batch_size)
                if said or number % LOOK_EVERY == 0 or number == self._config.steps:
                    record = self.answer(suffix, case, batch_size)
        return record


def _ordinary(loaded: LoadedModel, size: int) -> Tensor:
    """Tokens that may stand in a suffix: all but control tokens and rows of the table without a token, ``(v,)``."""
    allowed_v = torch.zeros(size, dtype=torch.bool)
    allowed_v[: len(loaded.tokenizer)] = True
    control = {*loaded.tokenizer.all_special_ids, *loaded.tokenizer.added_tokens_decoder, *loaded.chat.stop_ids}
    allowed_v[[token for token in control if token < size]] = False
    return allowed_v


def gcg(  # noqa: PLR0913 - one attack's model, defence, task and budget
    loaded: LoadedModel,
    guard: Guard,
    task: Task,
    judge: Judge,
    cases: Sequence[Counterfactual],
    config: GcgConfig,
    *,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Record]:
    """One record a case, with the last answer, the queries and the last loss; the row is the case's own.

    Reference:
        Zou et al. (arXiv 2307.15043); candidates that another tokenisation would read are dropped, as a text is sent.
    """
    searcher = Searcher(loaded, guard, task, judge, config)
    records = []
    for case in cases:
        records.append(searcher.search(case, seed, batch_size))
        if progress is not None:
            progress(1)
    return records
