"""Per-sample gradients and Fisher matrices against ``torch.func`` and against nngeometry."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.curvature.oracles import setting
from tests.curvature.test_fisher import projected, spaces_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from holdfast.curvature.fisher import core_gradients, full
from holdfast.curvature.samples import sample_gradients
from holdfast.data.batches import Encoded
from holdfast.layers.address import LayerMap
from holdfast.models.load import LoadedModel

NAMES = ["layers.0.q_proj", "layers.0.gate_proj", "layers.1.down_proj"]
NNGEOMETRY = Path(os.environ.get("HOLDFAST_NNGEOMETRY", ".peers/nngeometry"))
PEER = Path(__file__).parent / "nngeometry_peer.py"


def of_one_length(rows: list[Encoded], response: int = 4) -> list[Encoded]:
    """Cut to one length, as vmap needs, each with the same number of response tokens at its end."""
    length = min(row.response.index(True) + response for row in rows)
    cut = []
    for row in rows:
        end = row.response.index(True) + response
        cut.append(replace(row, ids=row.ids[end - length : end], response=row.response[end - length : end]))
    return cut


def by_vmap(loaded: LoadedModel, rows: list[Encoded], layers: LayerMap, names: list[str]) -> dict[str, Tensor]:
    """``(n, o, i)`` by layer: the gradient of one row's loss as a function of the weights, mapped over rows."""
    loaded.model.set_attn_implementation("eager")
    keys = {name: key for name in names for key, p in loaded.model.named_parameters() if p is layers.parameter(name)}
    weights = {key: layers.parameter(name).detach() for name, key in keys.items()}
    at = [t for t in range(1, len(rows[0])) if rows[0].response[t]]

    def loss(changed: dict[str, Tensor], ids_t: Tensor) -> Tensor:
        inputs = {"input_ids": ids_t[None], "use_cache": False}
        logits = torch.func.functional_call(loaded.model, changed, (), inputs).logits[0]
        return cross_entropy(logits[[t - 1 for t in at]], ids_t[at])

    ids_nt = torch.tensor([row.ids for row in rows])
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, ids_nt)
    return {name: found[key].detach() for name, key in keys.items()}


def assert_to_a_millionth(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found.double() - expected.double()).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_gradients_of_whole_weights_and_of_core_coordinates_are_those_of_vmap_and_of_batches_of_one() -> None:
    loaded, rows, layers = setting("llama", n=6, dtype=torch.float64)
    rows = of_one_length(rows)
    expected = by_vmap(loaded, rows, layers, NAMES)
    chosen, spaces = layers.select(NAMES), spaces_of(layers.select(NAMES))
    for batch_size in (4, 1):
        whole = {name: torch.zeros_like(G) for name, G in expected.items()}
        sample_gradients(
            loaded,
            rows,
            chosen,
            lambda layer, n, G_oi, whole=whole: whole[layer.name][n].copy_(G_oi),  # type: ignore[misc]
            batch_size=batch_size,
        )
        core = core_gradients(loaded, rows, spaces, batch_size=batch_size)
        for name, G_noi in expected.items():
            assert_to_a_millionth(whole[name], G_noi)
            assert_to_a_millionth(core[name], torch.stack([projected(spaces[name], G_oi) for G_oi in G_noi]))


@pytest.mark.peers
@pytest.mark.skipif(not NNGEOMETRY.exists(), reason=f"no {NNGEOMETRY}: make peers, or HOLDFAST_NNGEOMETRY")
def test_fisher_matrices_of_own_and_of_all_labels_are_those_of_nngeometry(tmp_path: Path) -> None:
    """Rows of one answer token: their own Fisher to a millionth, that of drawn labels within 4 sigma of all labels'."""
    loaded, rows, layers = setting("gpt2", n=5, dtype=torch.float64)
    loaded.model.set_attn_implementation("eager")
    name = "layers.1.up_proj"
    rows = of_one_length(rows, response=1)
    spaces = spaces_of(layers.select(name), p=3, q=2)
    key = next(key for key, parameter in loaded.model.named_parameters() if parameter is layers.parameter(name))
    torch.save(
        {
            "model": loaded.model,
            "key": key,
            "left": spaces[name].left_op,
            "right": spaces[name].right_iq,
            "ids": torch.tensor([row.ids for row in rows]),
        },
        tmp_path / "given.pt",
    )
    subprocess.run(
        [sys.executable, PEER, tmp_path / "given.pt", tmp_path / "fishers.pt"],
        check=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(NNGEOMETRY.resolve())},
    )
    theirs = torch.load(tmp_path / "fishers.pt")
    assert_to_a_millionth(full(core_gradients(loaded, rows, spaces)[name]), theirs["empirical"])
    n = 4000
    copies = [replace(rows[k % len(rows)], id=f"{k}") for k in range(n)]
    drawn = core_gradients(loaded, copies, spaces, labels="sampled", seed=1, batch_size=500)[name]
    sigma_dd = (drawn[:, :, None] * drawn[:, None, :]).std(0) / n**0.5
    assert float(((full(drawn) - theirs["exact"]) / sigma_dd).abs().max()) < 4
