"""Each rival of repair against its formula, formed in float64 on a small layer."""

from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.training.helpers import examples
from tests.zoo import tiny
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.layers.adapters import LowRank
from holdfast.layers.address import LayerMap
from holdfast.methods.merging.rivals import maths
from holdfast.methods.merging.rivals.evidence import squares

OUT, IN, RANK = 7, 6, 2


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DELTA = LowRank(random(RANK, IN, seed=1), random(OUT, RANK, seed=2))
D = DELTA.B @ DELTA.A
V = random(OUT, IN, seed=3)


def test_scaling_scales() -> None:
    assert_close(maths.scaled(DELTA, 0.3).dense(), 0.3 * D, "float64")


def test_safe_lora_projects_a_layer_unlike_its_alignment_and_leaves_another_bit_for_bit() -> None:
    C = V @ V.T / (V * V).sum().sqrt()
    cosine = float(((C @ D) * D).sum() / ((C @ D).norm() * D.norm()))
    assert_close(maths.safe_lora(DELTA, V, cosine + 1e-9).dense(), C @ D)
    assert maths.safe_lora(DELTA, V, cosine - 1e-9) is DELTA


@pytest.mark.parametrize("directions", [1, 3, 50])
def test_lox_adds_the_best_approximation_of_the_alignment(directions: int) -> None:
    U, s, Wt = torch.linalg.svd(V, full_matrices=False)
    best = (U[:, :directions] * s[:directions]) @ Wt[:directions]
    assert_close(maths.lox(DELTA, V, 1.25, directions).dense(), D + 1.25 * best, "float64")


def parts(directions: int) -> tuple[Tensor, Tensor, Tensor]:
    """The change's fully and partly aligned parts and the rest, from formed projectors."""
    U, _, Wt = torch.linalg.svd(V, full_matrices=False)
    P = U[:, :directions] @ U[:, :directions].T
    Q = Wt[:directions].T @ Wt[:directions]
    beyond_p, beyond_q = torch.eye(OUT, dtype=torch.float64) - P, torch.eye(IN, dtype=torch.float64) - Q
    return P @ D @ Q, P @ D @ beyond_q + beyond_p @ D @ Q, beyond_p @ D @ beyond_q


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_csulora_is_the_point_of_least_penalised_change(directions: int) -> None:
    whole, penalty = D.square().sum(), 5.0
    kept, partly, rest = parts(directions)
    X = maths.csulora(DELTA, V, penalty, directions).dense().requires_grad_()
    U, _, Wt = torch.linalg.svd(V, full_matrices=False)
    P = U[:, :directions] @ U[:, :directions].T
    Q = Wt[:directions].T @ Wt[:directions]
    aligned = P @ X @ Q
    beyond = X - P @ X - X @ Q + aligned
    lost = (X - D).square().sum()
    lost = lost + penalty * partly.square().sum() / whole * (X - aligned - beyond).square().sum()
    lost = lost + penalty * rest.square().sum() / whole * beyond.square().sum()
    (slope,) = torch.autograd.grad(lost, X)
    assert_close(slope, torch.zeros_like(slope), "float64")
    assert_close(P @ X.detach() @ Q, kept, "float64")


def test_csulora_leaves_a_change_along_the_alignment_and_one_that_is_zero() -> None:
    U, _, Wt = torch.linalg.svd(V, full_matrices=False)
    along = LowRank(random(RANK, 3, seed=4) @ Wt[:3], U[:, :3] @ random(3, RANK, seed=5))
    assert_close(maths.csulora(along, V, 100.0, 3).dense(), along.dense(), "float64")
    nothing = LowRank(DELTA.A, 0 * DELTA.B)
    assert not maths.csulora(nothing, V, 1.0, 3).dense().any()


IMPORTANCE = random(OUT, IN, seed=6).square()
INPUTS = random(40, IN, seed=7) @ torch.diag(torch.linspace(0.3, 2.0, IN, dtype=torch.float64)) @ random(IN, IN, seed=8)
C_II = INPUTS.T @ INPUTS


def removed(share: float) -> Tensor:
    """Entries that IRR removes, by sorting."""
    opposed = [(float(IMPORTANCE[o, i]), o, i) for o in range(OUT) for i in range(IN) if D[o, i] * V[o, i] < 0]
    out = torch.zeros(OUT, IN, dtype=torch.bool)
    for _, o, i in sorted(opposed, reverse=True)[: round(share * len(opposed))]:
        out[o, i] = True
    return out


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_irr_is_optimal_brain_surgery_column_by_column(share: float) -> None:
    H = C_II + 0.01 * C_II.diagonal().mean() * torch.eye(IN, dtype=torch.float64)
    gone, wanted = removed(share), D.clone()
    for o in range(OUT):
        for i in range(IN):
            if gone[o, i]:
                inverse = torch.linalg.inv(H[i:, i:])
                wanted[o, i:] -= wanted[o, i] / inverse[0, 0] * inverse[0]
                wanted[o, i] = 0.0
    assert_close(maths.irr(D, V, IMPORTANCE, C_II, share, 0.01), wanted, "float64")


def test_irr_removes_what_opposes_the_alignment_and_its_recalibration_saves_outputs() -> None:
    gone = removed(0.5)
    found = maths.irr(D, V, IMPORTANCE, C_II, 0.5, 1e-6)
    assert not found[gone].any()
    assert bool(found[~gone].all())
    cut = torch.where(gone, 0.0, D)
    assert float((INPUTS @ (found - D).T).norm()) < float((INPUTS @ (cut - D).T).norm())


def test_irr_and_pruning_of_no_share_change_nothing() -> None:
    assert_close(maths.irr(D, V, IMPORTANCE, C_II, 0.0, 0.01), D, "exact")
    assert_close(maths.prune(D, IMPORTANCE, IMPORTANCE, 0.0, 0.01), D, "exact")


def test_irr_refuses_inputs_that_decide_nothing() -> None:
    with pytest.raises(NumericsError, match=r"not positive definite with damping 0\.01"):
        maths.irr(D, V, IMPORTANCE, torch.zeros(IN, IN), 0.5, 0.01)


def test_pruning_removes_the_entries_that_matter_to_safety_and_not_to_utility() -> None:
    use = random(OUT, IN, seed=9).square()
    ratio = [(float(IMPORTANCE[o, i] / (use[o, i] + 0.01 * use.mean())), o, i) for o in range(OUT) for i in range(IN)]
    wanted = D.clone()
    for _, o, i in sorted(ratio, reverse=True)[:13]:
        wanted[o, i] = 0.0
    assert_close(maths.prune(D, IMPORTANCE, use, 13 / (OUT * IN), 0.01), wanted, "exact")


def test_diagonal_fisher_is_the_mean_square_of_gradients_taken_one_row_at_a_time() -> None:
    loaded = tiny("llama")
    rows = [loaded.chat.training(row) for row in examples(5)]
    names = ["layers.0.q_proj", "layers.1.down_proj"]
    found = squares(loaded, rows, names)
    layers = LayerMap.of(loaded.model)
    for name in names:
        weight, total = layers.parameter(name), torch.zeros(layers.read(name).shape)
        for row in rows:
            total += _gradient(loaded, row, weight).square() / len(rows)
        assert_close(found[name], total)


def _gradient(loaded: Any, row: Any, weight: Tensor) -> Tensor:
    ids = torch.tensor([row.ids])
    logits = loaded.model(input_ids=ids).logits[0, :-1]
    wanted = [t for t in range(1, len(row.ids)) if row.response[t]]
    each = -logits.log_softmax(-1)[torch.tensor(wanted) - 1, ids[0, wanted]]
    (gradient,) = torch.autograd.grad(each.mean(), weight)
    return gradient
