"""``holdfast list`` and ``holdfast show``: what there is by name, and the documentation of one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.output import print_json, print_table
from holdfast.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from holdfast.core.config import Config

Rows = Iterator[tuple[str, str]]


def _methods() -> Rows:
    from holdfast.methods import METHODS

    yield from ((name, method.summary) for name, method in METHODS.items())


def _tasks() -> Rows:
    from holdfast.evaluation.tasks import TASKS

    yield from ((name, f"{task.suite}: {task.summary}") for name, task in TASKS.items())


def _suites() -> Rows:
    from holdfast.evaluation.tasks import SUITES

    yield from ((name, ", ".join(tasks)) for name, tasks in SUITES.items())


def _judges() -> Rows:
    from holdfast.evaluation.judges import JUDGES

    yield from ((name, f"{judge.name}; 1 means {judge.measures}") for name, judge in JUDGES.items())


def _formats() -> Rows:
    from holdfast.data.formats import FORMATS

    for name, form in FORMATS.items():
        home = f"; on the hub: {form.home.id}" if form.home else ""
        yield name, f"columns {', '.join(form.needs) or 'by position'}{home}"


def _families() -> Rows:
    from holdfast.data.lab import FAMILIES

    yield from ((f"lab/{name}", "rows of the lab's world") for name in FAMILIES)


def _recipes() -> Rows:
    from holdfast.core.config import load_yaml
    from holdfast.recipes.catalogue import shipped

    for name, path in shipped().items():
        yield name, str(load_yaml(path).get("title", ""))


KINDS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "tasks": _tasks,
    "suites": _suites,
    "judges": _judges,
    "formats": _formats,
    "families": _families,
    "recipes": _recipes,
}


def list_(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}. Default: all of them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List what there is: methods, tasks, suites, judges, formats, lab families, recipes."""
    if kind and kind not in KINDS:
        raise ConfigError(f"Cannot list {kind!r}. {did_you_mean(kind, KINDS)}")
    chosen = {name: list(rows()) for name, rows in KINDS.items() if kind in {"", name}}
    if as_json:
        print_json({name: [{"name": row[0], "summary": row[1]} for row in rows] for name, rows in chosen.items()})
        return
    for name, rows in chosen.items():
        print_table((name, ""), rows or [("(none yet)", "")])
        typer.echo()


def show(
    name: Annotated[str, typer.Argument(help="A task, judge, recipe, lab family, step or setting, or its key.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Rows of a lab family to print.")] = 3,
    split: Annotated[str, typer.Option(help="Split of a lab family: train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of a lab family's rows.")] = 0,
) -> None:
    """Print the documentation of one thing (train, train.epochs, gsm8k, keyword), or rows of a lab family."""
    pages = (_settings_page(name), _task_page(name), _judge_page(name), _method_page(name), _recipe_page(name))
    found = [page for page in pages if page]
    if name.startswith("lab/"):
        found += _lab_rows(name, n, split, seed)
    if not found:
        near = get_close_matches(name, _all_names(), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"Nothing is called {name!r}. {hint}Do: see 'holdfast list', or 'holdfast show train' for a step's keys."
        )
    typer.echo("\n\n".join(found))


def _all_names() -> list[str]:
    pages = _settings()
    keys = [f"{kind}.{key}" for kind, model in pages.items() for key in model.model_fields]
    return [*keys, *pages, *(name for rows in KINDS.values() for name, _ in rows())]


def _settings() -> dict[str, type[Config]]:
    """Everything a recipe is made of, by the name under which ``show`` has it."""
    from holdfast.data.sources import SourceConfig
    from holdfast.evaluation.judges.config import ChatJudge, ClassifierJudge
    from holdfast.evaluation.tasks import TaskConfig
    from holdfast.models.config import ModelConfig
    from holdfast.recipes.schema import STEP_TYPES, Recipe
    from holdfast.training.config import LoraConfig

    parts: dict[str, type[Config]] = {
        "recipe": Recipe,
        "task": TaskConfig,
        "source": SourceConfig,
        "model": ModelConfig,
        "lora": LoraConfig,
    }
    return {**STEP_TYPES, **parts, "classifier": ClassifierJudge, "chat": ChatJudge}


def _settings_page(name: str) -> str:
    kind, _, key = name.partition(".")
    model = _settings().get(kind)
    if model is None or (key and key not in model.model_fields):
        return ""
    if not key:
        head = " ".join((model.__doc__ or "").split())
        return "\n".join([f"{kind}: {head}", "", *(_key_line(each, model) for each in model.model_fields)])
    return _key_line(key, model)


def _key_line(key: str, model: type[Config]) -> str:
    from pydantic_core import PydanticUndefined

    field = model.model_fields[key]
    default = field.get_default(call_default_factory=True)
    shown = "required" if default is PydanticUndefined else f"default {default!r}"
    return f"  {key} ({shown}): {' '.join((field.description or '').split())}"


def _task_page(name: str) -> str:
    from dataclasses import asdict

    from holdfast.evaluation.tasks import TASKS

    if name not in TASKS:
        return ""
    task = asdict(TASKS[name])
    return "\n".join([f"{name}: {task.pop('summary')}", *(f"  {key}: {value}" for key, value in task.items() if value)])


def _judge_page(name: str) -> str:
    from holdfast.evaluation.judges import JUDGES

    if name not in JUDGES:
        return ""
    judge = JUDGES[name]
    module = __import__(judge.judge.__module__, fromlist=["__doc__"])
    return f"judge {judge.name}; 1 means {judge.measures}\n{(module.__doc__ or '').strip()}"


def _method_page(name: str) -> str:
    from holdfast.methods import METHODS

    if name not in METHODS:
        return ""
    method = METHODS[name]
    keys = [_key_line(key, method.config) for key in method.config.model_fields]
    return "\n".join([f"{name}: {method.summary} ({method.reference}). Gives {method.gives}.", *keys])


def _recipe_page(name: str) -> str:
    from holdfast.recipes.catalogue import shipped

    path = shipped().get(name)
    return path.read_text(encoding="utf-8").rstrip() if path else ""


def _lab_rows(name: str, n: int, split: str, seed: int) -> list[str]:
    from holdfast.data.lab import FAMILIES, rows

    family = name.removeprefix("lab/")
    if family not in FAMILIES:
        return []
    return [_row_page(row) for row in rows(family, split, n, seed)]


def _row_page(row: Any) -> str:
    facts = {key: value for key, value in row.as_dict().items() if key not in {"id", "messages", "answer"}}
    lines = [f"[{row.id}]", *(f"  {message.role}: {message.content}" for message in row.messages)]
    lines += [f"  -> {row.answer}", "  " + ", ".join(f"{key}={value!r}" for key, value in facts.items())]
    return "\n".join(lines)
