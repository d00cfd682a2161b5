"""Two logs of the same prompts set beside each other: what changed, how much, and could it be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.core.errors import DataError
from holdfast.core.results import Metric, Verdict
from holdfast.evaluation.log import Header, Record, TaskHead, read_log
from holdfast.evaluation.measures import Figure, breakdown, cluster_of, figures
from holdfast.evaluation.metrics import holm, mcnemar_exact, paired_bootstrap
from holdfast.evaluation.suite import shown_task

ALPHA = 0.05
"""A change with a smaller p-value is called a change."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found."""

    metrics: tuple[Metric, ...]
    """Mean of after minus before, one a figure, named ``<figure>/change``."""
    verdicts: tuple[Verdict, ...]
    """One a figure: ``holds`` says that it changed."""
    notes: tuple[str, ...]
    """What could not be paired."""


@dataclass(frozen=True, slots=True)
class _Pair:
    before: Record
    after: Record


def compare(before: Path, after: Path) -> Comparison:
    """Pair two logs by task and row, and test every figure that both have.

    Rates are tested by the exact McNemar test, means by the paired bootstrap clustered by group; the interval of a
    change is the paired bootstrap's. P-values of a breakdown (attacks, risk areas, positions) are Holm-adjusted over
    its values.

    Raises:
        DataError: not logs, no task in common, other rows under the same ids, or other judges.
    """
    (old, old_records), (new, new_records) = read_log(before), read_log(after)
    heads = {head.name: head for head in old.tasks}
    common = [head for head in new.tasks if head.name in heads]
    if not common:
        raise DataError(
            f"{before} and {after} have no task in common: got {_names(old)} and {_names(new)}. "
            "Do: evaluate both models on the same tasks."
        )
    metrics: list[Metric] = []
    verdicts: list[Verdict] = []
    notes = _unmatched_tasks(old, new)
    for head in common:
        _same_judges(heads[head.name], head)
        pairs, missing = _pairs(head.name, old_records, new_records)
        if missing:
            notes.append(f"{head.name}: {missing} rows stand in only one log and were left out.")
        for found in _task_changes(head, pairs, new.seed, missing):
            metrics.append(found.metric)
            verdicts.append(found.verdict)
    return Comparison(tuple(metrics), tuple(verdicts), tuple(notes))


def _names(header: Header) -> str:
    return ", ".join(head.name for head in header.tasks)


def _unmatched_tasks(old: Header, new: Header) -> list[str]:
    alone = {head.name for head in old.tasks} ^ {head.name for head in new.tasks}
    return [f"{name}: only one log has this task; it was left out." for name in sorted(alone)]


def _same_judges(old: TaskHead, new: TaskHead) -> None:
    if old.judges != new.judges or old.decoding != new.decoding:
        raise DataError(
            f"{new.name}: the logs were made differently: got {', '.join(old.judges)} ({old.decoding}) and "
            f"{', '.join(new.judges)} ({new.decoding}). Do: evaluate again, the same way."
        )


def _pairs(task: str, old: Sequence[Record], new: Sequence[Record]) -> tuple[list[_Pair], int]:
    """Rows of both logs by id, and how many stand in only one."""
    before = {record.id: record for record in old if record.task == task}
    after = {record.id: record for record in new if record.task == task}
    shared = [ident for ident in after if ident in before]
    for ident in shared:
        if before[ident].sample.example != after[ident].sample.example:
            raise DataError(
                f"{task}: row {ident!r} is not the same in both logs, expected the same prompts. "
                "Do: evaluate both models on the same rows (source, split, rows and seed)."
            )
    if not shared:
        raise DataError(f"{task}: no row stands in both logs. Do: evaluate with the same rows and seed.")
    return [_Pair(before[i], after[i]) for i in shared], len(before) + len(after) - 2 * len(shared)


@dataclass(frozen=True, slots=True)
class _Change:
    metric: Metric
    verdict: Verdict


def _task_changes(head: TaskHead, pairs: Sequence[_Pair], seed: int, missing: int) -> list[_Change]:
    task = shown_task(head, head.judges[0])
    judge = head.judges[0]
    totals = [_change(figure, pairs, judge, seed, missing) for figure in figures(task) if not figure.over_all]
    changes = [change for change in totals if change is not None]
    by_id = {pair.after.id: pair for pair in pairs}
    families: dict[str, list[_Change]] = {}
    for group, records in breakdown(task, [pair.after for pair in pairs]):
        part = [by_id[record.id] for record in records]
        for figure in figures(task):
            found = _change(figure, part, judge, seed, 0, group) if figure.breaks_down else None
            if found is not None:
                families.setdefault(f"{figure.name}|{group.partition('=')[0]}", []).append(found)
    for family in families.values():
        changes += _adjusted(family)
    return changes


def _change(
    figure: Figure, pairs: Sequence[_Pair], judge: str, seed: int, missing: int, group: str = ""
) -> _Change | None:
    """The change of one figure on the pairs that are valid both times; ``None`` where it is about none of them."""
    kept = [pair for pair in pairs if figure.applies(pair.after.sample.example)]
    if not kept:
        return None
    valued = [(pair, figure.value(pair.before.scores[judge]), figure.value(pair.after.scores[judge])) for pair in kept]
    valid = [(pair, b, a) for pair, b, a in valued if b is not None and a is not None]
    metric = Metric(
        name=f"{figure.name}/change",
        value=None,
        n=len(valid),
        n_invalid=len(kept) - len(valid) + missing,
        higher_is_better=figure.higher_is_better,
        judge=judge,
        cluster="group",
        seed=seed,
        group=group,
    )
    if not valid:
        reason = f"no row of {len(kept)} is valid in both logs"
        return _Change(metric.model_copy(update={"reason": reason}), _abstain(figure, group, reason))
    before, after = [b for _, b, _ in valid], [a for _, _, a in valid]
    clusters = [cluster_of(pair.after) for pair, _, _ in valid]
    return _tested(figure, metric, before, after, clusters)


def _tested(figure: Figure, metric: Metric, before: list[float], after: list[float], clusters: list[str]) -> _Change:
    paired = paired_bootstrap(before, after, clusters, seed=metric.seed or 0)
    flat = paired.low == paired.high
    known = {
        "value": paired.difference,
        "low": None if flat else paired.low,
        "high": None if flat else paired.high,
        "interval": "" if flat else "paired bootstrap 95% by group",
        "reason": f"no interval: {paired.clusters} cluster(s) changed by one and the same amount" if flat else "",
    }
    mean_before, mean_after = sum(before) / len(before), sum(after) / len(after)
    moved = f"{mean_before:.3f} before, {mean_after:.3f} after"
    rates = set(before) | set(after) <= {0.0, 1.0}
    if not rates and paired.clusters < 2:
        reason = f"{moved}; one cluster tells nothing about the spread"
        return _Change(metric.model_copy(update=known), _abstain(figure, metric.group, reason, len(before)))
    statistic: float = paired.difference
    p_value = paired.p_value
    if rates:
        test = mcnemar_exact([b == 1 for b in before], [a == 1 for a in after])
        statistic, p_value = float(test.only_after - test.only_before), test.p_value
        moved += f"; {test.only_before} rows only before, {test.only_after} only after"
    verdict = Verdict(
        name=_claim(figure, metric.group),
        holds=p_value < ALPHA,
        statistic=statistic,
        p_value=p_value,
        n=len(before),
        null="on the same prompts nothing changed " + ("(exact McNemar)" if rates else "(paired bootstrap by group)"),
        draws=None if rates else 2000,
        reason=moved,
    )
    return _Change(metric.model_copy(update=known), verdict)


def _claim(figure: Figure, group: str) -> str:
    return f"{figure.name} changed" + (f" [{group}]" if group else "")


def _abstain(figure: Figure, group: str, reason: str, n: int = 0) -> Verdict:
    null = "on the same prompts nothing changed"
    return Verdict(name=_claim(figure, group), holds=None, statistic=None, p_value=None, n=n, null=null, reason=reason)


def _adjusted(family: Sequence[_Change]) -> list[_Change]:
    """The same changes with p-values adjusted over the family (Holm)."""
    tested = {c.verdict.name: c.verdict.p_value for c in family if c.verdict.p_value is not None}
    adjusted = holm(tested)
    out = []
    for change in family:
        verdict = change.verdict
        if verdict.name in adjusted:
            p_value = adjusted[verdict.name]
            reason = f"{verdict.reason}; p-value Holm-adjusted over {len(tested)}"
            verdict = verdict.model_copy(update={"p_value": p_value, "holds": p_value < ALPHA, "reason": reason})
        out.append(replace(change, verdict=verdict))
    return out
