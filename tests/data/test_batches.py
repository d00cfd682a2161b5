import random

import pytest
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.data.batches import IGNORE, Batches, Encoded, Rows, alike, collate, pack


def row(name: str, length: int, prompt: int = 2) -> Encoded:
    return Encoded(name, tuple(range(10, 10 + length)), tuple(i >= prompt for i in range(length)))


def rows(n: int, seed: int = 0) -> list[Encoded]:
    dice = random.Random(seed)
    return [row(f"r{i}", dice.randint(3, 40)) for i in range(n)]


def test_labels_are_the_response_tokens_and_nothing_else() -> None:
    batch = collate([row("a", 5, prompt=3), row("b", 3, prompt=1)], pad_id=0)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14], [10, 11, 12, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, IGNORE, 13, 14], [IGNORE, 11, 12, IGNORE, IGNORE]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.owner.tolist() == [[0, 0, 0, 0, 0], [1, 1, 1, -1, -1]]
    assert batch.row_ids == ("a", "b")


def test_left_padding_keeps_positions_of_tokens() -> None:
    batch = collate([row("a", 4), row("b", 2, prompt=0)], pad_id=7, side="left")
    assert batch.input_ids.tolist()[1] == [7, 7, 10, 11]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert batch.model_inputs()["attention_mask"].tolist()[1] == [0, 0, 1, 1]


def test_packed_line_restarts_positions_and_learns_no_first_token_of_a_row() -> None:
    batch = collate([(row("a", 3, prompt=0), row("b", 2, prompt=0)), (row("c", 4, prompt=0),)], pad_id=0)
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.labels.tolist()[0] == [IGNORE, 11, 12, IGNORE, 11]
    assert batch.owner.tolist() == [[0, 0, 0, 1, 1], [2, 2, 2, 2, -1]]
    assert batch.row_ids == ("a", "b", "c")


def test_padding_of_a_packed_line_is_a_segment_of_its_own() -> None:
    batch = collate([(row("a", 2), row("b", 2)), (row("c", 7),)], pad_id=0)
    assert batch.position_ids.tolist()[0] == [0, 1, 0, 1, 0, 1, 2]


def test_packing_keeps_every_row_whole_and_fills_lines() -> None:
    some = rows(200)
    lines = pack(some, 64)
    assert sorted(r.id for line in lines for r in line) == sorted(r.id for r in some)
    assert all(sum(map(len, line)) <= 64 for line in lines)
    tokens = sum(map(len, some))
    assert len(lines) <= -(-tokens // 64) * 1.1


def test_compact_rows_give_back_what_went_in() -> None:
    some = rows(20)
    compact = Rows(some)
    assert [compact[i] for i in range(len(compact))] == some
    assert compact.lengths == [len(r) for r in some]
    with pytest.raises(IndexError):
        compact[20]


def test_a_row_longer_than_the_line_is_named() -> None:
    with pytest.raises(DataError, match=r"row 'long' got 9 tokens, expected at most 8.*too_long: drop"):
        pack([row("ok", 3), row("long", 9)], 8)


@pytest.mark.parametrize("pack_to", [None, 64])
def test_an_epoch_has_every_row_exactly_once(pack_to: int | None) -> None:
    some = rows(101)
    data = Batches(some, 4, 0, pad_id=0, accumulate=2, pack_to=pack_to)
    for epoch in (0, 1):
        start = epoch * data.steps_per_epoch
        seen = [r for s in range(start, start + data.steps_per_epoch) for b in data.step(s) for r in b.row_ids]
        assert sorted(seen) == sorted(r.id for r in some)


def test_order_depends_on_seed_and_epoch_only() -> None:
    some = rows(64)

    def ids(data: Batches, step: int) -> list[str]:
        return [r for batch in data.step(step) for r in batch.row_ids]

    a, b, c = (Batches(some, 8, seed, pad_id=0) for seed in (1, 1, 2))
    forwards = [ids(a, s) for s in range(16)]
    backwards = [ids(b, s) for s in reversed(range(16))][::-1]
    assert forwards == backwards
    assert forwards != [ids(c, s) for s in range(16)]
    assert forwards[:8] != forwards[8:]


def test_a_step_has_the_same_rows_however_it_is_divided() -> None:
    some = rows(53)

    def ids(batch_size: int, accumulate: int, world: int, step: int) -> set[str]:
        ranks = [
            Batches(some, batch_size, 3, pad_id=0, accumulate=accumulate, rank=r, world=world) for r in range(world)
        ]
        return {name for data in ranks for batch in data.step(step) for name in batch.row_ids}

    for step in range(14):
        assert ids(1, 8, 1, step) == ids(8, 1, 1, step) == ids(4, 1, 2, step) == ids(2, 2, 2, step)


def test_ranks_get_equally_many_batches_and_learn_every_row_once() -> None:
    some = rows(53)
    ranks = [Batches(some, 2, 0, pad_id=0, accumulate=2, rank=r, world=3) for r in range(3)]
    whole = Batches(some, 53, 0, pad_id=0)
    for step in range(ranks[0].steps_per_epoch):
        assert len({len(data.step(step)) for data in ranks}) == 1
    learnt = sum(int((b.labels != IGNORE).sum()) for d in ranks for s in range(d.steps_per_epoch) for b in d.step(s))
    assert learnt == int((whole.step(0)[0].labels != IGNORE).sum())


def test_grouping_by_length_pads_less_than_half_of_random_order() -> None:
    some = rows(400)

    def padding(batches: list[torch.Tensor]) -> int:
        return sum(int((mask == 0).sum()) for mask in batches)

    data = Batches(some, 8, 0, pad_id=0)
    grouped = padding([b.attention_mask for s in range(data.steps_per_epoch) for b in data.step(s)])
    plain = padding([collate(some[i : i + 8], 0).attention_mask for i in range(0, 400, 8)])
    assert grouped < plain / 2


def test_no_rows_and_no_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="got 0 rows"):
        Batches([], 8, 0, pad_id=0)
    with pytest.raises(DataError, match="got 0 rows"):
        collate([], 0)
    with pytest.raises(DataError, match="Row 'x' is malformed: got 2 tokens and 1 response marks"):
        Encoded("x", (1, 2), (True,))
    with pytest.raises(ConfigError, match="batch_size"):
        Batches(rows(2), 0, 0, pad_id=0)


def test_groups_of_like_rows_hold_every_row_once_and_none_much_shorter_than_another() -> None:
    several = rows(60)
    groups = alike(several, 0.75)
    assert sorted(index for group in groups for index in group) == list(range(60))
    assert all(group == sorted(group) for group in groups)
    for group in groups:
        lengths = [len(several[index]) for index in group]
        assert min(lengths) >= 0.75 * max(lengths)
    assert 1 < len(groups) < 12
    assert alike(several, 0.0) == [list(range(60))]
