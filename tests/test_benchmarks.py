"""Benchmarks hold their figures to the limits that were asked for; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from benchmarks import decoding, token_weighting
from benchmarks.harness import Result, Settings


def results(monkeypatch: pytest.MonkeyPatch, over: float) -> list[Result]:
    """Of token weighting, where every figure is ``over`` times what it may be at most."""
    grown = {("once", "1"): 100.0, ("once", "4"): 125 * over, ("any", "4"): 125 * over, ("naive", "4"): 625.0}

    def worker(module: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
        role, *given = arguments
        if role == "train":
            return {"rho1": [1.03 * over], "uniform": [1.0]}
        assert given[-1] == "128000"
        if role == "memory":
            return {"grown": grown[given[0], given[1]], "loss": 1.0}
        share = 1.0 if given[1] == "1" else 0.75 * over
        return {"seconds": [1.1 * over * share], "floor": [1.0], "loss": 1.0}

    monkeypatch.setattr(token_weighting, "worker", worker)
    monkeypatch.setattr(decoding, "measure", lambda settings: [])
    return token_weighting.measure(Settings(1, False, "lab"))


def test_token_weighting_is_held_to_every_limit_of_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, broken = ([r for r in results(monkeypatch, over) if r.wanted == "at most"] for over in (0.999, 1.001))
    assert sorted(result.bound for result in kept) == [0.2, 0.2, 0.75, 1.03, 1.1, 1.1, 1.1, 1.25, 1.25]
    assert all(result.met for result in kept)
    assert not any(result.met for result in broken)


def test_kernels_that_were_not_run_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (beside,) = (r for r in results(monkeypatch, 1.0) if r.peer_name == "torch linear_cross_entropy")
    assert any("Liger" in remark and "not run" in remark for remark in beside.remarks)
