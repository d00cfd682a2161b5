"""``holdfast attack``: injected instructions against a model, with or without a defence around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.measure import AnyBase, OnModel, model_named, run_step
from holdfast.cli.output import AsJson, print_json, print_table, say
from holdfast.core.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.core.results import Metric

FOLLOWED, DONE = "injection/attack/attacked/followed", "injection/attack/attacked/task_done"
HIDDEN = tuple(
    f"{part}/{word}"
    for part in ("benign", "neutral", "trigger", "last", "quoting")
    for word in ("followed", "followed/all", "refused")
    if (part, word) != ("benign", "refused")
)
"""Figures of parts without an attack that only the record and ``--json`` have."""
POINTS = ("position_bias/followed", "position_bias/task_done", "trigger_effect", "instruction_last_effect")
"""Figures that are differences of rates."""


def attack(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: Annotated[str, typer.Argument(help="lab, a folder or a hub name.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="lab, a file or folder of cases, or a set on the hub. Repeatable."),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Format of --data: see 'holdfast data audit --help'. Default: its columns'.")
    ] = "",
    split: Annotated[str, typer.Option(help="Which cases of --data.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Cases per family at most. Default: all; of the lab 30.")
    ] = None,
    probes: Annotated[
        int, typer.Option(min=0, help="Cases for triggers, order, quoting and obeyed instructions.")
    ] = 300,
    defence: Annotated[
        str,
        typer.Option(
            help="none, keyword_drop, keyword_block, perplexity, delimiters, reminder, sandwich or spotlighting."
        ),
    ] = "none",
    best_of: Annotated[
        int | None, typer.Option("--best-of", min=1, help="Random wordings that are tried on a case until one works.")
    ] = None,
    gcg: Annotated[
        str,
        typer.Option(
            metavar="BUDGET", help="Search suffixes by gradients: steps=100,width=64,candidates=64,length=12,cases=20."
        ),
    ] = "",
    adapter: OnModel = "",
    any_base: AnyBase = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer.")] = 96,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are decoded together.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws, the wordings and the searches.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Keep the log and a report in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Attack a model with injected instructions: by family and place, against its answers with nothing injected."""
    if not data:
        raise ConfigError("No cases were named. Do: add --data FILE, or --data lab.")
    step: dict[str, Any] = {
        "do": "attack",
        "model": model_named(model, adapter, any_base),
        "cases": [_source(name, format_, split) for name in data],
        "limit": limit,
        "probes": probes,
        "defence": defence,
        "best_of": best_of,
        "gcg": _budget(gcg),
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }
    record = run_step({"name": "attack", "seed": seed, "steps": {"attacked": step}}, out)
    done = record.steps[-1]
    if as_json:
        print_json([metric.model_dump(mode="json") for metric in done.metrics])
    else:
        print_attack(done.metrics)
        for note in done.notes:
            typer.echo(f"Note: {note}")
    if out is not None:
        say(f"Every answer: {out / 'attacked' / 'log.jsonl'}")


def _source(name: str, format_: str, split: str) -> dict[str, str]:
    from holdfast.data.counterfactual import named

    source = {"source": named(name), "split": split}
    return source | ({"format": format_} if format_ else {})


def _budget(words: str) -> dict[str, Any] | None:
    """A budget as a recipe has it.

    >>> _budget("steps=50,cases=5")
    {'steps': 50, 'cases': 5}
    """
    from holdfast.core.config import apply_overrides

    if not words:
        return None
    try:
        return apply_overrides({}, words.split(","))
    except ConfigError as problem:
        raise ConfigError(f"Cannot read --gcg {words!r}: expected key=value,... such as steps=50,cases=5.") from problem


def print_attack(metrics: Sequence[Metric]) -> None:
    """Families and places, then every other total."""
    for field in ("attack", "position", "risk_area"):
        rows = [metric for metric in metrics if metric.name == FOLLOWED and metric.group.startswith(f"{field}=")]
        if rows:
            done = {metric.group: metric for metric in metrics if metric.name == DONE}
            print_table(
                (field, "followed", "at most", "n", "invalid", "task done"),
                [_family(metric, done.get(metric.group)) for metric in rows],
            )
            typer.echo()
    totals = [m for m in metrics if not m.name.endswith(HIDDEN) and (not m.group or m.name.endswith("/worst"))]
    print_table(
        ("figure", "value", "n", "invalid"),
        [(m.name.removeprefix("injection/attack/"), _figure(m), str(m.n), str(m.n_invalid)) for m in totals],
    )


def _family(metric: Metric, done: Metric | None) -> tuple[str, ...]:
    """One family; ``at most`` is the exact one-sided 95 % bound."""
    from holdfast.evaluation.intervals import upper_bound
    from holdfast.recipes.summary import figure

    known = metric.k is not None and metric.n > 0
    bound = f"{100 * upper_bound(metric.k or 0, metric.n):.1f} %" if known else "unknown"
    name = metric.group.partition("=")[2]
    return name, figure(metric), bound, str(metric.n), str(metric.n_invalid), "" if done is None else figure(done)


def _figure(metric: Metric) -> str:
    """A figure; a difference of rates in points, and what its place or number needs to be read."""
    from holdfast.recipes.summary import figure

    if metric.value is None or not metric.name.endswith(POINTS):
        worst = metric.name.endswith(("/worst_family", "/worst"))
        return figure(metric) + (f"  ({metric.reason})" if worst and metric.value is not None else "")
    bounds = "" if metric.low is None or metric.high is None else f" [{100 * metric.low:.0f}, {100 * metric.high:.0f}]"
    return f"{100 * metric.value:+.0f} pp{bounds}"
