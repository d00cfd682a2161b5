"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer with one learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Two of PyTorch's optimizers side by side.

    Muon orthogonalises the momentum of a weight matrix; its update is scaled to the size of AdamW's, so that both parts
    share one learning rate. Embeddings, the output head, norms and biases are AdamW's.

    Reference:
        Jordan et al., Muon (2024); the scaling: Liu et al., Muon is Scalable for LLM Training (2025).
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = [torch.optim.AdamW(list(others), lr=lr, betas=betas, fused=True)] if others else []
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, *adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each part; a closure is not supported and is not called."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
