"""What a step may know while it runs, and what it leaves in its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import __version__
from holdfast.core.files import folder_atomically, sha256_of
from holdfast.core.results import Artifact, Metric, Sample, StepRecord, Verdict
from holdfast.models.config import ModelConfig
from holdfast.recipes.schema import Recipe
from holdfast.recipes.train_step import TRAINED

if TYPE_CHECKING:
    from holdfast.models.load import LoadedModel

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"
"""Where the training loop leaves its result, under the step's folder."""
BASE_FOLDER = "base"
"""What an adapter stands on, or a certificate is checked against, where no other folder holds it."""
TOKENIZER_FOLDER = "tokenizer"
SHARED_FOLDER = ".shared"
"""Under the run's folder, where no step's id can name it: what steps find of one another until the run ends."""
LOG_FILE = "log.jsonl"
"""Every answer of an evaluation."""
KEPT = ("device", "trust_remote_code")
"""Settings of a model that also hold for the folder that training makes of it."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done and how many there are."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a step may know while it runs."""

    recipe: Recipe
    step_id: str
    out: Path
    done: Mapping[str, StepRecord]
    """Finished steps before this one."""
    resume: bool
    """Continue what an earlier, interrupted run of this step left."""
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where this step writes."""
        return self.out / self.step_id

    @property
    def shared(self) -> Path:
        """Where a step leaves what it and later ones would compute again, named after all that it depends on."""
        return self.out / SHARED_FOLDER / __version__

    def config(self) -> dict[str, Any]:
        """The step's configuration as it runs, for the record."""
        step = self.recipe.steps[self.step_id]
        config = step.model_dump(mode="json")
        if "model" in type(step).model_fields:
            config["model"] = self.recipe.model_of(self.step_id).model_dump(mode="json")
        return config


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step leaves in its record."""

    metrics: tuple[Metric, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    curves: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    """Those of the notes that standard error has had while the step ran; not in the record."""
    model_name: str = ""
    peak_bytes: int | None = None

    def as_fields(self) -> dict[str, Any]:
        """Keyword arguments of `StepRecord`."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "said"}


def resolve_model(recipe: Recipe, step_id: str, out: Path) -> ModelConfig:
    """The model a step starts from, with a step's id replaced by the folder that step wrote."""
    wanted = recipe.model_of(step_id)
    if wanted.tokenizer == TRAINED:
        return wanted.model_copy(update={"tokenizer": str(out / step_id / TOKENIZER_FOLDER)})
    return made_by_step(recipe, wanted, out)


def made_by_step(recipe: Recipe, wanted: ModelConfig, out: Path) -> ModelConfig:
    """A model with a step's id replaced by the folder that step wrote; any other as it is.

    An adapter is put on the model it was trained on; a trained model is run where its base was, unless ``wanted`` says.
    """
    if wanted.source not in recipe.steps:
        return wanted
    step_folder = out / wanted.source
    base = resolve_model(recipe, wanted.source, out)
    explicit = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    if not (step_folder / ADAPTER_FOLDER).exists():
        kept = {name: getattr(base, name) for name in KEPT} | explicit
        return wanted.model_copy(update=kept | {"source": str(step_folder / MODEL_FOLDER)})
    merged = step_folder / BASE_FOLDER
    source = str(merged) if merged.exists() else base.source
    return base.model_copy(update=explicit | {"source": source, "adapter": str(step_folder / ADAPTER_FOLDER)})


def load_named(context: Context, wanted: ModelConfig) -> LoadedModel:
    """A model that a step names beside its own: another step's result, or any other."""
    from holdfast.models.load import load_model

    return load_model(made_by_step(context.recipe, wanted, context.out))


def keep_base(context: Context, base: ModelConfig, loaded: LoadedModel) -> None:
    """`write_base` where an adapter is merged into the model, so that a later step finds it under the new adapter."""
    if base.adapter is not None:
        write_base(context, loaded)


def write_base(context: Context, loaded: LoadedModel) -> None:
    """Save the model that this step starts from, because no folder holds it: an earlier adapter is merged in, say."""
    from holdfast.models.load import weights_of
    from holdfast.models.sources import quiet

    with folder_atomically(context.folder / BASE_FOLDER) as fresh, quiet():
        loaded.model.save_pretrained(fresh)
        loaded.save_tokenizer(fresh)
    loaded.weights = weights_of(context.folder / BASE_FOLDER)


def name_of(context: Context, loaded: LoadedModel) -> str:
    """The step that made the model, or else the model's own name."""
    source = context.recipe.model_of(context.step_id).source
    return source if source in context.recipe.steps else loaded.name


def artifact(context: Context, path: Path) -> Artifact:
    """A file or folder of this run, with its hash."""
    return Artifact(path=path.relative_to(context.out).as_posix(), sha256=sha256_of(path))
