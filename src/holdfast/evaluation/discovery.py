"""Causal discovery: which named variables speak to which, how stable every edge is, how near to the graph expected.

PC (causal-learn's) removes an edge where a test finds its ends independent given some of the others, and orients what
the removals tell. It finds a class of graphs: an edge is directed where all graphs of the class agree. GES, which
scores whole graphs, is run once as a cross-check.

The test fits the variables. Labels: Pearson's chi-square (not G: its mean stays right in thin tables). Numbers
(floats): Fisher's z, which sees linear dependence. A mixture is refused; `clusters` makes labels of representations.

What the answer rests on:

- **Faithfulness.** A variable that others determine exactly is independent of everything given them, so PC drops true
  edges: with ``R = f(S)``, ``R -> O`` is lost. Such variables are found, named, and make a failed `verdict` abstain.
  So clusters of R must be finer than the tasks. Effects that cancel mislead PC likewise, and no note can tell.
- **Power.** A missing edge is a test that did not reject. `Discovery.notes` says where tables are thin.
- **Independent rows.** Rows of one group differ in what was done to them. A trait that a group keeps and no variable
  names counts as many times as the group has rows, and can pass for an edge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans, vq

from holdfast.core.errors import DataError, MissingExtra, NumericsError
from holdfast.core.results import Verdict
from holdfast.evaluation.graphs import Edge, check_names, expected_graph, listed, read_marks, score_graph

Test = Literal["chi-square", "fisher-z"]
LEAST_GROUPS = 20
"""Below this, a resample may hold a handful of groups."""
THIN = 5.0
"""Rows a cell below which a table is called thin: Cochran's rule."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found, and how stable it is."""

    variables: tuple[str, ...]
    test: Test
    edges: tuple[Edge, ...]
    """PC's on all rows, each with its frequency over the resamples."""
    seen: tuple[Edge, ...]
    """Every edge of any resample, the most frequent first."""
    ges: tuple[Edge, ...]
    """GES's on all rows (BDeu for labels, BIC for numbers)."""
    n: int
    groups: int
    alpha: float
    draws: int
    seed: int
    constant: tuple[str, ...]
    """Variables with one value: nothing can be joined to them."""
    determined: tuple[tuple[str, tuple[str, ...]], ...]
    """A variable, and the fewest others that determine it exactly."""
    rows_per_cell: float | None
    """Rows over cells, of the largest table of two variables given a third; ``None`` for numbers."""

    def adjacent(self, one: str, other: str) -> float:
        """Share of the resamples in which two variables are joined, whichever way.

        Raises:
            DataError: an unknown variable.
        """
        check_names((one, other), self.variables)
        pair = frozenset((one, other))
        return sum(edge.frequency or 0.0 for edge in self.seen if edge.pair == pair)

    @property
    def notes(self) -> tuple[str, ...]:
        """What weakens the answer, a sentence each."""
        said = [f"{name} has one value, so no edge can be found at it." for name in self.constant]
        said += [
            f"{name} is a function of {' and '.join(others)}: given {'that' if len(others) == 1 else 'those'}, it is "
            "independent of everything, and its edges to others can be lost."
            for name, others in self.determined
        ]
        if self.rows_per_cell is not None and self.rows_per_cell < THIN:
            said.append(
                f"The largest table has {self.rows_per_cell:.2g} rows a cell, below {THIN:g}: a missing edge says "
                "little. Fewer labels or more rows would help."
            )
        if set(self.ges) != set(self.edges):
            said.append(f"GES finds another graph: {listed(self.ges)}.")
        return tuple(said)


def discover(
    table: Mapping[str, Sequence[Hashable] | NDArray[Any]],
    groups: Sequence[Hashable] | None = None,
    *,
    alpha: float = 0.01,
    draws: int = 200,
    seed: int = 0,
) -> Discovery:
    """Find the graph of some variables with PC, and how often each edge is found again in resamples of the groups.

    A resample draws as many groups as there are, with replacement, and keeps each drawn group once (about 63 % of
    them): a group that is there twice is no new evidence, and a test that takes it for some finds edges everywhere.

    Args:
        table: By name, one value a row: labels, or floats for all variables.
        groups: One key a row, e.g. ``Example.group``; ``None`` makes every row a group of its own.
        alpha: Level of every test. PC makes about ten of them on four variables, and one wrong answer is a wrong graph.
        draws: Resamples.
        seed: Of the resampling.
    Returns:
        Edges with frequencies, GES's graph, and what weakens them.
    Raises:
        MissingExtra: causal-learn is not installed.
        DataError: fewer than 3 variables or 20 groups, columns of unequal length, labels mixed with numbers, numbers
            that are not finite or do not vary.
        NumericsError: numbers that are linear functions of each other.
    Reference:
        Spirtes, Glymour & Scheines, Causation, Prediction, and Search (2nd ed., 2000), 5.4.2; Chickering, JMLR 3
        (2002), for GES; Friedman, Goldszmidt & Wyner, UAI 1999, for the resampling of graphs.
    """
    if find_spec("causallearn") is None:
        raise MissingExtra("causal discovery", "verify")
    names = tuple(table)
    data, test = _columns(table)
    members = _members(groups, data)
    if not 0 < alpha < 1 or draws < 1:
        raise DataError(f"Causal discovery: got alpha={alpha}, draws={draws}, expected 0 < alpha < 1 and draws >= 1.")
    seen = Counter(
        edge for rows in resamples(members, draws=draws, seed=seed) for edge in _pc(data[rows], names, test, alpha)
    )
    counted = sorted(seen, key=lambda edge: (-seen[edge], str(edge)))
    return Discovery(
        variables=names,
        test=test,
        edges=tuple(_with_frequency(edge, seen[edge] / draws) for edge in _pc(data, names, test, alpha)),
        seen=tuple(_with_frequency(edge, seen[edge] / draws) for edge in counted),
        ges=_ges(data, names, test),
        n=len(data),
        groups=len(members),
        alpha=alpha,
        draws=draws,
        seed=seed,
        constant=tuple(name for name, column in zip(names, data.T, strict=True) if (column == column[0]).all()),
        determined=tuple(_determined(data, names)) if test == "chi-square" else (),
        rows_per_cell=_rows_per_cell(data) if test == "chi-square" else None,
    )


def resamples(members: Sequence[NDArray[np.intp]], *, draws: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Rows of groups drawn with replacement, each drawn group once.

    Args:
        members: The rows of each group.
    """
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = np.unique(rng.integers(0, len(members), len(members)))
        yield np.concatenate([members[group] for group in drawn])


def clusters(R_nd: NDArray[Any], k: int, *, components: int = 8, seed: int = 0) -> NDArray[np.intp]:
    """A label for each representation: k-means (best of 20 starts) on its first principal components.

    Take ``k`` larger than the number of tasks, or the labels may be a function of the task (see above), and
    small enough for five rows a cell.

    Args:
        R_nd: Representations, a row each, ``(n, d)``.
        k: Clusters at most; k-means drops the empty ones.
    Returns:
        ``(n,)``, in ``range(k)``.
    Raises:
        NumericsError: not two-dimensional, not finite, the same in all rows, or fewer rows than clusters.
    """
    X_nd = np.asarray(R_nd, dtype=np.float64)
    if X_nd.ndim != 2 or not 2 <= k <= len(X_nd) or components < 1:
        raise NumericsError(
            f"Clusters: got {k} clusters and {components} components for the shape {X_nd.shape}, expected (rows, "
            "coordinates), 2 clusters up to the number of rows, and 1 component or more."
        )
    if not np.isfinite(X_nd).all():
        raise NumericsError("Clusters: got representations that are not finite. Do: look for overflow in the model.")
    centred = X_nd - X_nd.mean(axis=0)
    if np.abs(centred).max() <= 1e-12 * np.abs(X_nd).max():
        raise NumericsError(
            "Clusters: the representation is the same in all rows, expected some variation. Do: check layer and token."
        )
    U_nk, s_k, _ = np.linalg.svd(centred, full_matrices=False)
    points = U_nk[:, :components] * s_k[:components]
    codebook, _ = kmeans(points, k, seed=np.random.default_rng(seed))
    return np.asarray(vq(points, codebook)[0], dtype=np.intp)


def graph_verdict(found: Discovery, arrows: Iterable[tuple[str, str]], *, least: float = 0.66) -> Verdict:
    """Whether PC's graph matches the expected one at least so much; ``statistic`` is the match.

    Where it does not and a variable is constant or determined by others, the verdict abstains: PC could not find it.

    Raises:
        MissingExtra, DataError: as `expected_graph`.
    """
    expected = expected_graph(found.variables, arrows)
    score = score_graph(found.edges, expected, found.variables)
    blind = bool(found.constant or found.determined)
    frequencies = ", ".join(f"{edge} {edge.frequency:.2f}" for edge in found.edges) or "no edge"
    reason = (
        f"found {frequencies} (share of {found.draws} resamples of {found.groups} groups); expected "
        f"{listed(expected)}; match {score.match:.2f}, distance {score.distance} of {score.pairs}"
    )
    return Verdict(
        name="causal graph",
        holds=True if score.match >= least else None if blind else False,
        statistic=score.match,
        p_value=None,
        n=found.n,
        null=f"none: PC's graph by {found.test} at level {found.alpha:g} is compared with the expected one",
        draws=found.draws,
        reason=" ".join((f"{reason}.", *found.notes)) if found.notes else reason,
    )


def absence_verdict(found: Discovery, one: str, other: str, *, most: float = 0.1) -> Verdict:
    """Whether two variables are joined neither on all rows nor in more than a share ``most`` of the resamples.

    It abstains where one of them is constant. An edge that is missing is a test that did not reject: what could have
    been seen is for an independence test with its power to say.

    Raises:
        DataError: an unknown variable.
    """
    share = found.adjacent(one, other)
    joined = any(edge.pair == frozenset((one, other)) for edge in found.edges)
    constant = [name for name in (one, other) if name in found.constant]
    reason = f"{'joined' if joined else 'not joined'} on all rows, joined in {share:.2f} of {found.draws} resamples"
    if constant:
        reason = f"{' and '.join(constant)}: one value only, so independence cannot be tested"
    return Verdict(
        name=f"no edge {one} - {other}",
        holds=None if constant else not joined and share <= most,
        statistic=share,
        p_value=None,
        n=found.n,
        null=f"{one} and {other} are independent, given some of the other variables",
        draws=found.draws,
        reason=reason,
    )


def _columns(table: Mapping[str, Sequence[Hashable] | NDArray[Any]]) -> tuple[NDArray[Any], Test]:
    """Columns of codes or of floats, ``(rows, variables)``."""
    lengths = {name: len(values) for name, values in table.items()}
    if len(table) < 3 or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(
            f"Causal discovery: got columns of the lengths {lengths}, expected at least 3 variables, with one value a "
            "row each, and some rows."
        )
    floats = [name for name, values in table.items() if all(isinstance(value, float | np.floating) for value in values)]
    if not floats:
        return np.column_stack([_codes(values) for values in table.values()]), "chi-square"
    if len(floats) < len(table):
        raise DataError(
            f"Causal discovery: got numbers in {', '.join(floats)} and labels in "
            f"{', '.join(name for name in table if name not in floats)}, expected one kind, since no test fits both. "
            "Do: make labels of the numbers, e.g. with clusters()."
        )
    data = np.column_stack([np.asarray(values, dtype=np.float64) for values in table.values()])
    if not np.isfinite(data).all() or (data == data[:1]).all(axis=0).any():
        raise DataError("Causal discovery: got a number that is not finite or a column that does not vary.")
    smallest = float(np.linalg.eigvalsh(np.corrcoef(data.T))[0])
    if smallest < 1e-10:
        raise NumericsError(
            f"Causal discovery: one of {', '.join(table)} is a linear function of the others (smallest eigenvalue of "
            f"their correlations {smallest:.1e}). Do: leave it out."
        )
    return data, "fisher-z"


def _codes(values: Iterable[Hashable]) -> NDArray[np.int64]:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(value, len(index)) for value in values], dtype=np.int64)


def _members(groups: Sequence[Hashable] | None, data: NDArray[Any]) -> list[NDArray[np.intp]]:
    keys = np.arange(len(data)) if groups is None else _codes(groups)
    if len(keys) != len(data):
        raise DataError(f"Causal discovery: got {len(keys)} group keys for {len(data)} rows, expected one each.")
    least = max(LEAST_GROUPS, 4 * data.shape[1])
    if len(set(keys.tolist())) < least:
        raise DataError(
            f"Causal discovery: got {len(set(keys.tolist()))} groups of rows, expected at least {least}, since whole "
            "groups are resampled. Do: give more scenarios, or groups=None where rows are independent."
        )
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def _pc(data: NDArray[Any], names: tuple[str, ...], test: Test, alpha: float) -> tuple[Edge, ...]:
    from causallearn.search.ConstraintBased.PC import pc

    method = {"chi-square": "chisq", "fisher-z": "fisherz"}[test]
    return read_marks(pc(data, alpha, method, show_progress=False, node_names=list(names)).G.graph, names)


def _ges(data: NDArray[Any], names: tuple[str, ...], test: Test) -> tuple[Edge, ...]:
    from causallearn.search.ScoreBased.GES import ges

    score = {"chi-square": "local_score_BDeu", "fisher-z": "local_score_BIC"}[test]
    return read_marks(ges(data, score_func=score, node_names=list(names))["G"].graph, names)


def _with_frequency(edge: Edge, frequency: float) -> Edge:
    return Edge(edge.source, edge.target, edge.kind, frequency)


def _determined(data: NDArray[Any], names: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Variables that vary and yet have one value in every stratum of some others, which hold two rows on average."""
    for j, name in enumerate(names):
        rest = [i for i in range(len(names)) if i != j]
        known: list[set[int]] = []
        if (data[:, j] == data[0, j]).all():
            continue
        for size in range(1, len(rest) + 1):
            for others in combinations(rest, size):
                strata = len(np.unique(data[:, others], axis=0))
                if any(less <= set(others) for less in known) or len(data) < 2 * strata:
                    continue
                if len(np.unique(data[:, (*others, j)], axis=0)) == strata:
                    known.append(set(others))
                    yield name, tuple(names[i] for i in others)


def _rows_per_cell(data: NDArray[Any]) -> float:
    sizes = sorted(len(np.unique(column)) for column in data.T)
    return len(data) / float(np.prod(sizes[-3:]))
