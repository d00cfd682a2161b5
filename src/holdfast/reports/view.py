"""What a reader sees of a run, as rows and series: made once from the record, printed by three renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.reports.causal_panel import CausalPanel
    from holdfast.reports.causal_verify_panel import Verified
    from holdfast.reports.merging_panel import MergingPanel
    from holdfast.reports.rotation_panel import RotationPanel
    from holdfast.reports.table_panel import TablePanel
    from holdfast.reports.token_weighting_panel import TokenWeightingPanel


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric as text, with the numbers that a chart draws."""

    value: float | None
    low: float | None
    high: float | None
    text: str
    """E.g. ``45.7 %``; an en dash where the value is missing."""
    bounds: str
    """E.g. ``[39.1, 52.4]``; empty without an interval."""
    n: int
    n_invalid: int
    rate: bool
    reason: str
    """Why the value is missing, or why it has no interval."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: its figure, or its figures before and after and what changed."""

    name: str
    label: str
    task: str
    suite: str
    higher_is_better: bool
    before: Figure | None
    """``None`` where the panel shows one model only."""
    after: Figure
    change: Figure | None
    """After minus before, in percentage points for rates."""
    verdict: str
    """``better``, ``worse``, ``no clear change`` or ``not compared``; empty where one model is shown."""
    test: str
    """How the verdict was reached, e.g. ``p = 0.012, 300 pairs``."""
    judge: str
    """Judge and version; empty where nothing was judged."""

    @property
    def polarity(self) -> str:
        """Which direction is good, with an arrow."""
        return "↑ higher is better" if self.higher_is_better else "↓ lower is better"

    @property
    def arrow(self) -> str:
        """The arrow alone."""
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True, slots=True)
class Breakdown:
    """One measure of one task, by one field of its rows."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said, and what the judge said of it."""

    side: str
    output: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and its answers, before and after where both are kept."""

    task: str
    group: str
    prompt: str
    shortened: bool
    answers: tuple[Answer, ...]

    @property
    def changed(self) -> bool:
        """The outcomes differ."""
        return len({answer.outcome for answer in self.answers}) > 1


@dataclass(frozen=True, slots=True)
class Talk:
    """Exchanges of one task; the first is the telling one."""

    task: str
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One comparison, or one evaluation that no comparison uses."""

    id: str
    before: str
    """The model of the first side and the step that measured it; empty where there is one side only."""
    after: str
    headline: tuple[Row, ...]
    """The figure of each suite that tells most."""
    main: tuple[Row, ...]
    """The figure that counts of each task."""
    more: tuple[Row, ...]
    """Every other total."""
    composites: tuple[Row, ...]
    """Figures that the comparison made of both sides; one value each."""
    breakdowns: tuple[Breakdown, ...]
    talks: tuple[Talk, ...]

    @property
    def paired(self) -> bool:
        """Two sides stand beside each other."""
        return bool(self.before)


Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Training:
    """The loss of one train step."""

    id: str
    loss: Curve
    validation: Curve
    sentence: str


@dataclass(frozen=True, slots=True)
class Step:
    """What a step was and cost."""

    id: str
    do: str
    status: str
    model: str
    seconds: str
    memory: str
    seed: int
    notes: tuple[str, ...]
    artifacts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Full:
    """A metric with everything it carries, for the complete table."""

    step: str
    name: str
    group: str
    figure: Figure
    k: str
    interval: str
    judge: str
    decoding: str
    seed: str


@dataclass(frozen=True, slots=True)
class Tested:
    """A verdict with everything it carries."""

    step: str
    claim: str
    holds: str
    """``yes``, ``no`` or ``abstains``."""
    statistic: str
    p_value: str
    n: int
    null: str
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """A whole run."""

    name: str
    version: str
    started: str
    """E.g. ``2026-11-21 02:03 UTC``."""
    title: str
    description: str
    summary: str
    """Empty where a step stopped: ``problems`` then say what happened."""
    quick: bool
    problems: tuple[str, ...]
    """One sentence a step that failed or was interrupted, or one that says that nothing ran."""
    tables: tuple[TablePanel, ...]
    panels: tuple[Panel, ...]
    hardened: CausalPanel | None
    """``None`` where nothing was hardened or attacked."""
    verified: tuple[Verified, ...]
    """One a step that verifies."""
    merging: MergingPanel | None
    """``None`` where no step merges or repairs."""
    rotation: RotationPanel | None
    """``None`` where no step is of rotation."""
    tokens: TokenWeightingPanel | None
    """``None`` where no step planned token weights."""
    trainings: tuple[Training, ...]
    steps: tuple[Step, ...]
    full: tuple[Full, ...]
    tested: tuple[Tested, ...]
    facts: tuple[tuple[str, str], ...]
    """Version, device, commit, start."""
    packages: tuple[tuple[str, str], ...]
    recipe: str
    """The recipe as YAML."""
