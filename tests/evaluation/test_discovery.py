"""Known graphs come back from simulated data, and stay away where they should."""

from itertools import combinations

import numpy as np
import pytest

from holdfast.core.errors import DataError, MissingExtra, NumericsError
from holdfast.evaluation import discovery
from holdfast.evaluation.discovery import absence_verdict, clusters, discover, graph_verdict, resamples
from holdfast.evaluation.graphs import Edge

ATTACKED = (("S", "R"), ("U", "R"), ("R", "O"))
HARDENED = (("S", "R"), ("R", "O"))


def world(n, *, listens, seed):
    """Tasks S and injections U drawn apart; R holds the task and, where it listens, the injection; O follows R.

    Odd states of R lead to "followed" and one even state to "refused", so that S and U each show in O: a world in
    which an effect cancels, as in ``O = R % 3``, is not faithful, and PC turns ``R -> O`` round.
    """
    rng = np.random.default_rng(seed)
    S, U = rng.integers(0, 3, n), rng.integers(0, 3, n)
    told = (U == 0).astype(int) if listens else rng.integers(0, 2, n)
    R = np.where(rng.random(n) < 0.25, rng.integers(0, 6, n), 2 * S + told)
    done = np.where(rng.random(n) < 0.3, rng.integers(0, 3, n), np.where(R % 2 == 1, 1, 2 * (R == 4)))
    return {
        "S": [f"task {s}" for s in S],
        "U": [(None, "send", "say")[u] for u in U],
        "R": R,
        "O": [("done", "followed", "refused")[o] for o in done],
    }


@pytest.fixture(scope="module")
def attacked():
    return discover(world(1500, listens=True, seed=0), draws=40, seed=0)


@pytest.fixture(scope="module")
def hardened():
    return discover(world(1500, listens=False, seed=1), draws=40, seed=0)


def test_a_collider_and_its_effect_are_found_with_their_directions_at_1500_rows(attacked):
    assert set(attacked.edges) == {Edge(*arrow) for arrow in ATTACKED} == set(attacked.ges)
    assert min(edge.frequency for edge in attacked.edges) >= 0.75
    assert attacked.test == "chi-square"
    assert attacked.notes == ()
    verdict = graph_verdict(attacked, ATTACKED)
    assert verdict.holds is True
    assert verdict.statistic == 1.0
    assert absence_verdict(attacked, "U", "R").holds is False


def test_a_representation_that_ignores_the_injection_has_no_edge_to_it(hardened):
    assert set(hardened.edges) == {Edge("S", "R", "undirected"), Edge("R", "O", "undirected")} == set(hardened.ges)
    assert absence_verdict(hardened, "U", "R").holds is True
    assert hardened.adjacent("U", "R") <= 0.1
    assert graph_verdict(hardened, HARDENED).statistic == 1.0
    assert graph_verdict(hardened, ATTACKED).holds is False


def test_frequencies_of_a_pair_add_up_to_how_often_it_is_joined(attacked):
    for one, other in combinations(attacked.variables, 2):
        share = sum(edge.frequency for edge in attacked.seen if edge.pair == {one, other})
        assert attacked.adjacent(one, other) == attacked.adjacent(other, one) == share <= 1 + 1e-9
    assert {edge: edge.frequency for edge in attacked.edges}.items() <= {e: e.frequency for e in attacked.seen}.items()


def test_the_same_seed_finds_the_same_frequencies():
    rows = world(400, listens=True, seed=2)
    first, again = (discover(rows, draws=3, seed=5) for _ in range(2))
    assert first == again
    assert [edge.frequency for edge in first.seen] == [edge.frequency for edge in again.seen]


def test_numbers_are_tested_for_linear_dependence():
    rng = np.random.default_rng(0)
    S, U = rng.normal(size=(2, 600))
    R = S + U + rng.normal(size=600)
    found = discover({"S": S, "U": U, "R": R, "O": R + rng.normal(size=600)}, draws=20)
    assert found.test == "fisher-z"
    assert set(found.edges) == {Edge(*arrow) for arrow in ATTACKED}
    assert found.rows_per_cell is None


def test_resamples_do_not_join_what_is_independent():
    rng = np.random.default_rng(0)
    found = discover({name: rng.integers(0, 8, 600) for name in "abc"}, draws=40)
    assert np.mean([found.adjacent(*pair) for pair in combinations("abc", 2)]) <= 0.2


def test_resamples_hold_whole_groups_each_once_and_about_63_percent_of_them():
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 4))
    drawn = list(resamples([np.flatnonzero(owner == group) for group in range(100)], draws=200, seed=0))
    assert all(set(np.bincount(owner[rows], minlength=100).tolist()) == {0, 4} for rows in drawn)
    assert all(len(np.unique(rows)) == len(rows) for rows in drawn)
    shares = [len(rows) / 400 for rows in drawn]
    assert abs(np.mean(shares) - (1 - 0.99**100)) <= 4 * np.std(shares) / np.sqrt(200)


def test_rows_of_one_group_are_drawn_together():
    rows = {name: np.repeat(values, 4) for name, values in world(30, listens=True, seed=0).items()}
    found = discover(rows, np.repeat(np.arange(30), 4), draws=2)
    assert (found.n, found.groups) == (120, 30)


def test_a_representation_that_is_a_function_of_the_task_is_named_and_the_verdict_abstains():
    rows = world(1500, listens=False, seed=3)
    task = np.array([int(name[-1]) for name in rows["S"]])
    rng = np.random.default_rng(3)
    found = discover(
        {**rows, "R": task, "O": np.where(rng.random(1500) < 0.3, rng.integers(0, 3, 1500), task)}, draws=2
    )
    assert ("R", ("S",)) in found.determined
    assert any(note.startswith("R is a function of S: ") for note in found.notes)
    assert not any(edge.pair == {"R", "O"} for edge in found.edges)  # it is there: faithfulness fails
    verdict = graph_verdict(found, HARDENED)
    assert verdict.holds is None
    assert "R is a function of S" in verdict.reason


def test_an_outcome_that_never_changes_is_named_and_nothing_is_concluded_about_it():
    found = discover({**world(600, listens=True, seed=4), "O": ["done"] * 600}, draws=2)
    assert found.constant == ("O",)
    assert not any("O" in edge.pair for edge in found.edges)
    verdict = absence_verdict(found, "R", "O")
    assert verdict.holds is None
    assert "O: one value only" in verdict.reason


def test_thin_tables_are_said():
    rng = np.random.default_rng(0)
    found = discover({name: rng.integers(0, 9, 200) for name in "abc"}, draws=1)
    assert found.rows_per_cell == pytest.approx(200 / 9**3)
    assert any("0.27 rows a cell" in note for note in found.notes)


FLOATS = np.random.default_rng(0).normal(size=(3, 50))


@pytest.mark.parametrize(
    ("table", "groups", "error", "said"),
    [
        ({"a": [1, 2], "b": [1, 2]}, None, DataError, "at least 3 variables"),
        ({"a": [1, 2], "b": [1, 2], "c": [1]}, None, DataError, "lengths"),
        ({"a": FLOATS[0], "b": FLOATS[1], "c": ["x", "y"] * 25}, None, DataError, "no test fits both"),
        ({"a": FLOATS[0], "b": FLOATS[1], "c": np.ones(50)}, None, DataError, "does not vary"),
        ({"a": FLOATS[0], "b": FLOATS[1], "c": FLOATS[2] * np.nan}, None, DataError, "not finite"),
        ({"a": FLOATS[0], "b": FLOATS[1], "c": FLOATS[0] - FLOATS[1]}, None, NumericsError, "linear function"),
        (dict(zip("abc", FLOATS, strict=True)), [0] * 25 + [1] * 25, DataError, "got 2 groups"),
        (dict(zip("abc", FLOATS, strict=True)), [0, 1], DataError, "2 group keys for 50 rows"),
        ({"a": [], "b": [], "c": []}, None, DataError, "and some rows"),
    ],
)
def test_tables_that_cannot_be_tested_are_refused(table, groups, error, said):
    with pytest.raises(error, match=said):
        discover(table, groups)


def test_without_causal_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(discovery, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"holdfast\[verify\]"):
        discover(world(100, listens=True, seed=0))


def test_clusters_are_the_groups_of_representations_at_3072_dimensions():
    rng = np.random.default_rng(0)
    centres, truth = rng.normal(size=(4, 3072)), rng.integers(0, 4, 200)
    labels = clusters(centres[truth] + 0.5 * rng.normal(size=(200, 3072)), 4, seed=1)
    assert len({(a, b) for a, b in zip(labels, truth, strict=True)}) == 4 == len(set(labels.tolist()))


@pytest.mark.parametrize(
    ("R", "k", "said"),
    [
        (np.full((30, 5), 0.1), 3, "same in all rows"),
        (np.full((30, 5), np.inf), 3, "not finite"),
        (np.zeros((3, 5)), 4, "4 clusters"),
        (np.zeros(30), 3, "expected \\(rows"),
    ],
)
def test_representations_that_cannot_be_clustered_are_refused(R, k, said):
    with pytest.raises(NumericsError, match=said):
        clusters(R, k)
