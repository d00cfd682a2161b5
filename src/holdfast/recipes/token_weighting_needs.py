"""Memory and disk of token weighting, from shapes; and what of it would fail later, from the rows at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import DataError
from holdfast.core.sizes import FLOAT_BYTES, PLANNING_ROWS, ROW_TOKENS
from holdfast.recipes.checks import PROBED, Checks, characters
from holdfast.recipes.plan_needs import PlanNeeds
from holdfast.recipes.token_weighting_step import READ, TokenWeightingStep
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.models.chat import ChatFormat
    from holdfast.models.describe import Description
    from holdfast.recipes.schema import Recipe

LOGITS = 3
"""Logits of a forward in 32 bits: themselves, their log-softmax, and a copy of the learnt ones."""
TOKEN_BYTES = 4
"""One token of a stored plan, the key of its row among it."""
WEIGHED = 1_000
"""Rows that are tokenised to see whether a column has a weight for each of their learnt tokens."""


def plan_needs(checks: Checks, step_id: str, step: TokenWeightingStep) -> PlanNeeds | None:
    """What a plan takes; ``None`` where its model cannot be had, and ``checks`` has the problem."""
    model, chat = checks.model(step_id)
    rows = checks.rows(step_id, step.data)
    answers = checks.answers(step_id, step.data) or ()
    references = [_reference(checks, step_id, step, key, model, chat) for key in READ.get(step.base, ())]
    if step.base == "critic":
        checks.tried(step_id, lambda: _check_rewards(step, answers))
    if (column := step.column) is not None and step.base == "column":
        checks.tried(step_id, lambda: _check_column(step, column, chat, answers))
    if chat is not None and answers:
        checks.tried(step_id, lambda: _check_horizon(step, chat, answers))
    if model is None:
        return None
    checks.tried(step_id, lambda: _check_head(checks.recipe, step_id, step, model.skeleton))
    weights = model.weight_bytes + sum(found.weight_bytes for found in references if found is not None)
    copied = step.base == "critic" and step.teaching().backbone == "own"
    memory = weights + (4 * FLOAT_BYTES * model.parameters if copied else 0) + _forward_bytes(model)
    tokens = ROW_TOKENS * sum(n or 0 for n in rows.values())
    return PlanNeeds(model, rows, memory, TOKEN_BYTES * tokens + (FLOAT_BYTES * model.parameters if copied else 0))


def _forward_bytes(model: Description) -> int:
    return PLANNING_ROWS * ROW_TOKENS * FLOAT_BYTES * (LOGITS * model.vocabulary + 8 * model.hidden)


def _reference(
    checks: Checks, step_id: str, step: TokenWeightingStep, key: str, model: Description | None, chat: ChatFormat | None
) -> Description | None:
    """A model that the scorer reads, on paper; its vocabulary is the model's."""
    from holdfast.methods.token_weighting.reference import check_vocabulary

    if key not in type(step).refers:
        return None
    found, other = checks.model(step_id, getattr(step, key))
    if model is not None and found is not None and chat is not None and other is not None:
        own = SimpleNamespace(name=model.name, tokenizer=chat.tokenizer)
        theirs = SimpleNamespace(name=found.name, tokenizer=other.tokenizer)
        checks.tried(step_id, lambda: check_vocabulary(own, theirs, key))
    return found


def _check_rewards(step: TokenWeightingStep, questions: Sequence[Example]) -> None:
    """What judges answers is there; a file of answers with their rewards has better and worse ones."""
    from holdfast.data.sources import SourceConfig, load_examples
    from holdfast.methods.token_weighting.rewards import check_judged_by, check_outcomes, read_answers
    from holdfast.models.sources import local_folder

    config = step.teaching()
    if config.reward == "given" and config.answers is not None:
        found = read_answers(Path(config.answers).expanduser())
        check_outcomes(found, pairwise=config.objective == "pairwise")
        return
    if config.reward_model is not None:
        local_folder(config.reward_model, weights=False)
    check_judged_by(load_examples(SourceConfig(source=config.answers)) if config.answers else questions, config)


def _check_column(step: TokenWeightingStep, column: str, chat: ChatFormat | None, rows: Sequence[Example]) -> None:
    """The column is there, and fits the tokens of the first rows."""
    from holdfast.data.columns import read_column
    from holdfast.methods.token_weighting.plan import column_of

    found = read_column(step.data, column)
    if chat is not None:
        for row in rows[:WEIGHED]:
            column_of(found, chat.training(row))


def _check_head(recipe: Recipe, step_id: str, step: TokenWeightingStep, skeleton: Any) -> None:
    """The model has an output head, also in its folder, and blocks that further heads are made like."""
    from holdfast.models.heads.trunk import decoder_of, unembedding
    from holdfast.models.sources import is_here, local_folder
    from holdfast.models.stored import check_output_head

    unembedding(skeleton)
    config = recipe.model_of(step_id)
    while config.source in recipe.steps:
        config = recipe.model_of(config.source)
    if config.source != "new" and is_here(config.source):
        check_output_head(skeleton, local_folder(config.source))
    if step.n_heads and step.heads != "medusa":
        decoder_of(skeleton)


def _check_horizon(step: TokenWeightingStep, chat: ChatFormat, rows: Sequence[Example]) -> None:
    """Some of the longest rows at hand reach as far ahead as the furthest head predicts."""
    reach = max(_reach(chat, row) for row in sorted(rows, key=characters, reverse=True)[:PROBED])
    if reach < step.n_heads + 1:
        raise DataError(
            f"every row is shorter than the horizon: got {reach} tokens ahead at most, expected {step.n_heads + 1}. "
            "Do: lower horizon, or give longer rows."
        )


def _check_shared_step(plan: TokenWeightingStep, step: TrainStep, chat: ChatFormat, rows: Sequence[Example]) -> None:
    """As many rows as share an optimizer step reach as far ahead as the furthest head predicts, whichever they are."""
    lines, reach = step.batch_size * step.accumulate, 0
    if step.packing or not plan.n_heads or len(rows) < lines:
        return
    for row in sorted(rows, key=characters)[:lines]:
        reach = max(reach, _reach(chat, row))
        if reach > plan.n_heads:
            return
    raise DataError(
        f"the rows of a step may all be shorter than the horizon: got {reach} tokens ahead at most in the {lines} with "
        f"the least text, expected {plan.n_heads + 1}. Do: lower horizon, leave such rows out, or raise batch_size."
    )


def _reach(chat: ChatFormat, row: Example) -> int:
    """From how far behind a row's last learnt token can be predicted."""
    encoded = chat.training(row)
    return len(encoded) - 1 - encoded.response[::-1].index(True) if any(encoded.response) else 0


def training_needs(
    checks: Checks, step_id: str, step: TrainStep, model: Description
) -> tuple[int, dict[str, int | None]]:
    """Parameters of the further heads of a training, and the rows that its plan brings; nothing without such a plan."""
    for plan_id in step.objective:
        plan = checks.recipe.steps[plan_id]
        if isinstance(plan, TokenWeightingStep):
            _check_rows(checks, step_id, step, plan_id, plan)
            heads = checks.tried(step_id, lambda plan=plan: _head_parameters(plan, model.skeleton))  # type: ignore[misc]
            return heads or 0, checks.rows(plan_id, plan.data)
    return 0, {}


def _check_rows(checks: Checks, step_id: str, step: TrainStep, plan_id: str, plan: TokenWeightingStep) -> None:
    """The rows of a plan fit the training that has them."""
    _, chat = checks.model(plan_id)
    rows = checks.answers(plan_id, plan.data) or ()
    checks.lengths(step_id, step, chat, rows)
    if chat is not None:
        checks.tried(step_id, lambda: _check_shared_step(plan, step, chat, rows))


def _head_parameters(plan: TokenWeightingStep, skeleton: Any) -> int:
    """Those of the further heads, built without their numbers; the vocabulary is the model's."""
    if not plan.n_heads:
        return 0
    import torch

    from holdfast.models.heads import Heads

    with torch.device("meta"):
        heads = Heads(skeleton, plan.heads, plan.horizon)
    return sum(parameter.numel() for parameter in heads.parameters())
