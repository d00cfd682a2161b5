"""Causal graphs as equivalence classes: their edges, what data can tell of an expected graph, and how near two are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Literal

from numpy.typing import NDArray

from holdfast.core.errors import DataError, MissingExtra, NumericsError, did_you_mean

Kind = Literal["directed", "undirected"]


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of a graph; two are equal whatever their frequency."""

    source: str
    target: str
    kind: Kind = "directed"
    """``undirected`` where the data do not tell which way; the names are then sorted."""
    frequency: float | None = field(default=None, compare=False)
    """Share of the resamples with exactly this edge, orientation included; ``None`` where nothing was resampled."""

    def __post_init__(self) -> None:
        if self.kind == "undirected" and self.target < self.source:
            source, target = self.target, self.source
            object.__setattr__(self, "source", source)
            object.__setattr__(self, "target", target)

    @property
    def pair(self) -> frozenset[str]:
        """Its two ends."""
        return frozenset((self.source, self.target))

    def __str__(self) -> str:
        return f"{self.source} {'->' if self.kind == 'directed' else '-'} {self.target}"


@dataclass(frozen=True, slots=True)
class GraphScore:
    """How near a graph is to the one expected."""

    distance: int
    """Structural Hamming distance: pairs of variables whose edge differs (missing, extra or marked otherwise)."""
    pairs: int
    """All pairs of variables: the largest distance."""
    match: float
    """Edges of both, marks included, over pairs with an edge in either; 1 where neither has any. Every extra edge
    costs: the complete graph on four variables has at most .5 against three edges (its F1 would be .67)."""
    adjacency: float
    """The same without marks."""


def expected_graph(variables: Sequence[str], arrows: Iterable[tuple[str, str]]) -> tuple[Edge, ...]:
    """What PC finds without error where ``arrows`` are the causes: the directed graph's equivalence class.

    ``S -> R <- U, R -> O`` stays directed; without ``U`` it is ``S - R - O``, since data do not tell which way.

    Raises:
        MissingExtra: causal-learn is not installed.
        DataError: an unknown variable, or arrows in a circle.
    """
    if find_spec("causallearn") is None:
        raise MissingExtra("an expected causal graph", "verify")
    from causallearn.graph.Dag import Dag
    from causallearn.graph.GraphNode import GraphNode
    from causallearn.utils.DAG2CPDAG import dag2cpdag

    wanted = list(arrows)
    check_names([name for arrow in wanted for name in arrow], variables)
    try:
        TopologicalSorter({name: [a for a, b in wanted if b == name] for name in variables}).prepare()
    except CycleError as problem:
        raise DataError(f"Expected graph: got the circle {' -> '.join(problem.args[1])}, expected none.") from problem
    nodes = {name: GraphNode(name) for name in variables}
    graph = Dag(list(nodes.values()))
    for source, target in wanted:
        graph.add_directed_edge(nodes[source], nodes[target])
    return read_marks(dag2cpdag(graph).graph, tuple(variables))


def score_graph(found: Iterable[Edge], expected: Iterable[Edge], variables: Sequence[str]) -> GraphScore:
    """Compare two graphs over the same variables, as equivalence classes (see `expected_graph`).

    Raises:
        DataError: an unknown variable, or two edges of one graph between the same two.
    Reference:
        Tsamardinos, Brown & Aliferis, Machine Learning 65 (2006), for the distance.

    >>> names, truth = "SURO", [Edge("S", "R"), Edge("U", "R"), Edge("R", "O")]
    >>> score_graph([Edge("S", "R"), Edge("R", "O")], truth, names).match.__format__(".2f")
    '0.67'
    >>> score_graph([Edge(a, b) for a, b in ("SU", "SR", "UR", "SO", "UO", "RO")], truth, names).match
    0.5
    """
    one, other = _by_pair(found, variables), _by_pair(expected, variables)
    either = one.keys() | other.keys()
    both = one.keys() & other.keys()
    same = sum(one[pair] == other[pair] for pair in both)
    return GraphScore(
        distance=len(either) - same,
        pairs=len(variables) * (len(variables) - 1) // 2,
        match=same / len(either) if either else 1.0,
        adjacency=len(both) / len(either) if either else 1.0,
    )


def read_marks(marks: NDArray[Any], names: Sequence[str]) -> tuple[Edge, ...]:
    """Edges from causal-learn's matrix: ``marks[j, i] = 1, marks[i, j] = -1`` is ``i -> j``, twice -1 undirected.

    Raises:
        NumericsError: other marks, which PC and GES do not use.
    """
    edges = []
    for i, j in combinations(range(len(names)), 2):
        here, there = int(marks[i, j]), int(marks[j, i])
        if (here, there) == (0, 0):
            continue
        if (here, there) not in {(-1, 1), (1, -1), (-1, -1)}:
            raise NumericsError(f"Causal discovery: got the marks {here}, {there} between {names[i]} and {names[j]}.")
        source, target = (names[i], names[j]) if here == -1 else (names[j], names[i])
        edges.append(Edge(source, target, "undirected" if here == there else "directed"))
    return tuple(edges)


def _by_pair(edges: Iterable[Edge], variables: Sequence[str]) -> dict[frozenset[str], Edge]:
    given = list(edges)
    check_names([name for edge in given for name in edge.pair], variables)
    by_pair = {edge.pair: edge for edge in given}
    if len(by_pair) != len(given):
        raise DataError(f"Graph: got two edges between the same two variables in {listed(given)}, expected one.")
    return by_pair


def check_names(names: Iterable[str], variables: Sequence[str]) -> None:
    """Raise a `DataError` at the first name that is no variable."""
    for name in names:
        if name not in variables:
            raise DataError(f"Graph: unknown variable {name!r}. {did_you_mean(name, variables)}")


def listed(edges: Iterable[Edge]) -> str:
    """Edges as a reader reads them."""
    return ", ".join(map(str, edges)) or "no edge"
