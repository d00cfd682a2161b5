"""The spectrum of a plan: the generalized eigenproblem of its layers' two Fisher matrices, and its halves."""

import pytest
import torch
from tests.methods.merging.expert_plans import planned
from tests.zoo import tiny

from holdfast.curvature import fisher
from holdfast.curvature.gevp import gevp
from holdfast.methods.merging.spectrum import spectra


def test_values_are_those_of_the_dense_problem_safety_over_utility() -> None:
    made = planned(tiny("llama"), n=6, damping=0.05)
    found = {spectrum.layer: spectrum for spectrum in spectra(made)}
    assert list(found) == list(made.deltas)
    for name, (utility, safety) in made.evidence.items():
        assert utility.gradients is not None
        assert safety.gradients is not None
        dense = gevp(fisher.full(safety.gradients.double()), fisher.full(utility.gradients.double()), damping=0.05)
        values = torch.tensor(found[name].values, dtype=torch.float64)
        assert torch.allclose(values, dense.values_k[: len(values)], rtol=1e-3, atol=1e-6)


def test_rows_that_agree_have_a_stable_leading_direction() -> None:
    made = planned(tiny("llama"), n=8)
    for name, (utility, safety) in list(made.evidence.items()):
        assert safety.gradients is not None
        assert utility.gradients is not None
        d = safety.gradients.shape[1]
        noise = torch.randn(8, d, generator=torch.Generator().manual_seed(0))
        same = torch.ones(d) * 10 + 0.01 * noise  # every row asks for one thing
        made.evidence[name] = (type(utility)(gradients=noise), type(safety)(gradients=same))  # type: ignore[index]
    for spectrum in spectra(made):
        assert spectrum.k == 1
        assert spectrum.stability > 0.5 > 3 * spectrum.by_chance


@pytest.mark.parametrize(
    "keys",
    [
        {"ranks": (2,)},
        {"ranks": (2, 2, 2)},
        {"rule": "regmean"},
        {"fisher": "kfac"},
        {"rule": "ties"},
    ],
)
def test_there_is_none_without_gradients_of_two_adapters(keys: dict[str, object]) -> None:
    assert spectra(planned(tiny("llama"), **keys)) == []  # type: ignore[arg-type]
