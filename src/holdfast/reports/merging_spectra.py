"""Spectra of the generalized eigenproblem, and whether both halves of the rows give the same leading directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.by_layer import by_kind, median_range
from holdfast.reports.charts import Chart, Line, Plot, Points
from holdfast.reports.merging_rules import Multiples, Rule, Small, Trace
from holdfast.reports.names import DASH

SHOWN = 6
"""Seeds of which spectra are drawn."""
DRAWN = 60
"""Ranks of a spectrum that are drawn."""
NOTHING = 1e-12
"""Eigenvalues below this share of the largest are 0 but for rounding."""
SPECTRUM = "spectrum/"
TOLD_RANKS = (1, 10, 100)


def alike(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Rules with spectra, those with the same ones together: they weighed the same rows in the same way."""
    found: dict[object, list[Rule]] = {}
    for rule in rules:
        steps = tuple(step for step in rule.steps if any(name.startswith(SPECTRUM) for name in step.curves))
        if steps:
            key = tuple(tuple(map(tuple, c)) for s in steps for n, c in s.curves.items() if n.startswith(SPECTRUM))
            found.setdefault(key, []).append(Rule(rule.label, steps))
    return list(found.values())


def spectra(same: Sequence[Rule]) -> tuple[Multiples, Chart | None]:
    """What rules with the same spectra share: a chart a seed, and the overlap of the halves of their rows."""
    names = ", ".join(rule.label for rule in same)
    steps = same[0].steps
    plots, rows = [], []
    for step in steps[:SHOWN]:
        layers = [_measured(curve) for name, curve in step.curves.items() if name.startswith(SPECTRUM)]
        middle = _median_of(layers)
        at = [(rank, value) for rank, value in middle if rank in TOLD_RANKS]
        above = [sum(value > 1 for _, value in layer) for layer in layers]
        told = ", ".join(f"{value:.3g} at rank {rank:.0f}" for rank, value in at)
        kinds = [Trace("faint", _thinned(layer)) for layer in layers]
        plots.append(
            Small(
                title=f"seed {step.seed}" if len(steps) > 1 else step.id,
                under=f"{len(layers)} layers",
                traces=(*kinds, Trace("line1", _thinned(middle))),
                told=f"Safety per utility of {step.id}, median over {len(layers)} layers: {told}",
            )
        )
        cells = (dict(at).get(float(rank)) for rank in TOLD_RANKS)
        rows.append((step.id, *(f"{v:.3g}" if v is not None else DASH for v in cells), f"{median(above):g}"))
    cut = f" The first {SHOWN} of {len(steps)} seeds." if len(steps) > SHOWN else ""
    spectrum = Multiples(
        kind="spectrum",
        title=f"Spectrum: {names}",
        note="The generalized eigenproblem of each layer: safety gained per utility lost (λ) in each direction, by "
        f"rank. Above the dashed line at 1 a direction matters more to safety.{cut}",
        plots=tuple(plots),
        keys=(("line1", "median over layers"), ("faint", "single layers")),
        head=("Step", *(f"λ at rank {rank}" for rank in TOLD_RANKS), "Directions with λ above 1, median layer"),
        rows=tuple(rows),
    )
    return spectrum, _halves(names, steps)


def _measured(curve: Iterable[Sequence[float]]) -> Points:
    """Without the directions that are 0 but for rounding."""
    points = [(float(x), float(y)) for x, y in curve]
    floor = NOTHING * max((y for _, y in points), default=0.0)
    return tuple((x, y) for x, y in points if y > floor)


def _median_of(layers: Sequence[Points]) -> Points:
    """At every rank that at least half of the layers have."""
    at: dict[float, list[float]] = {}
    for layer in layers:
        for rank, value in layer:
            at.setdefault(rank, []).append(value)
    return tuple((rank, median(values)) for rank, values in sorted(at.items()) if 2 * len(values) >= len(layers))


def _thinned(points: Points) -> Points:
    """The first few ranks, where the values fall fast, then evenly spaced ones, and the last."""
    every = max(1, len(points) // DRAWN)
    return tuple(p for i, p in enumerate(points) if i < 8 or i % every == 0 or i == len(points) - 1)


def _halves(names: str, steps: Sequence[StepRecord]) -> Chart | None:
    """Overlap of the leading directions of both halves by kind of layer and depth, beside chance."""
    overlap = [by_kind(_stability(step)) for step in steps]
    chance = by_kind(_by_chance(steps[0]))
    plots, rows = [], []
    for kind in overlap[0]:
        many = [found[kind] for found in overlap if kind in found]
        line, random = _seeds_together("overlap", many), Line("by chance", tuple(sorted(chance.get(kind, ()))))
        cells = (median_range(line.points), median_range(random.points) if random.points else DASH)
        plots.append(Plot(kind, (line, random), f"Overlap of the halves in {kind} {cells[0]}, by chance {cells[1]}"))
        rows.append((kind, str(len(line.points)), *cells))
    if not plots:
        return None
    verdicts = [v for step in steps for v in step.verdicts if v.name.endswith("/split_half") and v.reason]
    said = "; ".join(dict.fromkeys(verdict.reason for verdict in verdicts))
    note = (
        "Are the leading directions the same in two random halves of the rows? Mean squared cosine between them, by "
        "depth: 1 where they are the same."
        + (" Line: the median seed; band: from the lowest to the highest." if len(steps) > 1 else "")
        + (f" {said[:1].upper()}{said[1:]}." if said else "")
    )
    head = ("Layers", "Blocks", "Overlap", "By chance")
    return Chart(f"Split halves: {names}", note, tuple(plots), "depth", "share", (), head, tuple(rows))


def _stability(step: StepRecord) -> list[Metric]:
    return [metric for metric in step.metrics if metric.name in ("merging/stability", "repair/stability")]


def _by_chance(step: StepRecord) -> list[Metric]:
    """What random subspaces of ``k`` dimensions would share, ``k`` in as many as the layer's rows span."""
    spans = {name.removeprefix(SPECTRUM): len(curve) for name, curve in step.curves.items()}
    return [
        metric.model_copy(update={"value": metric.n / spans[layer]})
        for metric in _stability(step)
        if (layer := metric.group.removeprefix("layer=")) in spans
    ]


def _seeds_together(label: str, many: Sequence[Points]) -> Line:
    """The median over seeds, in a band from the lowest to the highest where there are several."""
    at: dict[float, list[float]] = {}
    for points in many:
        for x, y in points:
            at.setdefault(x, []).append(y)
    middle, low, high = (tuple((x, of(at[x])) for x in sorted(at)) for of in (median, min, max))
    return Line(label, middle, *((low, high) if len(many) > 1 else ()))
