"""What a reader sees of counterfactual training and of attacks: curves of every term, attack success, what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.cells import shown
from holdfast.reports.charts import Plot, over_steps
from holdfast.reports.literature import REPORTED
from holdfast.reports.names import DASH, plain
from holdfast.reports.panels import figure_of, source_of
from holdfast.reports.table_panel import TablePanel
from holdfast.reports.view import Figure, Row

TERMS = ("task", "invariance", "separation", "preference")
GATES = {
    "rank": "Effective rank",
    "variance": "Variance, share of undefended",
    "contrast": "Share of the contrastive floor",
}
"""What the gates against collapse watch, by the second part of a curve's name."""
GATE = "gate/"
BASE = "injection/attack/"
FOLLOWED = f"{BASE}attacked/followed"
FIGURES = {
    FOLLOWED: "Attack success",
    f"{FOLLOWED}/worst_family": "Attack success, worst family",
    f"{BASE}attacked/task_done": "Task done under attack",
    f"{BASE}benign/task_done": "Task done, nothing injected",
    f"{BASE}benign/refused": "Over-refusal, nothing injected",
    f"{BASE}quoting/task_done": "Fidelity: data with an instruction, quoted",
    f"{BASE}attacked/position_bias/followed": "Position bias: at the end less elsewhere",
    f"{BASE}trigger_effect": "Trigger effect: task lost to harmless trigger words",
    f"{BASE}instruction_last_effect": "Instruction-last effect: task lost where the data comes first",
    f"{BASE}separation": "Separation of data from instructions (SEP)",
    "causal/eps/outcome": "eps_causal, outcomes",
    "causal/eps/outcome/worst": "eps_causal, outcomes, worst attack",
    f"{BASE}best_of/followed": "Attack success, best of many wordings",
    f"{BASE}gcg/followed": "Attack success, search by gradients",
}
CHANGES = frozenset(name for name in FIGURES if "bias" in name or name.endswith("_effect"))
"""Differences of rates: in percentage points, with a sign."""
MADE_WITH = frozenset({"do", "model", "defence", "false_positives", "quick"})
"""Settings in which an attack before and one after may differ."""
PLACES = {"before": "before the text", "middle": "in the middle", "after": "after the text"}
"""Positions in words, in their order."""
FIELDS = {"attack": "attack family", "position": "position of the injection"}


@dataclass(frozen=True, slots=True)
class Trained:
    """The terms of one training, and what its gates saw."""

    id: str
    terms: tuple[Plot, ...]
    gates: tuple[Plot, ...]
    rows: tuple[tuple[str, ...], ...]
    """Each curve: first, lowest, highest, last."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attack, beside that on the model without a defence where there is one."""

    id: str
    model: str
    before: str
    """Step of the other attack; empty where there is none."""
    parts: tuple[tuple[str, tuple[Row, ...]], ...]
    """Attack success by family and by position."""
    figures: tuple[tuple[str, ...], ...]
    """Label, before (where there is one), after."""


@dataclass(frozen=True, slots=True)
class CausalPanel:
    """Everything of counterfactual training and of attacks in one run."""

    trained: tuple[Trained, ...]
    attacked: tuple[Attacked, ...]
    """Models that a training made first."""
    baselines: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    """By table: row, measured attack success, what the literature reports."""


def causal_panel(steps: Sequence[StepRecord], tables: Sequence[TablePanel]) -> CausalPanel | None:
    """The panel of a run, ``None`` where nothing was hardened or attacked."""
    found = CausalPanel(
        trained=tuple(made for step in steps if (made := _trained(step))),
        attacked=tuple(_attacks(steps)),
        baselines=tuple((table.title, rows) for table in tables if (rows := tuple(_baselines(table)))),
    )
    return found if found.trained or found.attacked else None


def _trained(step: StepRecord) -> Trained | None:
    terms = {name: step.curves[name] for name in TERMS if step.curves.get(name)}
    seen = {name.removeprefix(GATE): points for name, points in step.curves.items() if name.startswith(GATE) and points}
    if step.do != "train" or not (terms or seen):
        return None
    plots = tuple(over_steps(name.capitalize(), {"": points}) for name, points in terms.items())
    gates = []
    for measure, title in GATES.items():
        lines = {name.partition("/")[2]: seen[name] for name in seen if name.partition("/")[0] == measure}
        gates += [over_steps(title, lines)] if lines else []
    rows = [
        (plot.title + (f", {line.label}" if line.label else ""), *line.course) for plot in (*plots, *gates)
        for line in plot.lines
    ]  # fmt: skip
    return Trained(step.id, plots, tuple(gates), tuple(rows))


def _attacks(steps: Sequence[StepRecord]) -> Iterator[Attacked]:
    """Attacks after something was done, then those that stand beside no other."""
    by_id = {step.id: step for step in steps}
    done = [step for step in steps if step.do == "attack" and step.metrics]
    plain_ones = {_key(step, by_id): step for step in done if _undefended(step, by_id)}
    pairs = [(None if _undefended(step, by_id) else plain_ones.get(_key(step, by_id)), step) for step in done]
    used = {before.id for before, _ in pairs if before is not None}
    told = [(before, step) for before, step in pairs if step.id not in used]
    yield from (
        _attacked(*pair, by_id)
        for pair in sorted(told, key=lambda pair: (source_of(pair[1]) not in by_id, pair[0] is None))
    )


def _undefended(step: StepRecord, by_id: Mapping[str, StepRecord]) -> bool:
    model = step.config.get("model")
    adapted = isinstance(model, dict) and model.get("adapter") is not None
    return source_of(step) not in by_id and not adapted and step.config.get("defence", "none") == "none"


def _key(step: StepRecord, by_id: Mapping[str, StepRecord]) -> str:
    """What two attacks that are compared have in common: the model that all began with, and the settings."""
    first, seen = step, {step.id}
    while (before := by_id.get(source_of(first))) is not None and before.id not in seen:
        first = before
        seen.add(first.id)
    return repr((source_of(first), sorted((key, repr(v)) for key, v in step.config.items() if key not in MADE_WITH)))


def _attacked(before: StepRecord | None, after: StepRecord, by_id: Mapping[str, StepRecord]) -> Attacked:
    first = {(metric.name, metric.group): metric for metric in before.metrics} if before else {}
    second = {(metric.name, metric.group): metric for metric in after.metrics}
    source = source_of(after) if source_of(after) in by_id else after.model_name or source_of(after)
    defence = str(after.config.get("defence", "none"))
    cells: list[tuple[str, ...]] = []
    for name, label in FIGURES.items():
        metric = _total(second.values(), name)
        if metric is not None:
            other = [_cell(_total(first.values(), name))] if before else []
            cells.append((label, *other, _cell(metric)))
    return Attacked(
        id=after.id,
        model=source + (f" behind {plain(defence)}" if defence != "none" else ""),
        before=before.id if before else "",
        parts=tuple((title, rows) for field, title in FIELDS.items() if (rows := _rows(field, first, second, before))),
        figures=tuple(cells),
    )


def _total(metrics: Iterable[Metric], name: str) -> Metric | None:
    """The figure over all cases; that of the worst attack has a group."""
    return next((m for m in metrics if m.name == name and (not m.group or name.endswith("/worst"))), None)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return DASH
    changes = metric.name in CHANGES
    figure = figure_of(metric, signed=changes, rate=True if changes else None)
    if figure.value is None:
        return f"{DASH} ({figure.reason})"
    which = f", {plain(metric.reason.partition('=')[2])}" if metric.name.endswith(("/worst", "/worst_family")) else ""
    if "upper" in metric.interval and figure.high is not None:
        most = figure_of(Metric(name=metric.name, value=figure.high, n=0, k=metric.k)).text
        return f"{figure.text}, at most {most} (n = {figure.n}{which})"
    return f"{shown(figure)} (n = {figure.n}{which})"


def _rows(
    field: str,
    first: Mapping[tuple[str, str], Metric],
    second: Mapping[tuple[str, str], Metric],
    before: StepRecord | None,
) -> tuple[Row, ...]:
    made = []
    for (name, group), metric in second.items():
        if name != FOLLOWED or not group.startswith(f"{field}="):
            continue
        other = first.get((name, group))
        left = figure_of(other) if other else figure_of(_missing(metric)) if before else None
        value = group.partition("=")[2]
        made.append(_row(PLACES.get(value, plain(value)), left, figure_of(metric)))
    words = list(PLACES.values())
    return tuple(sorted(made, key=lambda row: words.index(row.label) if row.label in words else 0))


def _missing(metric: Metric) -> Metric:
    return Metric(name=metric.name, value=None, n=0, reason="not measured before")


def _row(label: str, before: Figure | None, after: Figure) -> Row:
    return Row(
        name=label,
        label=label,
        task="",
        suite="injection",
        higher_is_better=False,
        before=before,
        after=after,
        change=None,
        verdict="",
        test="",
        judge="",
    )


def _baselines(table: TablePanel) -> Iterator[tuple[str, ...]]:
    """Attack success of every row of a table of attacks: measured, and in a column of its own as reported."""
    place = next((i for i, column in enumerate(table.columns) if column.name.endswith("/attacked/followed")), None)
    if place is None:
        return
    for arm in table.arms:
        figure = arm.cells[place].figure
        yield arm.label, f"{shown(figure)} (n = {figure.n})", REPORTED.get(arm.label, DASH)
