"""Before and after on the same prompts: paired tests, and several looks at one sample."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from holdfast.core.errors import NumericsError
from holdfast.evaluation.intervals import cluster_sums, resampled_means


@dataclass(frozen=True, slots=True)
class McNemar:
    """Discordant pairs and the exact two-sided p-value."""

    only_before: int
    only_after: int
    p_value: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``after - before`` with its interval and a two-sided bootstrap p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    clusters: int


def mcnemar_exact(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Exact McNemar test: under no change, a pair that changed is as likely to change either way.

    Args:
        before: Hit or not, one a sample.
        after: The same samples in the same order.

    Returns:
        Counts of samples hit only before and only after, and the two-sided exact p-value (1 without discordant pairs).

    Raises:
        NumericsError: unequal lengths or no pairs.

    Reference:
        McNemar, Psychometrika 12 (1947); exact form: binomial test of the discordant pairs.

    >>> mcnemar_exact([True] * 6 + [False], [False] * 7).p_value
    0.03125
    """
    _check_pairs(before, after)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    p_value = min(1.0, 2 * float(binom.cdf(min(lost, gained), lost + gained, 0.5))) if lost + gained else 1.0
    return McNemar(lost, gained, p_value)


def _check_pairs(before: Sequence[object], after: Sequence[object]) -> None:
    if len(before) != len(after) or not before:
        raise NumericsError(
            f"Paired comparison: got {len(before)} samples before and {len(after)} after, expected the same samples, "
            "at least one. Do: compare logs of the same tasks, rows and seed."
        )


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap of the mean of ``after - before``, resampling whole clusters of pairs.

    The p-value is twice the smaller share of resampled means on either side of 0, counting ties on both sides and
    adding one draw, so it is never 0.

    Raises:
        NumericsError: unequal lengths, no pairs, or values not finite.

    Reference:
        Davison & Hinkley (1997), 4.4.
    """
    _check_pairs(before, after)
    differences = [a - b for b, a in zip(before, after, strict=True)]
    sums, counts = cluster_sums(differences, clusters)
    means = resampled_means(sums, counts, draws=draws, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (side + 1) / (draws + 1))
    return PairedDifference(
        float(sums.sum() / counts.sum()), float(low), float(high), p_value, len(differences), len(sums)
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: reject a family where its adjusted value is at most alpha.

    Args:
        p_values: One p-value in [0, 1] by name.

    Returns:
        Adjusted p-values under the same names and in the same order.

    Reference:
        Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    if not all(0 <= p <= 1 for p in p_values.values()):
        raise NumericsError(f"Holm: got {dict(p_values)}, expected p-values in [0, 1].")
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def worst_over_attacks(samples: Sequence[Hashable], values: Sequence[float | None]) -> dict[Hashable, float | None]:
    """The largest value per sample over its attacks, in order of first appearance: one hit is enough.

    A missing value is skipped while the sample has another; a sample whose values are all missing stays ``None``.

    >>> worst_over_attacks(["a", "a", "b"], [0.0, 1.0, None])
    {'a': 1.0, 'b': None}
    """
    worst: dict[Hashable, float | None] = {}
    for sample, value in zip(samples, values, strict=True):
        seen = worst.setdefault(sample, None)
        if value is not None:
            worst[sample] = value if seen is None else max(seen, value)
    return worst


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k: the chance that at least one of k draws without replacement from n samples is right.

    Args:
        n: Samples drawn for one problem.
        c: Samples that passed.
        k: Samples a user would look at, ``1 <= k <= n``.

    Reference:
        Chen et al., Evaluating Large Language Models Trained on Code (2021), equation 1.

    >>> round(pass_at_k(10, 3, 5), 4)
    0.9167
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise NumericsError(f"pass@k: got n={n}, c={c}, k={k}, expected 0 <= c <= n and 1 <= k <= n.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
