"""What a reader sees of merging and repair: rules against each other, dials, retention, spectra, split halves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from holdfast.core.results import Metric, StepRecord, values_of
from holdfast.reports.cells import reasoned, shown
from holdfast.reports.charts import Chart, Points
from holdfast.reports.merging_board import Board, boards, share
from holdfast.reports.merging_rules import Multiples, Rule, Small, Trace, grouped
from holdfast.reports.merging_spectra import alike, spectra
from holdfast.reports.names import DASH
from holdfast.reports.panels import figure_of
from holdfast.reports.table_panel import TablePanel
from holdfast.reports.view import Figure

TRIED = "tried/"
SETTINGS = {f"merging/{key}": key for key in ("k", "tau", "damping")}
"""Metrics of what was chosen with the weight, and their keys."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one rule keeps, by the number of experts merged."""

    label: str
    points: tuple[tuple[float, Figure], ...]


@dataclass(frozen=True, slots=True)
class Retention:
    """One step ``do: retention``."""

    id: str
    rules: tuple[Kept, ...]
    counts: tuple[float, ...]
    """Numbers of experts."""
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class MergingPanel:
    """Everything of merging and repair in one run."""

    boards: tuple[Board, ...]
    fronts: tuple[Multiples, ...]
    dials: tuple[Multiples, ...]
    retention: tuple[Retention, ...]
    spectra: tuple[tuple[Multiples, Chart | None], ...]
    """Spectra, each with the overlap of its halves."""


def merging_panel(steps: Sequence[StepRecord], tables: Sequence[TablePanel]) -> MergingPanel | None:
    """The panel of a run, ``None`` where no step is of merging."""
    rules = grouped(steps)
    found = MergingPanel(
        boards=boards(steps, tables),
        fronts=tuple(_front(step, rules) for step in steps if step.do == "front" and step.curves),
        dials=tuple(dial for do in ("merge", "repair") if (dial := _dials(rules, do))),
        retention=tuple(made for step in steps if step.do == "retention" and (made := _retention(step))),
        spectra=tuple(spectra(same) for same in alike(rules)),
    )
    return found if any((found.boards, found.fronts, found.dials, found.retention, found.spectra)) else None


def _tried(step: StepRecord, side: str) -> Points:
    return tuple(sorted((x, y) for x, y in step.curves.get(f"{TRIED}{side}", ())))


def _taken(step: StepRecord) -> float | None:
    """The value of the dial that was chosen; ``None`` where none was."""
    return next((m.value for m in step.metrics if m.name in ("merging/weight", "repair/dial")), None)


def _taken_words(steps: Iterable[StepRecord]) -> str:
    """E.g. ``0.3`` or, where seeds differ, ``0.3, 1, 0.3``; settings that were chosen too: ``0.3 (k 8)``."""
    values = [f"{value:g}{_settings(step)}" for step in steps if (value := _taken(step)) is not None]
    return (values[0] if len(set(values)) == 1 else ", ".join(values)) if values else DASH


def _settings(step: StepRecord) -> str:
    told = ", ".join(
        f"{SETTINGS[m.name]} {m.value:g}" for m in step.metrics if m.name in SETTINGS and m.value is not None
    )
    return f" ({told})" if told else ""


def _front(step: StepRecord, rules: Sequence[Rule]) -> Multiples:
    prefix, suffix = "front [row=", "]"
    curves = {name.removeprefix(prefix).removesuffix(suffix): tuple(map(tuple, c)) for name, c in step.curves.items()}
    planes: dict[str, Points] = {label: tuple((u, s) for s, u in curve) for label, curve in curves.items()}
    by_label = {rule.label: rule for rule in rules}
    found = {(metric.name, metric.group): metric for metric in step.metrics}
    plots, rows = [], []
    for label, points in planes.items():
        made = by_label[label].steps if label in by_label else ()
        area, more = (found.get((f"front/hypervolume{end}", f"row={label}")) for end in ("", "/difference"))
        area_text = shown(figure_of(area)) if area else DASH
        taken = _taken_words(made)
        told = ", ".join(f"{share(s)} and {share(u)}" for u, s in points)
        plots.append(
            Small(
                title=label,
                under=f"area {area_text}",
                traces=(
                    *(Trace("faint", other) for name, other in planes.items() if name != label),
                    Trace("line1", points, dotted=True),
                ),
                told=f"{label}: safety and utility over the dial {told}; dial chosen {taken}; area {area_text}",
                rings=tuple(points[place] for place in _places(made, len(points))),
            )
        )
        rows.append((label, taken, area_text, shown(figure_of(more, signed=True)) if more else DASH))
    reference = str(step.config.get("reference", ""))
    return Multiples(
        kind="plane",
        title="Safety against utility, over each rule's dial",
        note="Measured on validation rows, mean over seeds; right and up is better. Ringed: where the dial was set. "
        "Area: what a curve reaches beyond the worst safety and the worst utility of any rule.",
        plots=tuple(plots),
        keys=(("line1", "the rule"), ("faint", "all other rules")),
        head=("Rule", "Dial set to", "Area", f"Difference from {reference}"),
        rows=tuple(rows),
    )


def _places(steps: Iterable[StepRecord], count: int) -> list[int]:
    """Where in the ascending values of the dial those lie that were taken."""
    found = set()
    for step in steps:
        values = [x for x, _ in _tried(step, "safety")]
        if len(values) == count and _taken(step) in values:
            found.add(values.index(_taken(step)))  # type: ignore[arg-type]
    return sorted(found)


def _dials(rules: Sequence[Rule], do: str) -> Multiples | None:
    tried = [Rule(rule.label, tuple(s for s in rule.steps if s.do == do and _tried(s, "safety"))) for rule in rules]
    plots, rows = [], []
    for rule in [rule for rule in tried if rule.steps]:
        values = sorted({x for step in rule.steps for x, _ in _tried(step, "safety")})
        told = []
        traces: list[Trace] = []
        for style, side in ((1, "safety"), (2, "utility")):
            many = [tuple((float(values.index(x)), y) for x, y in _tried(step, side)) for step in rule.steps]
            mean = _mean_of(many, len(values))
            if len(many) > 1:
                traces += [Trace(f"thin{style}", one) for one in many]
            traces.append(Trace(f"line{style}", mean, dotted=True))
            told.append(", ".join(f"{share(y)} at {values[int(x)]:g}" for x, y in mean))
        taken = _taken_words(rule.steps)
        plots.append(
            Small(
                title=rule.label,
                under=f"set to {taken}",
                traces=tuple(traces),
                told=f"{rule.label}: safety {told[0]}; utility {told[1]}; set to {taken}",
                stops=tuple(f"{value:g}" for value in values),
                uprights=tuple(sorted({float(values.index(v)) for s in rule.steps if (v := _taken(s)) in values})),
            )
        )
        rows.append((rule.label, taken, *told))
    if not plots:
        return None
    what = "the weight of the last adapter" if do == "merge" else "each method's own"
    return Multiples(
        kind="dial",
        title=f"Over the dial of {'merging' if do == 'merge' else 'repair'}",
        note=f"The dial is {what}; its values stand evenly spaced. Measured on validation rows, on which it was set; "
        "upright: where to. Lines: the mean over seeds; thin lines: single seeds.",
        plots=tuple(plots),
        keys=(("line1", "safety"), ("line2", "utility")),
        head=("Rule", "Dial set to", "Safety", "Utility"),
        rows=tuple(rows),
    )


def _mean_of(many: Sequence[Points], count: int) -> Points:
    """The mean at each place that any has."""
    at = [[y for points in many for x, y in points if x == place] for place in range(count)]
    return tuple((float(place), fmean(ys)) for place, ys in enumerate(at) if ys)


def _retention(step: StepRecord) -> Retention | None:
    found: dict[str, dict[float, Metric]] = {}
    for metric in step.metrics:
        if metric.name == "retention/mean":
            row, count = values_of(metric.group, "row", "experts")
            found.setdefault(row, {})[float(count)] = metric
    counts = tuple(sorted({count for of_rule in found.values() for count in of_rule}))
    if not counts:
        return None
    rules = tuple(
        Kept(label, tuple((count, figure_of(of_rule[count], rate=True)) for count in counts if count in of_rule))
        for label, of_rule in found.items()
    )
    rows = [(kept.label, *(_kept_at(kept, count) for count in counts)) for kept in rules]
    return Retention(step.id, rules, counts, tuple(rows))


def _kept_at(kept: Kept, count: float) -> str:
    figure = dict(kept.points).get(count)
    return DASH if figure is None else reasoned(figure)
