import pytest
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.data.batches import IGNORE, Batch, Encoded, collate
from holdfast.methods.token_weighting.alignment import targets_at
from holdfast.training.objective import targets_of


def row(name: str, ids: range, prompt: int) -> Encoded:
    return Encoded(name, tuple(ids), tuple(i >= prompt for i in range(len(ids))))


def packed() -> Batch:
    """Two packed rows, a padded one of 4 tokens, and a row that fills the line."""
    a, b = row("a", range(10, 15), prompt=2), row("b", range(20, 24), prompt=0)
    return collate([(a, b), (row("c", range(30, 34), prompt=3),), (row("d", range(40, 49), prompt=1),)], pad_id=0)


def by_hand(batch: Batch, horizon: int) -> Tensor:
    """One position after another."""
    out = torch.full_like(batch.labels, IGNORE)
    lines, width = batch.labels.shape
    for line in range(lines):
        for t in range(width - horizon):
            if batch.owner[line, t] == batch.owner[line, t + horizon] != -1:
                out[line, t] = batch.labels[line, t + horizon]
    return out


def test_horizon_one_is_what_plain_fine_tuning_learns() -> None:
    for batch in (packed(), collate([row("a", range(10, 15), 2), row("b", range(20, 23), 0)], pad_id=7, side="left")):
        found, expected = targets_at(batch, 1), targets_of(batch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 8, 9, 30])
def test_every_horizon_agrees_with_a_loop_over_positions(horizon: int) -> None:
    batch = packed()
    assert torch.equal(targets_at(batch, horizon)[0], by_hand(batch, horizon))
    assert (horizon < 9) == bool((targets_at(batch, horizon)[0] != IGNORE).any())


def test_a_label_reaches_exactly_the_position_that_many_tokens_before() -> None:
    batch = packed()
    for line, at in (batch.labels != IGNORE).nonzero().tolist():
        token, owner = int(batch.labels[line, at]), int(batch.owner[line, at])
        for horizon in range(1, 5):
            reached = (targets_at(batch, horizon)[0] == token).nonzero().tolist()
            inside = at >= horizon and int(batch.owner[line, at - horizon]) == owner
            assert reached == ([[line, at - horizon]] if inside else [])


def test_packed_rows_do_not_leak_at_any_horizon() -> None:
    batch = packed()
    changed = batch.labels.clone()
    changed[0, 5:] = 99
    other = Batch(
        batch.input_ids,
        changed,
        *(getattr(batch, n) for n in ("attention_mask", "position_ids", "row_ids")),
        batch.owner,
    )
    for horizon in range(1, 9):
        assert torch.equal(targets_at(batch, horizon)[0][0, :5], targets_at(other, horizon)[0][0, :5])


def test_left_padding_gets_no_target() -> None:
    batch = collate([row("a", range(10, 16), 1), row("b", range(20, 23), 0)], pad_id=7, side="left")
    for horizon in range(1, 6):
        assert bool((targets_at(batch, horizon)[0][1, :3] == IGNORE).all())
    assert targets_at(batch, 2)[0][1].tolist() == [IGNORE, IGNORE, IGNORE, 22, IGNORE, IGNORE]


def test_horizon_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="got horizon 0"):
        targets_at(packed(), 0)
