"""Heads 2..H of a causal model, in three kinds, and a value head. Head 1 is the model's own output head.

==============  ============================================================  =============================
kind            head ``h`` at position ``t``                                  source
==============  ============================================================  =============================
``parallel``    norm(block_h(stream_t))                                       Gloeckle et al., ICML 2024
``sequential``  norm_h(z_h), z_h = block_h(W [norm(e_t+h-1), norm(z_h-1)])    DeepSeek-V3, 2024, section 2.2
``medusa``      x + SiLU(W_h x + b_h), x what the output head reads           Cai et al., ICML 2024
==============  ============================================================  =============================

``parallel`` has one more block of the model's own class for each head. It reads the residual stream **before** the
final norm and shares that norm, as Gloeckle's published model does: a block has its own norm in front and adds to the
stream, so the final norm belongs behind it. ``sequential`` starts from the state **after** the final norm, which is
what servers of DeepSeek-V3 hand on, and has a norm of its own at its end; ``e`` are the embeddings of the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad, silu

from holdfast.core.errors import ConfigError, LayerError
from holdfast.models.heads.trunk import (
    Decoder,
    Trunk,
    Unembedding,
    bare_of,
    decoder_of,
    output_head,
    read_trunk,
    unembedding,
)

if TYPE_CHECKING:
    from holdfast.data.batches import Batch

Kind = Literal["parallel", "sequential", "medusa"]


class Heads(nn.Module):
    """The heads of horizons 2 to ``horizon``. They hold nothing of the model, which is given at each call.

    Weights are float32, as everything that is trained; states are cast to that. They start from the model's own
    initialisation, those of ``medusa`` as the identity.
    """

    def __init__(self, model: nn.Module, kind: Kind, horizon: int, *, own_output: bool = False, seed: int = 0) -> None:
        """Build the heads.

        Args:
            model: Gives width, block class, configuration and device.
            kind: See the top of this file.
            horizon: Tokens ahead of the furthest head, at least 2.
            own_output: Give each head a vocabulary of its own, a copy of the output head's weight at first; for
                ``medusa`` only. Otherwise all share the model's.
            seed: Same seed, same weights; the global generator is left alone.
        Raises:
            ConfigError: ``horizon`` is less than 2, the kind is unknown, or ``own_output`` does not go with it.
            LayerError: the model has no output head, or no block like its own can be built.
        """
        super().__init__()
        if kind not in _KINDS:
            raise ConfigError(f"Unknown kind of heads {kind!r}: expected one of {', '.join(_KINDS)}.")
        if horizon < 2:
            raise ConfigError(f"Heads begin at horizon 2: got {horizon}. Do: raise it, or train without heads.")
        if own_output and kind != "medusa":
            raise ConfigError(f"own_output is for medusa heads: got kind {kind!r}. Do: remove own_output.")
        self.kind: Kind = kind
        self.horizon, self.own_output = horizon, own_output
        weight = cast(Tensor, output_head(model).weight)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(_KINDS[kind](model) for _ in range(2, horizon + 1))
        self.outputs = nn.ModuleList(_output_like(weight) for _ in self.heads) if own_output else None
        self.to(weight.device, torch.float32)

    def forward(self, model: nn.Module, batch: Batch, *, detach_trunk: bool = False) -> list[Tensor]:
        """Run ``model`` once and give the states ``(b, t, d)`` from which each horizon predicts; the first is its own.

        Args:
            model: The model that the heads were built for, wrapped or not.
            batch: The lines; packed rows do not see one another.
            detach_trunk: Let no gradient of heads 2..H reach the model (final norm and embeddings included).
        """
        decoder = None if self.kind == "medusa" else decoder_of(model)
        return self.states(model, read_trunk(model, batch, decoder), batch, detach_trunk=detach_trunk)

    def states(self, model: nn.Module, trunk: Trunk, batch: Batch, *, detach_trunk: bool = False) -> list[Tensor]:
        """As `forward`, from a pass of the model that was read before."""
        dtype = next(self.parameters()).dtype
        if self.kind == "medusa":
            read = _read(trunk.final, detach_trunk).to(dtype)
            return [trunk.final, *(head(read) for head in self.heads)]
        call = (in_dtype(trunk.args, dtype), in_dtype(trunk.kwargs, dtype))
        if self.kind == "parallel":
            read, norm = _read(trunk.stream, detach_trunk).to(dtype), decoder_of(model).norm
            return [trunk.final, *(normed(norm, head(read, *call), detach_trunk) for head in self.heads)]
        out, previous = [trunk.final], _read(trunk.final, detach_trunk).to(dtype)
        for ahead, head in enumerate(self.heads, start=1):
            embedding = _embedding(model, batch, ahead)
            previous, state = head(_read(embedding, detach_trunk).to(dtype), previous, *call)
            out.append(state)
        return out

    def unembeddings(self, model: nn.Module, *, detach_trunk: bool = False) -> list[Unembedding]:
        """From the states of each horizon to logits; the first is the model's own."""
        own = unembedding(model)
        shared = own.detached() if detach_trunk else own
        if self.outputs is None:
            return [own] + [shared] * len(self.heads)
        return [own, *(Unembedding(cast(Tensor, o.weight), None, own.softcap, own.scale) for o in self.outputs)]


class ValueHead(nn.Module):
    """The value of every prefix: one linear map of the trunk's states, in float32, 0 at first."""

    def __init__(self, width: int) -> None:
        """Build for states of this width."""
        super().__init__()
        self.linear = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(b, t)`` from ``(b, t, d)``, in float32 also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(hidden.float())[..., 0]
        return values


class Parallel(nn.Module):
    """One block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.block = _new_block(model, decoder_of(model))

    def forward(self, stream: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The stream behind the block."""
        return _run(self.block, stream, args, kwargs)


class Sequential(nn.Module):
    """Two norms, a projection of both, a block, a norm; named as in DeepSeek's checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        decoder = decoder_of(model)
        d = cast(Tensor, output_head(model).weight).shape[1]
        eps = float(getattr(decoder.config, "rms_norm_eps", 1e-6))
        self.enorm, self.hnorm, self.norm = (nn.RMSNorm(d, eps=eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        nn.init.normal_(self.eh_proj.weight, std=float(getattr(decoder.config, "initializer_range", 0.02)))
        with torch.no_grad():
            self.norm.weight.copy_(_gain(decoder.norm, d))
        self.block = _new_block(model, decoder)

    def forward(
        self, embedding: Tensor, previous: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """What the next head goes on from, and the state that predicts."""
        mixed = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(previous)], dim=-1))
        stream = _run(self.block, mixed, args, kwargs)
        return stream, self.norm(stream)


class Medusa(nn.Module):
    """A residual layer that starts as the identity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        d = cast(Tensor, output_head(model).weight).shape[1]
        self.linear = nn.Linear(d, d)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``x + SiLU(W x + b)``."""
        return hidden + silu(self.linear(hidden))


_KINDS: dict[str, type[nn.Module]] = {"parallel": Parallel, "sequential": Sequential, "medusa": Medusa}


def _new_block(model: nn.Module, decoder: Decoder) -> nn.Module:
    """A block of the last one's class, with new weights; also of its kind of attention where kinds take turns."""
    bare, kind = bare_of(model), type(decoder.blocks[-1])
    try:
        block: nn.Module = kind(decoder.config, layer_idx=len(decoder.blocks) - 1)
    except TypeError as problem:
        raise LayerError(
            f"Cannot build a block like {kind.__name__}: {problem}. Do: use heads of kind medusa, which need no block."
        ) from problem
    block.apply(bare._init_weights)
    return block


def _output_like(weight: Tensor) -> nn.Linear:
    output = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    with torch.no_grad():
        output.weight.copy_(weight)
    return output


@torch.no_grad()
def _gain(norm: nn.Module, width: int) -> Tensor:
    """What a norm multiplies normed coordinates by; a root-mean-square norm shows it on a vector of ones."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight
    weight = next(norm.parameters())
    return cast(Tensor, norm(torch.ones(1, 1, width, device=weight.device))[0, 0])


def _run(block: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def _read(states: Tensor, detach: bool) -> Tensor:
    return states.detach() if detach else states


def normed(norm: nn.Module, states: Tensor, detach: bool = False) -> Tensor:
    """The model's norm in the type of ``states``, without a gradient of its weights if asked."""
    weights = {name: _read(p, detach).to(states.dtype) for name, p in norm.named_parameters()}
    return cast(Tensor, functional_call(norm, weights, (states,)))


def _embedding(model: nn.Module, batch: Batch, ahead: int) -> Tensor:
    """The embedding of the token ``ahead`` of each position, 0 where that is not in the same row."""
    width = min(ahead, batch.input_ids.shape[1])
    ids = pad(batch.input_ids[:, ahead:], (0, width))
    own = pad(batch.owner[:, ahead:], (0, width), value=-1) == batch.owner
    embedding: Tensor = bare_of(model).get_input_embeddings()(ids)
    return embedding * own[..., None]


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in ``value``, a nest of tuples and dicts, in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(in_dtype(each, dtype) for each in value)
    if isinstance(value, dict):
        return {name: in_dtype(each, dtype) for name, each in value.items()}
    return value
