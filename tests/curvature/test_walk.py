"""Batches that go through one block at a time arrive where a whole forward brings them."""

from typing import Any

import pytest
import torch
from tests.curvature.oracles import setting
from tests.zoo import FAMILIES
from torch import Tensor, nn

from holdfast.curvature.walk import block_by_block
from holdfast.data.batches import Batch, collate


class Block(nn.Module):
    """Of a model of its own making: it adds what its number makes of its input, and may answer in a tuple."""

    def __init__(self, number: int, in_tuples: bool) -> None:
        super().__init__()
        self.number, self.in_tuples = number, in_tuples
        self.runs = 0

    def forward(self, hidden: Tensor, scale: float) -> Any:
        self.runs += 1
        moved = hidden * scale + self.number
        return (moved, "weights") if self.in_tuples else moved


class Toy(nn.Module):
    """Three blocks, each with another scale."""

    def __init__(self, in_tuples: bool) -> None:
        super().__init__()
        self.in_tuples = in_tuples
        self.embed = nn.Embedding(300, 4)
        self.blocks = nn.ModuleList(Block(number, in_tuples) for number in range(3))
        self.ends: list[Tensor] = []

    def forward(self, input_ids: Tensor, **_: Any) -> None:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            output = block(hidden, scale=2.0 + block.number)
            hidden = output[0] if self.in_tuples else output
        assert hidden.ndim == 3
        self.ends.append(hidden)


def batches() -> list[Batch]:
    """Of unequal size and width."""
    _, rows, _ = setting()
    return [collate(rows[start : start + 4], 0) for start in range(0, len(rows), 4)]


@pytest.mark.parametrize("in_tuples", [False, True])
def test_each_block_runs_once_a_batch_and_what_leaves_the_last_is_the_whole_forward(in_tuples: bool) -> None:
    model, given = Toy(in_tuples), batches()
    for batch in given:
        model(**batch.model_inputs())
    whole, model.ends = model.ends, []
    with block_by_block(model, list(model.blocks), given) as walk:
        for block in range(3):
            model.ends = []
            for number in range(len(given)):
                walk.run(block, number)
    assert all(torch.equal(a, b) for a, b in zip(model.ends, whole, strict=True))
    assert [block.runs for block in model.blocks] == [2 * len(given)] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_leaves_its_last_block_as_in_a_whole_forward(family: str) -> None:
    loaded, rows, layers = setting(family)
    given = [collate(rows[:4], loaded.chat.pad_id), collate(rows[4:], loaded.chat.pad_id)]
    blocks = layers.blocks()
    with torch.no_grad():
        whole = [loaded.model(**batch.model_inputs(), logits_to_keep=1).logits for batch in given]
    seen: list[Tensor] = []
    handle = loaded.model.register_forward_hook(lambda _, __, output: seen.append(output.logits))
    with block_by_block(loaded.model, blocks, given) as walk:
        for block in range(len(blocks)):
            seen.clear()
            for number in range(len(given)):
                walk.run(block, number)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))


def test_a_forward_that_another_library_put_there_is_called_and_comes_back() -> None:
    model, given, calls = Toy(False), batches(), []
    own = model.blocks[1].forward

    def wrapped(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return own(*args, **options)

    model.blocks[1].forward = wrapped
    with block_by_block(model, list(model.blocks), given) as walk:
        walk.run(0, 0)
        walk.run(1, 0)
    assert calls == [1]
    assert model.blocks[1].forward is wrapped
    assert "forward" not in vars(model.blocks[0])
