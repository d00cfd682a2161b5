"""Checks that stop a run before the weights change, each with a sentence that names the step and the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from holdfast.core.errors import ConfigError, DataError, NumericsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.data.batches import Batch
    from holdfast.training.config import TrainConfig
    from holdfast.training.objective import Term

_PACKABLE = ("sdpa", "eager")
"""Attention kernels for which Transformers turns restarting positions into a block-diagonal mask at any batch size."""

_UNCHANGED = "The weights are those before the step."


def _name(rows: Sequence[str]) -> str:
    shown = ", ".join(rows[:8])
    return f"{shown}, ... ({len(rows)} rows)" if len(rows) > 8 else shown


def check_setup(model: Any, config: TrainConfig, has_validation: bool) -> None:
    """The configuration fits the model and the data."""
    if config.evaluate_every and not has_validation:
        raise ConfigError(
            "evaluate_every is set, but there are no validation rows. Do: give validation rows, or leave it out."
        )
    kernel = getattr(model.config, "_attn_implementation", "eager")
    if config.packing and kernel not in _PACKABLE:
        raise ConfigError(f"packing would attend across rows: got attention {kernel!r}, expected one of {_PACKABLE}.")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and config.max_length > limit:
        raise ConfigError(
            f"max_length is beyond the model's context: got {config.max_length}, expected at most {limit}."
        )


def check_targets(total: Mapping[str, float], step: int, rows: Sequence[str]) -> None:
    """Every term has something to learn in this step."""
    for name, weight in total.items():
        if not math.isfinite(weight) or weight <= 0:
            raise DataError(
                f"Step {step} has nothing to learn: got a total weight of {weight} for {name!r}, expected more than 0. "
                f"Do: check the answers of rows {_name(rows)}; for a head that predicts further ahead than any of them "
                "reaches, lower horizon, or raise batch_size."
            )


def check_weights(terms: Mapping[str, Term], announced: Mapping[str, float]) -> None:
    """The objective summed with the weights that it announced; otherwise the step is divided by a wrong number."""
    found = {name: term.weight for name, term in terms.items()}
    if found.keys() != announced.keys() or any(not math.isclose(found[n], announced[n], rel_tol=1e-6) for n in found):
        raise NumericsError(f"The objective broke its promise: got weights {found}, expected {dict(announced)}.")


def check_losses(parts: Sequence[float], losses: Tensor, batches: Sequence[Batch], step: int) -> None:
    """The loss of the step is finite on every process (``parts`` are sums over processes)."""
    if all(map(math.isfinite, parts)):
        return
    bad = (~torch.isfinite(losses).all(dim=1)).tolist()
    rows = [row for batch, is_bad in zip(batches, bad, strict=True) if is_bad for row in batch.row_ids]
    where = f"rows {_name(rows)}" if rows else "rows of another process"
    raise NumericsError(
        f"The loss of step {step} is not finite: got {sum(parts)} on {where}. {_UNCHANGED} "
        "Do: lower learning_rate, set precision: fp32, or look at these rows."
    )


def validation_loss(names: Sequence[str], sums: Sequence[float], weights: Sequence[float]) -> float:
    """The loss from the sums and weights of all validation rows; it must exist and be finite."""
    for name, weight in zip(names, weights, strict=True):
        if weight <= 0:
            raise DataError(
                f"The validation rows have nothing to learn: got a total weight of {weight} for {name!r}, "
                "expected more than 0. Do: check their answers."
            )
    loss = sum(s / w for s, w in zip(sums, weights, strict=True))
    if not math.isfinite(loss):
        raise NumericsError(
            f"The validation loss is not finite: got {loss}. Do: lower learning_rate, or resume from a checkpoint."
        )
    return loss


def check_gradients(norm: float, parameters: Mapping[str, nn.Parameter], step: int, rows: Sequence[str]) -> None:
    """The gradient of the step is finite."""
    if math.isfinite(norm):
        return
    bad = [n for n, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
    first = bad[0] if bad else "the sum of squares"
    raise NumericsError(
        f"The gradient of step {step} is not finite: got norm {norm}, first in {first}, "
        f"on rows {_name(rows)}. {_UNCHANGED} Do: lower learning_rate, or set precision: fp32."
    )
