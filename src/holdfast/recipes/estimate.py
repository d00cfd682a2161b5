"""What a recipe needs, before anything loads: parameters, memory, disk, rows. Estimates, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core.config import report
from holdfast.core.sizes import FLOAT_BYTES, GRADIENT_ROWS, ROW_TOKENS, VERIFY_ROWS
from holdfast.evaluation.judges.config import build_judge
from holdfast.evaluation.tasks import TaskConfig
from holdfast.recipes import planning, token_weighting_needs
from holdfast.recipes.adapter_shapes import stored_shapes
from holdfast.recipes.adapter_step import AdapterStep
from holdfast.recipes.attack_needs import attack_rows
from holdfast.recipes.attack_step import AttackStep
from holdfast.recipes.causal_needs import plan_needs, training_needs
from holdfast.recipes.causal_step import CausalStep
from holdfast.recipes.checks import Checks, count_rows
from holdfast.recipes.fields import bytes_of
from holdfast.recipes.merge_needs import VALIDATION, merge_needs, repair_needs
from holdfast.recipes.merge_step import MergeStep
from holdfast.recipes.repair_step import RepairStep
from holdfast.recipes.schema import BasisStep, EvaluateStep, ImportanceStep, MaskStep, Recipe
from holdfast.recipes.token_weighting_step import TokenWeightingStep
from holdfast.recipes.train_step import TrainStep
from holdfast.recipes.verify_step import VerifyStep
from holdfast.recipes.verifying import count_cases

if TYPE_CHECKING:
    from holdfast.layers.address import Layer
    from holdfast.models.describe import Description

RUNTIME_BYTES = 500_000_000
"""Python with torch and transformers, before any model."""
CONTEXT = 1024
"""Tokens a prompt and its answer are taken to have, for the key-value cache."""
LOG_BYTES = 2000
"""One answer in the log."""


@dataclass(frozen=True, slots=True)
class StepNeeds:
    """What one step needs."""

    id: str
    do: str
    parameters: int | None
    """Of its model; ``None`` where the step has none."""
    trained: int
    """Parameters that are trained."""
    rows: dict[str, int | None]
    """Rows by source or task; ``None`` where only reading the source would tell (the hub)."""
    memory_bytes: int
    disk_bytes: int

    @property
    def sentence(self) -> str:
        """The facts in one line."""
        parts = []
        if self.parameters is not None:
            parts.append(f"{_millions(self.parameters, 1)} parameters")
        if self.trained:
            parts.append(f"{_millions(self.trained, 2)} of them trained")
        rows = ", ".join(f"{name} {'all' if n is None else f'{n:,}'}" for name, n in self.rows.items())
        return "; ".join([*parts, *([f"rows: {rows}"] if rows else [])]) or "works on what earlier steps left"


def _millions(count: int, digits: int) -> str:
    """A count of parameters, in millions where that says something.

    >>> _millions(3_840_000, 1), _millions(18_720, 2)
    ('3.8 M', '18,720')
    """
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:,.{digits}f} M"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a whole recipe needs: the largest memory, the sum of disk."""

    name: str
    steps: tuple[StepNeeds, ...]

    @property
    def memory_bytes(self) -> int:
        """Memory of the hungriest step."""
        return max(step.memory_bytes for step in self.steps)

    @property
    def disk_bytes(self) -> int:
        """Disk of all steps: results, and two checkpoints of the step that is training."""
        return sum(step.disk_bytes for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "recipe": self.name,
            "valid": True,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "steps": [asdict(step) for step in self.steps],
        }


def estimate(recipe: Recipe, file: str) -> Needs:
    """Look at every model's shapes and every source's rows, without loading weights.

    Args:
        recipe: Validated.
        file: Name to print before the problems.
    Raises:
        ConfigError: Everything that would stop the run later, one problem a line: a model, file, column, device,
            package or layer that is not there, and settings that do not fit them.
    """
    checks = Checks(recipe)
    steps = [_needs(checks, step_id) for step_id in recipe.steps]
    if recipe.budget is not None:
        budget = bytes_of(recipe.budget)
        checks.problems += [_over(step, budget) for step in steps if step and step.memory_bytes > budget]
    if checks.problems:
        raise report(file, _once(checks.problems))
    return Needs(recipe.name, tuple(step for step in steps if step is not None))


def _over(step: StepNeeds, budget: int) -> str:
    return (
        f"steps.{step.id}: needs about {step.memory_bytes / 1e9:.2f} GB, over the budget of {budget / 1e9:.2f} GB. Do: "
        "lower batch_size or max_length, set gradient_checkpointing: true, or raise budget."
    )


def _once(problems: Sequence[str]) -> list[str]:
    """Each sentence where it is first true, and how many other steps have it: a missing file may be named by dozens.

    >>> _once(["steps.a: no file.", "steps.b: no file.", "steps.c: too long.", "steps.c: too long."])
    ['steps.a: no file. (and 1 other step)', 'steps.c: too long.']
    """
    places: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        place, _, sentence = problem.partition(": ")
        places.setdefault(sentence, []).append(place)
    return [
        f"{first}: {sentence}" + (f" (and {len(rest)} other step{'s' * (len(rest) > 1)})" if rest else "")
        for sentence, (first, *rest) in places.items()
    ]


def _needs(checks: Checks, step_id: str) -> StepNeeds | None:
    """What a step needs; ``None`` where that cannot be told, and ``checks`` has the problem."""
    step = checks.recipe.steps[step_id]
    told = NEEDS.get(type(step))
    return StepNeeds(step_id, step.do, None, 0, {}, 0, 0) if told is None else told(checks, step_id, step)


def _planned(checks: Checks, basis_id: str) -> tuple[Description, tuple[Layer, ...]] | None:
    """The model of a basis step on paper, and the layers that it plans for."""
    from holdfast.layers.address import LayerMap

    step = checks.recipe.steps[basis_id]
    assert isinstance(step, BasisStep)
    model, _ = checks.model(basis_id)
    if model is None:
        return None
    layers = checks.tried(basis_id, lambda: LayerMap.of(model.skeleton).select(step.layers or None))
    return None if layers is None else (model, layers.layers)


def _basis_needs(checks: Checks, step_id: str, step: BasisStep) -> StepNeeds | None:
    rows = checks.rows(step_id, step.data)
    if step.tokens != "prompt":
        checks.answers(step_id, step.data)
    if (planned := _planned(checks, step_id)) is None:
        return None
    model, layers = planned
    memory = RUNTIME_BYTES + model.weight_bytes + planning.moments_bytes(layers) + _hidden_bytes(model, rows)
    disk = planning.basis_disk(layers, control=step.space != "rotated")
    return StepNeeds(step_id, step.do, model.parameters, 0, rows, memory, disk)


def _hidden_bytes(model: Description, rows: Mapping[str, int | None]) -> int:
    return planning.hidden_bytes(rows.values(), model.hidden, FLOAT_BYTES if model.dtype == "float32" else 2)


def _importance_needs(checks: Checks, step_id: str, step: ImportanceStep) -> StepNeeds | None:
    rows = checks.rows(step_id, step.task)
    if (planned := _planned(checks, step.of)) is None:
        return None
    model, layers = planned
    scores = planning.scores_bytes(layers, step)
    if step.importance == "energy":
        memory = model.weight_bytes + (planning.moments_bytes(layers, 1) + _hidden_bytes(model, rows) if rows else 0)
    else:
        weights = 1 if step.importance == "taylor" else 0
        passes = model.training_bytes(tokens=GRADIENT_ROWS * ROW_TOKENS, adapter=0)
        memory = passes + (planning.HALVES * (2 if rows else 1) + weights) * scores
    disk = (planning.HALVES + bool(rows)) * scores
    return StepNeeds(step_id, step.do, model.parameters, 0, rows, RUNTIME_BYTES + memory, disk)


def _mask_needs(checks: Checks, step_id: str, step: MaskStep) -> StepNeeds | None:
    checks.mask(step_id, step)
    scored = checks.recipe.steps[step.of]
    assert isinstance(scored, ImportanceStep)
    if (planned := _planned(checks, scored.of)) is None:
        return None
    _, layers = planned
    disk = planning.mask_disk(layers, step)
    memory = RUNTIME_BYTES + (planning.HALVES + bool(scored.task)) * planning.scores_bytes(layers, scored) + disk
    return StepNeeds(step_id, step.do, None, 0, {}, memory, disk)


def _plan_needs(checks: Checks, step_id: str, step: CausalStep | TokenWeightingStep) -> StepNeeds | None:
    if isinstance(step, CausalStep):
        needs: Any = plan_needs(checks, step_id, step)
    else:
        needs = token_weighting_needs.plan_needs(checks, step_id, step)
    if needs is None:
        return None
    memory = RUNTIME_BYTES + needs.memory_bytes
    return StepNeeds(step_id, step.do, needs.model.parameters, 0, needs.rows, memory, needs.disk_bytes)


def _adapter_needs(checks: Checks, step_id: str, step: AdapterStep) -> StepNeeds | None:
    model, _ = checks.model(step_id)
    if model is None:
        return None
    shapes = checks.tried(step_id, lambda: stored_shapes(step.source, model))
    numbers = sum(rank * (outputs + inputs) for outputs, inputs, rank in (shapes or {}).values())
    memory = RUNTIME_BYTES + model.weight_bytes + numbers * FLOAT_BYTES
    return StepNeeds(step_id, step.do, model.parameters, 0, {}, memory, numbers * FLOAT_BYTES)


def _merge_needs(checks: Checks, step_id: str, step: MergeStep | RepairStep) -> StepNeeds | None:
    if isinstance(step, MergeStep):
        found, dial = merge_needs(checks, step_id, step), 0 if step.select is None else step.select.tries()
    else:
        found, dial = repair_needs(checks, step_id, step), 0 if step.select is None else len(step.tries())
    if found is None:
        return None
    model, rows, cost = found
    tried = dial + 1 if dial else 0
    log = LOG_BYTES * tried * sum(n or 0 for name, n in rows.items() if name.endswith(VALIDATION))
    memory = RUNTIME_BYTES + cost.memory_bytes + (_cache_bytes(model, step.batch_size) if tried else 0)
    return StepNeeds(step_id, step.do, model.parameters, 0, rows, memory, cost.disk_bytes + cost.scratch_bytes + log)


def _cache_bytes(model: Description, batch_size: int) -> int:
    """Keys and values of a batch that is decoded."""
    text = model.skeleton.config.get_text_config()
    heads = int(text.num_attention_heads)
    share = int(getattr(text, "num_key_value_heads", None) or heads) / heads
    return round(batch_size * CONTEXT * 2 * model.layers * model.hidden * share * FLOAT_BYTES)


def _train_needs(checks: Checks, step_id: str, step: TrainStep) -> StepNeeds | None:
    model, chat = checks.model(step_id)
    if step.unaligned is not None:
        checks.model(step_id, step.unaligned)
    rows = checks.rows(step_id, (*step.data, *step.validation, *step.safety))
    if step.best_by is not None:
        rows |= {f"best_by {name}": n for name, n in checks.cases(step_id, step.best_by.cases)[0].items()}
    checks.training(step_id, step, model)
    for sources in (step.data, step.validation, step.safety):
        checks.lengths(step_id, step, chat, checks.answers(step_id, sources) or ())
    if model is None:
        return None
    with_cases, brought = training_needs(checks, step_id, step, model)
    heads, weighed = token_weighting_needs.training_needs(checks, step_id, step, model)
    rows = brought | weighed | rows
    full = step.params == "full"
    trained = model.parameters if full else model.lora_parameters(step.lora.rank, step.lora.targets)
    plain = _training_bytes(model, step, trained, bool(step.data or weighed)) + 4 * FLOAT_BYTES * heads
    memory = max(with_cases, plain, _measuring_bytes(model, step, trained))
    result = model.weight_bytes if full else trained * FLOAT_BYTES
    disk = result + heads * FLOAT_BYTES + 2 * model.checkpoint_bytes(trainable=trained + heads)
    return StepNeeds(step_id, step.do, model.parameters, trained + heads, rows, RUNTIME_BYTES + memory, disk)


def _training_bytes(model: Description, step: TrainStep, trained: int, plain: bool) -> int:
    """Of a training on whole rows, if ``plain`` ones are there."""
    found = model.training_bytes(
        tokens=step.batch_size * step.max_length if plain else 0,
        adapter=None if step.params == "full" else trained,
        checkpointing=step.gradient_checkpointing,
        mixed=step.precision == "bf16",
    )
    return found + (model.widened_bytes if step.params == "qlora" else 0)


def _measuring_bytes(model: Description, step: TrainStep, trained: int) -> int:
    """Of an evaluation in which the model answers, between steps: what is trained stays, activations do not."""
    if step.best_by is None:
        return 0
    held = model.training_bytes(tokens=0, adapter=None if step.params == "full" else trained)
    widened = model.widened_bytes if step.params == "qlora" else 0
    return held + widened + _cache_bytes(model, step.best_by.batch_size)


def _evaluate_needs(checks: Checks, step_id: str, step: EvaluateStep) -> StepNeeds | None:
    model, _ = checks.model(step_id)
    rows: dict[str, int | None] = {}
    for task in step.chosen():
        checks.tried(step_id, lambda task=task: _check_judge(task))  # type: ignore[misc]
        rows[task.name] = checks.tried(step_id, lambda task=task: _task_rows(task, step))  # type: ignore[misc]
    if model is None:
        return None
    log = LOG_BYTES * sum(n or 0 for n in rows.values())
    memory = RUNTIME_BYTES + model.weight_bytes + _cache_bytes(model, step.batch_size)
    return StepNeeds(step_id, step.do, model.parameters, 0, rows, memory, log)


def _attack_needs(checks: Checks, step_id: str, step: AttackStep) -> StepNeeds | None:
    model, _ = checks.model(step_id)
    rows = attack_rows(checks, step_id, step)
    if model is None:
        return None
    log = LOG_BYTES * sum(n or 0 for n in rows.values())
    memory = RUNTIME_BYTES + model.weight_bytes + _cache_bytes(model, step.batch_size)
    return StepNeeds(step_id, step.do, model.parameters, 0, rows, memory, log)


def _verify_needs(checks: Checks, step_id: str, step: VerifyStep) -> StepNeeds | None:
    model, _ = checks.model(step_id)
    before = model if step.against is None else checks.model(step_id, step.against)[0]
    rows = count_cases(checks, step_id, step)
    if model is None or before is None:
        return None
    weights = model.weight_bytes + (0 if step.against is None else before.weight_bytes)
    memory = RUNTIME_BYTES + weights + _cache_bytes(model, VERIFY_ROWS)
    return StepNeeds(step_id, step.do, model.parameters, 0, rows, memory, 0)


def _check_judge(task: TaskConfig) -> None:
    """A judge with settings of its own is made, which loads nothing, so that what cannot work is found now."""
    if task.judge is not None:
        build_judge(task.judge)


def _task_rows(task: TaskConfig, step: EvaluateStep) -> int | None:
    found = None if task.harness == "lm-eval" else count_rows(task.rows(step.limit, step.seed))
    return found if step.limit is None or found is None else min(found, step.limit)


NEEDS: Mapping[type, Callable[[Checks, str, Any], StepNeeds | None]] = {
    TrainStep: _train_needs,
    EvaluateStep: _evaluate_needs,
    AttackStep: _attack_needs,
    VerifyStep: _verify_needs,
    BasisStep: _basis_needs,
    ImportanceStep: _importance_needs,
    MaskStep: _mask_needs,
    CausalStep: _plan_needs,
    TokenWeightingStep: _plan_needs,
    AdapterStep: _adapter_needs,
    MergeStep: _merge_needs,
    RepairStep: _merge_needs,
}
"""By kind of step; the others work on what earlier ones left."""
