"""What holds for every rule, in every semantics."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import permutations
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.lowrank import SHAPE, WEIGHTS, cases, deltas, merged

from holdfast.core.errors import AdapterError, ConfigError, NumericsError
from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules import RULES, RuleSettings, merge_layer, missing

every = pytest.mark.parametrize(("rule", "semantics"), cases())
of_any_number = pytest.mark.parametrize(("rule", "semantics"), [case for case in cases() if not RULES[case[0]].pair])
"""Rules without roles: the others take utility, then safety, both of them always."""
VOTE_WITHOUT_WEIGHT = {("ties", "peft"), ("dare_ties", "peft")}
"""PEFT elects signs before it weighs: an adapter of weight 0 still votes and is counted."""


def _plenty(rule: str) -> list[LowRank]:
    return deltas()[:2] if RULES[rule].pair else deltas()


def _scaled(delta: LowRank, by: float) -> LowRank:
    return LowRank(delta.A, delta.B * by)


def _sum(a: LowRank, b: LowRank) -> LowRank:
    return LowRank(torch.cat([a.A, b.A]), torch.cat([a.B, b.B], dim=1))


@every
def test_one_adapter_at_weight_1_without_dropping_is_the_identity(rule: str, semantics: str) -> None:
    one = deltas()[0]
    given = [one, missing(SHAPE, one)] if RULES[rule].pair else [one]
    if RULES[rule].isotropic:
        flat = torch.linalg.svd(one.dense(), full_matrices=False)
        expected = flat.S[:3].mean() * flat.U[:, :3] @ flat.Vh[:3]
    else:
        expected = one.dense()
    for rank in (None, min(SHAPE)):
        settings = RuleSettings(density=1.0, gamma=0.0, semantics=semantics)  # type: ignore[arg-type]
        delta, lost = merge_layer("layer", given, [1.0, 1.0][: len(given)], rule, settings, rank)
        assert_close(delta.dense(), expected)
        assert lost < 1e-5


@of_any_number
def test_the_order_of_adapters_does_not_matter(rule: str, semantics: str) -> None:
    given = deltas()
    expected = merged(rule, given, semantics=semantics)
    for order in permutations(range(3)):
        shuffled = merged(rule, [given[t] for t in order], [WEIGHTS[t] for t in order], semantics=semantics)
        assert_close(shuffled, expected)


@of_any_number
def test_the_order_of_adapters_of_one_norm_does_not_matter(rule: str, semantics: str) -> None:
    """Of one and its mirror image, and of the same one at two weights."""
    one = deltas()[0]
    for other in (LowRank(one.A.flip(1), one.B), one):
        there = merged(rule, [one, other], [0.7, 1.6], semantics=semantics)
        back = merged(rule, [other, one], [1.6, 0.7], semantics=semantics)
        assert_close(back, there)


@every
def test_weight_0_removes_an_adapter(rule: str, semantics: str) -> None:
    given = _plenty(rule)
    if RULES[rule].pair:  # the weight of the safety adapter, where the layer is merged and where it is kept
        for tau in (0.0, 1.0):
            assert_close(merged(rule, given, [1.0, 0.0], tau=tau), given[0].dense())
        return
    kept = merged(rule, given[:2], WEIGHTS[:2], semantics=semantics)
    for place in range(3):
        others = [*given[:2]], [*WEIGHTS[:2]]
        others[0].insert(place, _scaled(given[2], 10))  # the largest of them
        others[1].insert(place, 0.0)
        silenced = merged(rule, *others, semantics=semantics)
        if (rule, semantics) in VOTE_WITHOUT_WEIGHT:
            assert (silenced - kept).norm() > 0.1 * kept.norm()
        else:
            assert_close(silenced, kept)


@of_any_number
def test_weight_0_has_no_say_in_the_rank_either(rule: str, semantics: str) -> None:
    if (rule, semantics) in VOTE_WITHOUT_WEIGHT:
        return
    given, settings = deltas(), RuleSettings(semantics=semantics)  # type: ignore[arg-type]
    given[2] = deltas((7,))[0]
    kept, lost = merge_layer("layer", given[:2], WEIGHTS[:2], rule, settings)
    for silent in (given[2], missing(SHAPE, given[2])):
        found, also = merge_layer("layer", [silent, *given[:2]], [0.0, *WEIGHTS[:2]], rule, settings)
        assert found.rank == kept.rank
        assert also == pytest.approx(lost, abs=1e-6)
        assert_close(found.dense(), kept.dense())


def test_the_kept_utility_delta_of_safe_merge_has_no_weight() -> None:
    """As in its paper: the weights are those of the layers that are merged."""
    utility, safety = deltas()[:2]
    assert_close(merged("safe_merge", [utility, safety], [0.0, 1.0], tau=0.0), utility.dense())
    assert_close(merged("safe_merge", [utility, safety], [0.0, 1.0], tau=1.0), safety.dense())


@every
@pytest.mark.parametrize("by", [4.0, -0.3])
def test_scaled_deltas_give_a_scaled_merge(rule: str, semantics: str, by: float) -> None:
    given = _plenty(rule)
    whole = merged(rule, given, WEIGHTS[: len(given)], semantics=semantics)
    scaled = merged(rule, [_scaled(delta, by) for delta in given], WEIGHTS[: len(given)], semantics=semantics)
    assert_close(scaled, by * whole)


@every
def test_rules_called_linear_are_additive_and_the_others_are_not(rule: str, semantics: str) -> None:
    if (rule, semantics) == ("dare_linear", "mergekit"):
        semantics = "peft"  # rescaling to the L1 norm of the whole, mergekit's way, is not linear
    given, others = (  # of one order by norm, which masks follow
        [_scaled(delta, 4.0**-t) for t, delta in enumerate(part)] for part in (_plenty(rule), deltas(seed=1))
    )
    weights = WEIGHTS[: len(given)]
    apart = [merged(rule, part[: len(given)], weights, semantics=semantics) for part in (given, others)]
    pairs = zip(given, others, strict=False)
    together = merged(rule, [_sum(a, b) for a, b in pairs], weights, semantics=semantics)
    if RULES[rule].linear:
        assert_close(together, apart[0] + apart[1])
    elif not RULES[rule].pair:
        assert (together - apart[0] - apart[1]).norm() > 0.01 * together.norm()


@every
def test_the_split_into_factors_does_not_matter(rule: str, semantics: str) -> None:
    given = _plenty(rule)
    draw = torch.Generator().manual_seed(3)
    turned = []
    for delta in given:
        R = torch.randn(delta.rank, delta.rank, generator=draw, dtype=torch.float64) + 2 * torch.eye(delta.rank)
        turned.append(LowRank((R @ delta.A.double()).float(), (delta.B.double() @ R.inverse()).float()))
    weights = WEIGHTS[: len(given)]
    assert_close(merged(rule, turned, weights, semantics=semantics), merged(rule, given, weights, semantics=semantics))


@of_any_number
def test_an_adapter_that_does_not_touch_the_layer_changes_nothing(rule: str, semantics: str) -> None:
    given = deltas()
    silent = missing(SHAPE, given[0])
    assert silent.rank == 1
    assert not silent.dense().any()
    with_it = merged(rule, [*given, silent], [*WEIGHTS, 2.0], semantics=semantics)
    without = merged(rule, given, semantics=semantics)
    assert_close(with_it, without * sum(WEIGHTS) / (sum(WEIGHTS) + 2) if rule == "average" else without)


@every
def test_what_is_not_finite_is_refused(rule: str, semantics: str) -> None:
    given = _plenty(rule)
    weights = list(WEIGHTS[: len(given)])
    spoiled = LowRank(given[1].A.clone().index_fill_(0, torch.tensor([0]), torch.nan), given[1].B)
    with pytest.raises(NumericsError, match="NaN or infinity in adapter 2"):
        merged(rule, [given[0], spoiled, *given[2:]], weights, semantics=semantics)
    with pytest.raises(NumericsError, match=r"adapter 1 or its weight \(inf\)"):
        merged(rule, given, [float("inf"), *weights[1:]], semantics=semantics)


def test_a_merge_that_overflows_is_refused() -> None:
    huge = [LowRank(delta.A * 1e20, delta.B * 1e20) for delta in deltas()]
    with pytest.raises(NumericsError, match="rule ties gave NaN or infinity in layer"):
        merged("ties", huge)


@every
def test_the_loss_that_is_reported_is_the_loss(rule: str, semantics: str) -> None:
    given = _plenty(rule)
    weights, settings = WEIGHTS[: len(given)], RuleSettings(semantics=semantics)  # type: ignore[arg-type]
    whole = merged(rule, given, weights, semantics=semantics)
    delta, lost = merge_layer("layer", given, weights, rule, settings, rank=2)
    assert delta.rank == 2
    assert delta.shape == SHAPE
    assert lost > 0.1
    assert lost == pytest.approx(float((whole - delta.dense()).norm() / whole.norm()), rel=1e-4)


def test_without_a_rank_svd_keeps_the_largest_and_the_others_the_sum() -> None:
    for rule in RULES.values():
        given = _plenty(rule.name)
        delta, lost = merge_layer("layer", given, WEIGHTS[: len(given)], rule.name, RuleSettings(tau=1.0), None)
        assert (lost == 0) == rule.exact, rule.name
        most, whole = max(d.rank for d in given), sum(d.rank for d in given)
        if rule.exact:
            assert most < delta.rank <= whole, rule.name
        else:
            assert delta.rank == (most if rule.name == "svd" else whole), rule.name


@every
def test_a_rule_reads_exactly_the_settings_that_it_names(rule: str, semantics: str) -> None:
    given = _plenty(rule)
    usual = RuleSettings(density=0.5, semantics=semantics, tau=0.99, gamma=0.1)  # type: ignore[arg-type]
    other: dict[str, Any] = {
        "density": 0.6,
        "election": "count",
        "rescale": False,
        "gamma": 0.2,
        "epsilon": 0.3,
        "tau": 0.01,
        "seed": 1,
    }
    assert {*other, "semantics"} == {field.name for field in fields(RuleSettings)}

    def run(settings: RuleSettings) -> torch.Tensor:
        return merge_layer("layer", given, WEIGHTS[: len(given)], rule, settings, 20)[0].dense()

    expected = run(usual)
    for key, value in other.items():
        changed = (run(replace(usual, **{key: value})) - expected).norm() > 1e-3 * expected.norm()
        assert bool(changed) == (key in RULES[rule].settings), key


def _semantics_not_known() -> None:
    merged("magnitude_prune", deltas(), semantics="mergekit")


@pytest.mark.parametrize(
    ("do", "error", "says"),
    [
        (lambda: merged("tie", deltas()), ConfigError, "Unknown rule 'tie'. Did you mean 'ties'"),
        (_semantics_not_known, ConfigError, "magnitude_prune does not exist in mergekit: expected semantics paper or"),
        (lambda: merged("ties", deltas(), density=0.0), ConfigError, "density of rule ties: got 0.0"),
        (lambda: merged("ties", deltas(), density=1.1), ConfigError, "density of rule ties: got 1.1"),
        (lambda: merged("breadcrumbs", deltas(), gamma=1.0), ConfigError, "gamma of rule breadcrumbs: got 1.0"),
        (
            lambda: merged("breadcrumbs", deltas(), density=0.9, gamma=0.2),
            ConfigError,
            "gamma of rule breadcrumbs: got 0.2 beside density 0.9, .* Do: lower gamma to 0.1 or density to 0.8",
        ),
        (lambda: merged("breadcrumbs", deltas(), gamma=0.2), ConfigError, "got 0.2 beside density 0.9"),
        (lambda: merged("della", deltas(), density=0.9, epsilon=0.3), ConfigError, "Do: lower it below 0.2"),
        (lambda: merged("safe_merge", deltas()), ConfigError, "takes two adapters, utility and then safety: got 3"),
        (lambda: merged("average", deltas(), [1, -0.5, -0.5]), ConfigError, "divides by the sum of the weights: got 0"),
        (lambda: merged("svd", deltas(), [1, 1]), AdapterError, "got 3 deltas and 2 weights"),
        (lambda: merge_layer("l", [], [], "svd", RuleSettings()), AdapterError, "got 0 deltas"),
        (
            lambda: merged("svd", [*deltas()[:2], *deltas((2,), shape=(24, 21))]),
            AdapterError,
            r"got deltas of \(24, 20\) and \(24, 21\), expected one shape",
        ),
        (lambda: merge_layer("l", deltas(), WEIGHTS, "ties", RuleSettings(), 0), ConfigError, "to rank 0"),
    ],
)
def test_what_cannot_be_merged_is_refused(do: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        do()


def test_weights_that_are_all_0_give_the_zero_delta() -> None:
    for rule in RULES.values():
        if rule.name != "average" and not rule.pair:
            assert not merged(rule.name, deltas(), [0.0, 0.0, 0.0]).any(), rule.name


def test_a_layer_is_merged_alike_whatever_was_merged_before_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first = merged("dare_ties", deltas())
    merge_layer("another", deltas(), WEIGHTS, "dare_ties", RuleSettings(), None)
    assert torch.equal(merged("dare_ties", deltas()), first)
    another = merge_layer("another", deltas(), WEIGHTS, "dare_ties", RuleSettings(), 20)[0].dense()
    assert not torch.allclose(another, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_merging_factors_separately_is_wrong_by_the_cross_terms() -> None:
    """For ``T`` independent adapters at weight ``1 / T`` the relative error is ``sqrt(T - 1)``."""
    from peft.utils.merge_utils import task_arithmetic

    for count in (2, 8):
        given = deltas((4,) * count, shape=(200, 150))
        weights = [1 / count] * count
        whole = sum(delta.dense() / count for delta in given)
        assert isinstance(whole, torch.Tensor)
        root = torch.tensor(weights).sqrt()
        factors = task_arithmetic([d.B for d in given], root) @ task_arithmetic([d.A for d in given], root)
        assert float((factors - whole).norm() / whole.norm()) == pytest.approx((count - 1) ** 0.5, rel=0.15)
        delta, _ = merge_layer("layer", given, weights, "task_arithmetic", RuleSettings(), None)
        assert_close(delta.dense(), whole)
