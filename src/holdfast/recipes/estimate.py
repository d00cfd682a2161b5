"""What a recipe needs, before anything loads: parameters, memory, disk, rows. Estimates, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.core.config import report
from holdfast.core.errors import HoldfastError
from holdfast.data.formats import FORMATS
from holdfast.data.lab import FAMILIES
from holdfast.data.sources import HUB_ID, LAB_ROWS, SourceConfig, read_source
from holdfast.evaluation.tasks import TaskConfig
from holdfast.models.config import ModelConfig
from holdfast.recipes.schema import EvaluateStep, Recipe, TrainStep

GRADIENT_AND_MOMENTS = 12
"""Bytes a trained parameter needs beside its weight: gradient and two Adam moments in float32."""
MOMENTS = 8
FLOAT_BYTES = 4
RUNTIME_BYTES = 500_000_000
"""Python with torch and transformers, before any model."""
CONTEXT = 1024
"""Tokens a prompt and its answer are taken to have, for the key-value cache."""
LOGIT_COPIES = 3
"""Logits, their softmax and their gradient."""
LOG_BYTES = 2000
"""One answer in the log."""
ACTIVATIONS_PER_LAYER = 16
"""Values kept for the backward pass, a token and layer, in units of the hidden size."""


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
            parts.append(f"{self.parameters / 1e6:,.1f} M parameters")
        if self.trained:
            parts.append(f"{self.trained / 1e6:,.2f} M of them trained")
        rows = ", ".join(f"{name} {'all' if n is None else f'{n:,}'}" for name, n in self.rows.items())
        return "; ".join([*parts, *([f"rows: {rows}"] if rows else [])]) or "compares two logs"


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
        ConfigError: Every model, file, column or family that cannot be found, one a line.
    """
    problems: list[str] = []
    steps = []
    for step_id in recipe.steps:
        try:
            steps.append(_needs(recipe, step_id))
        except HoldfastError as problem:
            problems.append(f"steps.{step_id}: {problem}")
    if problems:
        raise report(file, list(dict.fromkeys(problems)))
    return Needs(recipe.name, tuple(steps))


def _needs(recipe: Recipe, step_id: str) -> StepNeeds:
    step = recipe.steps[step_id]
    if isinstance(step, TrainStep):
        return _train_needs(recipe, step_id, step)
    if isinstance(step, EvaluateStep):
        return _evaluate_needs(recipe, step_id, step)
    return StepNeeds(step_id, step.do, None, 0, {}, 0, 0)


def _train_needs(recipe: Recipe, step_id: str, step: TrainStep) -> StepNeeds:
    shape = _shape(recipe, step_id)
    full = step.params == "full"
    trained = shape.parameters if full else shape.adapter_parameters(step.lora.rank, step.lora.targets)
    held = shape.parameters * FLOAT_BYTES if full else shape.stored_bytes + trained * FLOAT_BYTES
    layers = 1 if step.gradient_checkpointing else shape.layers
    per_token = shape.hidden * layers * ACTIVATIONS_PER_LAYER + shape.vocabulary * LOGIT_COPIES
    activations = step.batch_size * step.max_length * per_token * FLOAT_BYTES
    memory = RUNTIME_BYTES + held + trained * GRADIENT_AND_MOMENTS + activations
    result = shape.stored_bytes if full else trained * FLOAT_BYTES
    checkpoints = 2 * trained * (FLOAT_BYTES + MOMENTS)
    rows = _all_rows((*step.data, *step.validation))
    return StepNeeds(step_id, step.do, shape.parameters, trained, rows, memory, result + checkpoints)


def _evaluate_needs(recipe: Recipe, step_id: str, step: EvaluateStep) -> StepNeeds:
    shape = _shape(recipe, step_id)
    rows = {task.name: _task_rows(task, step) for task in step.chosen()}
    cache = step.batch_size * CONTEXT * 2 * shape.layers * shape.hidden * FLOAT_BYTES
    log = LOG_BYTES * sum(n or 0 for n in rows.values())
    memory = RUNTIME_BYTES + shape.stored_bytes + cache
    return StepNeeds(step_id, step.do, shape.parameters, 0, rows, memory, log)


def _task_rows(task: TaskConfig, step: EvaluateStep) -> int | None:
    found = None if task.harness == "lm-eval" else _rows(task.rows(step.limit, step.seed))
    return found if step.limit is None or found is None else min(found, step.limit)


def _all_rows(sources: Iterable[SourceConfig]) -> dict[str, int | None]:
    rows: dict[str, int | None] = {}
    for source in sources:
        name = f"{source.source} ({source.split})" if source.split else source.source
        count = _rows(source)
        rows[name] = None if count is None else (rows.get(name) or 0) + count
    return rows


def _rows(source: SourceConfig) -> int | None:
    """Rows that a source will give; files are read, so that a damaged one is found now. ``None`` for the hub."""
    if source.source.startswith("lab/"):
        FAMILIES[source.source.removeprefix("lab/")]
        return source.rows or LAB_ROWS
    if Path(source.source).expanduser().exists():
        return len(read_source(source).examples)
    if source.source in FORMATS or HUB_ID.fullmatch(source.source):
        return source.rows
    return len(read_source(source).examples)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A model as far as its configuration tells."""

    parameters: int
    stored_bytes: int
    layers: int
    hidden: int
    vocabulary: int
    linears: tuple[tuple[str, int], ...]
    """Name and inputs + outputs of every linear layer but the head."""

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of a low-rank adapter on the layers whose last name is in ``targets``; of all if empty."""
        return sum(rank * both for name, both in self.linears if not targets or name.rpartition(".")[2] in targets)


def _shape(recipe: Recipe, step_id: str) -> _Shape:
    """The shape of the model a step uses; what an earlier step made has the shape of what that step began with."""
    config = recipe.model_of(step_id)
    if config.source in recipe.steps:
        return _shape(recipe, config.source)
    step = recipe.steps[step_id]
    tokenizer = step.tokenizer if isinstance(step, TrainStep) else None
    return _skeleton(config, tokenizer.vocab_size if tokenizer else None)


def _skeleton(config: ModelConfig, vocabulary: int | None) -> _Shape:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from holdfast.models.build import model_config
    from holdfast.models.sources import local_folder

    if config.source == "new":
        made = model_config({**(config.config or {}), **({"vocab_size": vocabulary} if vocabulary else {})}, None)
    else:
        folder = local_folder(config.source, revision=config.revision, code=config.trust_remote_code, weights=False)
        made = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made, trust_remote_code=config.trust_remote_code)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind = made.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    width = {"4bit": 0.55, "8bit": 1.0}.get(config.quantization or "", (kind or torch.float32).itemsize)
    text = made.get_text_config()
    linears = tuple(
        (name, sum(module.weight.shape))
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"} and module is not model.get_output_embeddings()
    )
    return _Shape(
        parameters, int(parameters * width), text.num_hidden_layers, text.hidden_size, text.vocab_size, linears
    )
