"""What a reader sees of rotation: certificates, spectra, masks and drift, taken from the record of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.by_layer import KINDS, LAYER, bare, by_kind, in_order, median_range, percent, place
from holdfast.reports.charts import Chart, Line, Plot, Points
from holdfast.reports.names import DASH, plain

SHOWN = 6
"""Held steps, masks and bases at most that are drawn; the others are listed."""
INPUTS = ("attention_input", "attention_output", "mlp_input", "mlp_output")
SPECTRUM = "spectrum/"
CHECK = "holdfast verify certificate RUN"
PROVED = (
    "A certificate that holds says: what is frozen did not move. The stored result is, bit for bit, the start plus a "
    "change made without it. Leak: the largest entry of the change inside what is frozen, left by rounding to the "
    "stored type. Outputs: those on the safety rows."
)
TOLD_AT = (0.1, 0.2, 0.5)
"""Shares of directions at which a spectrum is told in words."""


@dataclass(frozen=True, slots=True)
class Held:
    """One held training."""

    id: str
    mask: str
    holds: bool | None
    """``None`` without a certificate."""
    status: str
    sentence: str
    leak: str
    drift: str
    """Median over layers and the largest."""


@dataclass(frozen=True, slots=True)
class RotationPanel:
    """Everything of rotation in one run."""

    held: tuple[Held, ...]
    cards: tuple[Held, ...]
    """The first of each mask, `SHOWN` at most."""
    counted: str
    """Which held steps are drawn; empty where all are."""
    spectra: tuple[Chart, ...]
    masks: tuple[tuple[str, str], ...]
    """Id and sentence of every mask."""
    frozen: tuple[Chart, ...]
    drift: Chart | None

    @property
    def first_masks(self) -> tuple[tuple[str, str], ...]:
        """Masks that are told at once."""
        return self.masks[:SHOWN]

    @property
    def more_masks(self) -> tuple[tuple[str, str], ...]:
        """Masks that are folded away."""
        return self.masks[SHOWN:]


def rotation_panel(steps: Sequence[StepRecord]) -> RotationPanel | None:
    """The panel of a run, ``None`` where no step is of rotation."""
    masks = [step for step in steps if step.do == "mask"]
    by_id = {step.id: step for step in masks}
    trained = [step for step in steps if step.do == "train" and step.config.get("constraint")]
    spectra = [chart for step in steps if step.do == "basis" and (chart := _spectrum(step, steps))]
    if not (masks or trained or spectra):
        return None
    first = _first_of_each_mask(trained)
    told = {step.id: _held(step, by_id.get(step.config["constraint"])) for step in trained}
    few = f"{len(first)} of {len(trained)} held steps, the first of each mask"
    return RotationPanel(
        held=tuple(told.values()),
        cards=tuple(told[step.id] for step in first),
        counted="" if len(first) == len(trained) else f"Drawn: {few}{_capped(trained)}. All of them are in the table.",
        spectra=tuple(spectra[:SHOWN]),
        masks=tuple((step.id, mask_sentence(step)) for step in masks),
        frozen=tuple(chart for step in masks[:SHOWN] if (chart := _frozen(step))),
        drift=_drift(first),
    )


def _capped(trained: Iterable[StepRecord]) -> str:
    masks = {_mask(step) for step in trained}
    return f" for {SHOWN} of {len(masks)} masks" if len(masks) > SHOWN else ""


def _first_of_each_mask(trained: Iterable[StepRecord]) -> list[StepRecord]:
    """Of each mask the first held step that ended, or else the first."""
    found: dict[str, StepRecord] = {}
    for step in trained:
        mask = _mask(step)
        if mask not in found or (found[mask].status != "done" and step.status == "done"):
            found[mask] = step
    return list(found.values())[:SHOWN]


def _mask(step: StepRecord) -> str:
    """The mask that a step trained under, or the control of it."""
    mask, control = str(step.config["constraint"]), (step.config.get("baseline") or {}).get("name")
    return f"{mask}, control {plain(control)}" if control else mask


def _held(step: StepRecord, mask: StepRecord | None) -> Held:
    verdict = next((v for v in step.verdicts if v.name == "rotation/certificate"), None)
    drifts = [metric for metric in _named(step, "drift") if metric.value is not None]
    drift = _drifted(drifts)
    leak = DASH if verdict is None or verdict.statistic is None else small(verdict.statistic)
    if verdict is None:
        why = "" if step.status == "done" else f" The step {step.status}."
        return Held(step.id, _mask(step), None, "no certificate", f"Nothing is proved.{why}", leak, drift)
    status = {True: "certificate holds", False: "certificate broken", None: "not decided"}[verdict.holds]
    end = f"Largest leak {leak}. Outputs moved by {drift}." if verdict.holds else f"{verdict.reason}."
    sentence = f"{_extent(drifts, mask)} {end}".strip()
    return Held(step.id, _mask(step), verdict.holds, status, sentence, leak, drift)


def _extent(proofs: Sequence[Metric], mask: StepRecord | None) -> str:
    """What was frozen."""
    frozen, of = sum(metric.k or 0 for metric in proofs), sum(metric.n for metric in proofs)
    config = {} if mask is None else mask.config
    rest = {
        "frozen": " Weights outside these layers stayed, too.",
        "free": " Weights outside these layers were free.",
    }.get(str(config.get("rest")), "")
    if not of:
        return ""
    if not frozen:
        return f"Frozen in these layers: nothing, as a control.{rest}"
    what = "input directions" if config.get("unit", "column") == "column" else "rotated coefficients"
    return f"Frozen: {percent(frozen / of)} of the {what} of {len(proofs)} layers.{rest}"


def _drifted(proofs: Sequence[Metric]) -> str:
    if not proofs:
        return DASH
    values = {metric.group.removeprefix(LAYER): metric.value or 0.0 for metric in proofs}
    worst = max(values, key=lambda name: values[name])
    return f"{percent(median(values.values()))} in the median layer, at most {percent(values[worst])} ({worst})"


def mask_sentence(step: StepRecord) -> str:
    """What a mask freezes, and how stable that choice is against chance."""
    config = step.config
    unit = "input directions" if config.get("unit") == "column" else "rotated coefficients"
    if config.get("choose") == "nothing":
        return "Freezes nothing, as a control."
    within = "of each layer" if config.get("scope") == "layer" else "of all layers together"
    chosen = "drawn at random, as a control" if config.get("choose") == "random" else "with the highest scores"
    spared = ", without what the task needs" if config.get("spare") == "task" else ""
    sentence = f"Freezes the {100 * float(config.get('frozen_share', 0)):g} % of the {unit} {within} {chosen}{spared}."
    stable = next((m for m in step.metrics if m.name == "rotation/mask/stability"), None)
    if stable is None or stable.value is None:
        return sentence
    return (
        f"{sentence} Stability: masks made from the two halves of the safety rows overlap by {stable.value:.3f} "
        f"(shared part of both); {stable.reason}."
    )


def _named(step: StepRecord, name: str) -> list[Metric]:
    """Figures by layer, in order of depth."""
    found = [metric for metric in step.metrics if metric.name == f"rotation/{name}" and metric.group.startswith(LAYER)]
    return sorted(found, key=lambda metric: place(metric.group)[1])


def _spectrum(step: StepRecord, steps: Sequence[StepRecord]) -> Chart | None:
    curves = {name: tuple(points) for name, points in step.curves.items() if name.startswith(SPECTRUM)}
    # Layers of one kind have one width, and so points at the same x; where they differ, each width has its plot.
    together: dict[tuple[str, tuple[float, ...]], list[Points]] = {}
    for name, points in curves.items():
        together.setdefault((place(name.removeprefix(SPECTRUM))[0], tuple(x for x, _ in points)), []).append(points)
    plots, rows = [], []
    for kind in in_order((kind for kind, _ in together), INPUTS):
        for (_, at), many in ((key, many) for key, many in together.items() if key[0] == kind):
            line = _band(at, many)
            cells = tuple(_told_at(line, share) for share in TOLD_AT)
            told = "; ".join(
                f"first {share:.0%} of directions: {cell}" for share, cell in zip(TOLD_AT, cells, strict=True)
            )
            plots.append(Plot(plain(kind), (line,), f"Energy in {plain(kind)}, {told}"))
            rows.append((plain(kind), str(len(many)), *cells))
    if not plots:
        return None
    head = ("Input of", "Blocks", *(f"First {share:.0%}" for share in TOLD_AT))
    note = (
        "Share of the safety activations' energy in the strongest directions, against the share of directions. "
        "Line: the median block; band: from the lowest to the highest."
    )
    marks = _marks(step, steps)
    note += " Dashed upright: the share that a mask freezes." if marks else ""
    return Chart(f"Energy spectrum of {step.id}", note, tuple(plots), "share", "share", marks, head, tuple(rows))


def _marks(basis: StepRecord, steps: Iterable[StepRecord]) -> tuple[float, ...]:
    """Shares of directions that masks on this basis freeze."""
    scored = {step.id for step in steps if step.do == "importance" and step.config.get("of") == basis.id}
    masks = (step.config for step in steps if step.do == "mask" and step.config.get("of") in scored)
    shares = (c["frozen_share"] for c in masks if c.get("unit") == "column" and c.get("choose") != "nothing")
    return tuple(sorted({float(share) for share in shares}))


def _band(at: Sequence[float], many: Sequence[Points]) -> Line:
    heights = [[points[i][1] for points in many] for i in range(len(at))]
    middle, low, high = (tuple((x, of(ys)) for x, ys in zip(at, heights, strict=True)) for of in (median, min, max))
    return Line("", middle, *((low, high) if len(many) > 1 else ()))


def _told_at(line: Line, share: float) -> str:
    nearest = min(range(len(line.points)), key=lambda i: abs(line.points[i][0] - share))
    text = percent(line.points[nearest][1])
    return f"{text} [{bare(line.low[nearest][1])}, {bare(line.high[nearest][1])}]" if line.low else text


def _frozen(step: StepRecord) -> Chart | None:
    shares, energies = (by_kind(_named(step, f"frozen_{what}")) for what in ("share", "energy"))
    if not any(share for points in shares.values() for _, share in points):
        return None
    plots, rows = [], []
    for kind, points in shares.items():
        energy = energies.get(kind, ())
        lines = (Line("share frozen", points), *((Line("energy in it", energy),) if energy else ()))
        cells = (median_range(points), median_range(energy) if energy else DASH)
        told = f"Frozen share of {kind} {cells[0]}" + (f", energy in it {cells[1]}" if energy else "")
        plots.append(Plot(kind, lines, told))
        rows.append((kind, str(len(points)), *cells))
    note = "Every kind of layer by depth: what share of it is frozen"
    note += (
        ", and what share of the safety activations' energy that holds."
        if energies
        else ". Energy belongs to directions; this mask freezes single coefficients."
    )
    head = ("Layers", "Blocks", "Share frozen", "Energy in it")
    return Chart(f"Frozen by {step.id}", note, tuple(plots), "depth", "share", (), head, tuple(rows))


def _drift(steps: Sequence[StepRecord]) -> Chart | None:
    by_step = {step.id: by_kind(_named(step, "drift")) for step in steps}
    kinds = in_order((kind for found in by_step.values() for kind in found), KINDS)
    drawn = {name: found for name, found in by_step.items() if found}
    if not any(value > 0 for found in drawn.values() for points in found.values() for _, value in points):
        return None
    plots, rows = [], []
    for kind in kinds:
        lines = tuple(Line(name, found.get(kind, ())) for name, found in drawn.items())
        cells = tuple(median_range(line.points) if line.points else DASH for line in lines)
        told = ", ".join(f"{line.label} {cell}" for line, cell in zip(lines, cells, strict=True))
        plots.append(Plot(kind, lines, f"Output drift of {kind}: {told}"))
        rows.append((kind, *cells))
    note = (
        "How far the training moved each layer's outputs on the safety rows, relative to their size, by depth. "
        "The scale goes in powers of ten; a drift of exactly 0 has no place on it."
    )
    return Chart("Output drift by layer", note, tuple(plots), "depth", "log", (), ("Layers", *drawn), tuple(rows))


def small(value: float) -> str:
    """A number of any size.

    >>> small(1.8e-08), small(0.0)
    ('1.8e−08', '0')
    """
    return f"{value:.2g}".replace("-", "−")
