"""The keys of the step that trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from holdfast.core.config import Config
from holdfast.core.errors import ConfigError
from holdfast.methods.rotation.baselines.config import BaselineConfig, Control, check
from holdfast.recipes.best_by import BestBy
from holdfast.recipes.fields import MODELS, Model, Source
from holdfast.recipes.objective_keys import PLANS_OF_LOSS, Factor, as_factors
from holdfast.training.config import TrainConfig

TRAINED = "trained"
"""In place of a tokenizer's folder: the one that the step trains."""


class NewTokenizer(Config):
    """A byte-level BPE that is trained on the step's rows before anything else."""

    vocab_size: int = Field(ge=263)
    """Tokens in all: 256 bytes, 7 control tokens and the merges."""
    min_frequency: int = Field(default=2, ge=1)
    """A merge must occur this often."""


class TrainStep(TrainConfig):
    """Fine-tune a model on rows. Every training setting stands directly under the step."""

    refers: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": MODELS, "unaligned": MODELS, "constraint": ("mask",)}
    keyed: ClassVar[Mapping[str, tuple[str, ...]]] = {"objective": PLANS_OF_LOSS}

    do: Literal["train"]
    model: Model | None = None
    """The model to start from; the recipe's ``model`` where it is left out."""
    objective: Annotated[dict[str, Factor], BeforeValidator(as_factors)] = Field(default_factory=dict)
    """What is loss, in place of the answers' cross-entropy: the id of a ``causal`` step, which brings its cases as
    rows, or of a ``token_weighting`` step, which brings all rows; or ids, each with its factor, ``{steady: 0.3}``."""
    data: tuple[Source, ...] = ()
    """Rows to learn, mixed in random order; left out only where ``objective`` brings its own."""
    validation: tuple[Source, ...] = ()
    """Rows for the validation loss: early stopping and the best checkpoint go by it. ``objective`` brings its own."""
    best_by: BestBy | None = None
    """What ``keep: best`` and ``patience`` go by in place of the validation loss: attack success on cases."""
    constraint: str | None = None
    """What may not move: the id of a ``mask`` step, or the folder of a plan that another run made
    (``runs/warp/mask/plan``)."""
    baseline: BaselineConfig | None = None
    """Another way to train, to compare with: its name, or a mapping of ``name`` and settings. ``random_mask``,
    ``random_subspace``, ``unrotated`` and ``rho0`` stand beside ``constraint``: its controls of equal size."""
    safety: tuple[Source, ...] = ()
    """Requests with safe answers, for a baseline that uses them."""
    unaligned: Model | None = None
    """The model before its alignment, for a baseline that uses it."""
    tokenizer: NewTokenizer | None = None
    """For a model with ``source: new, tokenizer: trained``: how this step trains that tokenizer on its rows."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Settings of this step that ``--quick`` replaces."""

    @field_validator("data", mode="before")
    @classmethod
    def _rows_are_there(cls, value: Any, known: ValidationInfo) -> Any:
        """They may be left out beside an objective; where that is malformed, it alone is told."""
        if value in ((), []) and not known.data.get("objective", True):
            raise ValueError("missing" if value == () else "should have at least 1 item (got [])")
        return value

    @model_validator(mode="after")
    def _tokenizer_has_a_model(self) -> Self:
        wanted = self.model is not None and self.model.tokenizer == TRAINED
        if wanted != (self.tokenizer is not None):
            raise ValueError(f"'tokenizer: {{vocab_size: ...}}' and 'tokenizer: {TRAINED}' under 'model' go together")
        return self

    @model_validator(mode="after")
    def _baseline_fits(self) -> Self:
        if self.baseline is not None:
            control = isinstance(self.baseline, Control)
            if control and self.constraint is None:
                raise ValueError(f"baseline {self.baseline.name} is the control of a constraint; give 'constraint' too")
            if self.constraint is not None and not control:
                raise ValueError("baseline and constraint exclude each other; take one of them out")
            try:
                check(self.baseline, self.params, safety=bool(self.safety), unaligned=self.unaligned is not None)
            except ConfigError as problem:
                raise ValueError(str(problem)) from problem
        elif self.safety or self.unaligned is not None:
            raise ValueError("'safety' and 'unaligned' have no effect without 'baseline'; take them out")
        return self

    @model_validator(mode="after")
    def _validation_is_used(self) -> Self:
        if self.validation and not self.evaluate_every:
            raise ValueError("validation has no effect without evaluate_every; set it, or take validation out")
        if self.evaluate_every and not (self.validation or self.objective or self.best_by):
            raise ValueError("evaluate_every needs 'validation' rows")
        if self.best_by is not None and self.keep != "best" and self.patience is None:
            raise ValueError("best_by has no effect without keep: best or patience; set one, or take best_by out")
        return self

    @model_validator(mode="after")
    def _baseline_has_its_own_loss(self) -> Self:
        if self.baseline is not None and self.constraint is None:
            for key in ("objective", "best_by"):
                if getattr(self, key):
                    raise ValueError(f"baseline and {key} exclude each other; take one of them out")
        return self

    def training(self) -> TrainConfig:
        """The training settings alone, as the loop wants them."""
        return self.only(TrainConfig)
