"""What a reader sees of token weights: a row a plan, their spread, weights in training, gates, synergy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.cells import reasoned, written
from holdfast.reports.charts import Plot, over_steps
from holdfast.reports.names import DASH, is_rate, measure_words, number, plain, split_name
from holdfast.reports.panels import figure_of
from holdfast.reports.view import Figure

WEIGHING = ("scorer", "of", "keep", "soft", "scope", "clip", "column")
"""Settings that tell two kinds of weights apart; what only heads or rows read is none of them."""
CURVES = {
    "weight/ess": "Effective share of the tokens",
    "kept_share": "Share with any weight",
    "weight/p95": "95th percentile of weights",
}
"""Curves of a training's weights, by the end of their name."""
HEAD, LOSS = "head_", "/loss"
SPREAD = ("weights/mean", "weights/p25", "weights/p75", "weights/p95", "noise/weight")
"""What is drawn of a plan's weights."""


@dataclass(frozen=True, slots=True)
class Plans:
    """Every plan as a row; columns that no plan has are left out."""

    noise: bool
    """Some plan met planted noise."""
    critic: bool
    """Some plan told pairs of answers apart."""
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Weighed:
    """The weights that one plan gives."""

    id: str
    scorer: str
    kind: str
    """The same for plans that weigh in the same way."""
    figures: Mapping[str, float]
    """By name."""
    row: tuple[str, ...]
    """As text."""

    def value(self, name: str) -> float | None:
        """A figure's value, where it was measured."""
        return self.figures.get(name)


@dataclass(frozen=True, slots=True)
class Watched:
    """One training with weights of tokens."""

    id: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One task's figure, two by two."""

    title: str
    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    gains: tuple[tuple[str, Figure], ...]
    """Each part's difference from the reference, that of the whole, and the synergy last."""
    rate: bool
    """Gains are shown in percentage points."""


@dataclass(frozen=True, slots=True)
class Together:
    """A table that says what a row gains beyond the sum of its parts."""

    id: str
    whole: str
    parts: tuple[str, ...]
    reference: str
    boards: tuple[Board, ...]


@dataclass(frozen=True, slots=True)
class TokenWeightingPanel:
    """What weights of tokens did in one run."""

    plans: Plans
    kinds: tuple[Weighed, ...]
    """The first plan of each kind of weights that are not all the same."""
    watched: tuple[Watched, ...]
    gates: tuple[tuple[str, ...], ...]
    """A row a training with weights, as text."""
    together: tuple[Together, ...]

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """What is drawn of weights, as text."""
        return tuple(plan.row for plan in self.kinds)

    @property
    def noisy(self) -> bool:
        """Some plan met planted noise."""
        return any(plan.value("noise/weight") is not None for plan in self.kinds)


def token_weighting_panel(steps: Sequence[StepRecord]) -> TokenWeightingPanel | None:
    """The panel of a run, ``None`` where no finished step planned token weights."""
    plans = [step for step in steps if step.do == "token_weighting" and step.metrics]
    if not plans:
        return None
    kinds: dict[str, Weighed] = {}
    for plan in map(_weighed, plans):
        if plan.value("weights/ess") != 1:
            kinds.setdefault(plan.kind, plan)
    known = {step.id for step in plans}
    trained = [step for step in steps if step.do == "train" and known & _objective(step)]
    watched = [step for step in trained if step.curves.get("weight/ess")]
    return TokenWeightingPanel(
        plans=_plans(plans),
        kinds=tuple(kinds.values()),
        watched=tuple(Watched(step.id, tuple(_plots(step))) for step in watched),
        gates=tuple(_gates(step) for step in trained if step in watched or step.status != "done"),
        together=tuple(_together(step) for step in steps if step.do == "table" and _combined(step)),
    )


def _objective(step: StepRecord) -> set[str]:
    named = step.config.get("objective") or ()
    return {named} if isinstance(named, str) else set(named)


def _plans(steps: Sequence[StepRecord]) -> Plans:
    found = [{metric.name: metric for metric in step.metrics} for step in steps]
    noise, critic = (any(name in own for own in found) for name in ("noise/auroc", "critic/pair_accuracy"))
    rows = []
    for step, own in zip(steps, found, strict=True):
        row = [step.id, _scorer(step.config), str(step.config.get("horizon", 1))]
        row += [_share(own.get(f"weights/{name}")) for name in ("kept_share", "ess")]
        row += [_plain(own.get(f"noise/{name}")) for name in ("auroc", "weight")] if noise else []
        row += [_pairs(own.get("critic/pair_accuracy"))] if critic else []
        rows.append(tuple(row))
    return Plans(noise, critic, tuple(rows))


def _scorer(config: Mapping[str, object]) -> str:
    """A control is told with the scorer that it follows."""
    scorer = str(config.get("scorer", "rho1"))
    return f"{scorer}, of {config.get('of', 'rho1')}" if scorer in ("shuffled", "random_matched") else scorer


def _share(metric: Metric | None) -> str:
    return DASH if metric is None else figure_of(metric, rate=True).text


def _plain(metric: Metric | None) -> str:
    return DASH if metric is None else figure_of(metric, rate=False).text


def _pairs(metric: Metric | None) -> str:
    """With the count and the interval: a few pairs say little."""
    if metric is None or metric.value is None:
        return DASH
    return written(figure_of(metric))


def _weighed(step: StepRecord) -> Weighed:
    figures = {metric.name: metric.value for metric in step.metrics if metric.value is not None and not metric.group}
    scorer = str(step.config.get("scorer", ""))
    if scorer in ("shuffled", "random_matched"):
        scorer = f"{scorer} of {step.config.get('of', '')}"
    kind = repr([step.config.get(key) for key in WEIGHING])
    mean, low, high, most, noise = (_told(figures.get(name)) for name in SPREAD)
    clipped = DASH if "weights/clipped" not in figures else f"{number(figures['weights/clipped'], rate=True)} %"
    return Weighed(step.id, plain(scorer), kind, figures, (step.id, mean, f"{low} to {high}", most, clipped, noise))


def _told(value: float | None) -> str:
    return DASH if value is None else number(value, rate=False)


def _plots(step: StepRecord) -> Iterator[Plot]:
    for end, title in CURVES.items():
        points = next((points for name, points in step.curves.items() if name.endswith(end)), ())
        if points:
            yield over_steps(title, {"": points})
    heads = {
        plain(name.removesuffix(LOSS)): points
        for name, points in step.curves.items()
        if name.startswith(HEAD) and name.endswith(LOSS) and points
    }
    if heads:
        yield over_steps("Loss by head", heads if len(heads) > 1 else {"": next(iter(heads.values()))})


def _gates(step: StepRecord) -> tuple[str, ...]:
    shares = [y for _, y in step.curves.get("weight/ess", ())]
    least, clipped = (min(shares) if shares else None), _most(step, "weight/clipped")
    return (
        step.id,
        "passed" if step.status == "done" else f"{step.status}: {' '.join(step.notes)}".strip(": "),
        f"{len(shares):,}",
        *(DASH if value is None else f"{number(value, rate=True)} %" for value in (least, clipped)),
        _count(_most(step, "nan_weights")),
        _count(_most(step, "extreme_weights")),
    )


def _most(step: StepRecord, name: str) -> float | None:
    return max((y for _, y in step.curves.get(name, ())), default=None)


def _count(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def _combined(step: StepRecord) -> bool:
    return any(metric.name.endswith("/synergy") for metric in step.metrics)


def _together(step: StepRecord) -> Together:
    whole, *parts = (str(name) for name in step.config["synergy"])
    reference = str(step.config["reference"])
    found = {(metric.name, metric.group.removeprefix("row=")): metric for metric in step.metrics}
    names = [name.removesuffix("/synergy") for name, _ in found if name.endswith("/synergy")]
    return Together(
        id=step.id,
        whole=whole,
        parts=tuple(parts),
        reference=reference,
        boards=tuple(_board(name, found, (reference, *parts, whole)) for name in names),
    )


def _board(name: str, found: Mapping[tuple[str, str], Metric], rows: Sequence[str]) -> Board:
    reference, *parts, whole = rows
    rate = is_rate(found[name, reference])
    changes = {row: found[f"{name}/difference", row] for row in (*parts, whole)}
    gains = [(f"{row} less {reference}", figure_of(metric, signed=True, rate=rate)) for row, metric in changes.items()]
    _, task, measure = split_name(name)
    arrow = "↑ higher is better" if found[name, reference].higher_is_better else "↓ lower is better"
    two = len(parts) == 2
    head = ("", f"without {parts[0]}", f"with {parts[0]}") if two else ("Row", "Value")
    each = [(reference, parts[0]), (parts[1], whole)] if two else [(row,) for row in rows]
    begins = [f"without {parts[1]}", f"with {parts[1]}"] if two else list(rows)
    cells = [
        (begin, *(_cell(row, figure_of(found[name, row]), named=two) for row in side))
        for begin, side in zip(begins, each, strict=True)
    ]
    synergy = figure_of(found[f"{name}/synergy", whole], signed=True, rate=rate)
    title = f"{measure_words(measure)}, {task} ({arrow})"
    return Board(title, head, tuple(cells), (*gains, ("synergy", synergy)), rate)


def _cell(row: str, figure: Figure, *, named: bool) -> str:
    return f"{row}: {reasoned(figure)}" if named else reasoned(figure)


def ends_of(figures: Iterable[Figure]) -> list[float]:
    """All values and limits that are known."""
    return [end for figure in figures for end in (figure.value, figure.low, figure.high) if end is not None]
