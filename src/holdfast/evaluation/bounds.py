"""What rows that were seen say about rows that were not: exact bounds of a rate, and PAC-Bayes bounds of an adapter.

A PAC-Bayes bound is about a *randomised* model: weights drawn from the posterior ``N(delta, sigma^2)`` around the
adapter, afresh for each answer. So ``risk`` is the mean loss of such draws, in [0, 1], on rows the prior never saw;
the risk of the adapter itself is another number, for which these bounds promise nothing. With a handful of draws,
their own error counts: give an upper limit of the risk, and the failure probability that it used on top of ``delta``.

Symbols: ``kl`` divergence of posterior from prior, in nats; ``n`` rows; ``delta`` probability that a bound is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.core.errors import NumericsError
from holdfast.core.results import Verdict
from holdfast.evaluation.intervals import samples_to_certify, upper_bound
from holdfast.layers.adapters import Adapter

ROUNDING = 1e-9
"""What a lower limit may be above the rate by rounding alone: that of 1 of 1 at 95 % is .05 and shows no more."""
PRECISION = 1e-12
"""Width at which the search for an inverse ends; the upper end is taken, so that rounding never tightens a bound."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One upper bound of a risk in [0, 1]."""

    name: str
    value: float
    """May be above 1, where it says nothing."""
    n: int
    delta: float

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than that a risk is at most 1."""
        return self.value >= 1

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f}" + (" (vacuous)" if self.vacuous else "")


@dataclass(frozen=True, slots=True)
class PacBayes:
    """The three bounds of one randomised model, and what they were computed from."""

    risk: float
    kl: float
    n: int
    delta: float
    choices: int
    mcallester: Bound
    seeger: Bound
    catoni: Bound

    @property
    def bounds(self) -> tuple[Bound, Bound, Bound]:
        """All of them, in the order of their years."""
        return self.mcallester, self.seeger, self.catoni

    def verdict(self, most: float) -> Verdict:
        """Whether Seeger's bound, the tightest that needs no choice of its own, shows a risk of at most ``most``.

        It holds or abstains: a bound that is too high does not show that the risk is.
        """
        bound = self.seeger
        reason = f"KL {self.kl:,.1f}, n {self.n:,}, delta {self.delta:g}: " + ", ".join(map(str, self.bounds))
        if bound.value > most:
            said = "says nothing" if bound.vacuous else f"does not show at most {most:g}"
            reason += f"; this {said}, which more rows or a smaller change of the weights might"
        return Verdict(
            name="pac-bayes",
            holds=True if bound.value <= most else None,
            statistic=bound.value,
            p_value=None,
            n=self.n,
            null=f"the risk of weights drawn around the adapter is above {most:g}",
            reason=reason,
        )


def certify(name: str, hits: int, n: int, *, most: float, level: float = 0.95, against: float | None = None) -> Verdict:
    """Whether ``hits`` of ``n`` independent rows show a rate of at most ``most``, by exact one-sided limits.

    Holds where the upper limit is at most ``most``, fails where the lower limit is above it, and abstains between,
    with the number of rows that as many hits would need.

    Args:
        name: Of what was counted, for the verdict.
        most: The rate to certify, in (0, 1).
        level: Of the upper limit, one-sided.
        against: Of the lower limit; as ``level`` where it is left out.
    Raises:
        NumericsError: impossible counts, or a rate or level outside (0, 1).
    Reference:
        Clopper & Pearson, Biometrika 26 (1934).

    >>> certify("attack success", 0, 299, most=0.01).holds
    True
    >>> certify("attack success", 0, 100, most=0.01).reason
    '0 of 100 leave up to 2.95 %; certifying at most 1 % needs n = 299 with 0 hits'
    """
    high = upper_bound(hits, n, level)
    low = 1 - upper_bound(n - hits, n, level if against is None else against)
    needed = samples_to_certify(most, level, hits)
    reason = f"{hits} of {n} leave up to {100 * high:.3g} %"
    holds = True if high <= most else False if low > most + ROUNDING else None
    if holds is False:
        reason += f" and no less than {100 * low:.3g} %; more than {100 * most:g} % is shown"
    elif holds is None:
        reason += f"; certifying at most {100 * most:g} % needs n = {needed} with {hits} hit{'s' * (hits != 1)}"
    return Verdict(
        name=name,
        holds=holds,
        statistic=high,
        p_value=None,
        n=n,
        null=f"the rate is above {100 * most:g} %",
        reason=reason,
    )


def certify_worst(
    name: str, counts: Mapping[str, tuple[int, int]], *, most: float, level: float = 0.95
) -> tuple[Verdict, dict[str, Verdict]]:
    """`certify` of every family, and of the largest rate among them.

    The largest of the families' upper limits is an upper limit of the largest rate at the same ``level``, without a
    correction: it errs only where the limit of the family with the largest rate does. That some rate is larger is shown
    by one family's lower limit, at the level that Bonferroni's correction for the number of families asks for.

    Args:
        counts: By family, hits and rows.
    Returns:
        The verdict about the worst family, and each family's own.
    Raises:
        NumericsError: no family, or impossible counts.
    Reference:
        Berger, Technometrics 24 (1982): intersection-union tests.
    """
    if not counts:
        raise NumericsError(f"Bound of {name}: got no family, expected at least one. Do: hold out a family of rows.")
    against = 1 - (1 - level) / len(counts)
    each = {
        family: certify(f"{name}/{family}", hits, n, most=most, level=level, against=against)
        for family, (hits, n) in counts.items()
    }
    worst = max(each, key=lambda family: each[family].statistic or 0.0)
    order = (False, None, True)
    holds = min((verdict.holds for verdict in each.values()), key=order.index)
    shown = worst if each[worst].holds is holds else next(f for f in each if each[f].holds is holds)
    whole = each[worst].model_copy(
        update={
            "name": f"{name}/worst family",
            "holds": holds,
            "null": f"the rate of some family is above {100 * most:g} %",
            "reason": f"{shown}: {each[shown].reason}",
        }
    )
    return whole, each


def gaussian_kl(
    squared_norm: float, *, prior_sigma: float, posterior_sigma: float | None = None, size: int | None = None
) -> float:
    r"""Divergence of ``N(delta, sigma^2 I)`` from ``N(0, sigma_p^2 I)``, in nats.

    .. math:: \frac{|\delta|^2}{2 \sigma_p^2} + \frac d 2 \left(r - 1 - \ln r\right), \qquad r = \sigma^2 / \sigma_p^2

    Args:
        squared_norm: Sum of the squares of the change.
        prior_sigma: Standard deviation of the prior in every coordinate; chosen before any row is seen.
        posterior_sigma: Of the posterior; ``None`` takes the prior's, and the second term is 0.
        size: ``d``, the number of coordinates that are drawn; needed where the two differ.
    Raises:
        NumericsError: a norm below 0, a deviation that is not above 0, or no size where it is needed.
    Reference:
        Langford & Caruana, (Not) Bounding the True Error, NIPS 2001.

    >>> gaussian_kl(16384.0, prior_sigma=0.5)
    32768.0
    """
    sigma = prior_sigma if posterior_sigma is None else posterior_sigma
    if not (0 <= squared_norm < math.inf and 0 < prior_sigma < math.inf and 0 < sigma < math.inf):
        raise NumericsError(
            f"KL of Gaussians: got a squared norm of {squared_norm}, deviations {prior_sigma} and {sigma}, expected "
            "finite numbers, at least 0 and above 0."
        )
    shift = squared_norm / (2 * prior_sigma**2)
    if sigma == prior_sigma:
        return shift
    if size is None or size < 1:
        raise NumericsError(
            f"KL of Gaussians of unequal width: got size={size}, expected the number of coordinates that are drawn."
        )
    excess = (sigma / prior_sigma) ** 2 - 1
    return shift + size / 2 * (excess - math.log1p(excess))


def adapter_kl(adapter: Adapter, *, prior_sigma: float, posterior_sigma: float | None = None) -> float:
    """`gaussian_kl` of an adapter's change ``B A`` of the weights it adapts; the prior stands at the base model.

    Every weight of an adapted layer is a coordinate, so both distributions are drawn on ``W``, not on the factors.

    Raises:
        NumericsError: as `gaussian_kl`, also where a weight of the adapter is not finite.
    """
    squared = 0.0
    for delta in adapter.deltas.values():
        A, B = delta.A.double(), delta.B.double()
        squared += float(((B.T @ B) * (A @ A.T)).sum())
    size = sum(math.prod(delta.shape) for delta in adapter.deltas.values())
    return gaussian_kl(max(squared, 0.0), prior_sigma=prior_sigma, posterior_sigma=posterior_sigma, size=size)


def _binary_kl(q: float, step: float) -> float:
    """Divergence of a coin of probability ``q`` from one of ``q + step``, in nats; infinite where only that is sure.

    From the step, so that it is exact also where the step is far smaller than ``q``.
    """
    total = 0.0
    for share, towards in ((q, step), (1 - q, -step)):
        if share == 0:
            continue
        if towards <= -share:
            return math.inf
        near = abs(towards) < share
        total += share * (-math.log1p(towards / share) if near else math.log(share) - math.log(share + towards))
    return total


def kl_inverse(risk: float, budget: float) -> float:
    """The largest ``p`` with ``KL(risk || p) <= budget`` of two coins, from above and to 1e-9.

    Args:
        risk: In [0, 1].
        budget: At least 0.
    Raises:
        NumericsError: an argument out of range.
    Reference:
        Seeger, JMLR 3 (2002); Langford, JMLR 6 (2005).

    >>> round(kl_inverse(0.0, 0.01), 6), kl_inverse(1.0, 0.01)
    (0.00995, 1.0)
    """
    if not (0 <= risk <= 1 and 0 <= budget < math.inf):
        raise NumericsError(
            f"Inverse of the binary KL: got risk={risk}, budget={budget}, expected a risk in [0, 1] and a finite "
            "budget of at least 0."
        )
    if budget == 0:
        return risk
    low, high = 0.0, 1 - risk
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if _binary_kl(risk, middle) <= budget else (low, middle)
    return min(1.0, risk + high)


def mcallester_maurer(risk: float, kl: float, n: int, delta: float = 0.05) -> float:
    r"""McAllester's bound with Maurer's constant: :math:`risk + \sqrt{(KL + \ln(2 \sqrt n / \delta)) / 2n}`.

    Raises:
        NumericsError: no rows, or an argument out of range.
    Reference:
        McAllester, COLT 1999; Maurer, A Note on the PAC-Bayesian Theorem (2004), arXiv cs/0411099.

    >>> round(mcallester_maurer(0.0, 32768, 7151), 2)
    1.51
    """
    _check(risk, kl, n, delta)
    return risk + math.sqrt((kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n))


def seeger(risk: float, kl: float, n: int, delta: float = 0.05) -> float:
    r"""Seeger's bound with Maurer's constant: the `kl_inverse` of :math:`(KL + \ln(2 \sqrt n / \delta)) / n`.

    Never above `mcallester_maurer`, by Pinsker's inequality, and never above 1.

    Raises:
        NumericsError: no rows, or an argument out of range.
    Reference:
        Seeger, JMLR 3 (2002); Maurer (2004).
    """
    _check(risk, kl, n, delta)
    return kl_inverse(risk, (kl + math.log(2 * math.sqrt(n) / delta)) / n)


def catoni(risk: float, kl: float, n: int, delta: float = 0.05, *, temperature: float = 1.0) -> float:
    r"""Catoni's bound, :math:`C` the temperature, which must be chosen before the rows are seen.

    .. math:: \frac{1 - \exp(-C \, risk - (KL + \ln(1 / \delta)) / n)}{1 - e^{-C}}

    Over all temperatures its least value is the `kl_inverse` of :math:`(KL + \ln(1 / \delta)) / n`.

    Raises:
        NumericsError: no rows, or an argument out of range.
    Reference:
        Catoni, PAC-Bayesian Supervised Classification (2007), theorem 1.2.6; Germain et al., ICML 2009, corollary 2.2.
    """
    _check(risk, kl, n, delta)
    if not 0 < temperature < math.inf:
        raise NumericsError(f"Catoni's bound: got temperature={temperature}, expected a number above 0.")
    return math.expm1(-temperature * risk - (kl + math.log(1 / delta)) / n) / math.expm1(-temperature)


def pac_bayes(
    risk: float, kl: float, n: int, *, delta: float = 0.05, choices: int = 1, temperature: float = 1.0
) -> PacBayes:
    """McAllester-Maurer, Seeger and Catoni for one randomised model; each holds on its own with ``1 - delta``.

    Args:
        risk: Mean loss in [0, 1] of models drawn from the posterior, on ``n`` independent rows.
        kl: Of posterior from prior, e.g. `adapter_kl`.
        choices: How many priors were tried (a grid of deviations, say); ``delta`` is divided among them.
        temperature: Catoni's; chosen before the rows are seen.
    Raises:
        NumericsError: no rows, no choices, or an argument out of range.

    >>> print(*pac_bayes(0.0, 32768, 7151).bounds, sep=", ")
    McAllester-Maurer 1.51 (vacuous), Seeger 0.99, Catoni 1.57 (vacuous)
    """
    if choices < 1:
        raise NumericsError(f"PAC-Bayes: got choices={choices}, expected the number of priors tried, at least 1.")
    share = delta / choices
    return PacBayes(
        risk=risk,
        kl=kl,
        n=n,
        delta=delta,
        choices=choices,
        mcallester=Bound("McAllester-Maurer", mcallester_maurer(risk, kl, n, share), n, delta),
        seeger=Bound("Seeger", seeger(risk, kl, n, share), n, delta),
        catoni=Bound("Catoni", catoni(risk, kl, n, share, temperature=temperature), n, delta),
    )


def _check(risk: float, kl: float, n: int, delta: float) -> None:
    if n < 1:
        raise NumericsError(f"PAC-Bayes: got n={n} rows, expected at least 1. Do: measure the risk on held-out rows.")
    if not (0 <= risk <= 1 and 0 <= kl < math.inf and 0 < delta < 1):
        raise NumericsError(
            f"PAC-Bayes: got risk={risk}, kl={kl}, delta={delta}, expected a risk in [0, 1], a finite KL of at least "
            "0 and a delta between 0 and 1."
        )
