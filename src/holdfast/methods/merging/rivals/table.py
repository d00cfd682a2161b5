"""The rivals in one table: what each does to a layer, and its paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.repair_config import RepairConfig, RepairMethod
from holdfast.methods.merging.rivals import maths
from holdfast.methods.merging.rivals.evidence import Seen


@dataclass(frozen=True, slots=True)
class Rival:
    """A row: ``act`` gives the repaired change, as factors or dense ``(o, i)``."""

    act: Callable[[LowRank, Seen, RepairConfig], LowRank | Tensor]
    paper: str
    summary: str


def _scale(delta: LowRank, seen: Seen, config: RepairConfig) -> LowRank:
    return maths.scaled(delta, config.factor)


def _safe_lora(delta: LowRank, seen: Seen, config: RepairConfig) -> LowRank:
    return maths.safe_lora(delta, _given(seen.alignment), config.threshold)


def _lox(delta: LowRank, seen: Seen, config: RepairConfig) -> LowRank:
    return maths.lox(delta, _given(seen.alignment), config.alpha, config.directions)


def _csulora(delta: LowRank, seen: Seen, config: RepairConfig) -> LowRank:
    return maths.csulora(delta, _given(seen.alignment), config.penalty, config.directions)


def _irr(delta: LowRank, seen: Seen, config: RepairConfig) -> Tensor:
    V_oi, importance_oi, C_ii = _given(seen.alignment), _given(seen.safety), _given(seen.inputs)
    return maths.irr(delta.dense(), V_oi, importance_oi, C_ii, config.share, config.damping)


def _prune(delta: LowRank, seen: Seen, config: RepairConfig) -> Tensor:
    return maths.prune(delta.dense(), _given(seen.safety), _given(seen.utility), config.share, config.damping)


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # `evidence.gather` looked at what the method reads
    return tensor


RIVALS: Mapping[RepairMethod, Rival] = {
    "scale": Rival(_scale, "WiSE-FT, 2109.01903", "scale the change down"),
    "safe_lora": Rival(_safe_lora, "Safe LoRA, 2405.16833", "project changes that point away from the alignment"),
    "lox": Rival(_lox, "LoX, 2506.15606", "add more of the alignment's leading directions"),
    "csulora": Rival(_csulora, "CSULoRA, 2605.30640", "weaken what lies outside the alignment's directions"),
    "irr": Rival(_irr, "IRR, 2412.11041", "remove entries that oppose the alignment, recalibrate the others"),
    "prune": Rival(_prune, "2402.05162", "remove entries that matter to safety and not to utility"),
}
