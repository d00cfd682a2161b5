"""``semantics: mergekit`` against the real mergekit, in an environment of its own.

python -m venv .peers/mergekit
.peers/mergekit/bin/pip install --constraint constraints.txt torch mergekit==0.1.5
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.merging.lowrank import deltas, merged
from tests.methods.merging.test_rules_dense import masks
from torch import Tensor

from holdfast.methods.merging.rules import RULES, RuleSettings

PYTHON = Path(os.environ.get("HOLDFAST_MERGEKIT_PYTHON", ".peers/mergekit/bin/python"))
PEER = Path(__file__).parent / "mergekit_peer.py"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not PYTHON.exists(), reason=f"no {PYTHON}: see the top of this file, or HOLDFAST_MERGEKIT_PYTHON"
    ),
]
WEIGHTS = [(0.7, 1.1, 0.4), (1.0, -0.5, 2.0)]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "ties": [{"density": density} for density in (0.001, 0.2, 1.0)],
    "dare_linear": [{"density": 0.3}, {"density": 0.3, "rescale": False}, {"density": 1.0}],
    "dare_ties": [{"density": 0.3}, {"density": 0.3, "rescale": False}],
    "breadcrumbs": [{"density": 0.5, "gamma": 0.05}, {"density": 0.97, "gamma": 0.1}, {"density": 1.0, "gamma": 0.1}],
    "della": [{"density": 0.6, "epsilon": 0.2}, {"density": 0.6, "epsilon": 0.2, "rescale": False}, {"density": 1.0}],
}


def _peer(cases: list[dict[str, Any]], tmp_path: Path) -> list[Tensor]:
    torch.save(cases, tmp_path / "cases.pt")
    subprocess.run([PYTHON, PEER, tmp_path / "cases.pt", tmp_path / "merged.pt"], check=True, timeout=300)
    merged: list[Tensor] = torch.load(tmp_path / "merged.pt")
    return merged


def _case(method: str, weights: tuple[float, ...], **parameters: Any) -> dict[str, Any]:
    return {
        "method": method,
        "parameters": {"weight": list(weights), **parameters},
        "deltas": [delta.dense() for delta in deltas()],
        "uniforms": masks(),
    }


def test_mergekit_semantics_are_those_of_mergekit(tmp_path: Path) -> None:
    asked = [(rule, own, weights) for rule, sets in SETTINGS.items() for own in sets for weights in WEIGHTS]
    assert {rule for rule, _, _ in asked} == {rule.name for rule in RULES.values() if "mergekit" in rule.semantics}
    theirs = _peer([_case(rule, weights, **own) for rule, own, weights in asked], tmp_path)
    for (rule, own, weights), expected in zip(asked, theirs, strict=True):
        settings = RuleSettings(semantics="mergekit", **own)
        ours = RULES[rule].merge("layer", deltas(), weights, settings)
        off = float((ours - expected).abs().max() / expected.abs().max())
        assert off <= 1e-6, f"{rule} {own} {weights}: off by {off:.2g}"


def test_sums_and_means_are_those_of_mergekit(tmp_path: Path) -> None:
    linear = _case("linear", (0.0, *WEIGHTS[0]), normalize=True)  # its mean counts the base as a model too
    theirs = _peer([_case("task_arithmetic", WEIGHTS[0]), linear], tmp_path)
    for rule, expected in zip(("task_arithmetic", "average"), theirs, strict=True):
        off = float((merged(rule, deltas(), WEIGHTS[0]) - expected).abs().max() / expected.abs().max())
        assert off <= 1e-6, f"{rule}: off by {off:.2g}"
