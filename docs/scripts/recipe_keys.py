"""Write `docs/recipes.md`: the page's text from `recipes.md` beside this script, its tables from the models.

Usage: python docs/scripts/recipe_keys.py [--check]     --check writes nothing and exits 1 where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pages import ROOT, put
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from holdfast.core.config import Config
from holdfast.data.sources import SourceConfig
from holdfast.evaluation.attacks.config import GcgConfig
from holdfast.evaluation.judges.config import ChatJudge, ClassifierJudge
from holdfast.evaluation.tasks import TaskConfig
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.models.config import ModelConfig
from holdfast.recipes.best_by import BestBy
from holdfast.recipes.merge_step import AdapterRows, Select
from holdfast.recipes.repair_step import Dialled
from holdfast.recipes.schema import STEP_TYPES, Recipe
from holdfast.recipes.train_step import NewTokenizer
from holdfast.training.config import LoraConfig

PAGE = ROOT / "docs" / "recipes.md"
TEXT = Path(__file__).with_name("recipes.md")
TABLES: dict[str, type[Config]] = {
    "recipe": Recipe,
    **STEP_TYPES,
    "model": ModelConfig,
    "source": SourceConfig,
    "task": TaskConfig,
    "lora": LoraConfig,
    "tokenizer": NewTokenizer,
    "best_by": BestBy,
    "adapters": AdapterRows,
    "select": Select,
    "dial": Dialled,
    "gcg": GcgConfig,
    "critic": CriticConfig,
    "classifier": ClassifierJudge,
    "chat": ChatJudge,
}
"""Every table of the page by the name its place has in the text, ``<!-- keys: train -->``."""


def page() -> str:
    """The page as it should be."""
    text = TEXT.read_text(encoding="utf-8")
    for name, model in TABLES.items():
        place = f"<!-- keys: {name} -->"
        assert text.count(place) == 1, f"{TEXT.name} must hold {place} once"
        text = text.replace(place, table(model))
    return f"<!-- Written by docs/scripts/recipe_keys.py; the text is in docs/scripts/recipes.md. -->\n{text}"


def table(model: type[Config]) -> str:
    """One line a key: name, default, meaning."""
    lines = ["| key | default | |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(line(name, field) for name, field in model.model_fields.items())])


def line(name: str, field: FieldInfo) -> str:
    """A key's line. Words that the schema lists are added where its description does not say them all."""
    meaning = " ".join((field.description or "").replace("``", "`").split())
    words = choices(field.annotation)
    told = len(words) < 2 or all(f"`{word}`" in meaning for word in words)
    listed = "" if told else f" One of: {', '.join(f'`{word}`' for word in words)}."
    return f"| `{name}` | {default(field)} | {(meaning + listed).strip().replace('|', chr(92) + '|')} |"


def choices(annotation: Any) -> list[str]:
    """The words of the literals in an annotation."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return []
    return [word for inner in get_args(annotation) for word in choices(inner)]


def default(field: FieldInfo) -> str:
    """The default as it would stand in YAML."""
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if value is PydanticUndefined:
        words = choices(field.annotation)
        return f"required: `{words[0]}`" if len(words) == 1 else "required"
    if value is None or value in ("", (), {}) or isinstance(value, Config):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.exit(put(PAGE, page()))
