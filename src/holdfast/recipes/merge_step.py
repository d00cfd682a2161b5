"""The keys of the step that merges adapters."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from holdfast.core.config import Config
from holdfast.data.sources import SourceConfig
from holdfast.evaluation.tasks import TaskConfig
from holdfast.methods.merging.config import PAIRS, WITH_ROWS, MergingConfig
from holdfast.recipes.fields import MODELS, Model, NamedTask, Source

VALIDATION = "validation"
"""The split of lab rows that a dial is chosen on."""


def _as_adapter(value: Any) -> Any:
    return {"adapter": value} if isinstance(value, str) else value


class AdapterRows(Config):
    """An adapter, and rows of what it was trained for."""

    adapter: str
    """Id of the step that made it, or a PEFT folder."""
    data: tuple[Source, ...] = ()
    """Rows that the rule weighs it by; other ones than it was trained on and is measured on."""


class Validation(Config):
    """What a dial is chosen by: figures on validation rows."""

    safety: tuple[NamedTask, ...] = Field(min_length=1)
    """Tasks whose figures, each 1 at best, are averaged to safety: refusals of harmful requests, answers to others."""
    utility: tuple[NamedTask, ...] = Field(min_length=1)
    """Tasks whose figures are averaged to utility."""
    drop: float = Field(default=0.02, ge=0)
    """How much utility may be lost, against the first adapter alone."""
    rows: int = Field(default=150, ge=1)
    """Rows of each lab task that names none: of its validation split, never those it is measured on."""

    @model_validator(mode="after")
    def _rows_are_not_the_measured_ones(self) -> Self:
        for task in (*self.safety, *self.utility):
            if task.data is None and not task.task.source.startswith("lab/"):
                raise ValueError(f"task {task.name!r} needs 'data': validation rows, not those it is measured on")
        return self

    def tasks(self, seed: int) -> tuple[tuple[TaskConfig, ...], tuple[TaskConfig, ...]]:
        """The tasks with the rows that they are asked on."""
        return tuple(self._on_validation(t, seed) for t in self.safety), tuple(
            self._on_validation(t, seed) for t in self.utility
        )

    def _on_validation(self, task: TaskConfig, seed: int) -> TaskConfig:
        if task.data is not None:
            return task
        source = SourceConfig(source=task.task.source, split=VALIDATION, rows=self.rows, seed=seed)
        return task.model_copy(update={"data": source})


class Select(Validation):
    """Choose the weight of the last adapter on validation rows: most safety at little loss of utility.

    Every weight is tried with every combination of the other lists.
    """

    weights: tuple[float, ...] = Field(default=(0.1, 0.3, 1.0, 3.0, 10.0), min_length=1)
    """Values of the last adapter's weight to try."""
    k: tuple[int, ...] = ()
    """Values of ``k`` to try, where the rule reads it."""
    tau: tuple[float, ...] = ()
    """Values of ``tau`` to try, where the rule reads it."""
    damping: tuple[float, ...] = ()
    """Values of ``damping`` to try, where the rule reads it."""

    def settings(self) -> tuple[dict[str, float], ...]:
        """What every weight is tried with: one empty combination without lists.

        The largest ``k`` comes first, so that one that the rows cannot tell is refused before anything is measured.
        """
        lists: dict[str, tuple[float, ...]] = {
            "k": tuple(sorted(self.k, reverse=True)),
            "tau": self.tau,
            "damping": self.damping,
        }
        given = {key: values for key, values in lists.items() if values}
        return tuple(dict(zip(given, values, strict=True)) for values in product(*given.values()))

    def tries(self) -> int:
        """How many merges are measured."""
        return len(self.weights) * len(self.settings())


class MergeStep(MergingConfig):
    """Make one adapter of several. The rule's settings stand directly under the step."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS}
    items: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {"adapters": ("adapter", MODELS)}

    do: Literal["merge"]
    model: Model | None = None
    """The base of the adapters; the recipe's ``model`` where it is left out."""
    adapters: tuple[Annotated[AdapterRows, BeforeValidator(_as_adapter)], ...] = Field(min_length=1)
    """The adapters in order, utility before safety."""
    any_base: bool = False
    """Take adapters from elsewhere that were made for another base, where they fit in shape; a note says so."""
    select: Select | None = None
    """How the last adapter's weight is chosen, whatever ``weights`` has for it."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts that are decoded together where ``select`` measures."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    @model_validator(mode="after")
    def _rows_and_weights_fit(self) -> Self:
        count = len(self.adapters)
        self.weights_of(count)
        if self.rule in PAIRS and count != 2:
            raise ValueError(f"rule {self.rule} takes two adapters, utility and then safety (got {count})")
        if self.select is not None and count == 1:
            raise ValueError("select weighs the last adapter against the others: there is 1")
        for value in () if self.select is None else self.select.weights:
            self.check_weights((*self.weights_of(count)[:-1], value))
        without = [item.adapter for item in self.adapters if not item.data]
        if self.rule in WITH_ROWS and without:
            raise ValueError(f"rule {self.rule} reads rows of every adapter: give {without[0]!r} 'data'")
        if self.rule not in WITH_ROWS and len(without) < len(self.adapters):
            raise ValueError(f"'data' of adapters has no effect with rule: {self.rule}; take it out")
        if self.select is None and "batch_size" in self.model_fields_set:
            raise ValueError("batch_size has no effect without select; take it out")
        return self

    @model_validator(mode="after")
    def _settings_are_read(self) -> Self:
        for settings in () if self.select is None else self.select.settings():
            twice = sorted(settings.keys() & self.model_fields_set)
            if twice:
                raise ValueError(f"{twice[0]} is chosen by select; take one of them out")
            try:
                self.only(MergingConfig, **settings)
            except ValidationError as problem:
                said = [f"{'.'.join(map(str, each['loc']))} {each['msg']}".strip() for each in problem.errors()]
                raise ValueError(f"select: {said[0].removeprefix('Value error, ')}") from problem
        return self

    def merging(self) -> MergingConfig:
        """The rule and its settings alone, as the method wants them."""
        return self.only(MergingConfig)
