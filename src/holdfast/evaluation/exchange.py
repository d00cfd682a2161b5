"""What a permutation test needs again and again: one prepared set of exchangeable rows, and the statistic under draws.

Two designs: rows whose labels change places within a stratum (`Within`), and pairs whose two sides change places
(`Pairs`). Shape suffixes: ``n`` rows or pairs, ``d`` coordinates, ``r`` columns of a factor, ``c`` clusters, ``b``
draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform
from scipy.special import gammaln

from holdfast.evaluation.dependence import (
    ROUNDING,
    Array,
    Statistic,
    Variable,
    centred,
    check_rows,
    codes_of,
    distances_from_products,
    is_numbers,
    median_distance,
    numbers,
    residuals,
    similarity,
    similarity_from_distances,
)

ARRANGEMENTS = 40
"""Different arrangements needed: with fewer, and a mirror image of each, no p-value can fall below .05."""
BLOCK = 2**22
"""Numbers held at once while drawing."""
FEW = 16
"""Up to this many different labels, sums over labels are quicker than sums over pairs."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The statistic as observed and under every draw, and the largest value that it can take."""

    observed: float
    null_b: Array
    most: float

    @property
    def p_value(self) -> float:
        """``(1 + b) / (1 + B)``: ``b`` of ``B`` draws reach what was observed, ties within rounding counted."""
        reached = int((self.null_b >= self.observed - 1e-12 * self.most).sum())
        return (1 + reached) / (1 + len(self.null_b))

    @property
    def effect(self) -> float:
        """How far the observed lies above the mean draw, as a share of the largest value: 0 where nothing depends."""
        return (self.observed - float(self.null_b.mean())) / self.most if self.most else 0.0


class Within:
    """Rows that can change places within their stratum, sorted by stratum; all others are left out.

    ``R_nd`` and numeric ``U`` lose the mean of their stratum, and similarities that of their stratum's rows: what
    strata explain cannot be found, and one stratum gives the plain statistic.

    Attributes:
        reason: Why nothing can be tested, or empty.
        left_out: Rows alone in their stratum, or in one whose rows all have the same ``U``.
        share: Share of the variance of ``R`` that lies within strata.
    """

    def __init__(self, R_nd: NDArray[np.float64], U: Variable, strata: Sequence[Hashable] | None, kind: Statistic):
        R_nd = numbers(R_nd, "R")
        check_rows(len(R_nd), len(U))
        check_rows(len(R_nd), len(R_nd) if strata is None else len(strata))
        numeric = isinstance(U, np.ndarray) and is_numbers(U)
        U_nd = numbers(np.asarray(U), "U") if numeric else None
        levels = codes_of([row.tobytes() for row in U_nd] if U_nd is not None else U)
        groups = codes_of(strata) if strata is not None else np.zeros(len(R_nd), dtype=np.intp)
        rows = _exchangeable(groups, levels)
        self.kind, self.left_out, self.n = kind, len(R_nd) - len(rows), len(rows)
        self.reason = _too_few(groups[rows], levels[rows], self.left_out)
        if self.reason:
            return
        _, self.starts, self.stratum_n = np.unique(groups[rows], return_index=True, return_inverse=True)
        self.levels_n = codes_of(levels[rows])
        self.U_nd = residuals(U_nd[rows], self.starts) if U_nd is not None else None
        self.R_nd = residuals(R_nd[rows], self.starts)
        total = float(np.square(residuals(R_nd[rows])).sum())
        inner = float(np.square(self.R_nd).sum())
        self.share = inner / total if total else 0.0
        self.reason = _constant(total, inner, self.n)
        if not self.reason:
            self._prepare()

    def _prepare(self) -> None:
        """A factor ``F F^T`` of the similarity of ``U`` where labels are few, else the similarity."""
        few = self.U_nd is None and self.levels_n.max() < FEW
        self.F_nr = _factor(self.levels_n) if few else None
        self.L_nn = None if few else similarity(self.levels_n if self.U_nd is None else self.U_nd, self.kind, None)
        if self.F_nr is not None:
            left_nr = residuals(self.F_nr, self.starts)
            self.u_norm = float(np.linalg.norm(left_nr.T @ left_nr))
        elif self.L_nn is not None:
            self.u_norm = float(np.linalg.norm(centred(self.L_nn, self.starts)))

    def orders(self, draws: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Random orders of the rows within strata, ``(b, n)``."""
        return np.argsort(self.stratum_n + rng.random((draws, self.n)), axis=1)

    def planted(self, order_n: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """What ``U`` in this order adds to rows: two values 1 apart, or numbers of unit variance within strata."""
        if self.U_nd is None:
            count = int(self.levels_n.max()) + 1
            side_u = np.where(rng.permutation(count) < count // 2, 0.5, -0.5)
            return residuals(side_u[self.levels_n[order_n], None], self.starts)[:, 0]
        along_n = self.U_nd[order_n] @ rng.standard_normal(self.U_nd.shape[1])
        variance = np.square(along_n).sum() / (self.n - len(self.starts))
        return np.asarray(along_n / np.sqrt(variance), dtype=np.float64)

    def spread(self, D2_nn: Array, order_n: NDArray[np.intp], draws: int, rng: np.random.Generator) -> Spread:
        """The statistic of ``U`` in one order and in random ones; rows of ``R`` are at squared distances ``D2``."""
        K_nn = centred(similarity_from_distances(D2_nn, self.kind), self.starts)
        sums = _Sums(K_nn, self.F_nr, self.L_nn)
        step = max(1, BLOCK // self.n)
        parts = [sums(self.orders(min(step, draws - start), rng)) for start in range(0, draws, step)]
        observed = float(sums(order_n[None])[0])
        return Spread(observed, np.concatenate(parts), float(np.linalg.norm(K_nn)) * self.u_norm)


class _Sums:
    """``sum_ij K_ij L_{o(i) o(j)}`` for many orders ``o``, exact."""

    ROWS = 100

    def __init__(self, K_nn: Array, F_nr: Array | None, L_nn: Array | None):
        self.K_nn, self.F_nr, self.L_nn = K_nn, F_nr, L_nn
        if L_nn is not None and len(K_nn) > self.ROWS:
            self.blocks = self._blocks()

    def __call__(self, orders_bn: NDArray[np.intp]) -> Array:
        if self.F_nr is not None:
            return self._by_factor(self.F_nr, orders_bn)
        if len(self.K_nn) <= self.ROWS:
            return self._at_once(orders_bn)
        return np.array([self._by_pairs(order_n) for order_n in orders_bn])

    def _by_factor(self, F_nr: Array, orders_bn: NDArray[np.intp]) -> Array:
        n, r = F_nr.shape
        step = max(1, BLOCK // (n * r))
        parts = []
        for start in range(0, len(orders_bn), step):
            F_nbr = F_nr[orders_bn[start : start + step].T]
            V_nbr = (self.K_nn @ F_nbr.reshape(n, -1)).reshape(F_nbr.shape)
            parts.append(np.einsum("nbr,nbr->b", F_nbr, V_nbr))
        return np.concatenate(parts)

    def _at_once(self, orders_bn: NDArray[np.intp]) -> Array:
        """Small matrices, many draws together."""
        assert self.L_nn is not None
        step = max(1, BLOCK // self.K_nn.size)
        parts = []
        for start in range(0, len(orders_bn), step):
            some_bn = orders_bn[start : start + step]
            moved_bnn = self.L_nn[some_bn[:, :, None], some_bn[:, None, :]]
            parts.append(np.tensordot(moved_bnn, self.K_nn, 2))
        return np.concatenate(parts)

    def _blocks(self) -> list[Array]:
        """Rows of the upper half, what lies right of the diagonal block doubled: each pair is then looked up once."""
        blocks = []
        for start in range(0, len(self.K_nn), self.ROWS):
            block = self.K_nn[start : start + self.ROWS, start:].copy()
            block[:, self.ROWS :] *= 2
            blocks.append(block)
        return blocks

    def _by_pairs(self, order_n: NDArray[np.intp]) -> float:
        assert self.L_nn is not None
        total = 0.0
        for number, block in enumerate(self.blocks):
            start = number * self.ROWS
            rows = self.L_nn[order_n[start : start + self.ROWS]]
            total += float(np.vdot(block, rows.take(order_n[start:], axis=1)))
        return total


class Pairs:
    """Pairs whose two sides change places: a sign for each pair's difference, one sign for each cluster.

    The statistic is that of `Within` on both sides of all pairs, with pairs for strata and the side for ``Y``: a
    quadratic form in the signs.

    Attributes:
        reason: Why nothing can be tested, or empty.
        share: Share of the variance of all rows that lies within pairs.
    """

    def __init__(
        self, A_nd: NDArray[np.float64], B_nd: NDArray[np.float64], clusters: Sequence[Hashable] | None, kind: Statistic
    ):
        A_nd, B_nd = numbers(A_nd, "R of one side"), numbers(B_nd, "R of the other side")
        check_rows(len(A_nd), len(B_nd))
        check_rows(len(A_nd), len(A_nd) if clusters is None else len(clusters))
        self.kind, self.n = kind, len(A_nd)
        self.half_nd = residuals(np.stack([A_nd, B_nd], 1).reshape(2 * self.n, -1), 2 * np.arange(self.n))[::2]
        self.cluster_n = codes_of(clusters) if clusters is not None else np.arange(self.n)
        self.clusters = int(self.cluster_n.max()) + 1
        total = float(np.square(residuals(np.concatenate([A_nd, B_nd]))).sum())
        inner = 2 * float(np.square(self.half_nd).sum())
        self.share = inner / total if total else 0.0
        self.reason = _constant(total, inner, 2 * self.n)
        if 2**self.clusters < ARRANGEMENTS:
            self.reason = (
                f"{self.clusters} cluster(s) of pairs can change sides in {2**self.clusters} ways, expected at least "
                f"{ARRANGEMENTS}: give pairs of more cases"
            )

    def spread(self, G_nn: Array, signs_n: Array, draws: int, rng: np.random.Generator) -> Spread:
        """The statistic with given signs and with random ones; ``G`` are inner products of half differences."""
        M_nn = self._odd(G_nn)
        norm = float(np.linalg.norm(M_nn))
        M_nn *= signs_n * signs_n[:, None]
        M_cc = M_nn if self.clusters == self.n else self._summed(self._summed(M_nn).T)
        step = max(1, BLOCK // self.clusters)
        parts = []
        for start in range(0, draws, step):
            signs_bc = self.signs(min(step, draws - start), rng)
            parts.append(np.einsum("bc,bc->b", signs_bc @ M_cc, signs_bc))
        return Spread(float(M_cc.sum()) / 2, np.concatenate(parts) / 2, norm * self.n / 2)

    def signs(self, draws: int, rng: np.random.Generator) -> Array:
        """A random sign for each cluster, ``(b, c)``."""
        return rng.choice(np.array([-1.0, 1.0]), (draws, self.clusters))

    def _summed(self, M_nx: Array) -> Array:
        """Rows of one cluster added up, ``(c, x)``."""
        order = np.argsort(self.cluster_n, kind="stable")
        starts = np.searchsorted(self.cluster_n[order], np.arange(self.clusters))
        return np.add.reduceat(M_nx[order], starts, axis=0)

    def _odd(self, G_nn: Array) -> Array:
        """What of the similarity of both sides changes sign with a pair, ``(n, n)``."""
        minus_nn = distances_from_products(G_nn)
        together = np.add.outer(np.diagonal(G_nn), np.diagonal(G_nn))
        plus_nn = 2 * together - minus_nn
        plus_nn[plus_nn <= ROUNDING * together] = 0.0
        width = None
        if self.kind == "hsic":
            across, along = squareform(plus_nn, checks=False), squareform(minus_nn, checks=False)
            width = median_distance(np.concatenate([across, across, along, along, np.diagonal(plus_nn)]))
        near, far = (similarity_from_distances(each, self.kind, width) for each in (minus_nn, plus_nn))
        return np.subtract(near, far) * 2.0


def _factor(levels_n: NDArray[np.intp]) -> Array:
    """``F`` with ``F F^T`` the similarity of labels, up to a constant: one column for two labels, else one a label."""
    count = int(levels_n.max()) + 1
    if count == 2:
        return np.array([[-0.5], [0.5]])[levels_n] * math.sqrt(2)
    return np.eye(count)[levels_n]


def _exchangeable(groups: NDArray[np.intp], levels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rows of strata with two different levels or more, sorted by stratum."""
    both = np.unique(np.stack([groups, levels], 1), axis=0)
    varied = np.bincount(both[:, 0], minlength=int(groups.max()) + 1) > 1
    order = np.argsort(groups, kind="stable")
    return order[varied[groups[order]]]


def _too_few(groups: NDArray[np.intp], levels: NDArray[np.intp], left_out: int) -> str:
    """The reason where fewer arrangements are possible than a p-value of .05 needs."""
    if not len(groups):
        return (
            f"no stratum has two rows that differ in U, so that none of {left_out} rows can change places: give each "
            "case with several instructions in its data"
        )
    cells, in_cell = np.unique(np.stack([groups, levels], 1), axis=0, return_counts=True)
    ways = float(gammaln(np.bincount(groups) + 1).sum() - gammaln(in_cell + 1).sum())
    if ways >= math.log(ARRANGEMENTS) - 1e-9:
        return ""
    return (
        f"{len(groups)} rows in {len(np.unique(cells[:, 0]))} strata can change places in {round(math.exp(ways))} "
        f"ways, expected at least {ARRANGEMENTS}: give more rows or cases"
    )


def _constant(total: float, inner: float, n: int) -> str:
    """The reason where ``R`` does not vary."""
    if not total:
        return f"R is the same in all {n} rows: it has collapsed, or was read where nothing has come in yet"
    if not inner:
        return f"R is the same in all rows of each of its strata ({n} rows): it was read before U comes in"
    return ""
