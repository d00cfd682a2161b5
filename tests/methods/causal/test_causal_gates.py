import pytest
import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.methods.causal import maths
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.gates import Watch, check, health
from holdfast.methods.causal.plan import Null

N, D = 64, 24


def drawn(seed: int, n: int = N) -> Tensor:
    """Representations with as many dimensions of unequal size, and a common part."""
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    return 2 + noise * torch.linspace(0.2, 3, D)


def null() -> Null:
    benign = drawn(0)
    scale = benign.std(0)
    return Null(scale, torch.zeros(3), 0.9, 0.1, maths.effective_rank(drawn(1), scale))


def looked(benign: Tensor, attacked: Tensor, obeyed: Tensor, config: CausalConfig | None = None) -> None:
    found = health(benign, attacked, obeyed, null(), config or CausalConfig())
    check("layers.1.mlp_input/prompt", found, null(), N)


def test_normal_representations_pass() -> None:
    looked(drawn(2), drawn(3), drawn(4))
    looked(drawn(2), drawn(2) + 0.01 * drawn(3), -0.5 * drawn(4))  # what training should lead to


def test_a_constant_trips_the_gate() -> None:
    with pytest.raises(NumericsError, match=r"collapsed at layers.1.mlp_input/prompt: got a variance of 0 of"):
        looked(drawn(2), torch.ones(N, D), drawn(4))


def test_one_bit_trips_the_gate() -> None:
    sign = torch.where(torch.arange(N) % 3 == 0, 1.0, -1.0)[:, None]
    with pytest.raises(NumericsError, match=r"an effective rank of 1.00, expected at least 2\.\d\d"):
        looked(drawn(2), 5 * sign * drawn(5, 1), drawn(4))


def test_one_bit_with_a_little_noise_trips_the_gate() -> None:
    sign = torch.where(torch.arange(N) % 3 == 0, 1.0, -1.0)[:, None]
    with pytest.raises(NumericsError, match="an effective rank"):
        looked(drawn(2), 50 * sign * drawn(5, 1) + 0.3 * drawn(3), drawn(4))


def test_opposite_vectors_trip_the_gate_at_the_floor() -> None:
    with pytest.raises(NumericsError, match=r"100\.0% of the floor.*opposite vectors"):
        looked(drawn(2), drawn(2), -drawn(2))


def test_views_that_are_alike_are_not_opposite_whatever_invariance_weighs() -> None:
    near = drawn(2) + 0.01 * drawn(3)
    looked(drawn(2), near, near + 0.3 * drawn(4), CausalConfig(lambda_causal=1.0, lambda_spurious=0.01))


def test_a_window_is_looked_at_when_it_is_whole() -> None:
    watch = Watch({"a": null()}, N, CausalConfig())
    views = [{"a": drawn(seed)} for seed in (2, 3, 4)]
    watch.see(*({"a": view["a"][:40]} for view in views))
    assert not watch.latest
    watch.see(*({"a": view["a"][40:]} for view in views))
    assert watch.latest["rank/a"] == pytest.approx(maths.effective_rank(drawn(3), null().scale_d))
    assert watch.latest.keys() == {"rank/a", "variance/a", "contrast/a"}
