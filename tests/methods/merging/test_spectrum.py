"""The spectrum of a plan: the generalized eigenproblem of its layers' two Fisher matrices, and its halves."""

from dataclasses import replace

import pytest
import torch
from tests.methods.merging.expert_plans import FEW, experts, planned
from tests.zoo import tiny

from holdfast.curvature import fisher, subspaces
from holdfast.curvature.gevp import gevp
from holdfast.layers.adapters import LowRank
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.plan import plan
from holdfast.methods.merging.spectrum import Spectrum, agreement, spectra


def test_values_are_those_of_the_dense_problem_safety_over_utility() -> None:
    made = planned(tiny("llama"), n=6, damping=0.05)
    found = {spectrum.layer: spectrum for spectrum in spectra(made)}
    assert list(found) == list(made.deltas)
    for name, (utility, safety) in made.evidence.items():
        assert utility.gradients is not None
        assert safety.gradients is not None
        dense = gevp(fisher.full(safety.gradients.double()), fisher.full(utility.gradients.double()), damping=0.05)
        values = torch.tensor(found[name].values, dtype=torch.float64)
        assert torch.allclose(values, dense.values_k[: len(values)], rtol=1e-3, atol=1e-6)


def test_rows_that_agree_have_a_stable_leading_direction() -> None:
    made = planned(tiny("llama"), n=8)
    for name, (utility, safety) in list(made.evidence.items()):
        assert safety.gradients is not None
        assert utility.gradients is not None
        d = safety.gradients.shape[1]
        noise = torch.randn(8, d, generator=torch.Generator().manual_seed(0))
        same = torch.ones(d) * 10 + 0.01 * noise  # every row asks for one thing
        made.evidence[name] = (type(utility)(gradients=noise), type(safety)(gradients=same))  # type: ignore[index]
    for spectrum in spectra(made):
        assert spectrum.k == 1
        assert spectrum.stability > 0.5 > 3 * spectrum.by_chance


def test_rows_of_two_kinds_in_turn_are_in_both_halves() -> None:
    """Refusals and answers one after another: even and odd rows would have nothing in common."""
    made = planned(tiny("llama"), n=16, damping=10.0)  # so that the safety rows alone have a say
    draw = torch.Generator().manual_seed(0)
    for name, (utility, safety) in list(made.evidence.items()):
        assert safety.gradients is not None
        noise = torch.randn(2, *safety.gradients.shape, generator=draw)
        kinds = torch.zeros_like(safety.gradients)
        kinds[::2, 0] = kinds[1::2, 1] = 30.0
        made.evidence[name] = (type(utility)(gradients=noise[0]), type(safety)(gradients=kinds + 0.1 * noise[1]))  # type: ignore[index]
    for spectrum in spectra(made):
        assert spectrum.k == 2
        assert spectrum.stability > 0.7 > 2 * spectrum.by_chance


@pytest.mark.parametrize(
    "keys",
    [
        {"ranks": (2,)},
        {"ranks": (2, 2, 2)},
        {"rule": "regmean"},
        {"fisher": "kfac"},
        {"rule": "ties"},
    ],
)
def test_there_is_none_without_gradients_of_two_adapters(keys: dict[str, object]) -> None:
    assert spectra(planned(tiny("llama"), **keys)) == []  # type: ignore[arg-type]


def test_values_do_not_change_under_the_gauge_of_the_factors() -> None:
    """``(B R^-1)(R A)`` is the same adapter, with other entries everywhere: from factors to eigenvalues in float64."""
    loaded = tiny("llama")
    loaded.model.double()
    given, draw = experts(loaded), torch.Generator().manual_seed(5)
    turned = []
    for expert in given:
        other = {}
        for name, delta in expert.adapter.deltas.items():
            R_rr = torch.randn(delta.rank, delta.rank, generator=draw).double() + 2 * torch.eye(delta.rank)
            other[name] = LowRank(R_rr @ delta.A.double(), delta.B.double() @ R_rr.inverse())
            assert (other[name].A - delta.A).norm() > 0.3 * delta.A.norm()
        turned.append(replace(expert, adapter=replace(expert.adapter, deltas=other)))
    wide = [
        replace(e, adapter=replace(e.adapter, deltas={n: LowRank(d.A.double(), d.B.double()) for n, d in each}))
        for e, each in ((e, e.adapter.deltas.items()) for e in given)
    ]
    config = MergingConfig(layers=FEW, damping=0.05)
    for mine, other in zip(*(spectra(plan(config, loaded, each)) for each in (wide, turned)), strict=True):
        values, expected = (torch.tensor(found.values) for found in (other, mine))
        assert len(values) == len(expected)
        assert float((values - expected).abs().max() / expected[0]) < 1e-6, mine.layer
        assert mine.stability == pytest.approx(other.stability, rel=1e-5)


def halves(signal: float, seed: int, layers: int = 6, n: int = 48, d: int = 40) -> list[Spectrum]:
    """Spectra of layers whose safety gradients are noise and, in as many directions as are compared, a signal."""
    draw, found = torch.Generator().manual_seed(seed), []
    k = n // 2 // 4
    for number in range(layers):
        G_sd, G_ud = torch.randn(2, n, d, generator=draw).double()
        V_dk = torch.linalg.qr(torch.randn(d, k, generator=draw).double()).Q
        G_sd += signal * torch.randn(n, k, generator=draw).double() @ V_dk.T
        seen = subspaces.overlap(subspaces.split_half(G_sd, G_ud, k=k, damping=0.5))
        by_chance, deviation = subspaces.overlap_by_chance(k, d), subspaces.overlap_deviation(k, d)
        found.append(Spectrum(str(number), (1.0,), k, seen, by_chance, deviation))
    return found


def test_halves_of_noise_agree_by_chance_only_and_those_of_a_signal_agree() -> None:
    """At most one of 40 draws of noise is called stable although about half of them overlap by more than chance."""
    noise = [agreement(halves(0.0, seed)) for seed in range(40)]
    assert sum(bool(found and found.overlap > found.by_chance) for found in noise) > 10
    assert sum(bool(found and found.holds) for found in noise) <= 1
    assert all(found and found.holds for found in (agreement(halves(20.0, seed)) for seed in range(10)))


def layer_of(stability: float, by_chance: float = 0.1, deviation: float = 0.01) -> Spectrum:
    return Spectrum("layers.0.q_proj", (1.0,), 4, stability, by_chance, deviation)


def test_an_overlap_that_is_surely_not_chance_but_small_does_not_hold() -> None:
    found = agreement([layer_of(0.15)] * 3)
    assert found is not None
    assert found.p_value == pytest.approx(1 / 26)  # five standard deviations, by Cantelli's inequality
    assert found.signal == pytest.approx((0.05 / 0.9) ** 0.5)
    assert found.holds is False
    assert "about 0.24 of what half of the rows finds is in all of them, at least 0.5 is asked for" in found.words()


def test_a_large_overlap_that_chance_explains_does_not_hold() -> None:
    found = agreement([layer_of(0.5, by_chance=0.2, deviation=0.1)] * 3)
    assert found is not None
    assert found.signal is not None
    assert found.signal > 0.5
    assert found.p_value == pytest.approx(0.1)
    assert found.holds is False
    assert agreement([layer_of(0.5)]).holds is True  # type: ignore[union-attr]


def test_rows_that_span_no_more_than_is_compared_tell_nothing() -> None:
    assert agreement([]) is None
    found = agreement([layer_of(1.0, by_chance=1.0, deviation=0.0)])
    assert found is not None
    assert found.holds is None
    assert "span no more directions than are compared" in found.words()
