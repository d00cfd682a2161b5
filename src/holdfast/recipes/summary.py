"""One sentence about a run: what happened, in numbers with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from holdfast.core.results import Metric, StepRecord, apart, values_of
from holdfast.core.wording import WORDS, counted
from holdfast.evaluation.tasks import TASKS

Pair = tuple[Metric, Metric]
ATTACKS = ("/attack_success_rate", "/followed")
"""Ends of the names of attack success."""


def summarise(steps: Sequence[StepRecord], planned: int | None = None) -> str:
    """What the last finished comparison, evaluation or training found, or which step stopped the run.

    Args:
        steps: Those that were begun, in the order of the recipe.
        planned: How many the recipe has, where the run may be unfinished; all of ``steps`` where it is left out.
    """
    stopped = [step for step in steps if step.status != "done"]
    if stopped:
        return f"Step {stopped[0].id} {stopped[0].status}: {' '.join(stopped[0].notes)}"
    found = _found(steps)
    if not steps or planned is None or len(steps) >= planned:
        return found
    return f"Unfinished: {len(steps)} of {planned} steps {'is' if len(steps) == 1 else 'are'} done. So far: {found}"


def _found(steps: Sequence[StepRecord]) -> str:
    by_id = {step.id: step for step in steps}
    for step in reversed(steps):
        if step.do == "table":
            return _tabled(step)
        if step.do == "retention":
            return _retained(step)
        if step.do == "compare":
            return _compared(by_id[step.config["before"]], by_id[step.config["after"]], by_id)
    measured = [step for step in steps if step.do in {"evaluate", "attack"}]
    if measured:
        return _measured(measured[-1])
    return _trained(steps[-1]) if steps else ""


def figure(metric: Metric) -> str:
    """A value with its interval, rates in percent; a change has a sign, that of a rate is in percentage points.

    >>> figure(Metric(name="x/y/exact", value=0.52, n=300, k=156, low=0.47, high=0.58))
    '52 % [47, 58]'
    >>> figure(Metric(name="x/y/exact/change", value=0.04, n=100, k=4, low=-0.001, high=0.08))
    '+4 pp [0, 8]'
    """
    if metric.value is None:
        return f"unknown ({metric.reason})"
    change = metric.name.endswith("/change")
    scale, digits = (1, 2) if metric.k is None else (100, 0)
    unit = "" if metric.k is None else " pp" if change else " %"
    value = _number(scale * metric.value, digits)
    sign = "+" if change and metric.value > 0 and float(value) else ""
    return f"{sign}{value}{unit}{_bounds(metric, scale, digits)}"


def _bounds(metric: Metric, scale: float, digits: int) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f" [{_number(scale * metric.low, digits)}, {_number(scale * metric.high, digits)}]"


def _number(value: float, digits: int) -> str:
    """Rounded, never to a negative zero."""
    text = f"{value:.{digits}f}"
    return text if float(text) else text.removeprefix("-")


def primaries(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """The figure that counts of each task, by its name, breakdowns left out; all totals where no task is ours."""
    wanted = {task.primary for task in TASKS.values()}
    totals = {metric.name: metric for metric in metrics if not metric.group}
    return {name: metric for name, metric in totals.items() if name in wanted} or totals


def _compared(before: StepRecord, after: StepRecord, steps: dict[str, StepRecord]) -> str:
    first, second = primaries(before.metrics), primaries(after.metrics)
    pairs = [(first[name], second[name]) for name in first if name in second]
    pairs = [pair for pair in pairs if pair[0].value is not None and pair[1].value is not None]
    if not pairs:
        return f"{before.id} and {after.id} have no figure in common."
    told = [pair for pair in (_largest(pairs, suite) for suite in ("utility", "safety", "injection")) if pair]
    trained = steps.get(str(after.config.get("model", {}).get("source", "")))
    subject = f"Fine-tuning ({trained.id})" if trained is not None else f"{after.id} against {before.id}"
    moved = [pair for pair in told if apart(*pair)]
    if not moved:
        return f"{subject} moved no figure beyond its interval: {_and(_change(*pair) for pair in told)}{_n(told)}."
    return f"{subject} {_and(_change(*pair) for pair in moved)}{_n(moved)}."


def _tabled(step: StepRecord) -> str:
    """Which row removes most of the attacks' success that the reference added; where none does, which row is best."""
    label = str(step.config["reference"])
    values = {(metric.name, metric.group.removeprefix("row=")): metric for metric in step.metrics}
    removed = [m for m in step.metrics if m.name.endswith("/attack_success_rate/removed") and (m.value or 0.0) > 0]
    harm = [metric for metric in removed if _rose(metric.name.removesuffix("/removed"), values, label)]
    best = max(harm, key=lambda metric: metric.value or 0.0, default=None)
    if best is None:
        return _best_row(step, values, label)
    name, row = best.name.removesuffix("/removed"), best.group.removeprefix("row=")
    before, plain, held = (figure(values[name, who]) for who in ("before", label, row))
    of = _name(values[name, row])
    others = len(step.config["rows"]) - 1
    best_row = f"the best of {others} other rows, {row}," if others > 1 else row
    return f"{label} took {of} from {before} to {plain}; {best_row} removes {_share(best)} of that and has {held}."


def _rose(name: str, values: Mapping[tuple[str, str], Metric], label: str) -> bool:
    """Whether the reference raised a figure."""
    before, plain = (values[name, who].value for who in ("before", label))
    return before is not None and plain is not None and plain > before


def _best_row(step: StepRecord, values: Mapping[tuple[str, str], Metric], label: str) -> str:
    """The best row beside the reference and before: by attack success where there is one, else by the first figure."""
    totals = [name for name, row in values if row == "before" and not name.endswith("/difference")]
    labels = [label, *(row for row in step.config["rows"] if row != label)]
    for name in sorted(totals, key=lambda name: not name.endswith(ATTACKS)):
        known = {row: values[name, row] for row in labels if values[name, row].value is not None}
        if not known:
            continue
        higher = values[name, label].higher_is_better
        best = (max if higher else min)(known, key=lambda row: known[row].value or 0.0)
        told = [f"{figure(values[name, 'before'])} before", f"{figure(values[name, label])} {label}"]
        told += [] if best == label else [f"{figure(known[best])} {best}"]
        of = _name(values[name, label])
        extreme = "highest" if higher else "lowest"
        return f"{of[:1].upper()}{of[1:]}: {_and(told)}, the {extreme} of {counted(len(known), 'row')}."
    return f"{step.id} has no figure: none of its {len(labels)} rows has a valid answer."


def _retained(step: StepRecord) -> str:
    """What the best row keeps at the largest number of adapters."""
    told = [metric for metric in step.metrics if metric.name == "retention/mean" and metric.value is not None]
    named = [(values_of(metric.group, "row", "experts"), metric) for metric in told]
    known = [(int(count), row, metric) for (row, count), metric in named]
    if not known:
        return f"{step.id} could not say what merges keep of the scores that each adapter has alone."
    most = max(count for count, _, _ in known)
    there = {row: metric for count, row, metric in known if count == most}
    best = max(there, key=lambda row: there[row].value or 0.0)
    who = best if len(there) == 1 else f"{best}, the best of {len(there)} rows,"
    return f"At {most} adapters {who} keeps {_share(there[best])} of the scores that each has alone."


def _share(metric: Metric) -> str:
    """A share in percent, with its interval."""
    return f"{_number(100 * (metric.value or 0.0), 0)} %{_bounds(metric, 100, 0)}"


def _largest(pairs: Sequence[Pair], suite: str) -> Pair | None:
    """The pair of a suite whose intervals are apart and that changed most; else the one that changed most."""
    of_suite = [pair for pair in pairs if pair[0].name.startswith(f"{suite}/")]
    return max(of_suite, key=lambda pair: (apart(*pair), abs(_difference(*pair))), default=None)


def _difference(before: Metric, after: Metric) -> float:
    return (after.value or 0.0) - (before.value or 0.0)


def _change(before: Metric, after: Metric) -> str:
    difference = _difference(before, after)
    if not difference:
        return f"left {_name(after)} unchanged at {figure(after)}"
    verb = "raised" if difference > 0 else "lowered"
    return f"{verb} {_name(after)} from {figure(before)} to {figure(after)}"


def _name(metric: Metric) -> str:
    task, _, kind = metric.name.partition("/")[2].rpartition("/")
    return f"{WORDS.get(kind, kind)} on {task}"


def _n(pairs: Sequence[Pair]) -> str:
    sizes = sorted({metric.n for pair in pairs for metric in pair})
    return f" (n = {sizes[0]})" if len(sizes) == 1 else f" (n = {sizes[0]} to {sizes[-1]})"


def _and(parts: Iterable[str]) -> str:
    listed = list(parts)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def _measured(step: StepRecord) -> str:
    known = [metric for metric in primaries(step.metrics).values() if metric.value is not None]
    if not known:
        return f"{step.id} measured {step.model_name}; no figure could be computed."
    figures = _and(f"{_name(metric)} {figure(metric)}" for metric in known[:4])
    more = f", and {len(known) - 4} more figures" if len(known) > 4 else ""
    return f"{step.model_name}: {figures}{more}{_n([(metric, metric) for metric in known])}."


def _trained(step: StepRecord) -> str:
    losses = step.curves.get("loss", [])
    if not losses:
        return f"{step.id} is done."
    first, last = losses[0][1], losses[-1][1]
    return f"{step.id} trained for {losses[-1][0]:.0f} steps; its loss went from {first:.2f} to {last:.2f}."
