"""Safe LoRA and AsFT: both go by ``V``, the change that aligned each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from holdfast.layers.address import LayerMap
from holdfast.layers.alignment import alignments, similarity, toward_alignment
from holdfast.methods.rotation.baselines import maths
from holdfast.methods.rotation.baselines.config import Asft, SafeLora
from holdfast.methods.rotation.baselines.modules import factors, module_names, weight_of
from holdfast.methods.rotation.baselines.setup import Job, Setup
from holdfast.training.companion import Companion
from holdfast.training.objective import Penalty

Changes = Mapping[str, tuple[Tensor, Tensor | None]]
"""By module, ``X`` and ``A`` of the change ``X A``; ``A`` is None where ``X (o, i)`` is the whole change."""


class Alignment:
    """What aligned each trained module, and how far each has moved since the start."""

    def __init__(self, job: Job) -> None:
        assert job.unaligned is not None  # `check` refuses it
        layers = LayerMap.of(job.loaded.model)
        self._full = job.train.params == "full"
        names = module_names(layers, () if self._full else job.train.lora.targets)
        self.V = alignments(job.loaded, job.unaligned, names)
        self.start = {name: layers.read(name).float() for name in names} if self._full else {}

    def changes(self, model: nn.Module) -> Changes:
        """The change of each module, with its gradient."""
        if not self._full:
            return {name: (pair.scaling * pair.B, pair.A) for name, pair in factors(model).items()}
        layers = LayerMap.of(model)
        return {name: (weight_of(layers, name) - before, None) for name, before in self.start.items()}

    def outside(self, model: nn.Module) -> Tensor:
        """The sum over modules of what the change writes outside the alignment, squared."""
        parts = [maths.outside_alignment(self.V[name], X, A) for name, (X, A) in self.changes(model).items()]
        return torch.stack(parts).sum()


class Projection(Companion):
    """At the end, puts ``C`` before the changes that are least like what it makes of them."""

    def __init__(self, config: SafeLora, alignment: Alignment) -> None:
        self._config, self._alignment = config, alignment

    @torch.no_grad()
    def finish(self, model: nn.Module) -> Sequence[str]:
        """Project, and say which."""
        changes = self._alignment.changes(model)
        like = {name: similarity(self._alignment.V[name], X, A) for name, (X, A) in changes.items()}
        chosen = self._chosen(like)
        for name in chosen:
            self._project(model, name)
        low, high = min(like.values()), max(like.values())
        names = f": {', '.join(chosen)}" if chosen else ""
        return (
            f"Safe LoRA projected {len(chosen)} of {len(like)} layers (similarity {low:.3f} to {high:.3f}){names}.",
        )

    def _chosen(self, like: Mapping[str, float]) -> list[str]:
        if self._config.count is None:
            return [name for name, cosine in like.items() if cosine <= self._config.threshold]
        lowest = sorted(like, key=lambda name: like[name])[: self._config.count]
        return [name for name in like if name in lowest]

    def _project(self, model: nn.Module, name: str) -> None:
        V_oi = self._alignment.V[name]
        if name not in self._alignment.start:
            B = factors(model)[name].B
            B.copy_(toward_alignment(V_oi, B.float()))
            return
        layers, before = LayerMap.of(model), self._alignment.start[name]
        layers.write(name, before + toward_alignment(V_oi, layers.read(name).float() - before))


def safe_lora(config: SafeLora, job: Job) -> Setup:
    """Plain fine-tuning, then the projection."""
    return Setup(job.rows, job.train, companion=Projection(config, Alignment(job)))


def asft(config: Asft, job: Job) -> Setup:
    """Plain fine-tuning with the penalty."""
    alignment = Alignment(job)
    return Setup(job.rows, job.train, objective=job.plain + config.weight * Penalty("asft", alignment.outside))
