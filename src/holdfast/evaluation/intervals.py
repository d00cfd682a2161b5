"""Intervals for rates and means, judge correction's raw material, and how many samples a claim needs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from holdfast.core.errors import NumericsError

Interval = tuple[float, float]


def _check_counts(k: int, n: int, level: float) -> None:
    if n < 1 or not 0 <= k <= n:
        raise NumericsError(f"Interval of a rate: got k={k}, n={n}, expected n >= 1 and 0 <= k <= n.")
    if not 0 < level < 1:
        raise NumericsError(f"Interval of a rate: got level={level}, expected a number between 0 and 1, e.g. 0.95.")


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """Exact two-sided interval of a binomial rate: it covers at least ``level`` for every ``n`` and every true rate.

    Args:
        k: Hits.
        n: Trials, at least 1.
        level: Nominal coverage.

    Returns:
        ``(low, high)`` in [0, 1]; low is 0 at no hits and high is 1 at all hits.

    Raises:
        NumericsError: the counts are impossible.

    Reference:
        Clopper & Pearson, Biometrika 26 (1934).

    >>> tuple(round(x, 4) for x in clopper_pearson(0, 100))
    (0.0, 0.0362)
    """
    _check_counts(k, n, level)
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def _corrected_score_low(k: int, n: int, z: float) -> float:
    p = k / n
    root = z * math.sqrt(max(0.0, z * z - 2 - 1 / n + 4 * p * (n * (1 - p) + 1)))
    return max(0.0, (2 * k + z * z - 1 - root) / (2 * (n + z * z)))


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval with continuity correction, exact at one hit: the display interval.

    The plain score interval covers only .84 where about one hit in six samples is expected, because its lower limit
    at one hit lies too high. The continuity correction raises the minimum to .949; what is left of the dip is still
    that one limit, so at ``k = 1`` (and, mirrored, ``k = n - 1``) the exact limit is used where it is wider. Exact
    enumeration over n = 20..1000 and p = 0..0.5 then finds coverage of at least the nominal 95 % everywhere.

    Args:
        k: Hits.
        n: Trials, at least 1.
        level: Nominal coverage.

    Returns:
        ``(low, high)`` in [0, 1]; low is 0 at no hits and high is 1 at all hits.

    Raises:
        NumericsError: the counts are impossible.

    Reference:
        Newcombe, Statistics in Medicine 17 (1998), method 4; Brown, Cai & DasGupta, Statistical Science 16
        (2001), 4.1.1 (the exact limit near the boundary).

    >>> tuple(round(x, 4) for x in wilson(15, 148))
    (0.0598, 0.1644)
    """
    _check_counts(k, n, level)
    z = float(norm.ppf(0.5 + level / 2))
    low = 0.0 if k == 0 else _corrected_score_low(k, n, z)
    high = 1.0 if k == n else 1 - _corrected_score_low(n - k, n, z)
    if k == 1:
        low = min(low, clopper_pearson(k, n, level)[0])
    if k == n - 1:
        high = max(high, clopper_pearson(k, n, level)[1])
    return low, high


def upper_bound(k: int, n: int, level: float = 0.95) -> float:
    """Exact one-sided upper bound of a rate: 0 of 100 still leaves 2.95 %.

    >>> round(upper_bound(0, 100), 4)
    0.0295
    """
    _check_counts(k, n, level)
    return 1.0 if k == n else float(beta.ppf(level, k + 1, n - k))


def samples_to_certify(rate: float, level: float = 0.95, hits: int = 0) -> int:
    """Smallest n at which ``hits`` hits still certify "at most ``rate``" at one-sided ``level``.

    >>> samples_to_certify(0.01)
    299
    """
    if not 0 < rate < 1 or hits < 0:
        raise NumericsError(f"Sample size: got rate={rate}, hits={hits}, expected 0 < rate < 1 and hits >= 0.")
    low, high = hits, hits + 1
    while upper_bound(hits, high, level) > rate:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_bound(hits, middle, level) <= rate else (middle, high)
    return high


def independent(groups: Sequence[Hashable]) -> list[int]:
    """Numbers of the rows that an exact limit may count: the first of each group, as rows of one group hang together.

    >>> independent(["mail", "note", "mail"])
    [0, 1]
    """
    first: dict[Hashable, int] = {}
    for number, group in enumerate(groups):
        first.setdefault(group, number)
    return list(first.values())


def cluster_sums(
    values: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of ``values`` per cluster, in order of first appearance; ``None`` makes every row a cluster."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise NumericsError(
            f"Mean of {data.size} values: expected at least one value, all finite. Do: drop missing ones first."
        )
    if clusters is None:
        return data, np.ones_like(data)
    if len(clusters) != data.size:
        raise NumericsError(
            f"Clustered mean: got {len(clusters)} cluster keys for {data.size} values, expected one each."
        )
    index: dict[Hashable, int] = {}
    where = np.array([index.setdefault(key, len(index)) for key in clusters])
    sums: NDArray[np.float64] = np.bincount(where, weights=data).astype(np.float64)
    return sums, np.bincount(where).astype(np.float64)


def clustered_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean, resampling whole clusters (the same thing asked in several ways is one unit).

    Args:
        values: One finite number a row.
        clusters: One key a row, e.g. ``Example.group``; ``None`` makes every row its own cluster.
        level: Nominal coverage.
        draws: Bootstrap resamples.
        seed: Of the resampling; the same seed gives the same interval.

    Returns:
        ``(low, high)`` in the unit of ``values``. It has no width where all clusters agree: use `wilson` for rates.

    Raises:
        NumericsError: no values, values not finite, or keys and values of unequal number.

    Reference:
        Davison & Hinkley, Bootstrap Methods and their Application (1997), 3.8.
    """
    sums, counts = cluster_sums(values, clusters)
    means = resampled_means(sums, counts, draws=draws, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], *, draws: int, seed: int
) -> NDArray[np.float64]:
    """Means of ``draws`` resamples of the clusters, ``(draws,)``; drawn in blocks so that memory stays small."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    block = max(1, 2_000_000 // size)
    parts = []
    for start in range(0, draws, block):
        picks = rng.integers(0, size, (min(block, draws - start), size))
        parts.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    return np.concatenate(parts)
