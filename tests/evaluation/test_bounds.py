"""Bounds against exact decimals, closed forms and each other."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from torch.distributions import MultivariateNormal, kl_divergence

from holdfast.core.errors import NumericsError
from holdfast.evaluation.bounds import (
    adapter_kl,
    catoni,
    certify,
    certify_worst,
    gaussian_kl,
    kl_inverse,
    mcallester_maurer,
    pac_bayes,
    seeger,
)
from holdfast.layers.adapters import Adapter, LowRank

getcontext().prec = 60
BOUNDS = [mcallester_maurer, seeger, catoni]

risks = st.floats(0, 1)
divergences = st.floats(0, 1e6)
sizes = st.integers(1, 10**7)
deltas = st.floats(1e-9, 0.999)
few = settings(max_examples=60, deadline=None)


def exact_kl(q: Decimal, p: Decimal) -> Decimal:
    """The binary divergence in sixty digits, term by term; infinite where p is sure and q is not."""
    total = Decimal(0)
    for share, of in ((q, p), (1 - q, 1 - p)):
        if share > 0:
            if of <= 0:
                return Decimal("Infinity")
            total += share * (share / of).ln()
    return total


@few
@given(risk=risks, budget=st.one_of(st.floats(0, 1e-6), st.floats(0, 50)))
def test_kl_inverse_brackets_the_exact_root_to_a_billionth(risk, budget):
    found, within = Decimal(kl_inverse(risk, budget)), Decimal("1e-9")
    q, allowed = Decimal(risk), Decimal(budget)
    assert q <= found <= 1
    below, above = max(q, found - within), found + within
    assert exact_kl(q, below) <= allowed
    assert above >= 1 or exact_kl(q, above) >= allowed


@pytest.mark.parametrize("budget", [1e-9, 0.01, 0.3, 4.6])
def test_kl_inverse_without_hits_is_its_closed_form(budget):
    assert kl_inverse(0.0, budget) == pytest.approx(-math.expm1(-budget), abs=1e-11)


def test_the_stated_adapter_gets_a_vacuous_bound():
    found = pac_bayes(0.0, 32768, 7151, delta=0.05)
    assert found.mcallester.value == pytest.approx(1.5138, abs=5e-5)
    assert str(found.mcallester) == "McAllester-Maurer 1.51 (vacuous)"
    assert found.verdict(0.05).holds is None
    assert "McAllester-Maurer 1.51 (vacuous)" in found.verdict(0.05).reason


def test_a_small_change_and_many_rows_certify_a_risk():
    found = pac_bayes(0.01, 20.0, 20_000)
    assert not any(bound.vacuous for bound in found.bounds)
    assert found.verdict(0.05).holds is True
    assert found.verdict(0.05).statistic == found.seeger.value


@pytest.mark.parametrize("bound", BOUNDS)
@few
@given(risk=risks, kl=divergences, n=sizes, delta=deltas, other=st.tuples(risks, divergences, sizes, deltas))
def test_bounds_grow_with_risk_kl_and_confidence_and_fall_with_rows(bound, risk, kl, n, delta, other):
    here, slack = bound(risk, kl, n, delta), 1e-11
    assert here >= risk - slack
    assert bound(max(risk, other[0]), kl, n, delta) >= here - slack
    assert bound(risk, max(kl, other[1]), n, delta) >= here - slack
    assert bound(risk, kl, max(n, other[2]), delta) <= here + slack
    assert bound(risk, kl, n, min(delta, other[3])) >= here - slack


@few
@given(risk=risks, kl=divergences, n=sizes, delta=deltas)
def test_seeger_is_never_above_mcallester_nor_above_one(risk, kl, n, delta):
    assert seeger(risk, kl, n, delta) <= min(1.0, mcallester_maurer(risk, kl, n, delta)) + 1e-11


@pytest.mark.parametrize(("risk", "kl", "n"), [(0.0, 50.0, 1000), (0.05, 10.0, 500), (0.3, 200.0, 5000)])
def test_catoni_at_its_best_temperature_is_a_kl_inverse(risk, kl, n):
    best = minimize_scalar(
        lambda log_c: catoni(risk, kl, n, temperature=math.exp(log_c)),
        bounds=(-6, 5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert best.fun == pytest.approx(kl_inverse(risk, (kl + math.log(20)) / n), abs=1e-7 if risk else 1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 30, 200])
def test_maurers_sum_is_at_most_twice_the_root_at_every_size(n):
    shares = [k / n for k in range(n + 1)]
    assert sum(binom.pmf(k, n, share) for k, share in enumerate(shares)) <= 2 * math.sqrt(n)


def test_tried_priors_share_delta():
    assert pac_bayes(0.1, 5.0, 1000, choices=10).seeger.value == seeger(0.1, 5.0, 1000, 0.005)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    "bad",
    [(0.1, 1.0, 0, 0.05), (-0.1, 1.0, 10, 0.05), (0.1, -1.0, 10, 0.05), (0.1, math.inf, 10, 0.05), (0.1, 1, 9, 0)],
)
def test_no_rows_and_impossible_arguments_are_refused(bound, bad):
    with pytest.raises(NumericsError, match="PAC-Bayes: got"):
        bound(*bad)


def test_kl_inverse_and_choices_and_temperature_out_of_range_are_refused():
    for wrong in (
        lambda: kl_inverse(1.1, 0.1),
        lambda: kl_inverse(0.1, -0.1),
        lambda: pac_bayes(0.1, 1.0, 10, choices=0),
        lambda: catoni(0.1, 1.0, 10, temperature=0.0),
        lambda: gaussian_kl(1.0, prior_sigma=0.0),
        lambda: gaussian_kl(math.nan, prior_sigma=1.0),
        lambda: gaussian_kl(1.0, prior_sigma=1.0, posterior_sigma=0.5),
    ):
        with pytest.raises(NumericsError):
            wrong()


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.500001, 2.0])
def test_gaussian_kl_agrees_with_torch(sigma):
    shift = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    peer = kl_divergence(
        MultivariateNormal(shift, covariance_matrix=sigma**2 * eye), MultivariateNormal(0 * shift, 0.25 * eye)
    )
    got = gaussian_kl(float(shift.square().sum()), prior_sigma=0.5, posterior_sigma=sigma, size=3)
    assert got == pytest.approx(peer.item(), rel=1e-10)


def test_kl_of_an_adapter_is_that_of_its_dense_change():
    draw = torch.Generator().manual_seed(0)
    deltas = {
        name: LowRank(torch.randn(2, 5, generator=draw), torch.randn(4, 2, generator=draw)) for name in ("one", "two")
    }
    adapter = Adapter(deltas, "", dict.fromkeys(deltas, ""))
    squared = sum((d.B.double() @ d.A.double()).square().sum().item() for d in deltas.values())
    assert adapter_kl(adapter, prior_sigma=0.2) == pytest.approx(squared / 0.08, rel=1e-10)
    unequal = gaussian_kl(squared, prior_sigma=0.2, posterior_sigma=0.1, size=40)
    assert adapter_kl(adapter, prior_sigma=0.2, posterior_sigma=0.1) == pytest.approx(unequal, rel=1e-10)


@pytest.mark.parametrize(("hits", "n", "holds"), [(0, 299, True), (0, 298, None), (1, 299, None), (30, 299, False)])
def test_a_rate_is_certified_refuted_or_left_open(hits, n, holds):
    assert certify("followed", hits, n, most=0.01).holds is holds


@pytest.mark.parametrize("hits", [0, 1, 4])
def test_the_number_of_rows_that_a_certificate_asks_for_is_the_smallest_that_gives_it(hits):
    reason = certify("followed", hits, 10 + 12 * hits, most=0.05).reason
    needed = int(reason.split("needs n = ")[1].split()[0])
    assert certify("followed", hits, needed, most=0.05).holds is True
    assert certify("followed", hits, needed - 1, most=0.05).holds is None
    assert binom.cdf(hits, needed, 0.05) <= 0.05 < binom.cdf(hits, needed - 1, 0.05)


def test_the_worst_family_decides_and_its_limit_is_the_largest():
    counts = {"naive": (0, 400), "encoded": (3, 400), "role_claim": (1, 20)}
    whole, each = certify_worst("followed", counts, most=0.05)
    assert {name: verdict.holds for name, verdict in each.items()} == {
        "naive": True, "encoded": True, "role_claim": None,
    }  # fmt: skip
    assert whole.holds is None
    assert whole.statistic == max(verdict.statistic for verdict in each.values())
    assert whole.reason.startswith("role_claim: 1 of 20")


def test_a_family_that_is_shown_to_be_above_fails_the_whole_though_a_small_one_has_the_largest_limit():
    whole, each = certify_worst("followed", {"naive": (60, 400), "encoded": (1, 5)}, most=0.05)
    assert each["encoded"].statistic > each["naive"].statistic
    assert whole.holds is False
    assert whole.reason.startswith("naive: 60 of 400")


def test_the_largest_limit_of_several_families_misses_the_largest_rate_at_most_as_often_as_one_limit():
    n, rate = 60, 0.05  # the other families are never followed, which is when they help least
    missed = sum(
        binom.pmf(k, n, rate)
        for k in range(n + 1)
        if certify_worst("x", {"a": (k, n), "b": (0, n), "c": (0, n)}, most=0.5)[0].statistic < rate
    )
    assert 0.04 < missed <= 0.05


@pytest.mark.parametrize("n", [1, 20, 40, 300])
def test_families_that_are_all_at_the_rate_are_refuted_together_at_most_as_often_as_one_limit(n):
    rate, families = 0.05, 10
    refuted = sum(
        binom.pmf(k, n, rate)
        for k in range(n + 1)
        if certify_worst("x", {"a": (k, n)} | {f"f{i}": (0, n) for i in range(families - 1)}, most=rate)[1]["a"].holds
        is False
    )
    assert 1 - (1 - refuted) ** families <= 0.05
    assert certify_worst("x", {f"f{i}": (n, n) for i in range(families)}, most=rate)[0].holds is (
        None if n == 1 else False
    )


@pytest.mark.parametrize("bad", [{}, {"naive": (0, 0)}, {"naive": (5, 4)}])
def test_no_family_and_impossible_counts_are_refused(bad):
    with pytest.raises(NumericsError):
        certify_worst("followed", bad, most=0.05)
