"""A record with one verification, as a recipe leaves it."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.results import Metric, RunRecord, StepRecord, Verdict

LAYERS = ("layers.2.mlp_input/prompt", "layers.2.mlp_input/response")
EXPECTED = {"": ("R - S", "O - R"), "model=undefended": ("S -> R", "U -> R", "R -> O")}
FOUND = {"": ("R - S", "U -> O"), "model=undefended": ("S -> R", "U -> R", "R -> O", "U -> O")}
SHARES = {"R - S": 0.98, "O - R": 0.3, "U -> O": 0.12, "S -> R": 1.0, "U -> R": 0.97, "R -> O": 0.85, "S -> O": 0.02}
MATCH = {"": 0.33, "model=undefended": 0.75}


ONE_SIDED = {"low": 0.0, "interval": "clopper-pearson, upper 95%, largest of 2 attacks"}


def grouped(model: str, rest: str = "") -> str:
    return ", ".join(filter(None, (model, rest)))


def metric(name: str, model: str, value: float, rest: str = "") -> Metric:
    return Metric(name=name, value=value, n=60, low=value - 0.05, high=value + 0.05, group=grouped(model, rest))


def of_model(model: str, shift: float) -> list[Metric]:
    made = [
        Metric(name="causal/attack_success", value=0.03 + shift, n=60, k=2, low=0.0, high=0.1 + shift, group=model),
        metric("causal/attack_success", model, 0.5, "attack=naive"),
        metric("causal/eps/outcome", model, 0.1 + shift),
        metric("causal/eps/outcome/worst", model, 0.2 + shift, "attack=ignore").model_copy(update=ONE_SIDED),
        Metric(name="causal/graph/match", value=MATCH[model], n=540, group=model),
    ]
    for kind, edges in (("found", FOUND), ("expected", EXPECTED)):
        made += [metric(f"causal/graph/{kind}", model, SHARES[edge], f"edge={edge}") for edge in edges[model]]
    made += [metric("causal/graph/resampled", model, SHARES["S -> O"], "edge=S -> O")]
    for layer in LAYERS:
        made += [metric(f"causal/{part}/{layer}", model, 0.4 + shift) for part in ("stability", "moved")]
    return made


def verdict(name: str, holds: bool | None, reason: str) -> Verdict:
    return Verdict(name=name, holds=holds, statistic=0.05, p_value=0.2, n=60, null="x", reason=reason)


def verify_run(*, beside: bool = True, model: str = "hardened", notes: Sequence[str] = ()) -> RunRecord:
    metrics = of_model("", 0.0) + (of_model("model=undefended", 0.4) if beside else [])
    metrics += [
        Metric(name="causal/bound/McAllester-Maurer", value=1.51, n=60, reason="vacuous"),
        Metric(name="causal/bound/Seeger", value=0.42, n=60, interval="upper bound"),
    ]
    step = StepRecord(
        id="verified",
        do="verify",
        config={},
        metrics=tuple(metrics),
        verdicts=(
            verdict("causal/independence/outcome", True, "holds; 2 of 60 outcomes change"),
            verdict(f"causal/independence/{LAYERS[0]}", False, "fails; effect 0.2"),
            verdict("causal/graph", None, "abstains: too few"),
            verdict("causal/attack_success/role_claim", True, "0 of 60 leave up to 4.87 %"),
        ),
        curves={
            "power/outcome": [(0.0, 0.04), (0.1, 0.81), (0.2, 1.0)],
            f"power/{LAYERS[0]}": [(0.0, 0.05), (1.0, 0.2), (4.0, 0.9)],
        },
        notes=tuple(notes),
        model_name=model,
    )
    return RunRecord(
        name="verified", version="1", git="", packages={}, device="cpu", started="2026-01-01T00:00:00+00:00",
        recipe={"title": "Verified", "steps": {"verified": {}}}, steps=(step,),
    )  # fmt: skip
