from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.close import assert_close
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from holdfast.core.errors import ConfigError, MissingExtra
from holdfast.data.batches import IGNORE
from holdfast.methods.token_weighting.nll import Backend, per_token_nll, weighted_nll

missing = pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch before 2.13")
fused = pytest.param("fused", marks=missing)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@dataclass
class Problem:
    """Heads of one vocabulary over two lines, one of them so short that its labels vanish at the far horizons."""

    hidden: list[Tensor]
    embedding: Tensor
    bias: Tensor | None
    targets: list[Tensor]
    weights: list[Tensor]
    ids: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.hidden, self.embedding, *([] if self.bias is None else [self.bias])]


def problem(*, bias: bool, horizons: int = 4, width: int = 9, vocabulary: int = 13, d: int = 6) -> Problem:
    ids = torch.randint(vocabulary, (2, width), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :2] = IGNORE
    labels[1, 4:] = IGNORE  # two labels, gone from horizon 4 on
    weights_bt = drawn(2, width, seed=2).exp()
    weights_bt[0, 5] = 0
    targets, weights = [], []
    for h in range(1, horizons + 1):
        full = torch.full_like(labels, IGNORE)
        full[:, :-h] = labels[:, h:]
        moved = torch.zeros_like(weights_bt)
        moved[:, :-h] = weights_bt[:, h:]
        targets.append(full.reshape(-1))
        weights.append(moved.reshape(-1))
    hidden = [drawn(2 * width, d, seed=10 + h).requires_grad_() for h in range(horizons)]
    made_bias = drawn(vocabulary, seed=4).requires_grad_() if bias else None
    return Problem(hidden, drawn(vocabulary, d, seed=3).requires_grad_(), made_bias, targets, weights, ids)


LAMBDAS = (1.0, 0.5, 0.3, 0.7)


def total(made: Problem, loss_of: Callable[..., Tensor], *, tied: bool) -> Tensor:
    """``sum_h lambda_h sum_t w_t CE_th / sum_t w_t``; with tied embeddings the hidden states come from them too."""
    out = torch.zeros((), dtype=torch.double)
    for factor, h, targets, weights in zip(LAMBDAS, made.hidden, made.targets, made.weights, strict=True):
        states = h + made.embedding[made.ids.reshape(-1)] if tied else h
        valid = weights * (targets != IGNORE)
        out = out + factor * (loss_of(states, targets, weights) / valid.sum())
    return out


def naive(made: Problem, softcap: float | None = None) -> Callable[..., Tensor]:
    def loss(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        logits = linear(states, made.embedding, made.bias)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return (cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE) * weights).sum()

    return loss


def check(made: Problem, loss: Callable[..., Tensor], oracle: Callable[..., Tensor], *, tied: bool) -> None:
    found, expected = total(made, loss, tied=tied), total(made, oracle, tied=tied)
    assert_close(found, expected, "float64")
    for got, wanted in zip(
        torch.autograd.grad(found, made.leaves), torch.autograd.grad(expected, made.leaves), strict=True
    ):
        assert float(wanted.abs().max()) > 0
        assert_close(got, wanted, "float64")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", ["torch", fused])
def test_the_weighted_loss_of_all_heads_and_every_gradient_equal_the_naive_ones(
    backend: Backend, bias: bool, tied: bool
) -> None:
    made = problem(bias=bias)

    def loss(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        options: dict[str, Any] = {"bias": made.bias, "weights_n": weights, "chunk": 4, "backend": backend}
        return (per_token_nll(states, made.embedding, targets, **options) * weights).sum()

    check(made, loss, naive(made), tied=tied)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_made_with_the_losses_equal_the_naive_ones(bias: bool, softcap: float | None) -> None:
    made = problem(bias=bias)

    def loss(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return weighted_nll(states, made.embedding, targets, weights, bias=made.bias, chunk=5, softcap=softcap)[0]

    check(made, loss, naive(made, softcap), tied=True)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_frozen_vocabulary_gives_the_same_gradients_of_hidden_states(softcap: float | None) -> None:
    made = problem(bias=True)
    made.embedding.requires_grad_(False)
    assert made.bias is not None
    made.bias.requires_grad_(False)

    def loss(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        nll = per_token_nll(states, made.embedding, targets, bias=made.bias, softcap=softcap, chunk=7)
        return (nll * weights).sum()

    found, expected = total(made, loss, tied=False), total(made, naive(made, softcap), tied=False)
    assert_close(found, expected, "float64")
    for got, wanted in zip(
        torch.autograd.grad(found, made.hidden), torch.autograd.grad(expected, made.hidden), strict=True
    ):
        assert_close(got, wanted, "float64")


def test_heads_in_one_call_equal_heads_one_by_one() -> None:
    made = problem(bias=True)
    factors = [torch.full_like(w, f) for f, w in zip(LAMBDAS, made.weights, strict=True)]
    weights = torch.cat([f * w for f, w in zip(factors, made.weights, strict=True)])
    arguments = (torch.cat(made.hidden), made.embedding, torch.cat(made.targets), weights)
    at_once, each = weighted_nll(*arguments, bias=made.bias, chunk=6)
    parts = [
        f * (per_token_nll(h, made.embedding, t, bias=made.bias) * w).sum()
        for f, h, t, w in zip(LAMBDAS, made.hidden, made.targets, made.weights, strict=True)
    ]
    assert_close(at_once, torch.stack(parts).sum(), "float64")
    assert_close((each * weights).sum(), at_once, "float64")
    assert not each.requires_grad
    for got, wanted in zip(
        torch.autograd.grad(at_once, made.leaves),
        torch.autograd.grad(torch.stack(parts).sum(), made.leaves),
        strict=True,
    ):
        assert_close(got, wanted, "float64")


@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_the_chunk_changes_nothing(chunk: int | None) -> None:
    made = problem(bias=False)
    found = per_token_nll(made.hidden[0], made.embedding, made.targets[0], chunk=chunk)
    logits = made.hidden[0] @ made.embedding.T
    assert_close(found, cross_entropy(logits, made.targets[0], reduction="none", ignore_index=IGNORE), "float64")


@pytest.mark.parametrize("backend", ["torch", fused])
def test_rows_of_weight_zero_never_reach_the_product(backend: Backend) -> None:
    made = problem(bias=False)
    targets, weights = made.targets[0], made.weights[0].clone()
    weights[targets != IGNORE] = torch.tensor([0.0, 1.0, 2.0]).repeat(9)[: int((targets != IGNORE).sum())].double()
    poisoned = made.hidden[0].detach().clone()
    poisoned[(weights == 0) | (targets == IGNORE)] = float("nan")
    poisoned.requires_grad_()
    found = per_token_nll(poisoned, made.embedding, targets, weights_n=weights, backend=backend)
    (gradient,) = torch.autograd.grad(found.sum(), poisoned)
    assert bool(found.isfinite().all())
    assert bool((found[weights == 0] == 0).all())
    assert bool((gradient[weights == 0] == 0).all())
    assert int((gradient != 0).any(1).sum()) == int(((weights != 0) & (targets != IGNORE)).sum())


@pytest.mark.parametrize("backend", ["torch", fused])
def test_no_row_at_all_gives_zeros_and_zero_gradients(backend: Backend) -> None:
    made = problem(bias=False)
    nothing = torch.full_like(made.targets[0], IGNORE)
    found = per_token_nll(made.hidden[0], made.embedding, nothing, backend=backend)
    summed, each = weighted_nll(made.hidden[0], made.embedding, nothing, made.weights[0])
    assert_close(found, torch.zeros_like(found), "exact")
    assert_close(each, torch.zeros_like(each), "exact")
    for loss in (found.sum(), summed):
        for gradient in torch.autograd.grad(loss, [made.hidden[0], made.embedding]):
            assert_close(gradient, torch.zeros_like(gradient), "exact")


def test_weights_carry_no_gradient() -> None:
    made = problem(bias=False)
    weights = made.weights[0].requires_grad_()
    summed, _ = weighted_nll(made.hidden[0], made.embedding, made.targets[0], weights)
    summed.backward()
    assert weights.grad is None
    assert made.hidden[0].grad is not None


def test_without_gradients_losses_are_the_same() -> None:
    made = problem(bias=True)
    arguments = (made.hidden[1], made.embedding, made.targets[1])
    with torch.no_grad():
        quiet = per_token_nll(*arguments, bias=made.bias)
        summed, _ = weighted_nll(*arguments, made.weights[1], bias=made.bias)
    assert not quiet.requires_grad
    assert not summed.requires_grad
    assert_close(quiet, per_token_nll(*arguments, bias=made.bias), "exact")
    assert_close(summed, (quiet * made.weights[1]).sum(), "float64")


def test_used_up_gradients_are_not_used_twice() -> None:
    made = problem(bias=False)
    summed, _ = weighted_nll(made.hidden[0], made.embedding, made.targets[0], made.weights[0])
    summed.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        summed.backward()


def low_precision(states: Tensor, weight: Tensor, targets: Tensor, way: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
    if way == "weighted":
        loss, _ = weighted_nll(*leaves, targets, torch.ones(len(targets)), chunk=8)
    else:
        loss = per_token_nll(*leaves, targets, chunk=8, backend=way).sum()  # type: ignore[arg-type]
    return loss.detach(), torch.autograd.grad(loss / len(targets), leaves)


@pytest.mark.parametrize("way", ["torch", "weighted", fused])
def test_bfloat16_stays_near_float64_and_keeps_the_types_of_its_inputs(way: str) -> None:
    states, weight = drawn(64, 32), drawn(50, 32, seed=1) * 0.3
    targets = torch.randint(50, (64,), generator=torch.Generator().manual_seed(2))
    low = (states.bfloat16(), weight.bfloat16())
    loss, gradients = low_precision(*low, targets, way)
    expected, wanted = low_precision(low[0].double(), low[1].double(), targets, "torch")
    assert loss.dtype == torch.float32
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
    assert_close(loss, expected, "bfloat16")
    for got, exact in zip(gradients, wanted, strict=True):
        assert float((got.double() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("way", ["torch", "weighted"])
def test_autocast_gives_float32_gradients_to_float32_weights(way: str) -> None:
    states, weight = drawn(40, 32).float(), drawn(50, 32, seed=1).float() * 0.3
    targets = torch.randint(50, (40,), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = low_precision(states, weight, targets, way)
    expected, wanted = low_precision(states.double(), weight.double(), targets, "torch")
    assert [g.dtype for g in gradients] == [torch.float32] * 2
    assert_close(loss, expected, "bfloat16")
    assert float((loss.double() - expected).abs()) > 1e-6  # it did run in bfloat16
    for got, exact in zip(gradients, wanted, strict=True):
        assert float((got.double() - exact).norm() / exact.norm()) < 0.02


def test_the_logits_of_all_rows_never_exist_at_once() -> None:
    """Every tensor of the call is counted as it is made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else (out,):
                if isinstance(each, Tensor):
                    self.elements = max(self.elements, each.numel())
            return out

    states, weight = drawn(600, 4).requires_grad_(), drawn(500, 4, seed=1).requires_grad_()
    targets = torch.randint(500, (600,), generator=torch.Generator().manual_seed(2))
    with Largest() as largest:
        per_token_nll(states, weight, targets, chunk=10).sum().backward()
        weighted_nll(states, weight, targets, torch.ones(600).double(), chunk=10)[0].backward()
    assert largest.elements == 10 * 500


def test_what_a_backend_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(bias=False)
    arguments = (made.hidden[0], made.embedding, made.targets[0])
    with pytest.raises(ConfigError, match=r"no soft-cap.* Do: pass backend='torch'\."):
        per_token_nll(*arguments, softcap=3.0, backend="fused")
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    with pytest.raises(ConfigError, match=r"needs torch\.nn\.functional\.linear_cross_entropy"):
        per_token_nll(*arguments, backend="fused")
    monkeypatch.setattr("holdfast.methods.token_weighting.nll.find_spec", lambda _: None)
    for backend in ("liger", "cce"):
        with pytest.raises(MissingExtra, match=r"holdfast\[kernels\]"):
            per_token_nll(*arguments, backend=backend)  # type: ignore[arg-type]
    monkeypatch.setattr("holdfast.methods.token_weighting.nll.find_spec", lambda _: True)
    for backend in ("liger", "cce"):
        with pytest.raises(ConfigError, match=r"runs on CUDA: got cpu\. Do: pass backend='torch'\."):
            per_token_nll(*arguments, backend=backend)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused() -> None:
    made = problem(bias=False)
    with pytest.raises(ConfigError, match=r"hidden states \(18, 5\) for 18 targets"):
        per_token_nll(made.hidden[0][:, :5], made.embedding, made.targets[0])
    with pytest.raises(ConfigError, match=r"weights of shape \(3,\)"):
        weighted_nll(made.hidden[0], made.embedding, made.targets[0], made.weights[0][:3])
    with pytest.raises(ConfigError, match="chunks of 0 rows"):
        per_token_nll(made.hidden[0], made.embedding, made.targets[0], chunk=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "fused", "liger", "cce"])
def test_kernels_agree_with_float64_on_the_device(backend: Backend) -> None:
    if backend in ("liger", "cce"):
        pytest.importorskip({"liger": "liger_kernel", "cce": "cut_cross_entropy"}[backend])
    states, weight = (drawn(256, 128).bfloat16().cuda(), (drawn(1000, 128, seed=1) * 0.1).bfloat16().cuda())
    targets = torch.randint(1000, (256,), generator=torch.Generator().manual_seed(2)).cuda()
    weights = drawn(256, seed=3).exp().float().cuda()
    found = []
    for kind, (h, w) in {backend: (states, weight), "torch": (states.double(), weight.double())}.items():
        leaves = [h.requires_grad_(), w.requires_grad_()]
        loss = (per_token_nll(*leaves, targets, backend=kind) * weights).sum() / weights.sum()  # type: ignore[arg-type]
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for got, exact in zip(*found, strict=True):
        assert float((got.double() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("token", [7, -1])
def test_a_token_outside_the_vocabulary_is_named(token: int) -> None:
    hidden_nd, weight_vd, targets_n = torch.randn(3, 4), torch.randn(7, 4), torch.tensor([0, token, -100])
    sentence = rf"the loss of token {token}: expected one of 0 to 6, or -100"
    with pytest.raises(ConfigError, match=sentence):
        per_token_nll(hidden_nd, weight_vd, targets_n)
    with pytest.raises(ConfigError, match=sentence):
        weighted_nll(hidden_nd, weight_vd, targets_n, torch.ones(3))
