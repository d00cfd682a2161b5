"""One `assert_close`, with named tolerances instead of numbers scattered over tests."""

from typing import Any

import torch

TOLERANCES = {"exact": 0.0, "float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}
"""Largest absolute difference, relative to ``max(1, |expected|)`` at its largest."""


def assert_close(got: Any, expected: Any, tolerance: str = "float32", *, sigma: float | None = None) -> None:
    """Fail unless ``got`` is within the named tolerance of ``expected``.

    With ``tolerance="estimate"`` the difference may be four standard errors, ``sigma`` each.
    """
    got_, expected_ = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    assert got_.shape == expected_.shape, f"shapes differ: got {tuple(got_.shape)}, expected {tuple(expected_.shape)}"
    if tolerance == "estimate":
        assert sigma is not None, "an estimate needs its standard error"
        allowed = 4 * sigma
    else:
        scale = max(1.0, expected_.abs().max().item()) if expected_.numel() else 1.0
        allowed = TOLERANCES[tolerance] * scale
    off = (got_ - expected_).abs().max().item() if got_.numel() else 0.0
    assert off <= allowed, f"off by {off:.3g}, allowed {allowed:.3g} ({tolerance})"
