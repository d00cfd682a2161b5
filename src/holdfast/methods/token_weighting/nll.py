"""Cross-entropy of tokens straight from hidden states: the logits exist in chunks only, whatever the number of heads.

The rows of several heads that share a vocabulary are put one after another and go through in one call, so that there is
one gradient of the vocabulary's weight, not one a head.

Shapes: ``n`` rows (positions that predict a token), ``k`` those that are kept, ``c`` a chunk of them, ``d`` width,
``v`` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, MissingExtra
from holdfast.data.batches import IGNORE

Backend = Literal["torch", "fused", "liger", "cce"]

_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits of a chunk: 128 MiB and 1 GiB in float32."""


def per_token_nll(  # noqa: PLR0913 - independent keywords
    hidden_nd: Tensor,
    lm_weight_vd: Tensor,
    targets_n: Tensor,
    *,
    bias: Tensor | None = None,
    weights_n: Tensor | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    backend: Backend = "torch",
) -> Tensor:
    """``-log softmax(hidden W^T + bias)[target]`` of each row, 0 for rows that are ignored, with any gradient.

    Logits are made chunk by chunk, and made again in the backward pass: 4 matrix products where the vocabulary's weight
    learns. Where it does not (an adapter is trained) the rows' gradients are made at once with the losses: 2 products,
    which is all that there is to do. Sums are in float32 also where products are in bfloat16; products take autocast's
    type, else that of ``lm_weight_vd``. No second derivatives.

    Args:
        hidden_nd: What the output head reads.
        lm_weight_vd: Its weight; may be tied to the embeddings.
        targets_n: Tokens; -100 is ignored.
        bias: ``(v,)``.
        weights_n: Rows of weight 0 are left out before any product and get 0. The others are **not** multiplied.
        chunk: Rows at a time; chosen by the size of the vocabulary if not given.
        softcap: Logits are ``softcap * tanh(logits / softcap)`` (Gemma 2).
        backend: ``torch`` is this file, and what every training takes: no recipe has a key for the others. ``fused`` is
            `torch.nn.functional.linear_cross_entropy` (torch 2.13; losses in the type of the products); ``liger`` and
            ``cce`` are the kernels of Liger and of Cut Cross-Entropy, on CUDA.
    Returns:
        ``(n,)``, float32, float64 where the products are.
    Raises:
        ConfigError: shapes do not fit, a target is none of the vocabulary, or the backend cannot do this here.
        MissingExtra: the backend is not installed.
    """
    _check(hidden_nd, lm_weight_vd, targets_n, bias)
    rows_k = _kept(targets_n, weights_n)
    hidden_kd, targets_k = _rows(hidden_nd, rows_k), _rows(targets_n, rows_k)
    parts = _Parts.of(hidden_kd, lm_weight_vd, targets_k, bias, chunk, softcap)
    if backend != "torch" and len(rows_k):
        nll_k = _BACKENDS[backend](parts)
    else:
        nll_k = cast(Any, _PerToken).apply(hidden_kd, lm_weight_vd, bias, parts, torch.is_grad_enabled())
    return _spread(nll_k, rows_k, len(targets_n))


def weighted_nll(
    hidden_nd: Tensor,
    lm_weight_vd: Tensor,
    targets_n: Tensor,
    weights_n: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of ``weights_n`` times `per_token_nll`, and the losses of the rows without a gradient.

    Gradients are made together with the losses, as Liger does, because the sum fixes them up to one factor: 3 matrix
    products, the least there can be, and the memory of one gradient. The weights get none. The backward pass uses these
    gradients up: it runs once. For several heads, put each head's factor into its rows' weights.

    Args:
        hidden_nd: What the output head reads.
        lm_weight_vd: Its weight.
        targets_n: Tokens; -100 is ignored.
        weights_n: Rows of weight 0 are left out before any product.
        bias: ``(v,)``.
        chunk: Rows at a time; chosen by the size of the vocabulary if not given.
        softcap: As in `per_token_nll`.
    Returns:
        A scalar with a gradient, and ``(n,)`` without, 0 for rows that are left out; float32 (float64).
    Raises:
        ConfigError: shapes do not fit, or a target is none of the vocabulary.
    Reference:
        Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, 2024, section 3.2.
    """
    _check(hidden_nd, lm_weight_vd, targets_n, bias)
    rows_k = _kept(targets_n, weights_n)
    hidden_kd, targets_k = _rows(hidden_nd, rows_k), _rows(targets_n, rows_k)
    parts = _Parts.of(hidden_kd, lm_weight_vd, targets_k, bias, chunk, softcap)
    weights_k = _rows(weights_n, rows_k).detach()
    tensors = (hidden_kd, lm_weight_vd, bias)
    total, nll_k = cast(Any, _Weighted).apply(*tensors, parts, weights_k, torch.is_grad_enabled())
    return total, _spread(nll_k, rows_k, len(targets_n))


def _check(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, bias_v: Tensor | None) -> None:
    v, d = weight_vd.shape
    if hidden_nd.shape != (len(targets_n), d) or (bias_v is not None and bias_v.shape != (v,)):
        raise ConfigError(
            f"Cannot take the loss of tokens: got hidden states {tuple(hidden_nd.shape)} for {len(targets_n)} targets, "
            f"a weight {(v, d)} and a bias {None if bias_v is None else tuple(bias_v.shape)}; expected (rows, width), "
            "(vocabulary, width) and (vocabulary,)."
        )
    strange_n = (targets_n >= v) | ((targets_n < 0) & (targets_n != IGNORE))
    if bool(strange_n.any()):
        raise ConfigError(
            f"Cannot take the loss of token {int(targets_n[strange_n][0])}: expected one of 0 to {v - 1}, or {IGNORE} "
            "for none. Do: give the tokenizer of the model."
        )


def _kept(targets_n: Tensor, weights_n: Tensor | None) -> Tensor:
    kept_n = targets_n != IGNORE
    if weights_n is not None:
        if weights_n.shape != targets_n.shape:
            raise ConfigError(
                f"Cannot weight tokens: got weights of shape {tuple(weights_n.shape)}, expected the targets' "
                f"{tuple(targets_n.shape)}."
            )
        kept_n = kept_n & (weights_n != 0)
    return kept_n.nonzero()[:, 0]


def _rows(values: Tensor, rows_k: Tensor) -> Tensor:
    return values if len(rows_k) == len(values) else values[rows_k]


def _spread(nll_k: Tensor, rows_k: Tensor, n: int) -> Tensor:
    return nll_k if len(rows_k) == n else nll_k.new_zeros(n).index_copy(0, rows_k, nll_k)


@dataclass(frozen=True, slots=True)
class _Parts:
    """One problem: its tensors, the type of its products, its chunk."""

    hidden_kd: Tensor
    weight_vd: Tensor
    bias_v: Tensor | None
    targets_k: Tensor
    chunk: int
    softcap: float | None
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        hidden_kd: Tensor,
        weight_vd: Tensor,
        targets_k: Tensor,
        bias_v: Tensor | None,
        chunk: int | None,
        softcap: float | None,
    ) -> _Parts:
        """Choose the chunk and the type of the products."""
        kind = hidden_kd.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_vd.dtype
        most = max(1, _LOGITS.get(kind, _LOGITS["cpu"]) // len(weight_vd)) if chunk is None else chunk
        if most < 1:
            raise ConfigError(f"Cannot take the loss in chunks of {chunk} rows: expected at least 1. Do: raise it.")
        pieces = max(1, -(-len(targets_k) // most))
        return cls(hidden_kd, weight_vd, bias_v, targets_k, max(1, -(-len(targets_k) // pieces)), softcap, dtype)

    @property
    def how(self) -> tuple[int, float | None, torch.dtype]:
        """What is not a tensor."""
        return self.chunk, self.softcap, self.dtype

    @property
    def sums(self) -> torch.dtype:
        """The type of sums and losses."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


class _Gradients(NamedTuple):
    """Of hidden states in their own type, of weight and bias in that of sums."""

    hidden_kd: Tensor | None
    weight_vd: Tensor | None
    bias_v: Tensor | None

    @classmethod
    def room(cls, parts: _Parts, wanted: tuple[bool, ...]) -> _Gradients:
        """Room for those that are wanted: of hidden states, weight, bias. The first chunk fills that of the weight."""
        weight_vd, bias_v = parts.weight_vd, parts.bias_v
        unfilled = torch.empty_like if len(parts.targets_k) else torch.zeros_like
        return cls(
            torch.empty_like(parts.hidden_kd) if wanted[0] else None,
            unfilled(weight_vd, dtype=parts.sums) if wanted[1] else None,
            torch.zeros_like(bias_v, dtype=parts.sums) if wanted[2] and bias_v is not None else None,
        )


def _sweep(parts: _Parts, upstream_k: Tensor | None, wanted: tuple[bool, ...]) -> tuple[Tensor, _Gradients]:
    """The loss of each row, and the gradients of ``upstream_k @ losses``, in one pass over the chunks."""
    nll_k = torch.empty(len(parts.targets_k), dtype=parts.sums, device=parts.hidden_kd.device)
    gradients = _Gradients.room(parts, wanted)
    with torch.autocast(parts.hidden_kd.device.type, enabled=False):
        weight_vd = parts.weight_vd.to(parts.dtype)
        logits_cv = weight_vd.new_empty(min(parts.chunk, len(nll_k)), len(weight_vd))
        for start in range(0, len(nll_k), parts.chunk):
            at = slice(start, start + parts.chunk)
            upstream_c = None if upstream_k is None else upstream_k[at]
            nll_k[at] = _one_chunk(parts, weight_vd, at, upstream_c, gradients, logits_cv)
    return nll_k, gradients


def _one_chunk(
    parts: _Parts, weight_vd: Tensor, at: slice, upstream_c: Tensor | None, gradients: _Gradients, room_cv: Tensor
) -> Tensor:
    """The losses of the rows ``at``; adds to the gradients. One tensor of logits, overwritten step by step."""
    hidden_cd, targets_c1 = parts.hidden_kd[at].to(parts.dtype), parts.targets_k[at, None]
    logits_cv = torch.mm(hidden_cd, weight_vd.T, out=room_cv[: len(hidden_cd)]).to(parts.sums)
    if parts.bias_v is not None:
        logits_cv += parts.bias_v
    slope_cv: Tensor | None = None
    if parts.softcap is not None:
        logits_cv.div_(parts.softcap).tanh_()
        slope_cv = None if upstream_c is None else 1 - logits_cv.square()
        logits_cv.mul_(parts.softcap)
    target_c, largest_c = logits_cv.gather(1, targets_c1)[:, 0], logits_cv.amax(1)
    total_c = logits_cv.sub_(largest_c[:, None]).exp_().sum(1)
    if upstream_c is not None:
        upstream_c = upstream_c.to(parts.sums)
        logits_cv.mul_((upstream_c / total_c)[:, None]).scatter_add_(1, targets_c1, -upstream_c[:, None])
        if slope_cv is not None:
            logits_cv.mul_(slope_cv)
        _add_gradients(gradients, at, logits_cv, hidden_cd, weight_vd)
    return total_c.log_().add_(largest_c).sub_(target_c)


def _add_gradients(gradients: _Gradients, at: slice, sums_cv: Tensor, hidden_cd: Tensor, weight_vd: Tensor) -> None:
    """Add what the gradient ``sums_cv`` of a chunk's logits gives to hidden states, weight and bias."""
    before = int(at.start > 0)
    grad_cv = sums_cv.to(weight_vd.dtype)
    if gradients.hidden_kd is not None:
        gradients.hidden_kd[at] = grad_cv @ weight_vd
    if gradients.weight_vd is not None:
        if grad_cv.dtype == gradients.weight_vd.dtype:
            gradients.weight_vd.addmm_(grad_cv.T, hidden_cd, beta=before)
        elif before:
            gradients.weight_vd.add_(grad_cv.T @ hidden_cd)
        else:
            gradients.weight_vd.copy_(grad_cv.T @ hidden_cd)
    if gradients.bias_v is not None:
        gradients.bias_v.add_(sums_cv.sum(0))


class _PerToken(torch.autograd.Function):
    """Losses with any upstream gradient: rows' own gradients at once, the weight's by going through again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_kd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, parts: _Parts, learns: bool
    ) -> Tensor:
        """Losses of the rows."""
        wanted = ctx.needs_input_grad[:3]
        ctx.at_once = learns and wanted[0] and not any(wanted[1:])
        ctx.how = parts.how
        upstream_k = torch.ones_like(parts.targets_k, dtype=parts.sums) if ctx.at_once else None
        nll_k, gradients = _sweep(parts, upstream_k, (ctx.at_once, False, False))
        kept = (gradients.hidden_kd,) if ctx.at_once else (hidden_kd, weight_vd, bias_v, parts.targets_k)
        ctx.save_for_backward(*kept)
        return nll_k

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream_k: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight, bias."""
        if ctx.at_once:
            (own_kd,) = ctx.saved_tensors
            return (own_kd * upstream_k[:, None]).to(own_kd.dtype), None, None, None, None
        tensors = ctx.saved_tensors
        _, gradients = _sweep(_Parts(*tensors, *ctx.how), upstream_k, ctx.needs_input_grad[:3])
        stored = (None if g is None else g.to(t.dtype) for g, t in zip(gradients, tensors[:3], strict=True))
        return *stored, None, None


class _Weighted(torch.autograd.Function):
    """A weighted sum of losses: all gradients at once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_kd: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        parts: _Parts,
        weights_k: Tensor,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        """The sum, and the losses of the rows."""
        wanted = ctx.needs_input_grad[:3] if learns else (False, False, False)
        nll_k, gradients = _sweep(parts, weights_k if any(wanted) else None, wanted)
        stored = (hidden_kd.dtype, weight_vd.dtype, None if bias_v is None else bias_v.dtype)
        ctx.gradients = list(zip(gradients, stored, strict=True))
        ctx.mark_non_differentiable(nll_k)
        return (nll_k * weights_k).sum(), nll_k

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight, bias."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of weighted_nll are used up by the first backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if g is None else g.to(upstream.dtype).mul_(upstream).to(stored) for g, stored in gradients]
        return *scaled, None, None, None


def _fused(parts: _Parts) -> Tensor:
    """torch's own chunked loss."""
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if fused is None or options is None:
        raise ConfigError(
            f"Backend 'fused' needs torch.nn.functional.linear_cross_entropy: torch {torch.__version__} has none, "
            "2.13 has. Do: pass backend='torch', or install a newer torch."
        )
    if parts.softcap is not None:
        raise ConfigError("Backend 'fused' has no soft-cap on logits, which this model has. Do: pass backend='torch'.")
    nll_k: Tensor = fused(
        *_cast(parts),
        parts.targets_k,
        linear_bias=None if parts.bias_v is None else parts.bias_v.to(parts.dtype),
        reduction="none",
        options=options(batch_chunk_size=parts.chunk),
    )
    return nll_k.to(parts.sums)


def _liger(parts: _Parts) -> Tensor:
    """Liger's kernel; gradients of single rows since 0.8.5."""
    _on_cuda("liger", "liger_kernel", parts)
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    bias_v = None if parts.bias_v is None else parts.bias_v.to(parts.dtype)
    nll_k = liger_fused_linear_cross_entropy(
        *_cast(parts),
        parts.targets_k,
        bias_v,
        ignore_index=IGNORE,
        reduction="none",
        softcap=parts.softcap,
        accum_dtype=torch.float32,
    )
    return cast(Tensor, nll_k).to(parts.sums)


def _cce(parts: _Parts) -> Tensor:
    """Cut Cross-Entropy (Wijmans et al., ICLR 2025) without its filter, which drops small gradients."""
    _on_cuda("cce", "cut_cross_entropy", parts)
    if parts.bias_v is not None:
        raise ConfigError(
            "Backend 'cce' has no bias of the output head, which this model has. Do: pass backend='torch'."
        )
    from cut_cross_entropy import linear_cross_entropy

    nll_k = linear_cross_entropy(
        *_cast(parts), parts.targets_k, softcap=parts.softcap, reduction="none", filter_eps=None, impl="cce"
    )
    return cast(Tensor, nll_k).to(parts.sums)


def _cast(parts: _Parts) -> tuple[Tensor, Tensor]:
    return parts.hidden_kd.to(parts.dtype), parts.weight_vd.to(parts.dtype)


def _on_cuda(backend: str, package: str, parts: _Parts) -> None:
    if find_spec(package) is None:
        raise MissingExtra(f"backend {backend!r} of the loss", "kernels")
    if parts.hidden_kd.device.type != "cuda":
        raise ConfigError(
            f"Backend {backend!r} runs on CUDA: got {parts.hidden_kd.device.type}. Do: pass backend='torch'."
        )
    if parts.dtype == torch.float64:
        raise ConfigError(f"Backend {backend!r} sums in float32: got float64. Do: pass backend='torch'.")


_BACKENDS = {"fused": _fused, "liger": _liger, "cce": _cce}
