"""Comparisons and single evaluations as rows: which figure stands beside which, and what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.core.results import Metric, StepRecord, Verdict, apart
from holdfast.reports.answers import talks
from holdfast.reports.names import BREAKDOWNS, DASH, is_rate, measure_words, number, plain, split_name
from holdfast.reports.view import Breakdown, Figure, Panel, Row

Task = tuple[str, str]
"""Suite and task."""
SUITES = ("safety", "injection", "utility")
"""Order in which suites are told."""


def figure_of(metric: Metric, *, signed: bool = False, rate: bool | None = None) -> Figure:
    """A metric as text; a missing one as an en dash."""
    percent = is_rate(metric) if rate is None else rate
    unit = "" if not percent else " pp" if signed else " %"

    low, high = metric.low, metric.high
    most = "" if high is None else number(high, rate=percent)
    least = "≤" if "upper" in metric.interval else "" if low is None else f"{number(low, rate=percent)},"
    return Figure(
        value=metric.value,
        low=low,
        high=high,
        text=DASH if metric.value is None else number(metric.value, rate=percent, signed=signed) + unit,
        bounds=f"[{least} {most}]" if least and most else "",
        n=metric.n,
        n_invalid=metric.n_invalid,
        rate=percent,
        reason=metric.reason,
    )


def panels(steps: Sequence[StepRecord]) -> tuple[Panel, ...]:
    """One panel a comparison whose two sides were measured, then one an evaluation that holds something else.

    A comparison that failed still sets its sides beside each other; their intervals then stand in for the test.
    """
    by_id = {step.id: step for step in steps}
    models = {step.id: _model(step, by_id) for step in steps}
    made = []
    told: dict[str, set[Task]] = {step.id: set() for step in steps}
    for step in steps:
        before, after = (by_id.get(str(step.config.get(key))) for key in ("before", "after"))
        if step.do != "compare" or before is None or after is None:
            continue
        if shared := _tasks(before) & _tasks(after):
            made.append(_panel(step.id, (before, after), step, models))
            told[before.id] |= shared
            told[after.id] |= shared
    for step in steps:
        for name in _tabled(step):
            told[name] = _tasks(by_id[name]) if name in by_id else set()
    alone = [step for step in steps if step.do == "evaluate" and _tasks(step) - told[step.id]]
    return (*made, *(_panel(step.id, (None, step), None, models) for step in alone))


def _tabled(step: StepRecord) -> list[str]:
    """The evaluations that a finished table shows."""
    if step.do != "table" or not step.metrics:
        return []
    return [str(step.config["before"]), *(name for ids in step.config["rows"].values() for name in ids)]


def _tasks(step: StepRecord) -> set[Task]:
    return {split_name(metric.name)[:2] for metric in step.metrics}


def _panel(
    panel_id: str,
    sides: tuple[StepRecord | None, StepRecord],
    comparison: StepRecord | None,
    models: Mapping[str, str],
) -> Panel:
    before, after = sides
    first = {(metric.name, metric.group): metric for metric in before.metrics} if before else {}
    second = {(metric.name, metric.group): metric for metric in after.metrics}
    rows = {
        key: _row(first.get(key), metric, comparison)
        for key, metric in second.items()
        if before is None or key in first
    }
    totals = [row for (_, group), row in rows.items() if not group]
    main = _main(totals)
    spoken = [("before", before), ("after", after)] if before else [("", after)]
    return Panel(
        id=panel_id,
        before=models[before.id] if before else "",
        after=models[after.id],
        headline=_headline(main),
        main=tuple(main),
        more=tuple(row for row in totals if row not in main),
        composites=_composites(comparison),
        breakdowns=_breakdowns(rows, main),
        talks=talks([(name, step) for name, step in spoken if step is not None]),
    )


def _composites(comparison: StepRecord | None) -> tuple[Row, ...]:
    made = comparison.metrics if comparison else ()
    return tuple(_row(None, metric, None) for metric in made if metric.name.startswith("composite/"))


def source_of(step: StepRecord) -> str:
    """Where the model of a step comes from: the step that made it, or a name; empty where it has none."""
    return str((step.config.get("model") or {}).get("source", ""))


def _model(step: StepRecord, steps: Mapping[str, StepRecord]) -> str:
    """The model a step measured: the step that made it, or its name; and which step measured it."""
    source = source_of(step)
    name = source if source in steps else step.model_name or source
    return f"{name} (step {step.id})" if name else f"step {step.id}"


def _main(totals: Sequence[Row]) -> list[Row]:
    """The first total of each task is the figure that counts; by suite, in the order of the run."""
    first: dict[tuple[str, str], Row] = {}
    for row in totals:
        first.setdefault((row.suite, row.task), row)
    known = [row for suite in SUITES for row in first.values() if row.suite == suite]
    return known + [row for row in first.values() if row.suite not in SUITES]


def _row(before: Metric | None, metric: Metric, comparison: StepRecord | None) -> Row:
    """One measure alone, or before and after."""
    suite, task, measure = split_name(metric.name)
    field, _, value = metric.group.partition("=")
    left, right = figure_of(before) if before else None, figure_of(metric)
    difference, verdict = _compared(comparison, metric)
    change = figure_of(difference, signed=True, rate=is_rate(metric)) if difference else _plain_change(left, right)
    word, test = _judgement(left, right, change, verdict, metric.higher_is_better) if left else ("", "")
    return Row(
        name=metric.name,
        label=plain(value) if field else measure_words(measure),
        task=task,
        suite=suite,
        higher_is_better=metric.higher_is_better,
        before=left,
        after=right,
        change=change,
        verdict=word,
        test=test,
        judge=metric.judge,
    )


def _compared(comparison: StepRecord | None, metric: Metric) -> tuple[Metric | None, Verdict | None]:
    """The paired difference and the verdict that a compare step holds for a metric."""
    if comparison is None:
        return None, None
    claim = f"{metric.name} changed" + (f" [{metric.group}]" if metric.group else "")
    changes = (m for m in comparison.metrics if m.name == f"{metric.name}/change" and m.group == metric.group)
    return next(changes, None), next((v for v in comparison.verdicts if v.name == claim), None)


def _plain_change(before: Figure | None, after: Figure) -> Figure | None:
    """After minus before, without an interval, where no paired difference was measured."""
    if before is None or before.value is None or after.value is None:
        return None
    value = after.value - before.value
    unit = " pp" if after.rate else ""
    return Figure(value, None, None, number(value, rate=after.rate, signed=True) + unit, "", after.n, 0, after.rate, "")


def _judgement(
    before: Figure, after: Figure, change: Figure | None, verdict: Verdict | None, higher: bool
) -> tuple[str, str]:
    """Better, worse or no clear change; and what says so."""
    if change is None or change.value is None:
        return "not compared", change.reason if change else "a value is missing"
    better = "better" if (change.value > 0) == higher else "worse"
    if verdict is not None and verdict.holds is not None:
        return (better if verdict.holds else "no clear change"), f"p\u00a0{_p(verdict.p_value)}, {verdict.n}\u00a0pairs"
    if change.low is not None and change.high is not None:
        clear = change.low > 0 or change.high < 0
        return (better if clear else "no clear change"), "by the interval of the difference"
    return (better if apart(before, after) else "no clear change"), "by the two intervals"


def _p(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "<\u00a00.001" if value < 0.001 else f"=\u00a0{value:.3f}"


def _headline(main: Sequence[Row]) -> tuple[Row, ...]:
    """Of each suite the row that changed most, clear changes before unclear ones; without a pair, the first."""
    told = []
    for suite in SUITES:
        rows = [row for row in main if row.suite == suite and row.after.value is not None]
        best = max(rows, key=_weight, default=None)
        told += [best] if best is not None else []
    return tuple(told)


def _weight(row: Row) -> tuple[bool, float]:
    return row.verdict in {"better", "worse"}, abs(row.change.value or 0.0) if row.change else 0.0


def _breakdowns(rows: dict[tuple[str, str], Row], main: Sequence[Row]) -> tuple[Breakdown, ...]:
    """The main figure of each task by every field it was broken down by."""
    counted = {row.name: row for row in main}
    found: dict[tuple[str, str], list[Row]] = {}
    for (name, group), row in rows.items():
        if group and name in counted:
            found.setdefault((name, group.partition("=")[0]), []).append(row)
    return tuple(
        Breakdown(
            f"{counted[name].label} on {counted[name].task} by {BREAKDOWNS.get(field, plain(field))}", tuple(part)
        )
        for (name, field), part in found.items()
    )
