"""A record with a hardened model and its attacks, as a recipe leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.core.results import Metric, RunRecord, StepRecord

BASE = "injection/attack/"
FOLLOWED = f"{BASE}attacked/followed"
LAYERS = ("layers.2.mlp_input/prompt", "layers.3.mlp_input/response")


def rate(name: str, k: int, n: int = 300, group: str = "", **fields: Any) -> Metric:
    p = k / n
    return Metric(
        name=name, value=p, n=n, k=k, low=max(0.0, p - 0.02), high=p + 0.03, interval="wilson", group=group, **fields
    )


def attack_metrics(follows: int, bias: float) -> tuple[Metric, ...]:
    one_sided = {"interval": "clopper-pearson, upper 95%, largest of 2 families"}
    worst = rate(f"{FOLLOWED}/worst_family", follows, reason="attack=role_claim").model_copy(update=one_sided)
    eps = rate("causal/eps/outcome/worst", follows, group="attack=role_claim", reason="attack=role_claim")
    return (
        rate(FOLLOWED, follows),
        *(rate(FOLLOWED, follows - i, 100, f"attack={name}") for i, name in enumerate(("naive", "role_claim"))),
        *(rate(FOLLOWED, follows - i, 100, f"position={name}") for i, name in enumerate(("after", "before", "middle"))),
        worst,
        rate(f"{BASE}benign/refused", 3),
        rate(f"{BASE}quoting/task_done", 90, 100),
        Metric(name=f"{BASE}attacked/position_bias/followed", value=bias, n=300, low=bias - 0.1, high=bias + 0.1),
        Metric(name=f"{BASE}trigger_effect", value=None, n=0, reason="no case stands in both parts"),
        eps.model_copy(update={"interval": "clopper-pearson, upper 95%"}),
    )


def attack(
    step_id: str, follows: int, source: str = "lab", *, limit: int = 300, model_name: str = "lab", **config: Any
) -> StepRecord:
    settings = {"model": {"source": source}, "cases": ["lab/injection"], "limit": limit, "defence": "none", **config}
    metrics = attack_metrics(follows, 0.04)
    return StepRecord(id=step_id, do="attack", config=settings, metrics=metrics, model_name=model_name)


def train(step_id: str = "hardened", curves: Mapping[str, Sequence[tuple[float, float]]] | None = None) -> StepRecord:
    steps = (1.0, 150.0, 300.0)
    made = {
        "loss": [3.0, 2.0, 1.0],
        "task": [2.5, 1.0, 0.5],
        "invariance": [12.0, 0.2, 0.1],
        "separation": [2.0, 1.0, 0.4],
    }
    made |= {f"gate/{m}/{layer}": [30.0, 20.0, 18.0] for m in ("rank", "variance", "contrast") for layer in LAYERS}
    known = {name: list(zip(steps, values, strict=True)) for name, values in made.items()}
    chosen = known if curves is None else {name: list(points) for name, points in curves.items()}
    return StepRecord(id=step_id, do="train", config={"model": {"source": "lab"}}, curves=chosen)


def table() -> StepRecord:
    name = "table/attack/attacked/followed"
    rows = {"before": 0.85, "struq": 0.12, "ours": 0.02}
    metrics = [
        Metric(name=name, value=v, n=300, k=int(300 * v), low=v - 0.01, high=v + 0.01, higher_is_better=False,
               group=f"row={row}")
        for row, v in rows.items()
    ]  # fmt: skip
    config = {"title": "Defences", "before": "before", "reference": "struq", "rows": {"struq": [], "ours": []}}
    return StepRecord(id="baselines", do="table", config=config, metrics=tuple(metrics))


def causal_run(*steps: StepRecord) -> RunRecord:
    chosen = steps or (
        attack("before", 90),
        attack("filtered", 60, defence="keyword_block"),
        train(),
        attack("after", 6, source="hardened", model_name="lab + adapter"),
        table(),
    )
    return RunRecord(
        name="hardened", version="1", git="", packages={}, device="cpu", started="2026-01-01T00:00:00+00:00",
        recipe={"title": "Hardened", "steps": {step.id: {} for step in chosen}}, steps=chosen,
    )  # fmt: skip
