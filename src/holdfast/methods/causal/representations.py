"""Representations: what named layers read at the last token of the prompt, and on average over the response.

The output is computed from them; there is no head beside the model. Letters in names: ``b`` lines of one row each,
``t`` tokens, ``i`` inputs of a layer, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.curvature.passes import at_least_float32, check_pass, full_precision, longest_first, untouched
from holdfast.data.batches import IGNORE, Batch, Encoded, collate
from holdfast.layers.address import LayerMap
from holdfast.models.load import LoadedModel

Kind = Literal["prompt", "response"]
Representation = dict[str, Tensor]
"""``(n, i)`` in float32, by the name of a group of layers that share an input and where it is read: ``group/kind``."""


def choose_layers(layers: LayerMap, patterns: Sequence[str]) -> LayerMap:
    """The layers that the patterns name; of none, what the MLP reads at a half, three quarters and the end.

    Raises:
        LayerError: a pattern matches no layer.
    """
    blocks = len(layers.blocks())
    late = sorted({blocks // 2, 3 * blocks // 4, blocks - 1})
    return layers.select(tuple(patterns) or tuple(f"layers.{block}.up_proj" for block in late))


@contextmanager
def reading(layers: LayerMap) -> Iterator[dict[str, Tensor]]:
    """The input of each group of layers, ``(b, t, i)``, as the last forward inside the block left it: with its graph.

    The hooks only keep a reference, so that gradient checkpointing may run a block again.
    """
    seen: dict[str, Tensor] = {}

    def keep(group: str) -> object:
        return lambda _, args: seen.__setitem__(group, args[0])

    with ExitStack() as handles:
        for group, members in layers.groups().items():
            module = layers.module(members[0].name)
            handles.callback(module.register_forward_pre_hook(keep(group)).remove)  # type: ignore[arg-type]
        yield seen


def picked(seen: Mapping[str, Tensor], batch: Batch, kinds: Sequence[Kind], lines: int | None = None) -> Representation:
    """Of the first ``lines`` of ``batch`` (all), each one row with a response, the representation, at least float32."""
    learnt_bt = batch.labels[:lines] != IGNORE
    line_b = torch.arange(len(learnt_bt), device=learnt_bt.device)
    first_b = learnt_bt.int().argmax(1)
    share_bt = learnt_bt.double() / learnt_bt.sum(1, keepdim=True)
    found: Representation = {}
    with torch.autocast(learnt_bt.device.type, enabled=False):
        for group, a_bti in seen.items():
            if "prompt" in kinds:
                found[f"{group}/prompt"] = at_least_float32(a_bti[line_b, first_b - 1])
            if "response" in kinds:
                wide_bti = at_least_float32(a_bti[:lines])
                found[f"{group}/response"] = torch.bmm(share_bt.to(wide_bti.dtype)[:, None], wide_bti)[:, 0]
    return found


def represent(
    loaded: LoadedModel, rows: Sequence[Encoded], layers: LayerMap, kinds: Sequence[Kind], batch_size: int = 16
) -> Representation:
    """The representations of ``rows``, in their order, on the CPU; the model is as before.

    Raises:
        DataError: there are no rows, or one does not fit the model's context.
        NumericsError: a representation is not finite; names the layer and the row.
    """
    check_pass(loaded, rows, layers, batch_size)
    order = longest_first(rows)
    parts: dict[str, list[Tensor]] = {}
    device = loaded.model.device
    with untouched(loaded.model), torch.no_grad(), full_precision(device):
        for start in range(0, len(order), batch_size):
            batch = collate([rows[n] for n in order[start : start + batch_size]], loaded.chat.pad_id).to(device)
            with reading(layers) as seen:
                loaded.model(**batch.model_inputs(), logits_to_keep=1)
                for name, R_bi in picked(seen, batch, kinds).items():
                    _check_finite(name, R_bi, batch.row_ids)
                    parts.setdefault(name, []).append(R_bi.cpu())
    place = torch.tensor(order).argsort()
    return {name: torch.cat(each)[place] for name, each in parts.items()}


def _check_finite(name: str, R_bi: Tensor, rows: Sequence[str]) -> None:
    bad = (~torch.isfinite(R_bi).all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise NumericsError(
            f"Representations at {name} are not finite: got {len(bad)} such rows in a batch, the first "
            f"{rows[bad[0]]!r}, expected numbers. Do: load the model in float32 or bfloat16, or look at this row."
        )
