"""The same merges by PEFT and by mergekit, and gradients of single samples by a loop."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import peak_rss
from benchmarks.merging import DENSITY, RANK, SEED, adapters, lab, memory_now


def peft(width: str, count: str, kind: str) -> dict[str, Any]:
    """``add_weighted_adapter`` on a model of one linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    torch.manual_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"])
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(int(width), int(width), bias=False)}), config, "0")
    names = [str(number) for number in range(int(count))]
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model["layer"]
    for name, (A_ri, B_or) in zip(names, adapters(int(width), int(count)), strict=True):
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = A_ri, B_or
    dense = {"density": DENSITY[kind.removesuffix("_svd")]} if kind != "svd" else {}
    before, began = memory_now(), time.perf_counter()
    model.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type=kind, svd_rank=RANK, **dense)
    seconds = time.perf_counter() - began
    A_ri, B_or = layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach()
    kept = layer.scaling["merged"] * float((B_or.T @ B_or * (A_ri @ A_ri.T).T).sum()) ** 0.5
    return {"seconds": seconds, "grown": peak_rss() - before, "kept": kept}


def mergekit(width: str, count: str, rule: str, folder: str) -> dict[str, Any]:
    """The layer's full matrices from one file for each model and one for the base to one file."""
    import torch
    from mergekit.merge_methods import merge_tensors  # type: ignore[import-not-found]
    from safetensors.torch import load_file, save_file

    where = Path(folder) / "mergekit"
    where.mkdir()
    base_oi = torch.randn(int(width), int(width), generator=torch.Generator().manual_seed(SEED)) * 0.02
    save_file({"W": base_oi}, where / "base.safetensors")
    for number, (A_ri, B_or) in enumerate(adapters(int(width), int(count))):
        save_file({"W": base_oi + B_or @ A_ri}, where / f"{number}.safetensors")
    del base_oi, A_ri, B_or
    parameters = {"weight": 1.0, "normalize": False} | ({"density": DENSITY[rule]} if rule in DENSITY else {})
    before = memory_now()
    paths = [where / "base.safetensors", *(where / f"{number}.safetensors" for number in range(int(count)))]
    tensors = [load_file(path)["W"] for path in paths]
    merged_oi = merge_tensors(tensors, rule, parameters=parameters, base_index=0)
    save_file({"W": merged_oi.contiguous()}, where / "merged.safetensors")
    return {"grown": peak_rss() - before, "files": sum(path.stat().st_size for path in where.iterdir())}


def batch_of_one(count: str, kind: str) -> dict[str, Any]:
    """A forward and a backward for each row.

    Args:
        kind: ``weights``: gradients of the weights, brought into the core space. ``cores``: of zero core matrices that
            stand beside frozen weights, which saves the gradients of the weights.
    """
    import torch

    from holdfast.data.batches import collate
    from holdfast.layers.address import LayerMap

    loaded, rows, spaces = lab(count)
    model, layers = loaded.model.requires_grad_(False).eval(), LayerMap.of(loaded.model)
    modules = {name: model.get_submodule(layers[name].path) for name in spaces}
    if kind == "weights":
        leaves = {name: module.weight.requires_grad_() for name, module in modules.items()}
    else:
        leaves = {name: _core_beside(module, spaces[name]) for name, module in modules.items()}

    def gradients(row: Any) -> list[Any]:
        batch = collate([row], loaded.chat.pad_id)
        loss = model(**batch.model_inputs(), labels=batch.labels).loss
        found = torch.autograd.grad(loss, list(leaves.values()))
        if kind == "cores":
            return list(found)
        return [s.left_op.T @ G_oi @ s.right_iq for s, G_oi in zip(spaces.values(), found, strict=True)]

    gradients(rows[0])
    began = time.perf_counter()
    each = [gradients(row) for row in rows]
    found = [torch.stack([own[number].flatten() for own in each]) for number in range(len(leaves))]
    return {"seconds": time.perf_counter() - began, "traces": [float(G_nd.square().sum()) for G_nd in found]}


def _core_beside(module: Any, space: Any) -> Any:
    import torch

    M_pq = torch.zeros(space.left_op.shape[1], space.right_iq.shape[1], requires_grad=True)

    def beside(_: Any, given: Any, out: Any) -> Any:
        return out + given[0] @ space.right_iq @ M_pq.T @ space.left_op.T

    module.register_forward_hook(beside)
    return M_pq


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    roles: dict[str, Callable[..., dict[str, Any]]] = {"peft": peft, "mergekit": mergekit, "loop": batch_of_one}
    print(json.dumps(roles[role](*rest)))
