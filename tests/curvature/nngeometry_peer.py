"""Run with nngeometry on the path: Fisher matrices of one layer's core coordinates, by the real nngeometry.

    python nngeometry_peer.py given.pt fishers.pt

A layer ``M`` without bias takes the place of the coordinates: the weight is changed by ``left M right^T``. It is a
convolution of width 1, which nngeometry sums over tokens, and rows go in as embeddings, to which it wants a gradient.
"""

import sys

import torch
from torch import nn


class Core(nn.Module):
    """The model, whose one trained part is a layer from right to left coordinates of a weight."""

    def __init__(self, given: dict) -> None:
        super().__init__()
        self.base = [given["model"].requires_grad_(False)]
        self.left, self.right = given["left"], given["right"]
        self.core = nn.Conv1d(self.right.shape[1], self.left.shape[1], 1, bias=False).double()
        nn.init.zeros_(self.core.weight)
        self.layer = self.base[0].get_submodule(given["key"].rpartition(".")[0])
        self.layer.register_forward_hook(self._added)

    def _added(self, _: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + self.core((inputs[0] @ self.right).mT).mT @ self.left.T

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """Logits of the token after the last but one."""
        return self.base[0](inputs_embeds=embedded, use_cache=False).logits[:, -2]


def main(given_path: str, out: str) -> None:
    """Save the exact and the empirical Fisher, each ``(d, d)``."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense

    torch.set_default_dtype(torch.float64)
    given = torch.load(given_path, weights_only=False)
    model, ids = Core(given), given["ids"]
    embedded = given["model"].get_input_embeddings()(ids).detach()
    layers = LayerCollection()
    layers.add_layer_from_model(model, model.core)
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(embedded), batch_size=2)
    own = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(embedded, ids[:, -1]), batch_size=2)

    def logits(*d: torch.Tensor) -> torch.Tensor:
        return model(d[0])

    def own_label(*d: torch.Tensor) -> torch.Tensor:
        return model(d[0]).log_softmax(1).gather(1, d[1][:, None])

    exact = FIM(model, rows, PMatDense, "classif_logits", function=logits, layer_collection=layers)
    empirical = FIM(model, own, PMatDense, "regression", function=own_label, layer_collection=layers)
    torch.save({"exact": exact.to_torch().detach(), "empirical": empirical.to_torch().detach()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
