"""Dense rules against slow versions of their papers, against PEFT's own functions, and their tiles."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.lowrank import SHAPE, WEIGHTS, deltas
from torch import Tensor

from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.rules import RULES, RuleSettings, merge_layer
from holdfast.methods.merging.rules.tiles import Tiles, magnitudes
from holdfast.methods.merging.rules.truncate import truncated

DENSE = [rule.name for rule in RULES.values() if rule.space == "dense" and not rule.turned]


def masks(seed: int = 0, given: list[LowRank] | None = None) -> list[Tensor]:
    """The uniform numbers that decide what is dropped, ``(o, i)`` for each adapter of ``layer``."""
    tiles = Tiles("layer", given or deltas(), WEIGHTS)
    whole = slice(0, tiles.shape[0])
    return [tiles.uniforms(whole, tiles.generator(t, seed)) for t in range(len(tiles))]


def merge(rule: str, settings: RuleSettings, given: list[LowRank] | None = None) -> Tensor:
    return RULES[rule].merge("layer", given or deltas(), WEIGHTS, settings)


@pytest.mark.parametrize("election", ["mass", "count"])
@pytest.mark.parametrize("rule", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.55, 1.0])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, -0.5, 2.0)])
def test_peft_semantics_are_those_of_peft(
    monkeypatch: pytest.MonkeyPatch, election: str, rule: str, density: float, weights: tuple[float, ...]
) -> None:
    from peft.utils import merge_utils

    left = masks()
    monkeypatch.setattr(torch, "bernoulli", lambda shares: (left.pop(0) < shares).to(shares.dtype))
    options = {"majority_sign_method": {"mass": "total", "count": "frequency"}[election]} if "ties" in rule else {}
    theirs = getattr(merge_utils, rule)(
        [delta.dense() for delta in deltas()], torch.tensor(weights), density, **options
    )
    settings = RuleSettings(density=density, semantics="peft", election=election)  # type: ignore[arg-type]
    ours = RULES[rule].merge("layer", deltas(), weights, settings)
    assert float((ours - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max())


def _trimmed(D: Tensor, density: float) -> Tensor:
    """The TIES paper's trim: the top share by magnitude, the rest 0."""
    kept = int(density * D.numel())
    order = D.abs().flatten().argsort(descending=True)
    out = torch.zeros(D.numel(), dtype=D.dtype)
    out[order[:kept]] = D.flatten()[order[:kept]]
    return out.reshape(D.shape)


def _elect_and_average(thinned: list[Tensor], votes: Callable[[float], float]) -> Tensor:
    """Entry by entry: elect a sign by all votes, average those that have it."""
    merged = torch.zeros(SHAPE, dtype=torch.float64)
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            entries = [float(D[row, column]) for D in thinned]
            vote = sum(votes(entry) for entry in entries)
            agreeing = [entry for entry in entries if entry * vote > 0]
            merged[row, column] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def _sign(entry: float) -> float:
    return (entry > 0) - (entry < 0)


@pytest.mark.parametrize("election", ["mass", "count"])
def test_ties_is_that_of_its_paper_on_weighted_adapters(election: str) -> None:
    weighted = [w * _trimmed(d.dense().double(), 0.3) for w, d in zip(WEIGHTS, deltas(), strict=True)]
    expected = _elect_and_average(weighted, _sign if election == "count" else float)
    assert_close(merge("ties", RuleSettings(density=0.3, election=election)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_drops_by_its_mask_and_divides_by_what_is_kept(rule: str, rescale: bool) -> None:
    thinned = [
        w * d.dense().double() * (mask < 0.3) / (0.3 if rescale else 1)
        for w, d, mask in zip(WEIGHTS, deltas(), masks(7), strict=True)
    ]
    expected = _elect_and_average(thinned, float) if rule == "dare_ties" else torch.stack(thinned).sum(0)
    assert_close(merge(rule, RuleSettings(density=0.3, seed=7, rescale=rescale)), expected)


def test_della_keeps_by_rank_in_the_row_and_divides_by_each_entry_s_chance() -> None:
    thinned, width = [], SHAPE[1]
    for weight, delta, mask in zip(WEIGHTS, deltas(), masks(), strict=True):
        D = delta.dense().double()
        rank = torch.empty_like(D)
        for row in range(SHAPE[0]):
            for place, column in enumerate(D[row].abs().argsort(descending=True).tolist(), 1):
                rank[row, column] = place
        drop = (1 - 0.6) - 0.2 / 2 + 0.2 * rank / width  # p_min = p - eps/2, then eps/n for every rank
        thinned.append(weight * D * (mask < 1 - drop) / (1 - drop))
    assert_close(merge("della", RuleSettings(density=0.6, epsilon=0.2)), _elect_and_average(thinned, float))


def test_breadcrumbs_keeps_the_middle() -> None:
    entries, expected = SHAPE[0] * SHAPE[1], torch.zeros(SHAPE, dtype=torch.float64)
    for weight, delta in zip(WEIGHTS, deltas(), strict=True):
        D = delta.dense().double()
        order = D.abs().flatten().argsort(descending=True)
        kept = order[int(0.05 * entries) : int(0.05 * entries) + int(0.4 * entries)]
        expected += weight * D * torch.zeros(entries).index_fill_(0, kept, 1).reshape(SHAPE)
    assert_close(merge("breadcrumbs", RuleSettings(density=0.4, gamma=0.05)), expected)
    whole = merge("breadcrumbs", RuleSettings(density=1.0, gamma=0.0))
    assert_close(whole, sum(w * d.dense() for w, d in zip(WEIGHTS, deltas(), strict=True)))


@pytest.mark.parametrize("rule", ["dare_linear", "della"])
def test_what_is_dropped_at_random_comes_back_on_average(rule: str) -> None:
    """One adapter, many masks: along the delta the mean is the delta, within its standard error."""
    given = deltas()[:1]
    D = given[0].dense()
    made = torch.stack([merge_one(rule, seed, given) for seed in range(300)])
    draws = made.mul(D).sum((1, 2)) / D.square().sum()
    assert abs(float(draws.mean()) - 1) <= 3 * float(draws.std()) / 300**0.5
    assert 0.01 < float(draws.std()) < 0.1
    z_oi = (made.mean(0) - D) / (made.std(0) / 300**0.5)  # entry by entry: none is dropped more often than its chance
    assert float((z_oi.square().mean() - 1).abs()) <= 3 * (2 / z_oi.numel()) ** 0.5
    assert abs(float(z_oi.mean())) <= 3 / z_oi.numel() ** 0.5


def merge_one(rule: str, seed: int, given: list[LowRank]) -> Tensor:
    settings = RuleSettings(density=0.5, epsilon=0.4, seed=seed)
    return RULES[rule].merge("layer", given, [1.0], settings)


@pytest.mark.parametrize("rule", DENSE)
def test_the_height_of_tiles_does_not_matter(rule: str) -> None:
    """On whole numbers, whose products are exact, to the last bit."""
    given = whole_numbers()
    settings = RuleSettings(density=0.5)
    whole, *tiled = (
        RULES[rule].merge("layer", given, (0.5, 1.0, 2.0), settings, entries=entries) for entries in (10**6, 20, 100)
    )
    for tile in tiled:
        assert torch.equal(tile, whole)


def test_each_adapter_layer_and_seed_has_masks_of_its_own() -> None:
    first = Tiles("layer", deltas(), WEIGHTS)
    other = Tiles("layer2", deltas(), WEIGHTS)
    drawn = [
        tiles.uniforms(slice(0, 24), tiles.generator(t, seed))
        for tiles, t, seed in [(first, 0, 0), (first, 1, 0), (first, 0, 1), (other, 0, 0)]
    ]
    for one, two in pairwise(drawn):
        correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / one.numel() ** 0.5


def whole_numbers(scale: float = 1.0) -> list[LowRank]:
    """Factors whose products are exact in float32, whatever adds them up."""
    return [LowRank((d.A * 40).round() * scale, (d.B * 100).round()) for d in deltas()]


@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**80])
def test_magnitudes_are_exact_order_statistics(scale: float) -> None:
    given = whole_numbers(scale)
    tiles = Tiles("layer", given, WEIGHTS, entries=50)
    ordered = given[1].dense().abs().flatten().sort().values
    places = [0, 1, 17, 240, 241, 478, 479]
    assert magnitudes(tiles, 1, places) == [float(ordered[place]) for place in places]


def test_magnitudes_count_equal_entries_and_zeros() -> None:
    given = [LowRank(torch.tensor([[0.0, 1.0, -1.0, 2.0]]), torch.tensor([[1.0], [0.0], [-1.0]]))]
    tiles = Tiles("layer", given, [1.0])
    assert magnitudes(tiles, 0, range(12)) == [0.0] * 6 + [1.0] * 4 + [2.0] * 2


def test_entries_as_large_as_the_threshold_are_all_kept() -> None:
    given = [LowRank(torch.tensor([[0.0, 1.0, -1.0, 2.0]]), torch.tensor([[1.0], [0.0], [-1.0]]))]
    merged = RULES["magnitude_prune"].merge("layer", given, [1.0], RuleSettings(density=0.25))
    assert_close(merged, given[0].dense())


def test_truncation_is_nearly_the_best_and_its_error_is_that_of_its_factors() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(300, 200, generator=draw)
    signal = 3 * torch.randn(300, 4, generator=draw) @ torch.randn(4, 200, generator=draw)
    for M in (noise + signal, noise):
        delta, lost = truncated(M, 8)
        s = torch.linalg.svdvals(M.double())
        best = float(s[8:].norm() / s.norm())
        assert best <= lost <= best * 1.01  # of noise alone the worst
        assert lost == pytest.approx(float((M - delta.dense()).norm() / M.norm()), rel=1e-5)
        assert delta.rank == 8


def test_truncation_of_a_matrix_of_low_rank_loses_nothing_but_rounding() -> None:
    D = deltas((5,), shape=(300, 200))[0].dense()
    delta, lost = truncated(D, 8)
    assert lost < 1e-6
    assert_close(delta.dense(), D)
    zero, lost = truncated(torch.zeros(30, 20), 3)
    assert lost == 0
    assert not zero.dense().any()


@pytest.mark.parametrize("rule", ["ties", "dare_ties"])
def test_a_merge_is_cut_back_to_the_best_of_its_rank(rule: str) -> None:
    """Of a flat spectrum, the hard case: eight adapters of equal strength."""
    given = deltas((8,) * 8, shape=(256, 200))
    M = RULES[rule].merge("layer", given, [0.125] * 8, RuleSettings(density=0.3))
    s = torch.linalg.svdvals(M.double())
    best = float(s[8:].norm() / s.norm())
    _, lost = merge_layer("layer", given, [0.125] * 8, rule, RuleSettings(density=0.3), rank=8)
    assert best <= lost <= best * 1.0005
