"""``holdfast eval``, ``holdfast report`` and ``holdfast compare``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.output import INTERRUPTED, AsJson, Ticker, print_json, print_table, say
from holdfast.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from holdfast.core.results import Metric, RunRecord
    from holdfast.recipes.schema import Recipe

JUDGE_HELP = (
    "Another judge for every --task: its name (see 'holdfast list judges'), a sequence classifier as "
    "classifier:FOLDER,labels.refusal=1,labels.compliance=0, or a chat model as chat:URL,model=NAME. "
    "Its other settings (see 'holdfast show classifier') are added in the same way."
)
NULL = "A verdict holds where p < 0.05: more changed on the same prompts than chance explains. Prompts about one thing \
count as one; p-values within a breakdown are adjusted for their number."
JUDGE_PLACE = {"classifier": "source", "chat": "url"}
"""The setting that stands right after the colon, by kind of judge."""
OnModel = Annotated[str, typer.Option(metavar="FOLDER", help="A PEFT adapter to put on the model.")]
AnyBase = Annotated[
    bool, typer.Option("--any-base", help="Put --adapter on this model also where it was made for another.")
]


def evaluate(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: Annotated[str, typer.Argument(help="lab, a folder or a hub name. Not needed with --rescore.")] = "",
    suite: Annotated[str, typer.Option(help="Suites, separated by commas, e.g. safety,utility.")] = "",
    task: Annotated[list[str] | None, typer.Option("--task", help="A task. Repeatable.")] = None,
    data: Annotated[
        str,
        typer.Option(metavar="FILE", help="JSONL, CSV or Parquet: your own rows for the one --task, or for --format."),
    ] = "",
    format_: Annotated[str, typer.Option("--format", help="Row format of --data. Default: the task's.")] = "",
    judge: Annotated[str, typer.Option(help=JUDGE_HELP)] = "",
    labels: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Answers with people's labels: every --task's rate, corrected for its judge."
        ),
    ] = "",
    adapter: OnModel = "",
    any_base: AnyBase = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows per task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are decoded together.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows and of the bootstrap.")] = 0,
    harness: Annotated[str, typer.Option(help="native, or lm-eval for its tasks.")] = "native",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Keep the log and a report in this folder.")] = None,
    rescore: Annotated[Path | None, typer.Option(metavar="LOG", help="Make the figures of a log again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on tasks, or rescore a log without a model."""
    if rescore is not None:
        if model:
            raise ConfigError(f"--rescore reads a log and uses no model: got {model!r}. Do: give one of them.")
        words: dict[str, object] = {"--suite": suite, "--task": task, "--data": data, "--format": format_}
        words |= {"--judge": judge, "--labels": labels, "--adapter": adapter, "--any-base": any_base}
        words |= {"--limit": limit, "--out": out, "--seed": seed}
        words |= {"--batch-size": batch_size != 16, "--harness": harness != "native"}
        _refuse_with_rescore(words)
        from holdfast.evaluation.suite import rescore as make_again

        _print_metrics(make_again(rescore), as_json)
        return
    if not model:
        raise ConfigError("No model was named. Do: holdfast eval lab, or give --rescore LOG.")
    step: dict[str, Any] = {
        "do": "evaluate",
        "model": model_named(model, adapter, any_base),
        "tasks": _tasks(list(task or ()), data, format_, {"judge": _judge(judge), "labels": labels}),
        "suite": suite,
        "limit": limit,
        "batch_size": batch_size,
        "harness": harness,
    }
    record = run_step({"name": "eval", "seed": seed, "steps": {"measured": step}}, out)
    _print_metrics(record.steps[-1].metrics, as_json)
    if out is not None:
        say(f"Report: {out / 'report.html'}")


def model_named(source: str, adapter: str, any_base: bool) -> dict[str, str]:
    """A model and its adapter as a recipe has them."""
    if any_base and not adapter:
        raise ConfigError("--any-base says on which models --adapter may be put, and there is no --adapter.")
    given = {"adapter": adapter, "adapter_base": "any" if any_base else ""}
    return {"source": source, **{key: value for key, value in given.items() if value}}


def _refuse_with_rescore(words: Mapping[str, object]) -> None:
    """A log has its rows, judges and seed already, so other options would do nothing."""
    unused = [word for word, value in words.items() if value]
    if unused:
        raise ConfigError(
            f"{unused[0]} has no effect with --rescore, which makes a log's own figures. Do: take it out."
        )


def _tasks(names: list[str], data: str, format_: str, keys: Mapping[str, Any]) -> list[Any]:
    """Tasks as a recipe has them; ``keys`` are for each of them, where they are given."""
    given = {key: value for key, value in keys.items() if value}
    if not data:
        if format_:
            raise ConfigError("--format says how --data is read, and there is no --data. Do: add --data FILE.")
        if given and not names:
            raise ConfigError(
                f"--{next(iter(given))} is for the --tasks that are named: got none. Do: add --task NAME."
            )
        return [{"name": name, **given} for name in names]
    if len(names) > 1 or not (names or format_):
        raise ConfigError(f"--data needs one --task (or a --format that is a task): got {len(names)} tasks.")
    source = {"source": data, **({"format": format_} if format_ else {})}
    return [{"name": names[0] if names else format_, "data": source, **given}]


def _judge(words: str) -> str | dict[str, Any]:
    """A judge as a recipe has it.

    >>> _judge("prefix")
    'prefix'
    >>> _judge("chat:http://localhost:8000/v1,model=grader")
    {'judge': 'chat', 'url': 'http://localhost:8000/v1', 'model': 'grader'}
    """
    from holdfast.core.config import apply_overrides

    kind, colon, rest = words.partition(":")
    if not colon:
        return words
    if kind not in JUDGE_PLACE:
        raise ConfigError(f"Unknown kind of judge {kind!r}. {did_you_mean(kind, JUDGE_PLACE)}")
    place, *settings = rest.split(",")
    try:
        return apply_overrides({"judge": kind, JUDGE_PLACE[kind]: place}, settings)
    except ConfigError as problem:
        raise ConfigError(
            f"Cannot read --judge {words!r}: expected {kind}:WHERE,key=value,... ({str(problem).partition(': ')[2]})"
        ) from problem


def run_step(document: dict[str, Any], out: Path | None) -> RunRecord:
    """A recipe of one step that asks a model, so that it leaves the same record and log as any run."""
    from holdfast.recipes.run import Choice, run_recipe
    from holdfast.recipes.schema import parse_recipe
    from holdfast.reports.build import build_report

    recipe = parse_recipe(document, f"holdfast {document['name']}")
    if out is not None:
        _refuse_finished(recipe, out)
        try:
            record = run_recipe(recipe, out, Choice(resume=True), progress=Ticker())
        except KeyboardInterrupt:
            say("holdfast: stopped with Ctrl-C. The same command goes on after the tasks that are finished.")
            raise typer.Exit(INTERRUPTED) from None
        build_report(record, out)
        return record
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        return run_recipe(recipe, Path(folder) / "run", progress=Ticker())


def _refuse_finished(recipe: Recipe, out: Path) -> None:
    """A failed or interrupted evaluation may be run again into its folder, with any settings; a finished one stays."""
    from holdfast.core.results import RunRecord
    from holdfast.recipes.fingerprint import step_fingerprint

    if not (out / "run.json").is_file():
        return
    record = RunRecord.load(out)
    if list(record.recipe.get("steps", {})) != list(recipe.steps):
        what = f"a run of {record.name!r}"
    elif any(step.status == "done" for step in record.steps):
        if record.steps[0].fingerprint == step_fingerprint(recipe, record.steps[0].id, {}):
            say(f"Output folder {out} holds this evaluation already; the model is not asked again.")
            return
        what = "a finished evaluation with other settings, model or rows"
    else:
        return
    raise ConfigError(f"Output folder {out} holds {what}. Do: give another folder with -o, or remove it.")


def _print_metrics(metrics: tuple[Metric, ...], as_json: bool) -> None:
    from holdfast.recipes.summary import figure

    if as_json:
        print_json([metric.model_dump(mode="json") for metric in metrics])
        return
    print_table(
        ("figure", "value", "n", "invalid"),
        [(m.name, figure(m), str(m.n), str(m.n_invalid)) for m in metrics if not m.group],
    )


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its run.json.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to write. Default: the run's folder.")] = None,
) -> None:
    """Build the report of a run again, and print its table."""
    from holdfast.core.results import RunRecord
    from holdfast.reports.build import build_report, print_report

    record = RunRecord.load(run)
    folder = out or (run if run.is_dir() else run.parent)
    build_report(record, folder)
    print_report(record)
    typer.echo(f"Report: {folder / 'report.html'}. {record.summary}")


def compare(
    before: Annotated[Path, typer.Argument(help="A run folder with one evaluation, a step's folder, or a log.")],
    after: Annotated[Path, typer.Argument(help="The same, for what is compared with it.")],
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations of the same rows, paired by prompt."""
    from holdfast.evaluation.compare import compare as compare_logs

    result = compare_logs(log_of(before), log_of(after))
    if as_json:
        print_json(
            {
                "metrics": [metric.model_dump(mode="json") for metric in result.metrics],
                "verdicts": [verdict.model_dump(mode="json") for verdict in result.verdicts],
                "notes": list(result.notes),
            }
        )
        return
    _print_metrics(result.metrics, as_json=False)
    typer.echo()
    print_table(
        ("verdict", "holds", "p", "n"),
        [
            (v.name, {True: "yes", False: "no", None: "unknown"}[v.holds], _p_value(v.p_value), str(v.n))
            for v in result.verdicts
        ],
    )
    for note in (NULL, *result.notes):
        typer.echo(f"Note: {note}")


def _p_value(p_value: float | None) -> str:
    return "" if p_value is None else f"{p_value:.2g}"


def log_of(path: Path) -> Path:
    """The evaluation log that ``path`` means: itself, or the one in a step's or a run's folder.

    Raises:
        ConfigError: The folder holds no evaluation, or several; the message names them.
    """
    from holdfast.core.results import RunRecord
    from holdfast.recipes.context import LOG_FILE
    from holdfast.recipes.schema import LOGGED

    if not path.is_dir():
        return path
    if not (path / "run.json").is_file():
        return path / LOG_FILE
    measured = [step.id for step in RunRecord.load(path).steps if step.do in LOGGED and step.status == "done"]
    if len(measured) != 1:
        listed = ", ".join(str(path / step_id) for step_id in measured) or "none"
        raise ConfigError(f"{path} holds {len(measured)} evaluations, expected one. Do: name one of: {listed}.")
    return path / measured[0] / LOG_FILE
