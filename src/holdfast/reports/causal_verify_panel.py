"""What a reader sees of a verification: claims, graphs beside the expected ones, power, bounds, representations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.core.results import Metric, StepRecord, Verdict
from holdfast.reports.cells import shown
from holdfast.reports.names import DASH, plain
from holdfast.reports.panels import figure_of
from holdfast.reports.view import Figure

BASE = "model=undefended"
POWER, INDEPENDENCE, GRAPH = "power/", "causal/independence/", "causal/graph/"
VARIABLES = {"S": "task", "U": "injected instruction", "R": "representation", "O": "outcome"}
FIGURES = {
    "causal/attack_success": "Attack success",
    "causal/attack_success/all": "Attack success, counted over all answers",
    "causal/eps/outcome": "eps_causal, outcomes",
    "causal/eps/outcome/worst": "eps_causal, outcomes, worst attack",
    "causal/eps/token": "eps_causal, tokens",
    "causal/eps/token/worst": "eps_causal, tokens, worst attack",
}
LAYERED = {
    "stability": "Causal stability",
    "stability_random": "the same, random pairs",
    "stability_centred": "Causal stability, centred",
    "separation": "Spurious separation",
    "separation_random": "the same, random pairs",
    "separation_centred": "Spurious separation, centred",
    "moved": "Moved by a swap",
}
"""Measures of each representation, by the second part of a metric's name."""
SAYS = {True: "holds", False: "fails", None: "abstains"}


@dataclass(frozen=True, slots=True)
class Claim:
    """One verdict."""

    name: str
    says: str
    holds: bool | None
    p_value: str
    n: int
    reason: str


@dataclass(frozen=True, slots=True)
class Link:
    """An edge of a drawn graph."""

    source: str
    target: str
    directed: bool
    frequency: float
    """Share of the resamples with exactly this edge."""
    expected: bool
    found: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was found, and the one expected."""

    title: str
    links: tuple[Link, ...]
    """Found on all rows, or expected, or both."""
    match: str
    told: str
    rows: tuple[tuple[str, ...], ...]
    """Every edge of any resample."""


@dataclass(frozen=True, slots=True)
class Power:
    """How often planted dependence was found."""

    name: str
    points: tuple[tuple[float, float], ...]
    """By what was planted; at 0 the size of the test."""
    shares: bool
    """What was planted is a share of the outcomes, else standard deviations."""
    told: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One measure at one representation, before and after."""

    name: str
    measure: str
    before: Figure | None
    after: Figure


@dataclass(frozen=True, slots=True)
class Verified:
    """One step ``do: verify``."""

    id: str
    model: str
    claims: tuple[Claim, ...]
    graphs: tuple[Graph, ...]
    power: tuple[Power, ...]
    figures: tuple[Layer, ...]
    bounds: tuple[tuple[str, ...], ...]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]

    @property
    def beside(self) -> bool:
        """Whether the undefended model was measured too."""
        return any(layer.before is not None for layer in self.figures)

    @property
    def counted(self) -> str:
        """E.g. ``3 claims hold, 2 fail, 1 abstains``."""
        counts = [sum(claim.holds is holds for claim in self.claims) for holds in (True, False, None)]
        return f"{counts[0]} of {len(self.claims)} claims hold; {counts[1]} fail; {counts[2]} abstain."


def causal_verify_panel(steps: Iterable[StepRecord]) -> tuple[Verified, ...]:
    """One part a finished step ``do: verify``."""
    return tuple(_verified(step) for step in steps if step.do == "verify" and step.verdicts)


def _verified(step: StepRecord) -> Verified:
    own = {m.name: m for m in step.metrics if not m.group or (m.name.endswith("/worst") and BASE not in m.group)}
    base = {m.name: m for m in step.metrics if m.group == BASE or (m.name.endswith("/worst") and BASE in m.group)}
    graphs = (("after", ""), ("before (undefended)", BASE))
    return Verified(
        id=step.id,
        model=step.model_name or step.id,
        claims=tuple(_claim(verdict) for verdict in step.verdicts),
        graphs=tuple(made for word, model in graphs if (made := _graph(step, model, word))),
        power=tuple(_power(name, points) for name, points in step.curves.items() if name.startswith(POWER)),
        figures=tuple(_pair(label, "", own[name], base.get(name)) for name, label in FIGURES.items() if name in own),
        bounds=tuple(_bounds(step)),
        layers=tuple(_layers(own, base)),
        notes=step.notes,
    )


def _claim(verdict: Verdict) -> Claim:
    p_value = DASH if verdict.p_value is None else f"{verdict.p_value:.3f}"
    name = verdict.name.removeprefix("causal/")
    return Claim(name, SAYS[verdict.holds], verdict.holds, p_value, verdict.n, verdict.reason)


def _pair(name: str, measure: str, after: Metric, before: Metric | None) -> Layer:
    rate = name.startswith("Attack")
    beside = None if before is None else figure_of(before, rate=rate)
    return Layer(name, measure, beside, figure_of(after, rate=rate))


def _layers(own: dict[str, Metric], base: dict[str, Metric]) -> Iterable[Layer]:
    places = list(dict.fromkeys(name.removeprefix("causal/moved/") for name in own if name.startswith("causal/moved/")))
    for place in places:
        for part, label in LAYERED.items():
            name = f"causal/{part}/{place}"
            if name in own:
                yield _pair(place, label, own[name], base.get(name))


def _graph(step: StepRecord, model: str, word: str) -> Graph | None:
    """The graph of one model: the hardened one where ``model`` is empty."""
    kinds: dict[str, dict[str, float]] = {"found": {}, "expected": {}, "resampled": {}}
    match = None
    for metric in step.metrics:
        mark, sign, edge = metric.group.rpartition("edge=")
        of = mark.removesuffix(", ") if sign else metric.group
        if not metric.name.startswith(GRAPH) or of != model:
            continue
        kind = metric.name.removeprefix(GRAPH)
        if kind in kinds:
            kinds[kind][edge] = metric.value or 0.0
        elif kind == "match":
            match = metric.value
    if match is None:
        return None
    drawn = dict.fromkeys([*kinds["found"], *kinds["expected"]])
    share = kinds["expected"] | kinds["found"] | kinds["resampled"]
    links = tuple(_link(edge, share[edge], kinds) for edge in drawn)
    rows = [
        (edge, f"{100 * value:.0f} %", _yes(edge in kinds["found"]), _yes(edge in kinds["expected"]))
        for edge, value in share.items()
    ]
    found, expected = (", ".join(kinds[kind]) or "no edge" for kind in ("found", "expected"))
    return Graph(
        title=f"Graph {word}",
        links=links,
        match=f"{match:.2f}",
        told=f"Found: {found}. Expected: {expected}. Match {match:.2f}.",
        rows=tuple(rows),
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _link(edge: str, frequency: float, kinds: dict[str, dict[str, float]]) -> Link:
    directed = " -> " in edge
    source, target = edge.split(" -> " if directed else " - ")
    return Link(source, target, directed, frequency, edge in kinds["expected"], edge in kinds["found"])


def _power(name: str, points: Sequence[Sequence[float]]) -> Power:
    pairs = tuple(sorted((float(x), float(y)) for x, y in points))
    shares = name.startswith(f"{POWER}outcome")
    planted = [f"{100 * y:.0f} % at {f'{100 * x:g} %' if shares else f'{x:g} sd'}" for x, y in pairs]
    label = name.removeprefix(POWER)
    return Power(label, pairs, shares, f"Power of the test of {label}: {', '.join(planted)}")


def _bounds(step: StepRecord) -> Iterable[tuple[str, ...]]:
    """Held-out families by their exact limits, then PAC-Bayes."""
    for verdict in step.verdicts:
        if verdict.name.startswith("causal/attack_success/"):
            family = plain(verdict.name.removeprefix("causal/attack_success/"))
            limit = DASH if verdict.statistic is None else f"{100 * verdict.statistic:.1f} %"
            yield f"Attack success, {family}", limit, str(verdict.n), f"{SAYS[verdict.holds]}: {verdict.reason}"
    for metric in step.metrics:
        if metric.name.startswith("causal/bound/") and not metric.group:
            value = DASH if metric.value is None else f"{metric.value:.2f}"
            yield f"PAC-Bayes, {metric.name.rpartition('/')[2]}", value, str(metric.n), metric.reason or metric.interval


def cells(layer: Layer, *, beside: bool) -> tuple[str, ...]:
    """The figures of one line, before and after."""
    after = shown(layer.after)
    return ((DASH if layer.before is None else shown(layer.before)), after) if beside else (after,)
