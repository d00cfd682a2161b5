"""How much two variables have to do with each other: HSIC and distance correlation, from pairwise distances.

A variable is numbers, ``(n, d)``, or labels, one key a row. Shape suffixes: ``n`` rows, ``d`` coordinates. Everything
is float64; a matrix of all pairs is held, so rows are limited to `LARGEST`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform

from holdfast.core.errors import NumericsError

Array = NDArray[np.float64]
Variable = NDArray[Any] | Sequence[Hashable]
"""Numbers are an array of two dimensions; anything else is read as labels."""
Statistic = Literal["hsic", "distance_correlation"]
LARGEST = 8192
"""Rows at most: one matrix of all pairs then takes 0.5 GiB, and a test holds about five."""
ROUNDING = 1e-12
"""A difference that is smaller than this share of its terms is rounding, and counts as 0."""
WHOLE = np.zeros(1, dtype=np.intp)
"""One stratum: all rows."""


def is_numbers(variable: Variable) -> bool:
    """Whether a variable is numbers, and not labels."""
    return isinstance(variable, np.ndarray) and variable.ndim == 2


def numbers(X_nd: NDArray[Any], name: str = "X") -> Array:
    """The same numbers in float64.

    Raises:
        NumericsError: not two-dimensional, too few or too many rows, or values that are not finite.
    """
    data = np.asarray(X_nd, dtype=np.float64)
    if data.ndim != 2 or not 2 <= len(data) <= LARGEST or data.shape[1] < 1:
        raise NumericsError(
            f"Dependence: {name} has the shape {data.shape}, expected (rows, coordinates) with 2 to {LARGEST:,} rows. "
            "Do: give one vector a row; of more rows, draw some by whole cases."
        )
    bad = int((~np.isfinite(data)).any(axis=1).sum())
    if bad:
        raise NumericsError(
            f"Dependence: {name} is not finite in {bad} of {len(data)} rows, expected finite numbers. "
            "Do: look for overflow where they were made; hidden states in float16 overflow where bfloat16 does not."
        )
    return data


def codes_of(labels: Sequence[Hashable] | NDArray[Any]) -> NDArray[np.intp]:
    """A number from 0 for each label, in order of first appearance.

    >>> codes_of(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(label, len(index)) for label in labels], dtype=np.intp)


def residuals(X_nd: Array, starts: NDArray[np.intp] = WHOLE) -> Array:
    """What is left of every coordinate after the mean of its stratum.

    Args:
        X_nd: Numbers; rows of one stratum lie together.
        starts: First row of each stratum.
    Returns:
        ``(n, d)``; a row that differs from the mean by rounding only is exactly 0 there.
    """
    counts = np.diff(starts, append=len(X_nd))
    means = np.add.reduceat(X_nd, starts, axis=0) / counts[:, None]
    left = X_nd - np.repeat(means, counts, axis=0)
    left[np.abs(left) <= ROUNDING * np.abs(X_nd).max(axis=0)] = 0.0
    return left


def squared_distances(X_nd: Array) -> Array:
    """Squared Euclidean distance of all pairs of rows, ``(n, n)``, from inner products.

    ``X_nd`` should be centred, as `residuals` are: what is smaller than rounding of the inner products becomes 0.
    """
    return distances_from_products(X_nd @ X_nd.T)


def distances_from_products(G_nn: Array) -> Array:
    """Squared distances from inner products of the same rows."""
    lengths = np.diagonal(G_nn)
    together = lengths[:, None] + lengths
    D2_nn = together - 2 * G_nn
    D2_nn[D2_nn <= ROUNDING * together] = 0.0
    np.fill_diagonal(D2_nn, 0.0)
    return D2_nn


def median_distance(squared: Array) -> float:
    """The median of the distances that are not 0: the usual bandwidth.

    Args:
        squared: Squared distances, each pair as often as it should count.
    Raises:
        NumericsError: all distances are 0.
    """
    apart = squared[squared > 0]
    if not apart.size:
        raise NumericsError(
            "Bandwidth: all rows are the same, expected at least two that differ. Do: check where the rows come from."
        )
    middle = apart.size // 2
    around = [middle] if apart.size % 2 else [middle - 1, middle]
    return float(np.sqrt(np.partition(apart, around)[around]).mean())


def similarity_from_distances(D2_nn: Array, statistic: Statistic, bandwidth: float | None = None) -> Array:
    r"""Similarity of pairs: :math:`\exp(-d^2 / 2 \sigma^2)` for HSIC, :math:`-d` for distance correlation.

    Args:
        D2_nn: Squared distances of rows.
        statistic: Which similarity.
        bandwidth: ``sigma`` of HSIC; ``None`` takes the median distance.
    """
    if statistic == "distance_correlation":
        return np.asarray(-np.sqrt(D2_nn), dtype=np.float64)
    if bandwidth is None:
        bandwidth = median_distance(squareform(D2_nn, checks=False))
    return np.asarray(np.exp(D2_nn / (-2 * bandwidth**2)), dtype=np.float64)


def similarity(variable: Variable, statistic: Statistic, bandwidth: float | None = None) -> Array:
    """Similarity of all pairs of rows, ``(n, n)``: of labels, 1 where they are the same and else 0."""
    if isinstance(variable, np.ndarray) and is_numbers(variable):
        D2_nn = squared_distances(residuals(numbers(variable)))
        return similarity_from_distances(D2_nn, statistic, bandwidth)
    codes = codes_of(variable)
    return np.equal.outer(codes, codes).astype(np.float64)


def centred(K_nn: Array, starts: NDArray[np.intp] = WHOLE) -> Array:
    """A similarity without the means of its strata, ``H K H``: rows and columns of every block then sum to 0.

    Args:
        K_nn: Symmetric; rows of one stratum lie together.
        starts: First row of each stratum; `WHOLE` gives the usual double centring.
    """
    counts = np.diff(starts, append=len(K_nn))
    means = np.add.reduceat(K_nn, starts, axis=1) / counts
    H_nn = K_nn - np.repeat(means, counts, axis=1)
    means = np.add.reduceat(H_nn, starts, axis=0) / counts[:, None]
    H_nn -= np.repeat(means, counts, axis=0)
    return H_nn


def hsic(X: Variable, Y: Variable, *, bandwidths: tuple[float | None, float | None] = (None, None)) -> float:
    r"""Biased Hilbert-Schmidt independence criterion: :math:`\mathrm{tr}(K H L H) / n^2`.

    It is 0 in the limit if, and only if, both are independent.

    Args:
        X: Numbers ``(n, d)``, compared by a Gaussian kernel, or ``n`` labels, by whether they are the same.
        Y: The same rows of the other variable.
        bandwidths: Of the Gaussian kernels of ``X`` and ``Y``; ``None`` is the median distance.
    Raises:
        NumericsError: unequal numbers of rows, values not finite, or numbers that are the same in all rows.
    Reference:
        Gretton et al., A Kernel Statistical Test of Independence, NeurIPS 2007.

    >>> round(hsic(["a", "a", "b", "b"], ["c", "c", "d", "d"]), 6), hsic(["a", "b", "a", "b"], ["c", "c", "d", "d"])
    (0.25, 0.0)
    """
    check_rows(len(X), len(Y))
    K_nn, L_nn = (similarity(each, "hsic", width) for each, width in zip((X, Y), bandwidths, strict=True))
    return float(np.vdot(centred(K_nn), L_nn)) / len(K_nn) ** 2


def distance_correlation(X: Variable, Y: Variable) -> float:
    r"""Distance correlation, between 0 and 1: root of :math:`\mathrm{dCov}^2(X, Y)` over that of each with itself.

    Args:
        X: Numbers ``(n, d)``, or ``n`` labels, which are at distance 1 where they differ.
        Y: The same rows of the other variable.
    Returns:
        Its biased form, which is above 0 also of independent rows; 0 where a variable is constant.
    Raises:
        NumericsError: unequal numbers of rows, or values not finite.
    Reference:
        Székely, Rizzo & Bakirov, Annals of Statistics 35 (2007).

    >>> round(distance_correlation(["a", "b", "b"], ["c", "d", "d"]), 6)
    1.0
    """
    check_rows(len(X), len(Y))
    A_nn, B_nn = (centred(similarity(each, "distance_correlation")) for each in (X, Y))
    most = float(np.linalg.norm(A_nn) * np.linalg.norm(B_nn))
    return float(np.sqrt(max(0.0, float(np.vdot(A_nn, B_nn))) / most)) if most else 0.0


def check_rows(first: int, second: int) -> None:
    """Raise `NumericsError` unless both variables have the same number of rows."""
    if first != second:
        raise NumericsError(
            f"Dependence: got {first} rows of one variable and {second} of the other, expected the same rows. "
            "Do: give both in the same order."
        )
