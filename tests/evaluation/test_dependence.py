"""HSIC and distance correlation against their definitions, and against hyppo."""

import math

import numpy as np
import pytest
from tests.close import assert_close

from holdfast.core.errors import NumericsError
from holdfast.evaluation.dependence import (
    LARGEST,
    centred,
    distance_correlation,
    hsic,
    median_distance,
    residuals,
    similarity,
    squared_distances,
)


def drawn(n=40, d=3, q=2, seed=0):
    """Two dependent variables and a label."""
    rng = np.random.default_rng(seed)
    X_nd = rng.standard_normal((n, d))
    Y_nd = np.sin(2 * X_nd[:, :q]) + 0.3 * rng.standard_normal((n, q))
    return X_nd, Y_nd, ["abc"[i] for i in rng.integers(0, 3, n)]


def slow_distances(X):
    return [[math.dist(a, b) for b in X] for a in X]


def slow_gaussian(X, sigma=None):
    D = slow_distances(X)
    sigma = sigma or float(np.median([D[i][j] for i in range(len(X)) for j in range(i)]))
    return [[math.exp(-(d**2) / (2 * sigma**2)) for d in row] for row in D]


def slow_trace(K, L):
    """``tr(K H L H)`` from the three sums of its definition."""
    n = len(K)
    pairs = sum(K[i][j] * L[i][j] for i in range(n) for j in range(n))
    both = sum(map(sum, K)) * sum(map(sum, L)) / n**2
    return pairs + both - 2 / n * sum(sum(K[i]) * sum(L[i]) for i in range(n))


def test_hsic_is_its_definition():
    X_nd, Y_nd, labels = drawn()
    K, L = slow_gaussian(X_nd), slow_gaussian(Y_nd)
    assert_close(hsic(X_nd, Y_nd), slow_trace(K, L) / 40**2, "float64")
    same = [[float(a == b) for b in labels] for a in labels]
    assert_close(hsic(X_nd, labels), slow_trace(K, same) / 40**2, "float64")
    narrow = slow_gaussian(X_nd, 0.3)
    assert_close(hsic(X_nd, Y_nd, bandwidths=(0.3, None)), slow_trace(narrow, L) / 40**2, "float64")


def test_distance_correlation_is_its_definition():
    X_nd, Y_nd, labels = drawn()
    X, Y = slow_distances(X_nd), slow_distances(Y_nd)
    expected = (slow_trace(X, Y) / (slow_trace(X, X) * slow_trace(Y, Y)) ** 0.5) ** 0.5
    assert_close(distance_correlation(X_nd, Y_nd), expected, "float64")
    other = [[float(a != b) for b in labels] for a in labels]
    expected = (slow_trace(X, other) / (slow_trace(X, X) * slow_trace(other, other)) ** 0.5) ** 0.5
    assert_close(distance_correlation(X_nd, labels), expected, "float64")


def test_distance_correlation_is_one_for_a_rotated_and_scaled_copy():
    X_nd, _, _ = drawn()
    turn_dd, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    assert_close(distance_correlation(X_nd, 5 * X_nd @ turn_dd + 7), 1.0, "float64")
    assert distance_correlation(X_nd, np.ones((40, 2))) == 0.0


def test_neither_depends_on_the_order_of_rows_or_on_a_common_shift():
    X_nd, Y_nd, _ = drawn()
    order = np.random.default_rng(1).permutation(40)
    for measure in (hsic, distance_correlation):
        assert_close(measure(X_nd[order] + 1e3, Y_nd[order]), measure(X_nd, Y_nd), "float64")
        assert_close(measure(Y_nd, X_nd), measure(X_nd, Y_nd), "float64")


def test_distances_of_equal_rows_are_exactly_zero_and_the_median_leaves_them_out():
    X_nd = np.array([[1e4 + 0.1, 0.3], [1e4 + 0.1, 0.3], [1e4 + 3.1, 4.3]])
    D2_nn = squared_distances(residuals(X_nd))
    assert D2_nn[0, 1] == 0.0
    assert_close(median_distance(D2_nn), 5.0, "float64")
    with pytest.raises(NumericsError, match="all rows are the same"):
        hsic(np.full((5, 3), 0.1), ["a", "b", "a", "b", "a"])


def test_centring_within_strata_is_a_projection_and_strata_of_everything_are_double_centring():
    rng = np.random.default_rng(0)
    K_nn = similarity(rng.standard_normal((9, 4)), "hsic")
    one_hot = np.zeros((9, 3))
    one_hot[range(9), [0, 0, 0, 0, 1, 1, 2, 2, 2]] = 1
    H_nn = np.eye(9) - one_hot @ np.diag(1 / one_hot.sum(0)) @ one_hot.T
    assert_close(centred(K_nn, np.array([0, 4, 6])), H_nn @ K_nn @ H_nn, "float64")
    H_nn = np.eye(9) - np.ones((9, 9)) / 9
    assert_close(centred(K_nn), H_nn @ K_nn @ H_nn, "float64")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_rows(bad):
    X_nd, Y_nd, _ = drawn()
    X_nd[3, 1] = bad
    with pytest.raises(NumericsError, match="X is not finite in 1 of 40 rows"):
        hsic(X_nd, Y_nd)


def test_rows_that_do_not_fit_are_refused():
    X_nd, Y_nd, _ = drawn()
    with pytest.raises(NumericsError, match="40 rows of one variable and 39 of the other"):
        hsic(X_nd, Y_nd[1:])
    with pytest.raises(NumericsError, match="2 to 8,192 rows"):
        hsic(np.zeros((LARGEST + 1, 1)), np.zeros((LARGEST + 1, 1)))


@pytest.mark.peers
def test_both_equal_hyppos_statistics():
    independence = pytest.importorskip("hyppo.independence", reason="pip install 'holdfast[verify]'")
    for seed in range(3):
        X_nd, Y_nd, _ = drawn(n=60, d=4, q=3, seed=seed)
        width = median_distance(squared_distances(residuals(X_nd)))
        both = (width, width)  # hyppo compares Y, too, with the bandwidth of X
        most = (hsic(X_nd, X_nd, bandwidths=both) * hsic(Y_nd, Y_nd, bandwidths=both)) ** 0.5
        ours = (hsic(X_nd, Y_nd, bandwidths=both) / most) ** 0.5  # hyppo's biased form is the root of the normalised
        assert_close(ours, independence.Hsic(bias=True).statistic(X_nd, Y_nd), "float64")
        assert_close(distance_correlation(X_nd, Y_nd), independence.Dcorr(bias=True).statistic(X_nd, Y_nd), "float64")
