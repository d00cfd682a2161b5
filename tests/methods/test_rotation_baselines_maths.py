import math

import pytest
import torch
from tests.close import assert_close
from torch import Tensor

from holdfast.layers import alignment
from holdfast.methods.rotation.baselines import maths


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(number: float) -> Tensor:
    """As it is: a plain number would be compared in float32."""
    return torch.tensor(number, dtype=torch.float64)


V, A, B = random(9, 7, seed=1), random(3, 7, seed=2), random(9, 3, seed=3)
C = V @ V.T / math.sqrt(float((V * V).sum()))
"""The published matrix, formed."""


@pytest.mark.parametrize(("X", "factor"), [(B, A), (B @ A, None)], ids=["factors", "whole"])
def test_alignment_similarity_and_penalty_equal_those_of_the_formed_matrix(X: Tensor, factor: Tensor | None) -> None:
    change = B @ A
    assert_close(alignment.toward_alignment(V, X), C @ X, "float64")
    cosine = float(((C @ change) * change).sum() / ((C @ change).norm() * change.norm()))
    assert_close(exact(alignment.similarity(V, X, factor)), exact(cosine), "float64")
    rest = (torch.eye(9, dtype=torch.float64) - C) @ change
    assert_close(maths.outside_alignment(V, X, factor), (rest**2).sum(), "float64")


def test_a_layer_that_did_not_change_is_wholly_like_its_alignment() -> None:
    assert alignment.similarity(V, torch.zeros_like(B), A) == 1.0


def test_gradient_of_the_proximal_term_is_rho_times_the_distance() -> None:
    weights = [random(4, 3, seed=4).requires_grad_(), random(5, seed=5).requires_grad_()]
    before = [random(4, 3, seed=6), random(5, seed=7)]
    value = maths.proximal(zip(weights, before, strict=True), 0.3)
    torch.autograd.backward(value)
    gaps = [(weight - at).detach() for weight, at in zip(weights, before, strict=True)]
    assert_close(value.detach(), exact(sum(0.3 / 2 * float((gap**2).sum()) for gap in gaps)), "float64")
    for weight, gap in zip(weights, gaps, strict=True):
        assert_close(weight.grad, 0.3 * gap, "float64")


def test_betas_are_those_of_the_paper_by_place() -> None:
    found = maths.token_betas(torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1]), 0.5, 2.0, 5, 0.1)
    assert_close(found, [0.5, 2, 2, 2, 2, 0.1, 0.1, 0.5, 2])


def test_without_early_tokens_all_betas_are_the_late_one() -> None:
    assert_close(maths.token_betas(torch.tensor([0, 1, 7]), 0.5, 2.0, 0, 0.1), [0.1, 0.1, 0.1])


def test_constrained_loss_is_its_formula_and_its_gradient_the_closed_form() -> None:
    logp, reference = -random(8, seed=8).abs(), -random(8, seed=9).abs()
    reference[0] = logp[0]
    beta = random(8, seed=10).abs() + 0.1
    logp.requires_grad_()
    loss = maths.constrained_loss(logp, reference, beta)
    torch.autograd.backward(loss.sum())
    assert logp.grad is not None
    for n in range(8):
        b, gap = float(beta[n]), float(logp[n].detach() - reference[n])
        assert_close(loss[n].detach(), exact(2 / b * math.log(1 + math.exp(-b * gap))), "float64")
        assert_close(logp.grad[n], exact(-2 / (1 + math.exp(b * gap))), "float64")
    assert_close(logp.grad[0], exact(-1.0), "float64")


def test_output_directions_are_the_leading_left_singular_vectors_of_the_outputs() -> None:
    W, X = random(6, 5, seed=11), random(5, 40, seed=12)
    energy, U = torch.linalg.eigh(X @ X.T)
    found = maths.output_directions(W, U, energy, 2)
    expected = torch.linalg.svd(W @ X).U[:, :2]
    assert_close(found @ found.T, expected @ expected.T, "float64")
    assert_close(found.T @ found, torch.eye(2), "float64")


def test_outside_removes_the_directions_and_keeps_the_rest() -> None:
    S = torch.linalg.qr(random(9, 2, seed=13)).Q
    kept = maths.outside(S, B)
    assert_close(S.T @ kept, torch.zeros(2, 3), "float64")
    assert_close(kept, (torch.eye(9, dtype=torch.float64) - S @ S.T) @ B, "float64")


def test_task_start_is_the_leading_part_of_the_weight_seen_through_the_tasks_outputs() -> None:
    W = random(6, 5, seed=14)
    T = torch.linalg.qr(random(6, 3, seed=15)).Q
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    found_A, found_B = maths.task_start(W, T, 2)
    leading = sum(s[k] * torch.outer(U[:, k], Vt[k]) for k in range(2))
    assert_close(found_B @ found_A, T @ T.T @ leading, "float64")
    assert_close(found_A @ found_A.T, torch.diag(s[:2]), "float64")


@pytest.mark.parametrize(("task", "share", "expected"), [(95, 0.05, 5), (900, 0.1, 100), (3, 0.01, 0)])
def test_replayed_rows_are_the_share_of_the_mixture(task: int, share: float, expected: int) -> None:
    assert maths.replayed(task, share) == expected
