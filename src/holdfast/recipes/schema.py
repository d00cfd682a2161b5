"""What a recipe is: a named sequence of steps, each a tagged union on ``do``. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from holdfast.core.config import Config, apply_overrides, load_yaml, problems_of, report
from holdfast.core.errors import ConfigError, did_you_mean
from holdfast.evaluation.tasks import TaskConfig, choose_tasks
from holdfast.methods.rotation.config import BasisConfig, ImportanceConfig, MaskConfig
from holdfast.models.config import ModelConfig
from holdfast.recipes.adapter_step import AdapterStep
from holdfast.recipes.attack_step import AttackStep
from holdfast.recipes.causal_step import CausalStep
from holdfast.recipes.fields import MODELS, Model, NamedTask, Size, Source, Suites, as_source
from holdfast.recipes.holds import hold_problems
from holdfast.recipes.merge_step import MergeStep
from holdfast.recipes.merges import merge_problems
from holdfast.recipes.objective_keys import objective_problems
from holdfast.recipes.references import as_list, reference_problems
from holdfast.recipes.repair_step import RepairStep
from holdfast.recipes.retention_step import RetentionStep
from holdfast.recipes.seeds import expand_seeds, row_problems, synergy_problems, with_seed
from holdfast.recipes.token_weighting_step import TokenWeightingStep
from holdfast.recipes.train_step import TrainStep
from holdfast.recipes.values import fill_values
from holdfast.recipes.verify_step import VerifyStep

LOGGED = ("evaluate", "attack")
"""Kinds of step that leave a log of answers."""


class EvaluateStep(Config):
    """Measure a model on tasks and keep a log of every answer."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS}

    do: Literal["evaluate"]
    model: Model | None = None
    """The model to measure; the recipe's ``model`` where it is left out."""
    tasks: tuple[NamedTask, ...] = ()
    """Task names, e.g. ``lab/arithmetic`` or ``gsm8k``, or mappings with more settings."""
    suite: Suites = ""
    """Suites, separated by commas, e.g. ``safety,utility``. Without tasks and suites: every lab task."""
    harness: Literal["native", "lm-eval"] = "native"
    """Who asks and scores, for tasks that do not say. ``lm-eval`` is EleutherAI's harness (extra ``lm-eval``)."""
    limit: int | None = Field(default=None, ge=1)
    """Rows per task; all of them where it is left out (lab tasks: 300)."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts that are decoded together."""
    seed: int = Field(default=0, ge=0)
    """Seed of the rows and of the bootstrap."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        if self.harness == "lm-eval" and (self.suite or not self.tasks):
            raise ValueError("harness: lm-eval needs 'tasks' by lm-eval's names, and no 'suite'")
        names = [task.name for task in self.tasks]
        problems = [f"task {name!r} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        for task in self.chosen():
            try:
                task.task  # noqa: B018 - the property raises on an unknown name or an impossible combination
            except ConfigError as problem:
                problems.append(str(problem))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def chosen(self) -> tuple[TaskConfig, ...]:
        """The tasks to run: those named, with their settings, then the suites' others."""
        own = {"harness": self.harness}
        named = {
            task.name: task if "harness" in task.model_fields_set else task.model_copy(update=own)
            for task in self.tasks
        }
        if named and not self.suite:
            return tuple(named.values())
        suites = choose_tasks((), self.suite)
        return tuple((named | {task.name: named.get(task.name, task) for task in suites}).values())


class CompareStep(Config):
    """Set two evaluations beside each other, paired by prompt."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"before": LOGGED, "after": LOGGED}

    do: Literal["compare"]
    before: str
    """Id of the evaluate or attack step that is the reference."""
    after: str
    """Id of the one that is compared with it."""


class BasisStep(BasisConfig):
    """Rotation, phase 1: the directions that a model's activations take on safety rows."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS}

    do: Literal["basis"]
    model: Model | None = None
    """The model that will be held; the recipe's ``model`` where it is left out."""
    data: tuple[Source, ...] = Field(min_length=1)
    """Safety rows: requests with the answers that must stay."""
    seed: int = Field(default=0, ge=0)
    """Seed of ``space: random``."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""


class ImportanceStep(ImportanceConfig):
    """Rotation, phase 2: what safety needs, in the coordinates of a basis."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"of": ("basis",)}

    do: Literal["importance"]
    of: str
    """Id of the ``basis`` step; its model and its rows are used again."""
    task: tuple[Source, ...] = ()
    """Rows of the task, for a mask with ``spare: task``."""


class MaskStep(MaskConfig):
    """Rotation, phase 3: what may not move when a train step names this one as its ``constraint``."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"of": ("importance",)}

    do: Literal["mask"]
    of: str
    """Id of the ``importance`` step."""


class TableStep(Config):
    """Set many evaluations beside each other, each the mean over seeds, against a reference and what was before."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"before": LOGGED}
    lists: ClassVar[Mapping[str, tuple[str, ...]]] = {"rows": LOGGED}

    do: Literal["table"]
    before: str
    """Id of the evaluate or attack step that measured the model before any change."""
    rows: dict[str, Annotated[tuple[str, ...], BeforeValidator(as_list), Field(min_length=1)]] = Field(min_length=2)
    """By label, the evaluate or attack step of each seed: a list of ids, ``after-{seed}`` for all seeds, or one id."""
    reference: str
    """Label of the row that the others are compared with, e.g. ``plain``."""
    title: str = ""
    """One line above the table; the step's id where it is left out."""
    synergy: tuple[str, ...] = ()
    """Label of a row that combines others, then the labels of those, e.g. ``[both, mtp, rho1]``: what it gains over the
    reference beyond the sum of what they gain."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        problems = row_problems(self.rows, self.reference) + synergy_problems(self.rows, self.reference, self.synergy)
        if problems:
            raise ValueError("; ".join(problems))
        return self


class FrontStep(Config):
    """Compare the trade-off curves of merges whose weight was chosen on the same validation rows."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    lists: ClassVar[Mapping[str, tuple[str, ...]]] = {"rows": ("merge",)}

    do: Literal["front"]
    rows: dict[str, Annotated[tuple[str, ...], BeforeValidator(as_list), Field(min_length=1)]] = Field(min_length=2)
    """By label, the merge step of each seed, with ``select``: a list of ids, or ``sst-{seed}`` for all seeds."""
    reference: str
    """Label of the row that the others are compared with, e.g. ``sst``."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        problems = row_problems(self.rows, self.reference)
        if problems:
            raise ValueError("; ".join(problems))
        return self


Step = Annotated[
    TrainStep
    | EvaluateStep
    | CompareStep
    | TableStep
    | BasisStep
    | ImportanceStep
    | MaskStep
    | CausalStep
    | TokenWeightingStep
    | AdapterStep
    | MergeStep
    | RepairStep
    | FrontStep
    | RetentionStep
    | AttackStep
    | VerifyStep,
    Field(discriminator="do"),
]


class Recipe(Config):
    """A whole run: what is done, in order."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Short name; also the default output folder under ``runs/``."""
    title: str = ""
    """One line for the head of the report."""
    description: str = ""
    """What the run shows and how long it takes."""
    seed: int = Field(default=0, ge=0)
    """Seed of every step that does not set its own."""
    seeds: tuple[int, ...] | None = None
    """A step with ``{seed}`` in its id is made once for each of these; ``--quick`` uses the first. Gone once made."""
    values: dict[str, Any] | None = None
    """Texts, numbers or lists by name, each put in place of ``{name}`` wherever it stands; ``--set values.name=...``
    changes it everywhere. Gone once put in."""
    model: Model | None = None
    """The model of every step that does not name one."""
    budget: Size | None = None
    """Memory that no step may need more of, e.g. ``6GB``: ``check`` compares its estimate, ``--dry-run`` the measured
    peak."""
    steps: dict[str, Step] = Field(min_length=1)
    """Steps by id, in the order in which they run."""

    def model_of(self, step_id: str) -> ModelConfig:
        """The model that a step names, or else the recipe's."""
        own = getattr(self.steps[step_id], "model", None) or self.model
        if own is None:
            raise ConfigError(f"steps.{step_id}.model: missing, and the recipe has no 'model' either.")
        return own

    def inputs_of(self, step_id: str) -> tuple[str, ...]:
        """Ids of the steps whose results a step uses."""
        step = self.steps[step_id]
        named = (self.model_of(step_id) if key == "model" else getattr(step, key) for key in type(step).refers)
        listed = (name for key in getattr(step, "lists", {}) for ids in getattr(step, key).values() for name in ids)
        held = (getattr(item, key) for at, (key, _) in getattr(step, "items", {}).items() for item in getattr(step, at))
        keyed = (name for key in getattr(step, "keyed", {}) for name in getattr(step, key))
        ids = (name.source if isinstance(name, ModelConfig) else name for name in (*named, *listed, *held, *keyed))
        return tuple(name for name in dict.fromkeys(ids) if name in self.steps)


STEP_TYPES: dict[str, type[Config]] = {
    get_args(kind.model_fields["do"].annotation)[0]: kind for kind in get_args(get_args(Step)[0])
}
"""Every kind of step by the word that ``do`` has for it."""


def load_recipe(path: Path, overrides: Iterable[str] = (), *, quick: bool = False) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: The YAML file.
        overrides: ``a.b=c`` replacements; steps are addressed as ``steps.<id>.<key>``.
        quick: Replace each step's settings by those of its ``quick`` block, or cap rows and steps, as in `quickened`.
    Raises:
        ConfigError: The file or an override is malformed, or the recipe has problems; all of them are in the message.
    """
    written = load_yaml(path)
    overrides = list(overrides)
    for override in overrides:
        _known_step(written, override)
    document = apply_overrides(written, overrides)
    document.setdefault("name", path.stem)
    recipe = parse_recipe(document, path.name, written)
    quick_recipe = parse_recipe(quickened(document), f"{path.name} with --quick")
    return quick_recipe if quick else recipe


def parse_recipe(document: Mapping[str, Any], file: str, written: Mapping[str, Any] | None = None) -> Recipe:
    """Validate a recipe given as a mapping, after its values are put in and its steps over seeds are made.

    Args:
        document: The recipe, overrides applied.
        file: The name to print.
        written: The recipe as its file has it, where that differs.
    Raises:
        ConfigError: Every problem of the recipe, one a line.
    """
    filled = fill_values(document, written)
    expanded = expand_seeds(filled.document, STEP_TYPES)
    problems = [*filled.problems, *expanded.problems]
    recipe = None
    try:
        recipe = Recipe.model_validate(with_seed(expanded.document, STEP_TYPES))
    except ValidationError as error:
        problems += problems_of(error, Recipe)
    problems += reference_problems(expanded.document, STEP_TYPES)
    if recipe is not None:
        problems += hold_problems(recipe)
        problems += merge_problems(recipe)
        problems += objective_problems(recipe)
    if recipe is None or problems:
        raise report(file, expanded.told(problems))
    return recipe


def quickened(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same recipe with fewer rows and steps: each step's ``quick`` block, or else a general cap; and one seed.

    The cap is for trainings, evaluations, attacks, verifications and the plans ``causal`` and ``token_weighting``. A
    basis, its scores, a merge or a repair without a ``quick`` block runs as written.
    """
    document = fill_values(document).document
    steps = {}
    for step_id, step in document["steps"].items():
        changes = step.get("quick") or _general_cap(step)
        replaced = {other for key, other in (("steps", "epochs"), ("epochs", "steps")) if key in changes}
        steps[step_id] = {key: value for key, value in step.items() if key not in replaced} | changes
    first = {"seeds": document["seeds"][:1]} if document.get("seeds") else {}
    return {**document, "steps": steps, **first}


QUICK_ROWS = 50
QUICK_CASES = 5
"""Of an attack, for each family."""
QUICK_FRACTION = 10


def _general_cap(step: Mapping[str, Any]) -> dict[str, Any]:
    if step["do"] == "attack":
        return {"limit": min(step.get("limit") or QUICK_CASES, QUICK_CASES), "probes": QUICK_ROWS}
    if step["do"] == "evaluate":
        return {"limit": min(step.get("limit") or QUICK_ROWS, QUICK_ROWS)}
    if step["do"] == "causal":
        return {key: [_capped(source) for source in step[key]] for key in ("cases", "validation") if step.get(key)}
    if step["do"] == "token_weighting":
        return {"data": [_capped(source) for source in step["data"]]}
    if step["do"] == "verify":
        return {"rows": min(step.get("rows") or QUICK_ROWS, QUICK_ROWS), "bound": None}
    if step["do"] != "train":
        return {}
    listed = ("data", "validation", "safety")
    rows: dict[str, Any] = {key: [_capped(source) for source in step[key]] for key in listed if step.get(key)}
    if best := step.get("best_by"):
        rows["best_by"] = {**best, "cases": [_capped(source) for source in best["cases"]]}
    length = {"steps": max(1, step["steps"] // QUICK_FRACTION)} if step.get("steps") else {"epochs": 1}
    return {**rows, **length}


def _capped(source: Any) -> dict[str, Any]:
    """At most `QUICK_ROWS` rows; a file that has fewer gives those it has."""
    given: dict[str, Any] = as_source(source)
    key = "rows" if given.get("rows") else "at_most"
    return {**given, key: min(given.get(key) or QUICK_ROWS, QUICK_ROWS)}


def _known_step(document: Mapping[str, Any], override: str) -> None:
    keys = override.partition("=")[0].strip().split(".")
    steps = document.get("steps")
    if keys[0] == "steps" and len(keys) > 1 and isinstance(steps, dict) and keys[1] not in steps:
        raise ConfigError(f"Cannot apply --set {override!r}: no step {keys[1]!r}. {did_you_mean(keys[1], steps)}")
