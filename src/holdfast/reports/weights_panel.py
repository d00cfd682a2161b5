"""What a reader sees of token weights: a row a step that planned them, in all three renderers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.results import Metric, StepRecord
from holdfast.reports.names import DASH
from holdfast.reports.panels import figure_of

NOTE = (
    "Tokens with weight: their share of the learnt tokens looked at. Effective share: effective sample size over the "
    "number of tokens, 100 % where all weigh the same. Where weights follow the model, both are those before training."
)
NOISE = (
    "Noise found: the probability that a token without planted noise has the higher score (of controls and of planned "
    "weights the higher weight), 0.5 by chance. Weight of noise: the mean weight of tokens that are noise; all tokens "
    "have 1."
)
CRITIC = "Pairs told apart: of two held-out answers to a question the better one has the higher value."
TERMINAL_STEPS = 4
"""Steps told in the terminal."""


@dataclass(frozen=True, slots=True)
class WeightsPanel:
    """Everything of token weights in one run."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def weights_panel(steps: Sequence[StepRecord]) -> WeightsPanel | None:
    """The panel of a run, ``None`` where no finished step planned token weights."""
    planned = [step for step in steps if step.do == "token_weighting" and step.metrics]
    if not planned:
        return None
    found = [{metric.name: metric for metric in step.metrics} for step in planned]
    noise, critic = (any(name in own for own in found) for name in ("noise/auroc", "critic/pair_accuracy"))
    head = ["Step", "Scorer", "Tokens ahead", "Tokens with weight", "Effective share"]
    head += ["Noise found", "Weight of noise"] if noise else []
    head += ["Pairs told apart"] if critic else []
    rows = []
    for step, own in zip(planned, found, strict=True):
        row = [step.id, _scorer(step.config), str(step.config.get("horizon", 1))]
        row += [_share(own.get(f"weights/{name}")) for name in ("kept_share", "ess")]
        row += [_plain(own.get(f"noise/{name}")) for name in ("auroc", "weight")] if noise else []
        row += [_pairs(own.get("critic/pair_accuracy"))] if critic else []
        rows.append(tuple(row))
    notes = (NOTE, *((NOISE,) if noise else ()), *((CRITIC,) if critic else ()))
    return WeightsPanel(tuple(head), tuple(rows), notes)


def blocks(panel: WeightsPanel, text: Callable[[str], str], table: Callable[..., str]) -> Iterable[str]:
    """Markdown: the table, and what its columns are."""
    yield "## Token weights"
    yield table(panel.head, panel.rows)
    yield from map(text, panel.notes)


def lines(panel: WeightsPanel) -> Iterable[str]:
    """Terminal: a line a step, the first of them."""
    for row in panel.rows[:TERMINAL_STEPS]:
        told = [f"{head[:1].lower()}{head[1:]} {cell}" for head, cell in zip(panel.head, row, strict=True)]
        yield f"{row[0]}: {row[1]}, {', '.join(each for each in told[3:] if not each.endswith(DASH))}"
    if len(panel.rows) > TERMINAL_STEPS:
        yield f"{len(panel.rows) - TERMINAL_STEPS} more plans of token weights are in the report."


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
    figure = figure_of(metric)
    return f"{figure.text} {figure.bounds} (n = {figure.n})"
