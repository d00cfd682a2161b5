"""What would stop a recipe after it has begun, found before anything loads: every problem of every step at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from holdfast.core.errors import DataError, HoldfastError
from holdfast.data import files
from holdfast.data.formats import FORMATS
from holdfast.data.sources import HUB_ID, LAB_ROWS, SourceConfig, check_answers, check_source, load_examples
from holdfast.recipes.holds import share_problems
from holdfast.recipes.schema import BasisStep, ImportanceStep, MaskStep, Recipe
from holdfast.recipes.train_step import TRAINED, TrainStep

if TYPE_CHECKING:
    from holdfast.data.counterfactual import Counterfactual
    from holdfast.data.examples import Example
    from holdfast.models.chat import ChatFormat
    from holdfast.models.config import ModelConfig
    from holdfast.models.describe import Description

T = TypeVar("T")
PROBED = 32
"""Rows of a source that are tokenised to see whether they fit: those with the most text, or with the least."""


class Checks:
    """Looks at models and rows, and keeps what is wrong with them under the step that uses them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.problems: list[str] = []
        self._models: dict[str, tuple[Description | None, ChatFormat | None]] = {}
        self._cases: dict[str, tuple[int | None, list[Counterfactual] | None]] = {}

    def tried(self, step_id: str, call: Callable[[], T]) -> T | None:
        """What ``call`` gives; ``None`` where it finds a problem, which is kept."""
        try:
            return call()
        except HoldfastError as problem:
            self.problems.append(f"steps.{step_id}: {problem}")
            return None

    def model(self, step_id: str, named: ModelConfig | None = None) -> tuple[Description | None, ChatFormat | None]:
        """The model a step uses (or ``named``, another one it names) on paper, and how it reads a conversation.

        ``None`` for what cannot be had: each problem is kept; the chat format also where its tokenizer is yet to be
        trained.
        """
        from holdfast.models.load import device_of

        config, vocabulary = _as_loaded(self.recipe, named or self.recipe.model_of(step_id), step_id)
        self.tried(step_id, lambda: device_of(config))
        key = f"{config.model_dump_json()} {vocabulary}"
        if key not in self._models:
            self._models[key] = self._looked_at(step_id, config, vocabulary)
        return self._models[key]

    def _looked_at(
        self, step_id: str, config: ModelConfig, vocabulary: int | None
    ) -> tuple[Description | None, ChatFormat | None]:
        from holdfast.models.describe import describe
        from holdfast.models.load import load_chat, set_attention
        from holdfast.models.sources import check_weights, is_here, local_folder

        if (adapter := config.adapter) is not None:
            self.tried(step_id, lambda: local_folder(adapter, weights=False, marker="adapter_config.json"))
        found = self.tried(step_id, lambda: describe(config, vocabulary))
        if found is None:
            return None, None
        self.tried(step_id, lambda: set_attention(found.skeleton, config))
        if config.source != "new" and is_here(config.source):
            self.tried(step_id, lambda: check_weights(config.source, local_folder(config.source)))
        chat = None if config.tokenizer == TRAINED else self.tried(step_id, lambda: load_chat(config))
        return found, chat

    def rows(self, step_id: str, sources: Iterable[SourceConfig]) -> dict[str, int | None]:
        """How many rows each source gives."""
        counts: dict[str, int | None] = {}
        for source in sources:
            name = f"{source.source} ({source.split})" if source.split else source.source
            count = self.tried(step_id, lambda source=source: count_rows(source))  # type: ignore[misc]
            counts[name] = None if count is None else (counts.get(name) or 0) + count
        return counts

    def cases(
        self, step_id: str, sources: Iterable[SourceConfig]
    ) -> tuple[dict[str, int | None], list[Counterfactual] | None]:
        """How many cases each source gives, and the cases, a few of the lab's; ``None`` where some are not at hand."""
        counts: dict[str, int | None] = {}
        cases: list[Counterfactual] | None = []
        for source in sources:
            name = f"{source.source} ({source.split})" if source.split else source.source
            key = source.model_dump_json()
            if key not in self._cases:
                self._cases[key] = self.tried(step_id, lambda source=source: _cases_of(source)) or (None, None)  # type: ignore[misc]
            count, found = self._cases[key]
            counts[name] = None if count is None else (counts.get(name) or 0) + count
            cases = None if cases is None or found is None else cases + found
        return counts, cases

    def answers(self, step_id: str, sources: Iterable[SourceConfig]) -> list[Example] | None:
        """The rows to learn from, a few of those of a lab family; ``None`` where some are not at hand."""
        examples: list[Example] | None = []
        for source in sources:
            found = _at_hand(source)
            if found is None:
                examples = None
                continue
            self.tried(step_id, lambda source=source, found=found: check_answers(source, found))  # type: ignore[misc]
            examples = None if examples is None else examples + found
        return examples

    def training(self, step_id: str, step: TrainStep, model: Description | None) -> None:
        """The settings of a training fit its model, and what they need is installed."""
        from holdfast.training.gates import check_setup
        from holdfast.training.parameters import check_params, check_targets
        from holdfast.training.trackers import require

        config, _ = _as_loaded(self.recipe, self.recipe.model_of(step_id), step_id)
        for tracker in step.trackers:
            self.tried(step_id, lambda tracker=tracker: require((tracker,)))  # type: ignore[misc]
        self.tried(step_id, lambda: check_params(step.params, config.quantization))
        if model is not None:
            self.tried(step_id, lambda: check_setup(model.skeleton, step, True))
            if step.params != "full":
                self.tried(step_id, lambda: check_targets(model.skeleton, step.lora.targets))

    def mask(self, step_id: str, step: MaskStep) -> None:
        """The share of a mask freezes some of every layer of its basis, and not all."""
        from holdfast.layers.address import LayerMap

        scored = self.recipe.steps[step.of]
        assert isinstance(scored, ImportanceStep)
        basis = self.recipe.steps[scored.of]
        assert isinstance(basis, BasisStep)
        model, _ = self.model(scored.of)
        if model is None:
            return
        layers = self.tried(scored.of, lambda: LayerMap.of(model.skeleton).select(basis.layers or None))
        shapes = {layer.name: (layer.out_features, layer.in_features) for layer in layers or ()}
        self.problems += [f"steps.{step_id}: {problem}" for problem in share_problems(step, shapes)]

    def lengths(self, step_id: str, step: TrainStep, chat: ChatFormat | None, rows: Sequence[Example]) -> None:
        """Rows fit into ``max_length``: all that are probed, or with ``too_long: drop`` any."""
        if chat is not None and rows:
            self.tried(step_id, lambda: _check_lengths(step, chat, rows))


def count_rows(source: SourceConfig) -> int | None:
    """Rows that a source will give; files are read, so that a damaged one is found now. ``None`` for the hub.

    Raises:
        DataError: nothing there, or damaged.
        ConfigError: settings that do not fit the source.
    """
    check_source(source)
    if source.source.startswith("lab/"):
        return source.rows or min(LAB_ROWS, source.at_most or LAB_ROWS)
    if on_hub(source):
        return source.rows or source.at_most
    return len(load_examples(source))


def _cases_of(source: SourceConfig) -> tuple[int | None, list[Counterfactual] | None]:
    from holdfast.data.counterfactual import read_cases

    if source.source.startswith("lab/"):
        few = {"rows": min(source.rows or PROBED, PROBED), "at_most": None}
        return source.rows or min(LAB_ROWS, source.at_most or LAB_ROWS), list(read_cases(source.model_copy(update=few)))
    if on_hub(source):
        return source.rows or source.at_most, None
    found = list(read_cases(source))
    return len(found), found


def on_hub(source: SourceConfig) -> bool:
    """Whether only reading the hub would tell what a source holds."""
    path = Path(source.source).expanduser()
    local = path.exists() or files.kind_of(path)
    if local or source.source.startswith("lab/"):
        return False
    return source.source in FORMATS or bool(HUB_ID.fullmatch(source.source))


def _at_hand(source: SourceConfig) -> list[Example] | None:
    """Rows of a file, and a few of a lab family; ``None`` on the hub, and where they cannot be read."""
    if on_hub(source):
        return None
    few = {"rows": min(source.rows or PROBED, PROBED), "at_most": None} if source.source.startswith("lab/") else {}
    try:
        return load_examples(source.model_copy(update=few))
    except HoldfastError:
        return None  # `Checks.rows` tells it


def _check_lengths(step: TrainStep, chat: ChatFormat, rows: Sequence[Example]) -> None:
    dropped = step.too_long == "drop"
    by_text = sorted(rows, key=characters, reverse=not dropped)
    tokens = {row.id: len(chat.training(row)) for row in by_text[:PROBED]}
    name = (min if dropped else max)(tokens, key=lambda row: tokens[row])
    if tokens[name] <= step.max_length:
        return
    if dropped:
        raise DataError(
            f"no row fits max_length {step.max_length}: row {name!r}, of the shortest, has {tokens[name]} tokens. "
            f"Do: raise max_length, or shorten the rows."
        )
    raise DataError(
        f"rows are too long: row {name!r} got {tokens[name]} tokens, expected at most {step.max_length}. "
        "Do: raise max_length, shorten the rows, or set too_long: drop."
    )


def characters(row: Example) -> int:
    """How much text a row has."""
    return len(row.answer) + sum(len(message.content) for message in row.messages)


def _as_loaded(recipe: Recipe, config: ModelConfig, step_id: str) -> tuple[ModelConfig, int | None]:
    """The model with a step's id replaced by what that step began with, and the size of a tokenizer yet to be trained.

    What training makes has the shape of what it began with; a whole model is stored unquantized.
    """
    if config.source not in recipe.steps:
        step = recipe.steps[step_id]
        own = step.tokenizer if isinstance(step, TrainStep) and config.tokenizer == TRAINED else None
        return config, own.vocab_size if own else None
    maker = recipe.steps[config.source]
    base, vocabulary = _as_loaded(recipe, recipe.model_of(config.source), config.source)
    changes = {name: getattr(config, name) for name in config.model_fields_set - {"source"}}
    if isinstance(maker, TrainStep) and maker.params == "full":
        changes = {"quantization": None, "attention": "auto", "adapter": None} | changes
    return base.model_copy(update=changes), vocabulary
