r"""The loss of token weighting: one term a head, each a weighted sum over the learnt tokens that the head can predict.

A weight belongs to the token that is predicted, whichever head predicts it. Head ``h`` has the term
:math:`\lambda_h \sum_t w_t m_{th} CE_{th}`, which the loop divides by :math:`\sum_t w_t m_{th}` over the optimizer step
and all processes. That number must be known before the forward pass, and no row may depend on what it shares a batch
with, or a step would not be the same however it is divided. So:

- weights that do not follow the model are known from the plan, and so is their sum;
- weights that follow it have mean 1 over the learnt tokens **of each row**, for each head over those that it can
  predict (behind the start of a row a far head sees fewer of them): their sum is the number of these tokens. A row of
  whose weighted tokens a head can predict none gives it nothing;
- over a whole step (``scope: batch``) this holds where the step is one forward pass; any other is refused.

In evaluation the loss is that of plain fine-tuning, so that runs can be compared; so it is bit for bit with equal
weights and no further heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.files import sha256_of
from holdfast.data.batches import IGNORE, Batch
from holdfast.methods.token_weighting import maths, scorers
from holdfast.methods.token_weighting.alignment import targets_at
from holdfast.methods.token_weighting.gates import Watch, check_numbers
from holdfast.methods.token_weighting.nll import per_token_nll, weighted_nll
from holdfast.methods.token_weighting.plan import TokenWeightingPlan, key_of
from holdfast.models.heads import Heads, Unembedding, read_trunk, save_heads, unembedding
from holdfast.models.load import weights_of
from holdfast.training.objective import Composable, NextToken, Term

HEADS = "heads"
"""The folder of the heads, beside that of the model."""
_ROWS = 256
"""Predictions whose entropies are made together."""


@dataclass(frozen=True, slots=True)
class _Learnt:
    """The learnt tokens of a batch, one row after the other; rows with none are left out. On the CPU."""

    row_n: Tensor
    keys: list[bytes]
    names: list[str]
    values_n: Tensor
    """What the plan has for each token, or nothing."""


@dataclass(frozen=True, slots=True)
class _View:
    """What one head predicts from, on the device of the model."""

    hidden_nd: Tensor
    targets_n: Tensor
    output: Unembedding
    sees_n: Tensor
    """Which of the batch's learnt tokens these are."""

    def losses(self, weights_n: Tensor | None = None) -> Tensor:
        """Of each token; 0 where the weight is 0."""
        out = self.output
        return per_token_nll(
            self.scaled(), out.weight_vd, self.targets_n, bias=out.bias_v, softcap=out.softcap, weights_n=weights_n
        )

    def scaled(self) -> Tensor:
        """States as the vocabulary reads them."""
        return self.hidden_nd * self.output.scale if self.output.scale != 1 else self.hidden_nd

    def entropies(self) -> Tensor:
        """Of each prediction."""
        parts = [maths.entropy(self.output.logits(part).float()) for part in self.hidden_nd.split(_ROWS)]  # type: ignore[no-untyped-call]
        return torch.cat(parts) if parts else self.hidden_nd.new_zeros(0, dtype=torch.float32)


def base_of(folder: Path) -> str:
    """By what heads know the model or adapter in ``folder``."""
    return weights_of(folder) or sha256_of(folder / "adapter_model.safetensors")


class WeightedObjective(Composable):
    """Terms ``head_1`` (the model's own head) to ``head_H``, of a plan."""

    def __init__(
        self, plan: TokenWeightingPlan, heads: Heads | None = None, over: Literal["tokens", "rows"] = "tokens"
    ) -> None:
        self.plan, self.heads, self._over = plan, heads, over
        self._config = plan.config
        self._plain = NextToken("head_1", over)
        self._numbers = plan.numbers() if len(plan.values_n) else {}
        self._watch = Watch()
        self._ramp = 1.0
        self._detached = False
        self._batches = 0

    @property
    def is_plain(self) -> bool:
        """Whether this is plain fine-tuning."""
        return self.heads is None and self._config.scorer == "uniform"

    def modules(self) -> dict[str, nn.Module]:
        """The further heads."""
        return {} if self.heads is None else {HEADS: self.heads}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Keep the further heads beside the model."""
        if self.heads is not None:
            save_heads(self.heads, model, folder.parent / HEADS, base=base_of(folder))

    def begin(self, step: int, steps: int) -> None:
        """Warm the heads up with the model detached, then let what it learns from them rise."""
        self._watch.clear()
        self._batches = 0
        warm, ramp = self._config.warmup * steps, self._config.ramp * steps
        self._detached = step < warm
        self._ramp = 1.0 if self._detached or step >= warm + ramp else (step - warm + 1) / (ramp + 1)

    def figures(self) -> dict[str, float]:
        """Of the step: how weights are spread, and the loss of every head, unscaled.

        Raises:
            NumericsError: the weights have collapsed on a few tokens.
        """
        if self.is_plain:
            return {}
        critic = {name: value for name, value in self.plan.statistics.items() if name.startswith("critic/")}
        return critic | self._watch.figures("rho1/kept_share" if self._config.base == "rho1" else None)

    def weights(self, batch: Batch) -> dict[str, float]:
        """By what each head's term is divided.

        Raises:
            ConfigError: ``scope: batch``, and the step is more than one forward pass.
        """
        if self.is_plain:
            return self._plain.weights(batch)
        self._check_whole_step()
        learnt = self._learnt(batch)
        weights_n = self._known(learnt)
        return {
            f"head_{horizon}": self._divisor(learnt, weights_n, _seen_by(batch, horizon)) for horizon in self._horizons
        }

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """Every term, in at least float32; in evaluation that of plain fine-tuning.

        Raises:
            DataError: a row is not one of the plan's.
            NumericsError: a weight is not a number.
        """
        if self.is_plain or not model.training:
            return self._plain(model, batch)
        learnt = self._learnt(batch)
        views = self._views(model, batch)
        each = self._weights(learnt, views)
        shares = [self._shares(learnt, weights_n, view) for weights_n, view in zip(each, views, strict=True)]
        known_n = self._known(learnt)
        terms = {}
        for horizon, view, total in zip(self._horizons, views, self._totals(views, shares), strict=True):
            divisor = self._divisor(learnt, known_n, view.sees_n.cpu())
            self._watch.see_loss(f"head_{horizon}", total, divisor)
            factor = 1.0 if horizon == 1 else self._config.lambda_heads * self._ramp
            terms[f"head_{horizon}"] = Term(total if horizon == 1 else factor * total, divisor)
        return terms

    @property
    def _horizons(self) -> range:
        return range(1, 2 if self.heads is None else self.heads.horizon + 1)

    def _check_whole_step(self) -> None:
        self._batches += 1
        group = torch.distributed
        processes = group.get_world_size() if group.is_available() and group.is_initialized() else 1
        if self._config.follows and self._config.unit == "batch" and (self._batches > 1 or processes > 1):
            got = f"{processes} processes" if processes > 1 else "several forward passes"
            raise ConfigError(
                f"scope: batch takes shares over an optimizer step, which must be one forward pass: got {got}. Do: set "
                "accumulate: 1 on one process, or scope: sequence or dataset."
            )

    def _learnt(self, batch: Batch) -> _Learnt:
        ids, labels, owner = (each.cpu() for each in (batch.input_ids, batch.labels, batch.owner))
        real = owner >= 0
        sizes = owner[real].bincount().tolist()
        keys: list[bytes] = []
        names: list[str] = []
        counts: list[int] = []
        for name, own, marks in zip(
            batch.row_ids, torch.split(ids[real], sizes), torch.split(labels[real] != IGNORE, sizes), strict=True
        ):
            if count := int(marks.sum()):
                keys.append(key_of(own.tolist(), marks.tolist()))
                names.append(name)
                counts.append(count)
        values = [self._values(key, name) for key, name in zip(keys, names, strict=True)] if self._numbers else []
        row_n = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        return _Learnt(row_n, keys, names, torch.cat(values) if values else torch.empty(0))

    def _values(self, key: bytes, name: str) -> Tensor:
        if key not in self._numbers:
            raise DataError(
                f"Row {name!r} is not one of the plan's, or has other tokens there. Do: train on the rows that were "
                "planned, or plan again."
            )
        return self.plan.row(self._numbers[key]).float()  # autocast on a CPU joins no float16

    def _known(self, learnt: _Learnt) -> Tensor | None:
        """Weights that do not follow the model."""
        if self._config.follows:
            return None
        return torch.ones(len(learnt.row_n)) if self._config.base == "uniform" else learnt.values_n

    def _divisor(self, learnt: _Learnt, known_n: Tensor | None, sees_n: Tensor) -> float:
        """The sum of the weights of the tokens that a head can predict, or the number of their rows."""
        if self._over == "rows":
            has_n = sees_n if known_n is None else sees_n & (known_n != 0)
            return float(learnt.row_n[has_n].bincount().count_nonzero())
        return float(sees_n.sum() if known_n is None else known_n[sees_n].double().sum())

    def _views(self, model: nn.Module, batch: Batch) -> list[_View]:
        if self.heads is None:
            states, outputs = [read_trunk(model, batch).final], [unembedding(model)]
        else:
            states = self.heads(model, batch, detach_trunk=self._detached)
            outputs = self.heads.unembeddings(model, detach_trunk=self._detached)
        views = []
        for horizon, state, output in zip(self._horizons, states, outputs, strict=True):
            targets, _ = targets_at(batch, horizon)
            where = targets != IGNORE
            views.append(_View(state[where], targets[where], output, _seen_by(batch, horizon)))
        return views

    def _weights(self, learnt: _Learnt, views: Sequence[_View]) -> list[Tensor]:
        """For every head the weights of the tokens that it predicts."""
        device = views[0].targets_n.device
        known_n = self._known(learnt)
        if known_n is not None:
            known_n = known_n.to(device)
            self._watch.see(known_n, None)
            return [known_n[view.sees_n] for view in views]
        alone = self._config.horizon_weights == "per_head"
        made = [self._scored(learnt, view) for view in (views if alone else views[:1])]
        self._watch.see(made[0].weight_n, made[0].clipped_n)
        if not alone:
            made = [maths.Weights(made[0].weight_n[view.sees_n], made[0].clipped_n) for view in views]
        out = []
        for view, each in zip(views, made, strict=True):
            row_n = learnt.row_n.to(device)[view.sees_n]
            unit_n = row_n if self._config.unit == "sequence" else torch.zeros_like(row_n)
            out.append(each.weight_n if alone or bool(view.sees_n.all()) else maths.mean_one(each.weight_n, unit_n))
        return out

    @torch.no_grad()
    def _scored(self, learnt: _Learnt, view: _View) -> maths.Weights:
        """Weights that follow the model, of the tokens that ``view`` predicts."""
        reference_n = learnt.values_n.to(view.sees_n.device)[view.sees_n].float() if self._numbers else None
        entropy_n = view.entropies() if self._config.base == "entropy" else None
        seen = scorers.Seen(view.losses().detach(), reference_n, entropy_n)
        row_n = learnt.row_n.to(view.sees_n.device)[view.sees_n]
        score_n = scorers.FOLLOWING[self._config.base](seen)
        check_numbers("scores", score_n, row_n, learnt.names, seen.loss_n)
        made = scorers.weigh(self._config, score_n, row_n, learnt.keys)
        check_numbers("weights", made.weight_n, row_n, learnt.names, seen.loss_n)
        return made

    def _shares(self, learnt: _Learnt, weights_n: Tensor, view: _View) -> Tensor:
        """What each loss is multiplied by: the weight, over rows as a share of the row's."""
        if self._over == "tokens" or not len(weights_n):
            return weights_n
        row_n = learnt.row_n.to(weights_n.device)[view.sees_n]
        return maths.mean_one(weights_n, row_n) / row_n.bincount()[row_n]

    def _totals(self, views: Sequence[_View], shares: Sequence[Tensor]) -> list[Tensor]:
        """The weighted sum of losses of each head.

        Heads that share a vocabulary which learns from all of them go through it together: it has one gradient then.
        """
        first = views[0].output
        if len(views) == 1:
            return [self._alone(views[0], shares[0])]
        rest = views[1:]
        if self.heads is not None and self.heads.outputs is not None:
            return [self._alone(view, share_n) for view, share_n in zip(views, shares, strict=True)]
        if self._detached:
            return [self._alone(views[0], shares[0]), *_together(rest, shares[1:], rest[0].output)]
        return _together(views, shares, first)

    @staticmethod
    def _alone(view: _View, share_n: Tensor) -> Tensor:
        out = view.output
        return weighted_nll(
            view.scaled(), out.weight_vd, view.targets_n, share_n.float(), bias=out.bias_v, softcap=out.softcap
        )[0]


def _together(views: Sequence[_View], shares: Sequence[Tensor], output: Unembedding) -> list[Tensor]:
    sizes = [len(view.targets_n) for view in views]
    hidden_nd = torch.cat([view.hidden_nd for view in views])
    targets_n, sees_n = torch.cat([view.targets_n for view in views]), views[0].sees_n
    share_n = torch.cat([each.float() for each in shares])
    losses_n = _View(hidden_nd, targets_n, output, sees_n).losses(share_n)
    return [part.sum() for part in torch.split(share_n * losses_n, sizes)]


def _seen_by(batch: Batch, horizon: int) -> Tensor:
    """Which of the learnt tokens the head of ``horizon`` can predict: those that far behind the start of their row."""
    targets, _ = targets_at(batch, horizon)
    sees = torch.zeros_like(targets, dtype=torch.bool)
    sees[:, horizon:] = (targets != IGNORE)[:, : targets.shape[1] - horizon] if horizon < targets.shape[1] else False
    return sees[batch.labels != IGNORE]
