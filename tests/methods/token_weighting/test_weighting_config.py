from typing import Any

import pytest
from pydantic import ValidationError

from holdfast.methods.token_weighting.config import TokenWeightingConfig


def test_what_is_given_for_nothing_is_the_hard_share_of_the_excess_by_row() -> None:
    config = TokenWeightingConfig()
    assert (config.scorer, config.unit, config.keep, config.n_heads) == ("rho1", "sequence", 0.6, 0)
    assert config.follows


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"keep": 0}, "greater than 0"),
        ({"scorer": "uniform", "keep": 0.5}, "keep has no effect with scorer: uniform"),
        ({"scorer": "dft", "soft": 0.5}, "soft has no effect with scorer: dft"),
        ({"keep": 0.5, "soft": 0.5}, "exclude each other"),
        ({"of": "dft"}, "of has no effect with scorer: rho1"),
        ({"scorer": "shuffled", "of": "uniform"}, "has no effect with of: uniform"),
        (
            {"scorer": "entropy", "scope": "dataset"},
            "scope: dataset does not fit scorer: entropy; give",
        ),
        ({"scorer": "contrast", "scope": "batch"}, "scope: batch does not fit"),
        ({"scorer": "dft", "reference": "base"}, "reference has no effect with scorer: dft"),
        ({"heads": "medusa"}, "heads has no effect with horizon: 1"),
        ({"lambda_heads": 0.1}, "lambda_heads has no effect with horizon: 1"),
        ({"horizon": 4, "lambda_heads": 0, "warmup": 0.1}, "warmup has no effect with lambda_heads: 0"),
        ({"horizon": 4, "scorer": "contrast", "horizon_weights": "per_head"}, "horizon_weights has no effect with"),
        ({"horizon": 2, "scorer": "shuffled", "horizon_weights": "per_head"}, "horizon_weights has no effect with"),
        ({"seed": 3}, "seed has no effect with horizon: 1"),
        ({"clip": (1.5, 3)}, "clip should be"),
        ({"scorer": "contrast", "clip": (0.1, 3)}, r"clip should begin at 0 with scorer: contrast \(got 0.1\)"),
        ({"scorer": "shuffled", "of": "contrast", "clip": (0.1, 3)}, "clip should begin at 0"),
        ({"horizon": 2, "warmup": 0.7, "ramp": 0.7}, "at most 1 together"),
    ],
)
def test_keys_without_an_effect_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TokenWeightingConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "unit", "follows"),
    [
        ({"scope": "dataset"}, "dataset", False),
        ({"scope": "batch"}, "batch", True),
        ({"scorer": "contrast"}, "dataset", False),
        ({"scorer": "column", "scope": "sequence"}, "sequence", False),
        ({"scorer": "entropy"}, "sequence", True),
        ({"scorer": "shuffled", "of": "contrast"}, "dataset", False),
        ({"scorer": "uniform"}, "sequence", False),
    ],
)
def test_units_and_what_follows_the_model(keys: dict[str, Any], unit: str, follows: bool) -> None:
    config = TokenWeightingConfig(**keys)
    assert (config.unit, config.follows) == (unit, follows)
