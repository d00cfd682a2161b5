"""From the record of a run to what a reader sees. Nothing is computed here that the record does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.core.results import Metric, RunRecord, StepRecord, Verdict
from holdfast.reports.causal_panel import causal_panel
from holdfast.reports.causal_verify_panel import causal_verify_panel
from holdfast.reports.merging_panel import merging_panel
from holdfast.reports.names import DASH, duration, plain, size
from holdfast.reports.panels import figure_of, panels
from holdfast.reports.rotation_panel import rotation_panel
from holdfast.reports.table_panel import table_panels
from holdfast.reports.token_weighting_panel import token_weighting_panel
from holdfast.reports.view import Curve, Full, Step, Tested, Training, View


def read_run(run: RunRecord) -> View:
    """The view of a run: finished, failed, interrupted or empty."""
    tables = table_panels(run.steps)
    return View(
        name=run.name,
        version=run.version,
        started=_moment(run.started),
        title=run.recipe.get("title") or run.name,
        description=" ".join(str(run.recipe.get("description", "")).split()),
        summary="" if any(_stopped(step) for step in run.steps) else run.summary,
        quick=run.quick,
        problems=_problems(run),
        tables=tables,
        panels=panels(run.steps),
        hardened=causal_panel(run.steps, tables),
        verified=causal_verify_panel(run.steps),
        merging=merging_panel(run.steps, tables),
        rotation=rotation_panel(run.steps),
        tokens=token_weighting_panel(run.steps),
        trainings=tuple(training for step in run.steps if (training := _training(step))),
        steps=tuple(_step(step) for step in run.steps),
        full=tuple(_full(step, metric) for step in run.steps for metric in step.metrics),
        tested=tuple(_tested(step, verdict) for step in run.steps for verdict in step.verdicts),
        facts=_facts(run),
        packages=tuple(sorted(run.packages.items())),
        recipe=_yaml(run.recipe),
    )


def _moment(started: str) -> str:
    """A time to the minute, as it is where it is not ISO 8601 in UTC."""
    day, _, time = started.partition("T")
    return f"{day} {time[:5]} UTC" if time.endswith("+00:00") else started


def _problems(run: RunRecord) -> tuple[str, ...]:
    if not run.steps:
        return ("No step has run yet.",)
    stopped = [f"Step {step.id} {step.status}. {' '.join(step.notes)}".strip() for step in run.steps if _stopped(step)]
    missing = [str(name) for name in run.recipe.get("steps", {}) if name not in {step.id for step in run.steps}]
    if missing:
        stopped.append(f"Not run: {', '.join(missing)}.")
    return tuple(stopped)


def _stopped(step: StepRecord) -> bool:
    return step.status != "done"


def _training(step: StepRecord) -> Training | None:
    loss, validation = (_curve(step.curves.get(name, ())) for name in ("loss", "validation/loss"))
    if not loss and not validation:
        return None
    told = [
        f"{word} {curve[0][1]:.3f} → {curve[-1][1]:.3f}"
        for word, curve in (("training loss", loss), ("validation loss", validation))
        if curve
    ]
    last = max(curve[-1][0] for curve in (loss, validation) if curve)
    speed = [metric.value for metric in step.metrics if metric.name == "training/tokens_per_second"]
    told += [f"{value:,.0f} tokens/s" for value in speed if value is not None]
    return Training(step.id, loss, validation, f"{last:,.0f} optimizer steps; {'; '.join(told)}")


def _curve(points: Iterable[Sequence[float]]) -> Curve:
    return tuple((float(x), float(y)) for x, y in points)


def _step(step: StepRecord) -> Step:
    return Step(
        id=step.id,
        do=step.do,
        status=step.status,
        model=step.model_name or DASH,
        seconds=duration(step.seconds),
        memory=size(step.peak_bytes),
        seed=step.seed,
        notes=step.notes,
        artifacts=tuple((artifact.path, artifact.sha256) for artifact in step.artifacts),
    )


def _full(step: StepRecord, metric: Metric) -> Full:
    field, _, value = metric.group.partition("=")
    return Full(
        step=step.id,
        name=metric.name,
        group=f"{plain(field)}: {plain(value)}" if metric.group else "",
        figure=figure_of(metric, signed=metric.name.endswith("/change")),
        k=DASH if metric.k is None else str(metric.k),
        interval=metric.interval or DASH,
        judge=metric.judge or DASH,
        decoding=metric.decoding or DASH,
        seed=DASH if metric.seed is None else str(metric.seed),
    )


def _tested(step: StepRecord, verdict: Verdict) -> Tested:
    return Tested(
        step=step.id,
        claim=verdict.name,
        holds={True: "yes", False: "no", None: "abstains"}[verdict.holds],
        statistic=DASH if verdict.statistic is None else f"{verdict.statistic:.4g}".replace("-", "−"),
        p_value=DASH if verdict.p_value is None else f"{verdict.p_value:.2g}",
        n=verdict.n,
        null=verdict.null + (f", {verdict.draws:,} draws" if verdict.draws else ""),
        reason=verdict.reason,
    )


def _facts(run: RunRecord) -> tuple[tuple[str, str], ...]:
    return (
        ("Run", run.name),
        ("Started", _moment(run.started)),
        ("Device", run.device),
        ("Holdfast", run.version),
        ("Commit", run.git or DASH + " (not started in a git repository)"),
        ("Time in steps", duration(sum(step.seconds for step in run.steps))),
    )


def _yaml(recipe: dict[str, object]) -> str:
    import yaml

    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=88) if recipe else ""
