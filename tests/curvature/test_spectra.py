"""Spectra against closed forms and against what defines them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.close import assert_close
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.spectra import effective_rank, eigenbasis, rank, rank_note


def inputs(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs whose directions have very unequal energy, as those of a real layer."""
    dice = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=dice))[0]
    return torch.randn(tokens, width, generator=dice) * torch.logspace(0, -2, width) @ turn


def gram(h_ni: Tensor) -> Tensor:
    return h_ni.T @ h_ni


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [10, 500])
def test_basis_is_orthonormal_descending_and_rebuilds_the_moment(tokens: int, dtype: torch.dtype) -> None:
    C_ii = gram(inputs(tokens, 48).to(dtype))
    U_ii, s_i = eigenbasis(C_ii)
    assert (U_ii.dtype, s_i.dtype) == (dtype, dtype)
    assert (U_ii.double().T @ U_ii.double() - torch.eye(48)).abs().max() <= 1e-6
    assert (s_i[:-1] >= s_i[1:]).all()
    assert (s_i >= 0).all()
    assert_close(U_ii @ s_i.diag() @ U_ii.T, C_ii, "float32")


def test_two_by_two_matrix_has_the_textbook_basis() -> None:
    U_ii, s_i = eigenbasis(torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=torch.float64))
    assert_close(s_i, [3.0, 1.0], "float64")
    assert_close(U_ii * math.sqrt(2), [[1.0, 1.0], [-1.0, 1.0]], "float64")


def test_first_of_the_largest_entries_of_each_vector_is_positive() -> None:
    U_ii, _ = eigenbasis(gram(inputs(500, 48)))
    for vector_i in U_ii.T:
        assert vector_i[vector_i.abs().argmax()] > 0


def test_scaling_a_moment_scales_its_values_and_keeps_its_vectors() -> None:
    C_ii = gram(inputs(200, 16).double())
    U_ii, s_i = eigenbasis(C_ii)
    U_scaled, s_scaled = eigenbasis(4 * C_ii)
    assert_close(U_scaled, U_ii, "float64")
    assert_close(s_scaled, 4 * s_i, "float64")


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_sum_in_bfloat16_is_refused_even_after_a_cast(scale: float) -> None:
    h_ni = inputs(2000, 48) * scale
    total = torch.zeros(48, 48, dtype=torch.bfloat16)
    for part in h_ni.bfloat16().split(100):
        total += part.T @ part
    with pytest.raises(NumericsError, match=r"moment of layers.0.mlp_input is not (positive|symm)"):
        eigenbasis(total.float(), "layers.0.mlp_input")
    eigenbasis(gram(h_ni.bfloat16().float()))


@pytest.mark.parametrize(
    ("C_ii", "sentence"),
    [
        (torch.tensor([[1.0, 0.0], [0.0, -0.01]]), r"not positive semi-definite: got a smallest eigenvalue of -0.01"),
        (-torch.eye(2), "not positive semi-definite: got a smallest eigenvalue of -1"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "not positive semi-definite"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), r"not symmetric: got C_ij and C_ji 0.1 apart"),
        (torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), "not finite"),
        (torch.full((2, 2), torch.inf), "not finite"),
        (torch.zeros(3, 3), "is zero"),
        (torch.eye(2).bfloat16(), r"got torch.bfloat16 \(2, 2\), expected a square matrix in float32"),
        (torch.ones(2, 3), r"got torch.float32 \(2, 3\)"),
    ],
)
def test_what_is_no_second_moment_is_refused(C_ii: Tensor, sentence: str) -> None:
    with pytest.raises(NumericsError, match=f"second moment of x .*{sentence}|second moment of x {sentence}"):
        eigenbasis(C_ii, "x")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(2, 24), st.integers(0, 10**6))
def test_rank_is_the_number_of_tokens_or_the_width(tokens: int, width: int, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    h_ni = torch.randn(tokens, width, generator=dice, dtype=torch.float64)
    _, s_i = eigenbasis(gram(h_ni))
    assert rank(s_i) == min(tokens, width)


def test_too_few_tokens_are_named_with_what_they_mean() -> None:
    _, s_i = eigenbasis(gram(inputs(10, 48)))
    note = rank_note(s_i, 10, "layers.0.mlp_input")
    assert note is not None
    assert note.startswith("layers.0.mlp_input: rank 10 of 48 (only 10 tokens). These rows never use the other 38 dir")
    assert note.endswith("Give more rows to tell them apart.")


def test_inputs_in_a_subspace_are_told_from_too_few_tokens() -> None:
    _, s_i = eigenbasis(gram(inputs(500, 12) @ torch.eye(12, 48)))
    note = rank_note(s_i, 500, "x")
    assert note is not None
    assert "rank 12 of 48 (all 500 tokens lie in a subspace, up to rounding)" in note
    assert "more rows" not in note


def test_full_rank_needs_no_note() -> None:
    _, s_i = eigenbasis(gram(inputs(500, 48)))
    assert rank_note(s_i, 500, "x") is None


def test_energy_of_directions_that_were_never_used_is_none() -> None:
    h_ni = inputs(10, 48).double()
    U_ii, s_i = eigenbasis(gram(h_ni))
    assert_close(h_ni @ U_ii[:, rank(s_i) :], torch.zeros(10, 38), "float64")


@pytest.mark.parametrize("k", [1, 3, 8])
def test_equal_energies_have_their_number_as_effective_rank(k: int) -> None:
    s_i = torch.cat([torch.full((k,), 2.5), torch.zeros(8 - k)])
    assert_close(effective_rank(s_i), float(k))


def test_effective_rank_of_two_values_is_the_exponential_of_their_entropy() -> None:
    expected = math.exp(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    assert_close(effective_rank(torch.tensor([9.0, 1.0], dtype=torch.float64)), expected, "float64")
