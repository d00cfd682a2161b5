"""What verifications of several seeds say, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from causal_rows import Found
from tables import grid, shown

from holdfast.core.results import Metric, Verdict
from holdfast.evaluation.composites import Estimate

BASE = "model=undefended"
MATCH, INDEPENDENCE = "causal/graph/match", "causal/independence/outcome"
SWAPPED = f"{INDEPENDENCE}/swapped"
FIGURES = {
    "attack success, all families": "causal/attack_success",
    "eps_causal, outcomes": "causal/eps/outcome",
    "eps_causal, outcomes, worst family": "causal/eps/outcome/worst",
    "eps_causal, tokens": "causal/eps/token",
    "eps_causal, tokens, worst family": "causal/eps/token/worst",
    "causal stability": "causal/stability",
    "causal stability, random pairs": "causal/stability_random",
    "causal stability, centred": "causal/stability_centred",
    "spurious separation": "causal/separation",
    "spurious separation, random pairs": "causal/separation_random",
    "spurious separation, centred": "causal/separation_centred",
    "graph: match with the expected one": MATCH,
}
LAYERED = {
    "stability": "stability",
    "centred": "stability_centred",
    "separation": "separation",
    "separation, centred": "separation_centred",
    "moved": "moved",
}
SAYS = {True: "holds", False: "**fails**", None: "abstains"}
GRAPH, EDGE = "causal/graph/", "edge="
UNDEFENDED_GRAPH, GONE = "causal/graph/undefended", ("causal/graph/no edge U - R", "causal/graph/no edge U - O")
"""Verdicts: the undefended model has the expected graph; the hardened one has lost these edges."""


def spread(found: Sequence[Found], name: str, group: str = "") -> Estimate:
    """Mean over seeds with the lowest and the highest."""
    values = [m.value for each in found if (m := each.metric(name, group)) is not None and m.value is not None]
    if not values:
        return Estimate(None, None, None, "not measured")
    many = len(values) > 1
    return Estimate(sum(values) / len(values), min(values) if many else None, max(values) if many else None)


def counted(found: Sequence[Found], name: str) -> str:
    """Mean over seeds with the lowest and the highest, and the rows of all seeds together."""
    total = sum(metric.n for each in found if (metric := each.metric(name)) is not None)
    return f"{shown(spread(found, name))} (n = {total})"


def limit(found: Sequence[Found], name: str) -> float | None:
    """The bad end of the interval, of the worst seed."""
    metrics = [metric for each in found if (metric := each.metric(name)) is not None]
    if any(metric.higher_is_better for metric in metrics):
        return min((metric.low for metric in metrics if metric.low is not None), default=None)
    return max((metric.high for metric in metrics if metric.high is not None), default=None)


def three(value: float | None) -> str:
    """A bare number, as tables show it."""
    return shown(Estimate(value, None, None))


def figures(found: Sequence[Found]) -> str:
    """What the injection changes, before and after."""
    rows = (
        (label, shown(spread(found, name, BASE)), shown(spread(found, name)), three(limit(found, name)))
        for label, name in FIGURES.items()
        if any(each.metric(name) for each in found)
    )
    return grid(("figure", "undefended", "ours", "ours, 95 % limit of the worst seed"), rows)


def layers(found: Sequence[Found]) -> str:
    """The same for each representation."""
    mark = "causal/moved/"
    names = [m.name.removeprefix(mark) for m in found[0].step.metrics if m.name.startswith(mark) and not m.group]

    def cells(place: str) -> Iterator[str]:
        for part in LAYERED.values():
            before, after = (shown(spread(found, f"causal/{part}/{place}", group)) for group in (BASE, ""))
            yield f"{before} → {after}"

    return grid(("representation", *LAYERED), ((place, *cells(place)) for place in dict.fromkeys(names)))


def claims(found: Sequence[Found], seeds: Sequence[int]) -> str:
    """A row a claim, a column a seed."""
    names = dict.fromkeys(verdict.name for each in found for verdict in each.step.verdicts)
    known = [{verdict.name: verdict for verdict in each.step.verdicts} for each in found]
    rows = ((name.removeprefix("causal/"), *(_said(each.get(name)) for each in known)) for name in names)
    return grid(("claim", *(f"seed {seed}" for seed in seeds)), rows)


def by_seed(found: Sequence[Found], seeds: Sequence[int], name: str) -> str:
    """What one claim says of each seed; nothing where it was not tested."""
    known = [next((v for v in each.step.verdicts if v.name == name), None) for each in found]
    pairs = zip(seeds, known, strict=bool(found)) if any(known) else ()
    return ", ".join(f"seed {seed} {_said(verdict)}" for seed, verdict in pairs)


def _said(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    says = SAYS[verdict.holds]
    if verdict.p_value is not None:
        return f"{says}, p = {three(verdict.p_value)}"
    if verdict.name.startswith("causal/attack_success"):
        return f"{says}, at most {three(verdict.statistic)} (n = {verdict.n})"
    return says


def edges(found: Sequence[Found]) -> str:
    """How many resamples have an edge, before and after; mean over seeds, in which a missing edge counts as 0."""
    shares: dict[tuple[str, str], float] = {}
    expected: set[tuple[str, str]] = set()
    for each in found:
        own: dict[tuple[str, str], float] = {}
        for metric in each.step.metrics:
            model, mark, edge = metric.group.rpartition(EDGE)
            if mark and metric.name.startswith(GRAPH):
                place = (edge, model.removesuffix(", "))
                own[place] = metric.value or 0.0
                expected |= {place} if metric.name == f"{GRAPH}expected" else set()
        for place, share in own.items():
            shares[place] = shares.get(place, 0.0) + share / len(found)

    def cells(edge: str) -> Iterator[str]:
        for side in (BASE, ""):
            yield f"{100 * shares.get((edge, side), 0.0):.0f} %"
            yield "yes" if (edge, side) in expected else "no"

    head = ("edge", "undefended: share of resamples", "expected", "ours: share of resamples", "expected")
    return grid(head, ((edge, *cells(edge)) for edge in dict.fromkeys(edge for edge, _ in shares)))


def bounds(found: Sequence[Found], seeds: Sequence[int]) -> str:
    """PAC-Bayes, by seed; empty where no adapter was verified."""
    names = dict.fromkeys(m.name for each in found for m in each.step.metrics if m.name.startswith("causal/bound/"))
    rows = ((name.rpartition("/")[2], *(_bound(each.metric(name)) for each in found)) for name in names)
    return grid(("bound", *(f"seed {seed}" for seed in seeds)), rows) if names else "No PAC-Bayes bound: no adapter."


def _bound(metric: Metric | None) -> str:
    return "-" if metric is None else f"{three(metric.value)}{f' ({metric.reason})' if metric.reason else ''}"


def every(said: Iterable[bool | None]) -> bool | None:
    """Whether all hold; ``None`` where that is not told."""
    each = list(said)
    return False if False in each else True if each and all(each) else None
