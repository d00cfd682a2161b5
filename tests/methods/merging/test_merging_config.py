"""The keys of merging: each is read by the rules that say so, and refused elsewhere."""

import re
from dataclasses import fields
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from holdfast.core.errors import ConfigError
from holdfast.methods.merging.config import PAIRS, READS, WITH_ROWS, MergingConfig, RuleName
from holdfast.methods.merging.rules import RULES, RuleSettings

OTHER: dict[str, Any] = {
    "density": 0.5,
    "semantics": "peft",
    "election": "count",
    "rescale": False,
    "gamma": 0.1,
    "epsilon": 0.1,
    "tau": 0.2,
    "fisher": "block",
    "share": 0.5,
    "labels": "sampled",
    "point": "base",
    "samples": 3,
    "damping": 0.1,
    "k": 3,
    "directions": "random",
    "layer_weights": {"q_proj": 2.0},
    "raw_weights": True,
}
"""Every key that some rule does not read, with another value than its default."""
EVERYWHERE = {"rule", "layers", "weights", "rank", "seed"}


def test_there_is_a_name_for_every_rule_and_a_rule_for_every_name() -> None:
    names = set(get_args(RuleName))
    assert names == set(RULES) | set(WITH_ROWS) == READS.keys()
    assert not set(RULES) & set(WITH_ROWS)
    assert {rule.name for rule in RULES.values() if rule.pair} == set(PAIRS) - set(WITH_ROWS)


def test_rules_that_read_adapters_alone_have_the_keys_that_they_read() -> None:
    for rule in RULES.values():
        assert READS[rule.name] == rule.settings - {"seed"}, rule.name
    assert {field.name for field in fields(RuleSettings)} <= set(MergingConfig.model_fields)


def test_no_key_is_left_out_of_this_file() -> None:
    assert OTHER.keys() | EVERYWHERE == set(MergingConfig.model_fields)
    defaults = MergingConfig()
    assert all(getattr(defaults, key) != value for key, value in OTHER.items())


@pytest.mark.parametrize("rule", READS)
def test_a_key_is_taken_by_the_rules_that_read_it_and_refused_by_the_others(rule: str) -> None:
    for key, value in OTHER.items():
        extra = {"fisher": "topk"} if key == "share" and rule == "sst" else {}
        if key in READS[rule]:
            assert getattr(MergingConfig(rule=rule, **{key: value}, **extra), key) == value
        else:
            with pytest.raises(ValidationError, match=f"{key} has no effect with rule: {rule}"):
                MergingConfig(rule=rule, **{key: value})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"rule": "tie"}, "Input should be 'average'"),
        ({"fisher": "full", "share": 0.1}, "share has no effect without fisher: topk"),
        ({"rule": "sst_projection", "k": 3, "tau": 1.0}, "take one of them out"),
        ({"rule": "sst_projection", "directions": "random", "tau": 1.0}, "take one of them out"),
        ({"rule": "sst_projection", "tau": 0}, "tau should be more than 0"),
        ({"rule": "sst_projection", "layer_weights": {"q_prj": 1}}, "no kind of layer 'q_prj'. Did you mean 'q_proj'?"),
        ({"rule": "sst_projection", "layer_weights": {"q_proj": -1}}, "greater than or equal to 0"),
        ({"weights": (0, 0)}, "weights are all 0"),
        ({"rule": "average", "weights": (1, -1)}, "rule average divides by the sum of the weights, and it is 0"),
        ({"rule": "sst_projection", "layer_weights": {"lm_head": 5}}, "no kind of layer 'lm_head'"),
        ({"weights": (1, float("nan"))}, "finite number"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"damping": 0}, "greater than 0"),
        ({"samples": 1}, "greater than or equal to 2"),
        ({"density": 1}, "density has no effect with rule: sst"),
        ({"rule": "ties", "density": 0}, "greater than 0"),
        ({"rule": "sst_projection", "k": 0}, "greater than or equal to 1"),
        ({"rule": "ties", "weight": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        MergingConfig(**keys)


@pytest.mark.parametrize("rule", READS)
def test_weights_of_losses_are_not_below_0_and_others_may_subtract(rule: str) -> None:
    if rule in {"sst", "fisher", "regmean", "alignguard"}:
        with pytest.raises(
            ValidationError, match=rf"rule {rule} weighs losses, so no weight may be below 0 \(got -0.5"
        ):
            MergingConfig(rule=rule, weights=(1, -0.5))
    else:
        assert MergingConfig(rule=rule, weights=(1, -0.5)).weights == (1.0, -0.5)


def test_another_last_weight_is_checked_as_the_first_was() -> None:
    given = MergingConfig(rule="fisher", weights=(0, 1), samples=4)
    assert given.with_last(2.5, 2) == MergingConfig(rule="fisher", weights=(0, 2.5), samples=4)
    assert MergingConfig(rule="ties", density=0.3).with_last(-1.0, 3).weights == (1.0, 1.0, -1.0)
    for weight, says in ((float("nan"), "finite number"), (-1.0, "below 0"), (0.0, "weights are all 0")):
        with pytest.raises(ConfigError, match=says):
            given.with_last(weight, 2)


def test_weights_are_1_where_they_are_left_out_and_one_for_each_adapter() -> None:
    assert MergingConfig().weights_of(3) == (1.0, 1.0, 1.0)
    assert MergingConfig(rule="cat", weights=(1, -0.5)).weights_of(2) == (1.0, -0.5)
    with pytest.raises(ValueError, match="got 2 weights for 3 adapters, expected one for each"):
        MergingConfig(weights=(1, 2)).weights_of(3)
    with pytest.raises(ValueError, match="got 2 weights for 1 adapter, expected"):
        MergingConfig(weights=(1, 2)).weights_of(1)
