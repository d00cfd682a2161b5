"""What a training on a plan takes: rows per family, tokens, steps and memory, before it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil

from holdfast.layers.address import LayerMap
from holdfast.methods.causal.cases import response_of
from holdfast.methods.causal.plan import CausalPlan
from holdfast.models.describe import LOGIT_BYTES, Description
from holdfast.models.load import LoadedModel
from holdfast.training.config import TrainConfig

_LOGIT_BYTES = 5 * 4
"""A logit in 32 bits: itself, its log-softmax, a benign probability, and two gradients."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one training, on paper."""

    attacks: dict[str, int]
    """Cases to train on, by family of attack."""
    positions: dict[str, int]
    learnt_tokens: int
    """In one pass over the cases, benign and attacked."""
    tokens: int
    """In one pass, through the model with gradients, without padding."""
    longest: int
    """Tokens of the longest row with gradients."""
    steps: int
    memory_bytes: int
    """A rough estimate of the peak, from shapes alone."""

    def notes(self) -> tuple[str, ...]:
        """For the record and for people."""
        by_attack = ", ".join(f"{name or '(none)'} {n:,}" for name, n in self.attacks.items())
        return (
            f"Cases by attack: {by_attack}.",
            f"A pass learns {self.learnt_tokens:,} tokens of {self.tokens:,}, the longest row has {self.longest:,}; "
            f"{self.steps:,} steps; about {self.memory_bytes / 1e9:.2f} GB.",
        )


def capacity(plan: CausalPlan, loaded: LoadedModel, train: TrainConfig, processes: int = 1) -> Capacity:
    """What training ``loaded`` on the cases of ``plan`` takes.

    Args:
        processes: That share a step; memory is one process's. Plain rows are not counted.
    """
    cases, n = plan.cases, plan.cases.n_train
    with_gradients = [view for view in ("benign", "attacked", "payload") if view in cases.views]
    lengths = {view: cases.views[view].lengths[:n] for view in with_gradients}
    learnt = [len(response_of(cases.views["benign"][number])) for number in range(n)]
    longest = max(max(each) for each in lengths.values())
    per_step = train.batch_size * train.accumulate * processes
    return Capacity(
        attacks=dict(sorted(Counter(cases.attacks[:n]).items())),
        positions=dict(sorted(Counter(cases.positions[:n]).items())),
        learnt_tokens=2 * sum(learnt),
        tokens=sum(map(sum, lengths.values())),
        longest=longest,
        steps=train.steps_of(ceil(n / per_step)),
        memory_bytes=memory_bytes(_on_paper(loaded), train, len(with_gradients), longest, max(learnt)),
    )


def memory_bytes(paper: Description, train: TrainConfig, views: int, longest: int, learnt: int) -> int:
    """A rough estimate of the peak: activations of ``views`` rows a case, logits at learnt tokens only.

    Args:
        views: Those with gradients: benign, attacked and, for ``preference``, the payload's.
        longest: Tokens of the longest of them.
        learnt: Learnt tokens of the longest answer.
    """
    rows = views * train.batch_size
    tokens = rows * longest
    adapter = None if train.params == "full" else paper.lora_parameters(train.lora.rank, train.lora.targets)
    mixed, checkpointing = train.precision == "bf16", train.gradient_checkpointing
    trained = paper.training_bytes(tokens=tokens, adapter=adapter, checkpointing=checkpointing, mixed=mixed)
    everywhere = tokens * paper.vocabulary * LOGIT_BYTES
    widened = paper.widened_bytes if train.params == "qlora" else 0
    return trained + widened - everywhere + rows * learnt * paper.vocabulary * _LOGIT_BYTES


def _on_paper(loaded: LoadedModel) -> Description:
    layers, text = LayerMap.of(loaded.model), loaded.model.config.get_text_config()
    outputs: Counter[str] = Counter()
    for layer in layers:
        outputs[layer.path] += layer.out_features
    inputs = {layer.path: layer.in_features for layer in layers}
    weights = list(loaded.model.parameters())
    whole = [p for p in weights if p.is_floating_point()]
    return Description(
        name=loaded.name,
        model_type=str(loaded.model.config.model_type),
        parameters=sum(p.numel() for p in weights),
        widened_bytes=sum((4 - p.element_size()) * p.numel() for p in whole),
        weight_bytes=sum(p.numel() * p.element_size() for p in weights),
        layers=len(layers.blocks()),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        context=None,
        dtype=str(weights[0].dtype).removeprefix("torch."),
        matrices=tuple((path, inputs[path], outputs[path]) for path in inputs),
        skeleton=loaded.model,
    )
