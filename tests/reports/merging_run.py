"""A record of merging as a long recipe leaves one: many rules over three seeds, a table, a front, a retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.core.results import Metric, RunRecord, StepRecord, Verdict

SEEDS = (0, 1, 2)
TASKS = {"lab/harmful/attack_success_rate": False, "lab/benign/over_refusal_rate": False, "lab/arithmetic/exact": True}
SUITES = {"lab/harmful": "safety", "lab/benign": "safety", "lab/arithmetic": "utility"}
BEFORE = (1.0, 0.0, 0.40)
ROWS = {
    "utility": (1.0, 0.0, 0.70),
    "safety": (0.0, 0.0, 0.30),
    "average": (0.60, 0.0, 0.62),
    "ties": (0.99, 0.01, 0.66),
    "tsv": (1.0, 0.04, 0.64),
    "sst": (0.02, 0.0, 0.69),
    "sst-block": (0.02, 0.02, 0.72),
    **{f"rule-{i}": (0.5 + 0.01 * i, 0.01, 0.66 + 0.002 * i) for i in range(8)},
}
MERGED = tuple(label for label in ROWS if label not in ("utility", "safety"))
WEIGHTS = (0.1, 0.3, 1.0)
LAYERS = tuple(f"layers.{block}.{kind}" for block in range(3) for kind in ("q_proj", "down_proj"))
RANKS, ZEROS, K = 100, 20, 12
SELECT = {
    "safety": [{"name": "lab/harmful"}, {"name": "lab/benign"}],
    "utility": [{"name": "lab/arithmetic"}],
    "weights": list(WEIGHTS),
}


def spectrum(scale: float) -> list[tuple[float, float]]:
    """Falls by powers of ten, then as many zeros as rounding leaves."""
    falling = [(float(rank), scale * 10 ** (4 - rank / 20)) for rank in range(1, RANKS - ZEROS + 1)]
    return falling + [(float(rank), (-1.0) ** rank * 1e-14) for rank in range(RANKS - ZEROS + 1, RANKS + 1)]


def merged(label: str, seed: int, *, rows: bool = False, taken: float = 0.3) -> StepRecord:
    curves = {
        "tried/safety": [(w, 0.5 + 0.1 * i + 0.01 * seed) for i, w in enumerate(WEIGHTS)],
        "tried/utility": [(w, 0.7 - 0.05 * i) for i, w in enumerate(WEIGHTS)],
    }
    metrics = [Metric(name="merging/weight", value=taken, n=len(WEIGHTS))]
    verdicts = []
    if rows:
        curves |= {f"spectrum/{layer}": spectrum(1 + i + seed) for i, layer in enumerate(LAYERS)}
        metrics += [
            Metric(name="merging/stability", value=0.4 + 0.05 * i + 0.02 * seed, n=K, group=f"layer={layer}")
            for i, layer in enumerate(LAYERS)
        ]
        verdicts = [
            Verdict(
                name="merging/split_half",
                holds=True,
                statistic=0.5,
                p_value=None,
                n=len(LAYERS),
                null="as random ones",
                reason="mean overlap 0.50 over 6 layers; 0.12 by chance",
            )
        ]
    config = {"do": "merge", "rule": label, "select": SELECT}
    return StepRecord(
        id=f"{label}-{seed}", do="merge", config=config, metrics=tuple(metrics), verdicts=tuple(verdicts),
        curves=curves, seed=seed,
    )  # fmt: skip


def evaluated(name: str, source: str, values: Sequence[float]) -> StepRecord:
    metrics = [
        Metric(name=f"{SUITES[task.rpartition('/')[0]]}/{task}", value=value, n=100, higher_is_better=higher)
        for (task, higher), value in zip(TASKS.items(), values, strict=True)
    ]
    return StepRecord(id=name, do="evaluate", config={"model": {"source": source}}, metrics=tuple(metrics))


def metric(name: str, row: str, value: float, half: float, *, higher: bool) -> Metric:
    group = f"row={row}"
    return Metric(
        name=f"table/{name}", value=value, n=300, k=1, low=value - half, high=value + half,
        higher_is_better=higher, group=group,
    )  # fmt: skip


def tabled(rows: Mapping[str, Sequence[float]]) -> StepRecord:
    metrics = []
    for label, values in {"before": BEFORE, **rows}.items():
        for (task, higher), value, plain in zip(TASKS.items(), values, rows["utility"], strict=True):
            metrics.append(metric(task, label, value, 0.02, higher=higher))
            if label != "utility":
                metrics.append(metric(f"{task}/difference", label, value - plain, 0.03, higher=higher))
    ids = {label: [f"after-{label}-{seed}" for seed in SEEDS] for label in rows}
    config = {"before": "after-base", "reference": "utility", "title": "Rules compared", "rows": ids}
    return StepRecord(id="rules", do="table", config=config, metrics=tuple(metrics))


def fronted(labels: Sequence[str]) -> StepRecord:
    metrics = []
    for i, label in enumerate(labels):
        area = Metric(name="front/hypervolume", value=0.1 + 0.01 * i, n=900, low=0.09, high=0.3, group=f"row={label}")
        metrics.append(area)
        if i:
            metrics.append(area.model_copy(update={"name": "front/hypervolume/difference", "value": 0.01 * i}))
    curves = {
        f"front [row={label}]": [(0.5 + 0.1 * w + 0.01 * i, 0.7 - 0.1 * w) for w in range(len(WEIGHTS))]
        for i, label in enumerate(labels)
    }
    ids = {label: [f"{label}-{seed}" for seed in SEEDS] for label in labels}
    config = {"rows": ids, "reference": labels[0]}
    return StepRecord(id="curves", do="front", config=config, metrics=tuple(metrics), curves=curves)


def retained(labels: Sequence[str], counts: Sequence[int] = (2, 8, 20)) -> StepRecord:
    """What rules keep of many experts; the first of several could not be measured with the most."""
    metrics = []
    for i, label in enumerate(labels):
        for count in counts:
            gone = i == 0 and count == counts[-1] and len(labels) > 1
            value = None if gone else 1.02 - 0.01 * count - 0.01 * i
            metrics.append(
                Metric(
                    name="retention/mean",
                    value=value,
                    n=count * 100,
                    group=f"row={label}, experts={count}",
                    low=None if value is None else value - 0.02,
                    high=None if value is None else value + 0.02,
                    reason="the expert scores 0 on lab/passages" if gone else "",
                )
            )
    return StepRecord(id="kept", do="retention", config={}, metrics=tuple(metrics))


def record(steps: Sequence[StepRecord]) -> RunRecord:
    return RunRecord(
        name="merged", version="1", git="", packages={}, device="cpu", started="2026-01-01T00:00:00+00:00",
        recipe={"title": "Merged", "steps": {step.id: {} for step in steps}}, steps=tuple(steps),
    )  # fmt: skip


def merging_run(rename: Mapping[str, str] | None = None) -> RunRecord:
    """Fifteen rows over three seeds; ``rename`` gives rows other labels."""
    names = {label: (rename or {}).get(label, label) for label in ROWS}
    rows = {names[label]: values for label, values in ROWS.items()}
    merges = [
        merged(names[label], seed, rows=label.startswith("sst"), taken=1.0 if seed == 2 and label == "average" else 0.3)
        for label in MERGED
        for seed in SEEDS
    ]
    answers = [
        evaluated(f"after-{label}-{seed}", f"{label}-{seed}", values)
        for label, values in rows.items()
        for seed in SEEDS
    ]
    labels = [names[label] for label in MERGED]
    closing = (tabled(rows), fronted(labels), retained(labels))
    return record([evaluated("after-base", "base", BEFORE), *merges, *answers, *closing])
