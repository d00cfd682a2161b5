r"""SaLoRA: an adapter that cannot write into the outputs that safety rows use.

Of each layer, ``S`` are the leading directions of the outputs ``W X`` on safety rows, ``T`` those on the task's rows,
and ``C = I - S S^T`` is the fixed safety module. With ``A_0, B_0`` from `maths.task_start`, the paper trains ``A`` and
``B`` in ``W - C B_0 A_0 + C B A``. The same model is a plain adapter of twice the rank on the untouched weight,

.. math:: W + [\,C B, \; -C B_0\,] \, [\,A; \; A_0\,],

of which a constraint lets only the first halves move. So it loads in stock PEFT, and it begins as the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError
from holdfast.curvature.moments import Moments, moments
from holdfast.curvature.passes import full_precision
from holdfast.curvature.spectra import eigenbasis
from holdfast.data.examples import Example
from holdfast.layers.address import Layer, LayerMap
from holdfast.methods.rotation.baselines import maths
from holdfast.methods.rotation.baselines.config import Salora
from holdfast.methods.rotation.baselines.modules import factors, module_names
from holdfast.methods.rotation.baselines.setup import Job, Setup
from holdfast.training.constraint import Hold


@dataclass(frozen=True, slots=True)
class UpperRows:
    """Of ``[A; A_0]`` the first ``rank`` rows move, freely."""

    rank: int

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        """``(k, i)``."""
        return (self.rank, weight.shape[1])

    def expand(self, coordinates: Tensor) -> Tensor:
        """The change of both halves."""
        return torch.cat([coordinates, torch.zeros_like(coordinates)])

    def contract(self, gradient: Tensor) -> Tensor:
        """The gradient of the first half."""
        return gradient[: self.rank]

    def settle(self, coordinates: Tensor) -> None:
        """Nothing: the second half has no coordinates."""


@dataclass(frozen=True, slots=True)
class SafeColumns:
    """Of ``[C B, -C B_0]`` the first ``rank`` columns move, outside the safety directions ``S``."""

    rank: int
    S_os: Tensor

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        """``(o, k)``."""
        return (weight.shape[0], self.rank)

    def expand(self, coordinates: Tensor) -> Tensor:
        """The change of both halves."""
        return torch.cat([maths.outside(self.S_os, coordinates), torch.zeros_like(coordinates)], dim=1)

    def contract(self, gradient: Tensor) -> Tensor:
        """The gradient of the first half, before ``C``."""
        return maths.outside(self.S_os, gradient[:, : self.rank])

    def settle(self, coordinates: Tensor) -> None:
        """Nothing: the second half has no coordinates."""


@dataclass(frozen=True, slots=True)
class Start:
    """Of one module: its safety directions and the first factors, ``C`` not applied, in float32."""

    S_os: Tensor
    A_ki: Tensor
    B_ok: Tensor


@dataclass(frozen=True, slots=True)
class SafeOutputs:
    """The constraint; it also writes the start into the fresh adapter."""

    starts: Mapping[str, Start]

    def holds(self, model: nn.Module) -> Mapping[str, Hold]:
        """Both factors of every adapted module."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        holds: dict[str, Hold] = {}
        for module, pair in factors(model).items():
            start = self.starts[module]
            A_ki = start.A_ki / pair.scaling**0.5
            CB_ok = maths.outside(start.S_os, start.B_ok) / pair.scaling**0.5
            with torch.no_grad():
                pair.A.copy_(torch.cat([A_ki, A_ki]))
                pair.B.copy_(torch.cat([CB_ok, -CB_ok], dim=1))
            rank = len(A_ki)
            holds[names[id(pair.A)]] = UpperRows(rank)
            holds[names[id(pair.B)]] = SafeColumns(rank, start.S_os)
        return holds


@torch.no_grad()
def starts(config: Salora, job: Job) -> dict[str, Start]:
    """Safety directions and first factors of every module that is to be adapted.

    Raises:
        ConfigError: a rank is too large for a layer.
        LayerError: a target matches no layer, or one without a name.
        DataError: there are no rows, or they have fewer tokens than directions are wanted.
    """
    layers = LayerMap.of(job.loaded.model)
    names = module_names(layers, job.train.lora.targets)
    for name in names:
        _check_ranks(config, job.train.lora.rank, layers[name])
    chosen = layers.select(names)
    safety = _moments(config, job, job.safety, chosen, config.safety_rank, "safety rows")
    task = _moments(config, job, job.rows, chosen, config.task_rank, "the task's rows")
    device = next(job.loaded.model.parameters()).device
    made = {}
    with full_precision(device):
        bases = {group: [eigenbasis(sums[group].matrix, group) for sums in (safety, task)] for group in safety}
        for layer in chosen:
            W_oi = layers.read(layer.name).float()
            of_safety, of_task = bases[layer.group]
            T_os = maths.output_directions(W_oi, *of_task, config.task_rank)
            S_os = maths.output_directions(W_oi, *of_safety, config.safety_rank)
            made[layer.name] = Start(S_os.contiguous(), *maths.task_start(W_oi, T_os, job.train.lora.rank))
    return made


def _moments(config: Salora, job: Job, rows: Sequence[Example], layers: LayerMap, wanted: int, what: str) -> Moments:
    encoded = [job.loaded.chat.training(row) for row in rows[: config.samples]]
    found = moments(job.loaded, encoded, layers, tokens=config.tokens)
    tokens = next(iter(found.values())).tokens
    if tokens < wanted:
        raise DataError(
            f"salora looks for {wanted} directions of outputs: got {tokens} tokens in {what}, expected at least as "
            "many. Do: give more rows, or a lower rank."
        )
    return found


def _check_ranks(config: Salora, rank: int, layer: Layer) -> None:
    smaller = min(layer.out_features, layer.in_features)
    for key, value, limit in (
        ("lora.rank", rank, smaller),
        ("safety_rank", config.safety_rank, smaller - 1),
        ("task_rank", config.task_rank, smaller),
    ):
        if value > limit:
            raise ConfigError(
                f"salora cannot adapt {layer.name}, {layer.out_features} x {layer.in_features}: got {key} {value}, "
                f"expected at most {limit}. Do: lower it, or leave the layer out of lora.targets."
            )


def setup(config: Salora, job: Job) -> Setup:
    """Twice the rank and the same scaling, begun and held as the module says."""
    lora = job.train.lora
    doubled = lora.model_copy(update={"rank": 2 * lora.rank, "alpha": 2 * lora.alpha})
    note = (
        f"SaLoRA: the adapter has rank {doubled.rank}, the trained {lora.rank} and the fixed {lora.rank} that take its "
        "start away from the weights."
    )
    constraint = SafeOutputs(starts(config, job))
    return Setup(job.rows, job.train.model_copy(update={"lora": doubled}), constraint=constraint, notes=(note,))
