"""Answers and what they are worth: sampled or given; judged, run, scored by a model, or compared in the data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.curvature.passes import longest_first, untouched
from holdfast.data.batches import Encoded, collate
from holdfast.data.examples import Example, Message
from holdfast.data.files import read_records, stem_of
from holdfast.data.formats.base import Row, role
from holdfast.data.sources import SourceConfig, load_examples
from holdfast.evaluation.judges import JUDGES, Sample
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.models.chat import ChatFormat
from holdfast.models.generate import check_context, reading_limit
from holdfast.models.load import LoadedModel
from holdfast.models.sources import first_line, quiet

_JUDGES = {"exact": "exact", "tests": "code"}


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer to one question, and its reward."""

    question: str
    """The same for all answers to one conversation."""
    example: Example
    """``answer`` is the answer that was given, right or wrong."""
    reward: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What a critic learns from."""

    each: tuple[Answered, ...]
    left_out: int = 0
    """Answers that no judge could judge, empty ones among them."""

    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of a better and a worse answer to the same question, all of them."""
        return [
            (better, worse)
            for members in self.by_question().values()
            for better in members
            for worse in members
            if self.each[better].reward > self.each[worse].reward
        ]

    def by_question(self) -> dict[str, list[int]]:
        """The numbers of the answers to each question."""
        found: dict[str, list[int]] = {}
        for number, answered in enumerate(self.each):
            found.setdefault(answered.question, []).append(number)
        return found


def answers_for(loaded: LoadedModel, questions: Sequence[Example], config: CriticConfig) -> Answers:
    """Answers to ``questions`` (or those in the file that ``config`` names) with their rewards.

    Raises:
        DataError: no answers; a row without what its judge needs; a file without the columns; all rewards are equal.
            What answers are judged by is looked at before any is sampled. Or an answer with its conversation is longer
            than the reward model reads.
        ConfigError: the reward model cannot be loaded, or has more than one output.
        NumericsError: a reward is not a number.
    """
    if config.reward == "given":
        assert config.answers is not None  # CriticConfig refuses it
        found = read_answers(Path(config.answers).expanduser())
    else:
        given = load_examples(SourceConfig(source=config.answers)) if config.answers else []
        check_judged_by(given or questions, config)
        teller = _reward_model(config.reward_model) if config.reward_model else None
        samples = [Sample(row, row.answer) for row in given] or sample_answers(loaded, questions, config)
        found = _told(samples, *teller) if teller else judged(samples, config.reward)
    check_outcomes(found, pairwise=config.objective == "pairwise")
    return found


def check_judged_by(rows: Sequence[Example], config: CriticConfig) -> None:
    """Each row has what says whether an answer to it is right.

    Args:
        rows: The questions, or what stands in the file of ``answers``.
    Raises:
        DataError: names the first row without its tests, or without a reference beside the answer that is judged.
    """
    if config.reward == "tests" and (row := next((row for row in rows if not row.tests.strip()), None)):
        raise DataError(
            f"Row {row.id!r} has no tests, by which reward: tests judges answers. Do: give them in a column 'tests'."
        )
    if config.reward != "exact" or config.answers is None:
        return
    if row := next((row for row in rows if not row.reference.strip()), None):
        raise DataError(
            f"Row {row.id!r} has no reference, by which reward: exact judges its answer. Do: give it in a column "
            "'reference'."
        )


@torch.inference_mode()
def sample_answers(
    loaded: LoadedModel, questions: Sequence[Example], config: CriticConfig, batch_size: int = 16
) -> list[Sample]:
    """The model's own answers, ``config.samples`` to each question, drawn at ``config.temperature``, nothing cut off.

    The same on one machine for the same questions, ``config`` and ``batch_size``. The answers to a question follow each
    other, questions in their order.

    Raises:
        DataError: there are no questions, or one does not fit the context with its answer.
    """
    from transformers import GenerationConfig

    if not questions:
        raise DataError("Cannot sample answers: got 0 questions, expected at least 1. Do: check the data.")
    prompts = [loaded.chat.prompt(row.messages, id=row.id) for row in questions]
    check_context(loaded, prompts, config.max_new_tokens)
    drawing = GenerationConfig(
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        num_return_sequences=config.samples,
        max_new_tokens=config.max_new_tokens,
        pad_token_id=loaded.chat.pad_id,
        eos_token_id=list(loaded.chat.stop_ids),
    )
    made: dict[int, list[Sample]] = {}
    order, device = longest_first(prompts), loaded.model.device
    with untouched(loaded.model), torch.random.fork_rng([device] if device.type == "cuda" else []), quiet():
        torch.manual_seed(config.seed)
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            batch = collate([prompts[n] for n in picked], loaded.chat.pad_id, side="left").to(device)
            out = loaded.model.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=drawing
            )
            texts = [_said(loaded, ids) for ids in out[:, batch.input_ids.shape[1] :].tolist()]
            for place, number in enumerate(picked):
                own = texts[place * config.samples : (place + 1) * config.samples]
                made[number] = [Sample(questions[number], text, finish) for text, finish in own]
    return [sample for number in range(len(questions)) for sample in made[number]]


def _said(loaded: LoadedModel, ids: Sequence[int]) -> tuple[str, str]:
    """The text up to the first token that ends an answer, and whether there was one."""
    stops = loaded.chat.stop_ids
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    return loaded.chat.said(loaded.chat.decode(ids[:end])), "length" if end is None else "stop"


def judged(samples: Sequence[Sample], reward: str) -> Answers:
    """Rewards 1 and 0 from a judge; answers that it cannot judge are left out and counted.

    Args:
        reward: ``exact`` (against the row's reference) or ``tests`` (the row's tests, in the sandbox).
    Raises:
        DataError: a row has no reference, or no tests.
    """
    scores = JUDGES[_JUDGES[reward]].judge(samples)
    kept = [(s, score.value) for s, score in zip(samples, scores, strict=True) if score.value is not None]
    return Answers(tuple(_answered(sample, value) for sample, value in kept), len(samples) - len(kept))


def _told(samples: Sequence[Sample], tokenizer: Any, model: Any) -> Answers:
    """Rewards from a reward model, one answer at a time; empty answers are left out and counted."""
    kept = [sample for sample in samples if sample.output.strip()]
    made = []
    with torch.inference_mode():
        for answered in (_answered(sample, math.nan) for sample in kept):
            inputs = _model_inputs(tokenizer, model, answered.example)
            reward = float(model(**inputs).logits.float()[0, 0])
            made.append(replace(answered, reward=_finite(reward, answered.example.id)))
    return Answers(tuple(made), len(samples) - len(kept))


def _reward_model(source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    local = Path(source).expanduser()
    folder = str(local) if local.exists() else source
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"Cannot load the reward model {source!r}: {first_line(problem)} "
            "Do: give a folder or hub name of a sequence classifier."
        ) from problem
    if model.config.num_labels != 1:
        raise ConfigError(
            f"{source} is no reward model: got {model.config.num_labels} outputs, expected 1. Do: give one with "
            "num_labels 1."
        )
    return tokenizer, model


def _model_inputs(tokenizer: Any, model: Any, example: Example) -> dict[str, Any]:
    """The conversation in the model's own chat template, or prompt and answer as a pair where it has none."""
    if tokenizer.chat_template:
        inputs = {"input_ids": torch.tensor([ChatFormat(tokenizer).training(example).ids])}
    else:
        prompt = "\n".join(message.content for message in example.messages)
        inputs = dict(tokenizer(prompt, example.answer, return_tensors="pt", verbose=False))
    length, limit = inputs["input_ids"].shape[1], reading_limit(tokenizer, model)
    if limit is not None and length > limit:
        raise DataError(
            f"Row {example.id!r} does not fit the reward model: got {length} tokens, expected at most {limit}. "
            "Do: leave it out, or use a reward model with a longer context."
        )
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def read_answers(path: Path) -> Answers:
    """Rewards that stand in a file: ``chosen`` (1) and ``rejected`` (0), or ``answer`` and ``reward``.

    ``prompt`` is text or a list of messages. Without it, ``chosen`` and ``rejected`` are whole conversations whose last
    turn is the answer.

    Raises:
        DataError: a column is missing or not as described; names file and row.
    """
    made: list[Answered] = []
    for index, record in enumerate(read_records(path)):
        row = Row(record, index, stem_of(path))
        if "chosen" in record or "rejected" in record:
            made += [_compared(row, "chosen", 1.0), _compared(row, "rejected", 0.0)]
        else:
            reward = _number(row)
            example = Example(row.name("answers", "id"), _turns(row, record.get("prompt")), row.text("answer"))
            made.append(Answered(_key(example), example, reward))
    return Answers(tuple(made))


def _compared(row: Row, column: str, reward: float) -> Answered:
    value, prompt = row.record.get(column), row.record.get("prompt")
    if isinstance(value, list) and value:
        turns = _turns(row, value)
        if turns[-1].role != "assistant":
            raise DataError(
                f"{row.where}: column {column!r} ends with {turns[-1].role}, expected the assistant's turn."
            )
        before, answer = turns[:-1], turns[-1].content
        messages = before or _turns(row, prompt)
    else:
        messages, answer = _turns(row, prompt), row.text(column)
    example = Example(f"{row.name('pairs', 'id')}/{column}", messages, answer)
    return Answered(_key(example), example, reward)


def _turns(row: Row, value: object) -> tuple[Message, ...]:
    if isinstance(value, list) and value:
        bad = next(
            (turn for turn in value if not isinstance(turn, Mapping) or not {"role", "content"} <= {*turn}), None
        )
        if bad is not None:
            raise DataError(f"{row.where}: got a turn {bad!r}, expected one with 'role' and 'content'.")
        return tuple(Message(role(str(turn["role"]), row), str(turn["content"])) for turn in value)
    return (Message("user", row.text("prompt")),)


def _number(row: Row) -> float:
    value = row.record.get("reward")
    if value is None:
        row.text("reward")  # says that it is absent, and what is near
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{row.where}: column 'reward' holds {row.record['reward']!r}, expected a number.")
    return float(value)


def check_outcomes(answers: Answers, *, pairwise: bool) -> None:
    """Refuse answers from which no critic can learn.

    Raises:
        DataError: there are none, all rewards are equal, or no question has a better and a worse answer.
    """
    each = answers.each
    unjudged = f" ({answers.left_out} more could not be judged)" if answers.left_out else ""
    advice = "Do: ask harder or easier questions, raise temperature or samples, or give more answers."
    if len({answered.reward for answered in each}) < 2:
        got = f"the reward {each[0].reward:g} on all {len(each)} answers" if each else "no answers"
        raise DataError(f"A critic needs both outcomes: got {got}{unjudged}, expected better and worse ones. {advice}")
    if pairwise and not answers.pairs():
        raise DataError(
            f"A pairwise critic needs both outcomes on one question: got none among {len(answers.by_question())} "
            f"questions{unjudged}, expected at least 1. {advice}"
        )


def _answered(sample: Sample, reward: float) -> Answered:
    example = replace(sample.example, answer=sample.output)
    return Answered(_key(example), example, reward)


def _finite(reward: float, row: str) -> float:
    if not math.isfinite(reward):
        raise NumericsError(f"The reward of row {row!r} is not a number: got {reward}. Do: look at this row.")
    return reward


def _key(example: Example) -> str:
    return json.dumps([(message.role, message.content) for message in example.messages])


def encoded(loaded: LoadedModel, answers: Answers) -> list[Encoded]:
    """The answers as training rows of the model.

    Raises:
        DataError: one does not fit the context.
    """
    rows = [loaded.chat.training(answered.example) for answered in answers.each]
    check_context(loaded, rows, 0)
    return rows
