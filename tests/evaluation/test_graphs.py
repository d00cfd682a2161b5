"""What data can tell of a graph, against all graphs of its size; and a score that extra edges lower."""

from itertools import combinations, product

import pytest

from holdfast.core.errors import DataError, MissingExtra
from holdfast.evaluation import graphs
from holdfast.evaluation.graphs import Edge, expected_graph, score_graph

NAMES = ("S", "U", "R", "O")
PAIRS = list(combinations(NAMES, 2))
TRUTH = [Edge("S", "R"), Edge("U", "R"), Edge("R", "O")]


def acyclic(arrows):
    left, arrows = set(NAMES), set(arrows)
    while left:
        roots = {name for name in left if not any(b == name and a in left for a, b in arrows)}
        if not roots:
            return False
        left -= roots
    return True


def colliders(arrows):
    joined = {frozenset(arrow) for arrow in arrows}
    return frozenset(
        (frozenset((a, c)), b)
        for (a, b), (c, d) in combinations(sorted(arrows), 2)
        if b == d and frozenset((a, c)) not in joined
    )


def all_graphs():
    for marks in product((0, 1, 2), repeat=len(PAIRS)):
        arrows = frozenset((a, b) if m == 1 else (b, a) for (a, b), m in zip(PAIRS, marks, strict=True) if m)
        if acyclic(arrows):
            yield arrows


def test_an_edge_is_directed_exactly_where_all_graphs_with_the_same_joins_and_colliders_agree():
    every = list(all_graphs())
    assert len(every) == 543
    classes = {}
    for arrows in every:
        classes.setdefault((frozenset(map(frozenset, arrows)), colliders(arrows)), []).append(arrows)
    assert len(classes) == 185
    for members in list(classes.values())[::4]:
        always = frozenset.intersection(*members)
        wanted = {Edge(*arrow) if arrow in always else Edge(*arrow, "undirected") for arrow in members[0]}
        assert set(expected_graph(NAMES, members[-1])) == wanted


def test_the_expected_graph_scores_1_and_the_empty_one_0():
    score = score_graph(TRUTH, TRUTH, NAMES)
    assert (score.match, score.adjacency, score.distance, score.pairs) == (1.0, 1.0, 0, 6)
    score = score_graph([], TRUTH, NAMES)
    assert (score.match, score.adjacency, score.distance) == (0.0, 0.0, 3)


@pytest.mark.parametrize("kind", ["directed", "undirected"])
def test_no_complete_graph_reaches_the_target(kind):
    complete = [Edge(a, b, kind) for a, b in (("S", "R"), ("U", "R"), ("R", "O"), ("S", "U"), ("S", "O"), ("U", "O"))]
    score = score_graph(complete, TRUTH, NAMES)
    assert score.match == (0.5 if kind == "directed" else 0.0)
    assert score.adjacency == 0.5
    assert score.distance == (3 if kind == "directed" else 6)


def test_every_extra_missing_or_turned_edge_costs():
    extra = score_graph([*TRUTH, Edge("S", "O")], TRUTH, NAMES)
    missing = score_graph(TRUTH[:2], TRUTH, NAMES)
    turned = score_graph([*TRUTH[:2], Edge("O", "R")], TRUTH, NAMES)
    open_ended = score_graph([*TRUTH[:2], Edge("O", "R", "undirected")], TRUTH, NAMES)
    assert (extra.match, extra.distance) == (0.75, 1)
    assert (missing.match, missing.distance) == (pytest.approx(2 / 3), 1)
    assert turned == open_ended
    assert (turned.match, turned.adjacency, turned.distance) == (pytest.approx(2 / 3), 1.0, 1)


def test_no_edge_where_none_is_expected_is_a_full_match():
    assert score_graph([], [], NAMES).match == 1.0


def test_an_undirected_edge_has_no_order_and_equality_ignores_frequency():
    assert Edge("S", "R", "undirected", 0.5) == Edge("R", "S", "undirected")
    assert Edge("S", "R") != Edge("R", "S")
    assert str(Edge("S", "R", "undirected")) == "R - S"


def test_unknown_names_circles_and_doubled_edges_are_refused(monkeypatch):
    with pytest.raises(DataError, match="unknown variable 'Q'"):
        expected_graph(NAMES, [("S", "Q")])
    with pytest.raises(DataError, match="circle"):
        expected_graph(NAMES, [("S", "R"), ("R", "O"), ("O", "S")])
    with pytest.raises(DataError, match="two edges"):
        score_graph([Edge("S", "R"), Edge("R", "S")], TRUTH, NAMES)
    monkeypatch.setattr(graphs, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"holdfast\[verify\]"):
        expected_graph(NAMES, [])
