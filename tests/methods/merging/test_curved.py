"""From evidence to merged cores: each form of Fisher matrix against dense float64 matrices made of the gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from tests.close import assert_close
from tests.methods.merging.test_maths import drawn, solved
from torch import Tensor

from holdfast.core.errors import ConfigError, NumericsError
from holdfast.methods.merging.config import LAYER_WEIGHTS, MergingConfig
from holdfast.methods.merging.curved import Layer, merged_cores, with_parts
from holdfast.methods.merging.evidence import Evidence

SIZES = {"layers.0.q_proj": (4, 3), "layers.0.up_proj": (2, 5), "layers.1.down_proj": (3, 3)}
WEIGHTS = (0.7, 1.6)
DAMPING = 0.05
NARROW: dict[str, Callable[[Tensor], Tensor]] = {
    "diagonal": lambda G_nd: G_nd.square().mean(0),
    "gradient_variance": lambda G_nd: G_nd.var(0, unbiased=False),
}


def layers(count: int = 2, n: int = 30, *, same_rows: bool = True) -> list[Layer]:
    """Gradients of each adapter's rows on layers of several sizes."""
    found: list[Layer] = []
    for number, (name, (p, q)) in enumerate(SIZES.items()):
        scale_d = torch.linspace(0.2, 2.0, p * q)
        rows = [n if same_rows else n - 7 * t for t in range(count)]
        seen = [Evidence(gradients=drawn(rows[t], p * q, seed=10 * number + t) * scale_d.roll(t)) for t in range(count)]
        found.append((name, drawn(count, p, q, seed=70 + number), tuple(seen)))
    return found


def config(**keys: Any) -> MergingConfig:
    return MergingConfig(**({"damping": DAMPING} | keys))


def gradients_of(layer: Layer) -> list[Tensor]:
    return [seen.gradients for seen in layer[2] if seen.gradients is not None]


def dense(G_nd: Tensor) -> Tensor:
    return G_nd.T @ G_nd / len(G_nd)


def expected(form: Callable[[Tensor], Tensor], given: Sequence[Layer], weights: Sequence[float]) -> dict[str, Any]:
    weights_t = torch.tensor(weights, dtype=torch.float64)
    return {
        layer[0]: solved(
            torch.stack([form(G_nd) for G_nd in gradients_of(layer)]), layer[1].flatten(1), weights_t
        ).reshape(layer[1].shape[1:])
        for layer in given
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Any], tolerance: str = "float64") -> None:
    assert found.keys() == wanted.keys()
    for name, M_pq in found.items():
        assert_close(M_pq, wanted[name], tolerance)


@pytest.mark.parametrize("rule", [{}, {"fisher": "full"}])
def test_the_full_form_is_a_dense_solve_of_every_layer(rule: dict[str, Any]) -> None:
    given = layers()
    assert_same(merged_cores(config(**rule), WEIGHTS, given), expected(dense, given, WEIGHTS))


@pytest.mark.parametrize("columns", [1, 5, 4096])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_fewer_rows_than_coordinates_the_same_solve_is_made_in_their_span(
    count: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many coordinates are looked at together; no matrix of a layer's coordinates is made."""
    monkeypatch.setattr("holdfast.methods.merging.maths.COLUMNS", columns)
    monkeypatch.setattr("holdfast.methods.merging.curved.fisher.full", lambda _: pytest.fail("a matrix was made"))
    given, weights = layers(count, n=8 // count), (0.7, 1.6, 0.4)[:count]
    assert_same(merged_cores(config(), weights, given), expected(dense, given, weights))


def test_a_layer_of_very_many_coordinates_is_solved_exactly() -> None:
    """Scales four decades apart and float32 gradients, as layers have them, against the equations themselves."""
    n, p, q = 24, 70, 72
    scale_d = torch.logspace(-4, 0, p * q)
    G_tnd = [(drawn(n, p * q, seed=t) * scale_d.roll(700 * t)).float() for t in range(3)]
    M_tpq, weights = drawn(3, p, q, seed=5), (0.7, 1.6, 0.4)
    found_d = merged_cores(config(damping=0.01), weights, [("x", M_tpq, [Evidence(G_nd) for G_nd in G_tnd])])["x"]
    residual_d, size = torch.zeros(p * q, dtype=torch.float64), 0.0
    for weight, G_nd, phi_d in zip(weights, G_tnd, M_tpq.flatten(1), strict=True):
        wide_nd = G_nd.double()
        eps = 0.01 * wide_nd.square().sum() / wide_nd.numel()
        apart_d = found_d.flatten() - phi_d
        residual_d += weight * (wide_nd.T @ (wide_nd @ apart_d) / n + eps * apart_d)
        size += float((weight * (wide_nd.T @ (wide_nd @ phi_d) / n + eps * phi_d)).norm())
    assert float(residual_d.norm()) < 1e-10 * size


def test_more_rows_than_coordinates_in_float32_are_solved_as_in_float64() -> None:
    """Scales four decades apart in a turned basis, where products in float32 lose the small ones."""
    p = q = 8
    turn_dd = torch.linalg.qr(drawn(p * q, p * q, seed=3)).Q
    scaled = [drawn(80, p * q, seed=t) * torch.logspace(0, -4, p * q) for t in range(2)]
    G_tnd, M_tpq = [(G_nd @ turn_dd.T).float() for G_nd in scaled], drawn(2, p, q, seed=5)
    given = [("layers.0.q_proj", M_tpq, [Evidence(G_nd) for G_nd in G_tnd])]
    F_tdd = torch.stack([dense(G_nd.double()) for G_nd in G_tnd])
    weights_t = torch.tensor(WEIGHTS, dtype=torch.float64)
    wanted = solved(F_tdd, M_tpq.flatten(1), weights_t, 1e-6).reshape(p, q)
    assert_same(merged_cores(config(damping=1e-6), WEIGHTS, given), {"layers.0.q_proj": wanted}, "float32")
    F_u, eps = F_tdd[0].numpy(), 1e-6 * float(F_tdd[0].trace()) / (p * q)
    B_dd, F_s = F_u + eps * np.eye(p * q), F_tdd[1].numpy()
    _, V_dk = scipy.linalg.eigh(F_s, B_dd, subset_by_index=(p * q - 20, p * q - 1))
    part = (V_dk @ (V_dk.T @ (B_dd @ M_tpq[1].flatten().numpy()))).reshape(p, q)
    found = projected(given, k=20, damping=1e-6)
    assert_same(found, {"layers.0.q_proj": M_tpq[0] + torch.tensor(part)}, "float32")


@pytest.mark.parametrize("form", NARROW)
def test_diagonal_forms_are_dense_solves_of_diagonal_matrices(form: str) -> None:
    given = layers()
    wanted = expected(lambda G_nd: NARROW[form](G_nd).diag(), given, WEIGHTS)
    assert_same(merged_cores(config(fisher=form), WEIGHTS, given), wanted)
    if form == "diagonal":
        assert_same(merged_cores(config(rule="fisher"), WEIGHTS, given), wanted)


def test_the_topk_form_counts_the_share_of_largest_squares() -> None:
    def form(G_nd: Tensor) -> Tensor:
        squares = G_nd.square().mean(0).numpy()
        kept = int(np.ceil(0.5 * len(squares)))
        return torch.tensor(np.where(squares >= np.sort(squares)[-kept], squares, 0)).diag()

    given = layers()
    wanted = expected(form, given, WEIGHTS)
    assert_same(merged_cores(config(fisher="topk", share=0.5), WEIGHTS, given), wanted)


def test_the_block_form_forgets_what_outputs_have_to_do_with_each_other() -> None:
    given = layers()
    wanted = {}
    for name, M_tpq, seen in given:
        p, q = M_tpq.shape[1:]
        same = torch.kron(torch.eye(p), torch.ones(q, q)).bool()
        one = expected(lambda G_nd, same=same: dense(G_nd) * same, [(name, M_tpq, seen)], WEIGHTS)
        wanted |= one
    assert_same(merged_cores(config(fisher="block"), WEIGHTS, given), wanted)


def factored(count: int = 2) -> list[Layer]:
    found: list[Layer] = []
    for number, (name, (p, q)) in enumerate(SIZES.items()):
        sides = [[drawn(20, width, seed=number + 7 * t + width) for width in (q, p)] for t in range(count)]
        seen = [Evidence(inputs=A.T @ A / 20, outputs=G.T @ G / 20) for A, G in sides]
        found.append((name, drawn(count, p, q, seed=70 + number), tuple(seen)))
    return found


def test_the_kronecker_form_is_a_dense_solve_of_kronecker_products() -> None:
    given = factored()
    weights_t = torch.tensor(WEIGHTS, dtype=torch.float64)
    wanted = {}
    for name, M_tpq, seen in given:
        F_tdd = [np.kron(np.asarray(each.outputs), np.asarray(each.inputs)) for each in seen]
        wanted[name] = solved(F_tdd, M_tpq.flatten(1), weights_t).reshape(M_tpq.shape[1:])
    assert_same(merged_cores(config(fisher="kfac"), WEIGHTS, given), wanted, "float32")


def test_regmean_reads_the_inputs_alone() -> None:
    given = factored()
    weights_t = torch.tensor(WEIGHTS, dtype=torch.float64)
    wanted = {}
    for name, M_tpq, seen in given:
        rows = [
            solved(torch.stack([e.inputs for e in seen if e.inputs is not None]), M_tpq[:, p], weights_t)
            for p in range(M_tpq.shape[1])
        ]
        wanted[name] = np.stack(rows)
    assert_same(merged_cores(config(rule="regmean"), WEIGHTS, given), wanted)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("n", [30, 9])
def test_the_global_form_is_a_dense_solve_over_all_layers_side_by_side(count: int, n: int) -> None:
    """Also with fewer rows than coordinates, unlike numbers of rows, and any number of adapters."""
    given = layers(count, n + 7 * count, same_rows=False)
    weights = (0.7, 1.6, 0.4)[:count]
    G_tnd = [torch.cat([gradients_of(layer)[t] for layer in given], dim=1) for t in range(count)]
    phi_td = torch.cat([layer[1].flatten(1) for layer in given], dim=1)
    F_tdd = torch.stack([dense(G_nd) for G_nd in G_tnd])
    whole = solved(F_tdd, phi_td, torch.tensor(weights, dtype=torch.float64))
    places = np.split(whole, np.cumsum([p * q for p, q in SIZES.values()])[:-1])
    wanted = {name: part.reshape(SIZES[name]) for name, part in zip(SIZES, places, strict=True)}
    assert_same(merged_cores(config(fisher="global"), weights, given), wanted)
    if count > 1:
        apart = merged_cores(config(fisher="full"), weights, given)
        assert any((apart[name] - torch.tensor(wanted[name])).norm() > 0.05 for name in wanted)


EVERY = [
    *({"fisher": form} for form in ("full", "global", "block", "diagonal", "gradient_variance", "topk")),
    {"rule": "fisher"},
]
every = pytest.mark.parametrize("rule", [*EVERY, {"fisher": "kfac"}, {"rule": "regmean"}], ids=str)


def given_for(rule: dict[str, Any], count: int = 2) -> list[Layer]:
    return factored(count) if rule in ({"fisher": "kfac"}, {"rule": "regmean"}) else layers(count)


@every
def test_one_adapter_is_the_identity(rule: dict[str, Any]) -> None:
    given = given_for(rule, 1)
    assert_same(merged_cores(config(**rule), [0.3], given), {name: M_tpq[0] for name, M_tpq, _ in given}, "float32")


@every
def test_the_order_of_adapters_does_not_matter_and_weight_0_removes(rule: dict[str, Any]) -> None:
    given, order = given_for(rule, 3), [2, 0, 1]
    turned = [(name, M_tpq[order], [seen[t] for t in order]) for name, M_tpq, seen in given]
    there = merged_cores(config(**rule), (0.7, 1.6, 0.4), given)
    assert_same(merged_cores(config(**rule), (0.4, 0.7, 1.6), turned), there, "float32")
    fewer = [(name, M_tpq[:2], seen[:2]) for name, M_tpq, seen in given]
    without = merged_cores(config(**rule), (0.7, 1.6), fewer)
    assert_same(merged_cores(config(**rule), (0.7, 1.6, 0.0), given), without, "float32")


@every
def test_scaled_adapters_give_a_scaled_merge(rule: dict[str, Any]) -> None:
    given = given_for(rule)
    scaled = [(name, -3 * M_tpq, seen) for name, M_tpq, seen in given]
    whole = {name: -3 * M_pq for name, M_pq in merged_cores(config(**rule), WEIGHTS, given).items()}
    assert_same(merged_cores(config(**rule), WEIGHTS, scaled), whole, "float32")


def projected(given: Sequence[Layer], weights: Sequence[float] = (1.0, 1.0), **keys: Any) -> dict[str, Tensor]:
    made = config(rule="sst_projection", **keys)
    seen = with_parts(made, given)
    return merged_cores(made, weights, [(name, M_tpq, seen[name]) for name, M_tpq, _ in given])


def test_a_projection_of_all_directions_adds_the_whole_safety_update() -> None:
    name, (p, q) = "layers.0.q_proj", SIZES["layers.0.q_proj"]
    given = [layer for layer in layers() if layer[0] == name]
    for directions in ("efficient", "random", "utility"):
        found = projected(given, (2.0, 3.0), k=p * q, directions=directions)
        assert_same(found, {name: 2 * given[0][1][0] + 3 * given[0][1][1]})


def test_without_k_half_of_what_the_safety_rows_use_is_kept() -> None:
    given = [layer for layer in layers(n=6) if layer[0] == "layers.0.q_proj"]
    for count, rows in ((6, 3), (30, 6)):
        few = [(name, M_tpq, (layers()[0][2][0], layers(n=count)[0][2][1])) for name, M_tpq, _ in given]
        assert_same(projected(few), projected(few, k=rows))
        assert (projected(few)["layers.0.q_proj"] - projected(few, k=rows - 1)["layers.0.q_proj"]).norm() > 1e-3


def test_layer_weights_have_a_mean_of_1_unless_they_are_taken_raw() -> None:
    given = layers()
    kinds = {name: name.rpartition(".")[2] for name in SIZES}
    parts = {name: M_pq - layer[1][0] for layer in given for name, M_pq in projected([layer]).items()}
    for keys, weight_of in (
        ({}, LAYER_WEIGHTS),
        ({"layer_weights": {"q_proj": 4.0}}, {"q_proj": 4.0}),
        ({"layer_weights": {"q_proj": 4.0, "up_proj": 0.0}}, {"q_proj": 4.0, "up_proj": 0.0}),
    ):
        raw = {name: weight_of.get(kind, 1.0) for name, kind in kinds.items()}
        mean = sum(raw.values()) / len(raw)
        for flag, scale in (({}, mean), ({"raw_weights": True}, 1.0)):
            found = projected(given, **keys, **flag)
            got = {
                name: float(torch.vdot((found[name] - M_tpq[0]).flatten(), parts[name].flatten()))
                / float(parts[name].square().sum())
                for name, M_tpq, _ in given
            }
            assert got == pytest.approx({name: weight / scale for name, weight in raw.items()})
            if not flag:
                assert sum(got.values()) / len(got) == pytest.approx(1)


def test_random_directions_are_drawn_by_seed_and_differ_from_layer_to_layer() -> None:
    given = layers()
    first, again, other = (projected(given, directions="random", k=2, seed=seed) for seed in (1, 1, 2))
    for name in SIZES:
        assert torch.equal(first[name], again[name])
        assert not torch.allclose(first[name], other[name])
    twins = [(name, *layers()[0][1:]) for name in ("layers.0.q_proj", "layers.1.q_proj")]
    one, two = projected(twins, directions="random", k=2, seed=1).values()
    assert not torch.allclose(one, two)


def test_soft_weights_take_the_place_of_a_hard_k() -> None:
    given = layers()
    hard, soft = projected(given, k=2), projected(given, tau=1.0)
    all_of_it, nothing = projected(given, tau=1e-9), projected(given, tau=1e9)
    for name, M_tpq, _ in given:
        assert not torch.allclose(hard[name], soft[name])
        assert_close(nothing[name], M_tpq[0])
    share = sum(LAYER_WEIGHTS[name.rpartition(".")[2]] for name in SIZES) / len(SIZES)
    for name, M_tpq, _ in given:
        weight = LAYER_WEIGHTS[name.rpartition(".")[2]] / share
        assert_close(all_of_it[name], M_tpq[0] + weight * M_tpq[1])


ZEROS = [("layers.0.q_proj", drawn(2, 4, 3), (Evidence(gradients=torch.zeros(5, 12)),) * 2)]


@pytest.mark.parametrize(
    ("do", "error", "says"),
    [
        (
            lambda: projected(layers(n=5), k=6),
            ConfigError,
            r"k is larger than the evidence: got 6, expected at most 5, .* in layers.0.q_proj. Do: lower k, or give",
        ),
        (lambda: projected(layers(), k=13), ConfigError, "got 13, expected at most 12"),
        (
            lambda: projected(layers(), damping=1e-30, k=1) and projected(layers(n=3), damping=1e-30, k=1),
            NumericsError,
            "not positive definite.*Do: raise damping to at least",
        ),
        (
            lambda: projected(layers(), layer_weights=dict.fromkeys(("q_proj", "up_proj", "down_proj"), 0.0)),
            ConfigError,
            "layer_weights are 0 for all 3 layers",
        ),
        (lambda: merged_cores(config(), (1, 1), ZEROS), NumericsError, "layers.0.q_proj do not decide the merge"),
        (lambda: merged_cores(config(fisher="diagonal"), (1, 1), ZEROS), NumericsError, "layers.0.q_proj do not"),
        (lambda: merged_cores(config(fisher="block"), (1, 1), ZEROS), NumericsError, "layers.0.q_proj do not"),
        (lambda: merged_cores(config(fisher="global"), (1, 1), ZEROS), NumericsError, "all layers do not decide"),
    ],
)
def test_evidence_that_decides_nothing_and_choices_that_it_does_not_bear_are_refused(
    do: Callable[[], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        do()
