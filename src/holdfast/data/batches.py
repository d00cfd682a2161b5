"""Tokenised rows become batches: length-grouped, packed, padded, in an order that only (seed, step) decides."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError

IGNORE = -100
"""The label of a token that is not learnt."""
_GROUPED = 4
"""Optimizer steps' worth of rows that are sorted by length together. More would pad less, but rows of one length tend
to be of one kind: at 50 the steps of a mixed diet became one-sided and the lab model learnt to copy much later."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised row."""

    id: str
    ids: tuple[int, ...]
    response: tuple[bool, ...]
    """True on tokens to be learnt: the answer and the end of the turn."""
    spans: tuple[tuple[str, int, int], ...] = ()
    """Named token ranges ``(name, start, end)``, e.g. the message roles; ``end`` is exclusive."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.response) or not self.ids:
            raise DataError(
                f"Row {self.id!r} is malformed: got {len(self.ids)} tokens and {len(self.response)} response marks, "
                "expected the same number, at least 1. Do: check the row's text and its chat template."
            )

    def __len__(self) -> int:
        return len(self.ids)


Line = tuple[Encoded, ...]
"""One line of a batch: a single row, or several packed after one another."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``b`` lines of ``t`` tokens, all tensors ``(b, t)`` long unless said otherwise."""

    input_ids: Tensor
    labels: Tensor
    """The token itself where it is learnt, else -100. **Not** shifted: position ``t - 1`` predicts label ``t``."""
    attention_mask: Tensor
    """1 on tokens, 0 on padding."""
    position_ids: Tensor
    """Restarts at 0 with every packed row."""
    row_ids: tuple[str, ...]
    """Ids of all rows, line by line; more than ``b`` of them when lines are packed."""
    owner: Tensor
    """Index into ``row_ids`` of the row that a token belongs to, -1 on padding."""
    side: Literal["left", "right"] = "right"
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "labels", "attention_mask", "position_ids", "owner")
        }
        return replace(self, **moved, extras={k: v.to(device, non_blocking=True) for k, v in self.extras.items()})

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of a causal model's forward pass.

        Padding on the right is invisible to every real token of a causal model, so no mask is passed and the fast
        causal kernel stays in use; positions that restart make Transformers build a block-diagonal mask (sdpa, eager).
        """
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids, "use_cache": False}
        if self.side == "left":
            inputs["attention_mask"] = self.attention_mask
        return inputs


def _positions(line: Line, width: int, side: str) -> list[int]:
    tokens = [position for row in line for position in range(len(row))]
    gap = width - len(tokens)
    if side == "left":
        return [0] * gap + tokens
    start = 0 if len(line) > 1 else len(tokens)
    return tokens + list(range(start, start + gap))


def collate(lines: Sequence[Encoded | Line], pad_id: int, side: Literal["left", "right"] = "right") -> Batch:
    """Pad ``lines`` to the longest of them.

    The first token of every row has no label: nothing stands before it in its own row that could predict it, and what
    stands before it in a packed line is another row's.

    Raises:
        DataError: ``lines`` is empty.
    """
    if not lines:
        raise DataError(
            "Cannot make a batch: got 0 rows, expected at least 1. Do: check the data source and its filters."
        )
    packs: list[Line] = [(line,) if isinstance(line, Encoded) else line for line in lines]
    width = max(sum(map(len, pack)) for pack in packs)
    columns: dict[str, list[list[int]]] = {"ids": [], "labels": [], "mask": [], "positions": [], "owner": []}
    names: list[str] = []
    for pack in packs:
        ids: list[int] = []
        labels: list[int] = []
        owner: list[int] = []
        for row in pack:
            ids += row.ids
            labels.append(IGNORE)
            labels += [i if r else IGNORE for i, r in zip(row.ids[1:], row.response[1:], strict=True)]
            owner += [len(names)] * len(row)
            names.append(row.id)
        gap, used = width - len(ids), [1] * len(ids)
        for name, values, filler in (
            ("ids", ids, pad_id),
            ("labels", labels, IGNORE),
            ("mask", used, 0),
            ("owner", owner, -1),
        ):
            pads = [filler] * gap
            columns[name].append(pads + values if side == "left" else values + pads)
        columns["positions"].append(_positions(pack, width, side))
    t = {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}
    return Batch(t["ids"], t["labels"], t["mask"], t["positions"], tuple(names), t["owner"], side)


def alike(rows: Sequence[Encoded], least: float = 0.75) -> list[list[int]]:
    """The indices of ``rows`` in groups, none of whose rows is shorter than ``least`` of its longest; ascending."""
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if not groups or len(rows[index]) < least * len(rows[groups[-1][0]]):
            groups.append([])
        groups[-1].append(index)
    return [sorted(group) for group in groups]


class Rows:
    """Tokenised rows at 5 bytes a token, where tuples of numbers take 40. Spans are left out: batches carry none."""

    def __init__(self, rows: Iterable[Encoded] = ()) -> None:
        self._names: list[str] = []
        self._ids, self._learnt, self._ends = array("i"), bytearray(), array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Encoded) -> None:
        """Add one row."""
        self._names.append(row.id)
        self._ids.extend(row.ids)
        self._learnt.extend(row.response)
        self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(self._ends[index], self._ends[index + 1])
        return Encoded(self._names[index], tuple(self._ids[part]), tuple(map(bool, self._learnt[part])))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [end - start for start, end in pairwise(self._ends)]


def pack(rows: Sequence[Encoded], length: int) -> list[Line]:
    """Put whole rows into lines of at most ``length`` tokens, see `pack_lengths`.

    Raises:
        DataError: a row is longer than ``length``; the message names it.
    """
    check_lengths([(row.id, len(row)) for row in rows], length)
    return [tuple(rows[i] for i in line) for line in pack_lengths([len(row) for row in rows], length)]


def pack_lengths(lengths: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Best-fit-decreasing bin packing: the indices on each line of at most ``length`` tokens; no row is cut."""
    lines: list[list[int]] = []
    open_lines: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of open_lines, sorted
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, lengths[row])
        if at < len(rooms):
            room = rooms[at]
            line = open_lines[room].pop()
            if not open_lines[room]:
                del open_lines[room], rooms[at]
            lines[line].append(row)
        else:
            room, line = length, len(lines)
            lines.append([row])
        left = room - lengths[row]
        if left not in open_lines:
            insort(rooms, left)
        open_lines.setdefault(left, []).append(line)
    return [tuple(line) for line in lines]


def check_lengths(rows: Sequence[tuple[str, int]], length: int) -> None:
    """Raise a DataError about rows, given as (id, tokens), that are longer than ``length`` tokens, if there are any."""
    long = [(tokens, name) for name, tokens in rows if tokens > length]
    if long:
        tokens, name = max(long)
        raise DataError(
            f"{len(long)} of {len(rows)} rows are too long: row {name!r} got {tokens} tokens, expected at most "
            f"{length}. Do: raise max_length, shorten the rows, or set too_long: drop."
        )


class Batches:
    """The batches of a training run: ``step(s)`` depends on the rows, the seed and ``s`` alone, so only ``s`` is saved.

    One optimizer step takes ``batch_size * accumulate * world`` lines, whatever the three factors are: 1 x 8, 8 x 1 and
    two processes see the same rows in the same step. Rows of like length share a step; steps are shuffled.
    """

    def __init__(  # noqa: PLR0913 - a constructor of independent keywords
        self,
        rows: Rows | Sequence[Encoded],
        batch_size: int,
        seed: int,
        *,
        pad_id: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        pack_to: int | None = None,
        shuffle: bool = True,
    ) -> None:
        if not rows:
            raise DataError("Cannot train: got 0 rows, expected at least 1. Do: check the data source and its filters.")
        if batch_size < 1 or accumulate < 1:
            raise ConfigError(f"batch_size and accumulate must be at least 1: got {batch_size} and {accumulate}.")
        self._rows = rows if isinstance(rows, Rows) else Rows(rows)
        lengths = self._rows.lengths
        self._lines = pack_lengths(lengths, pack_to) if pack_to else [(i,) for i in range(len(lengths))]
        self._batch_size, self._seed, self._pad_id = batch_size, seed, pad_id
        self._rank, self._world, self._shuffle = rank, world, shuffle
        self._lines_per_step = batch_size * accumulate * world
        self._lengths = [sum(lengths[i] for i in line) for line in self._lines]
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows; the last one may be smaller, which exact weights allow."""
        return -(-len(self._lines) // self._lines_per_step)

    def _order(self, epoch: int) -> list[list[int]]:
        """The line numbers of each step of ``epoch``, sorted by length within a step."""
        if self._epoch is None or self._epoch[0] != epoch:
            order, size = list(range(len(self._lines))), self._lines_per_step
            dice = random.Random(f"{self._seed}/{epoch}")
            if self._shuffle:
                dice.shuffle(order)
                region = size * _GROUPED
                regions = [order[i : i + region] for i in range(0, len(order), region)]
                order = [i for part in regions for i in sorted(part, key=lambda i: -self._lengths[i])]
            steps = [sorted(order[i : i + size], key=lambda i: -self._lengths[i]) for i in range(0, len(order), size)]
            if self._shuffle:
                dice.shuffle(steps)
            self._epoch = (epoch, steps)
        return self._epoch[1]

    def step(self, number: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step ``number`` (from 0). Every rank gets equally many of them.

        Where lines do not divide evenly, a rank is given a copy of one line with nothing to learn (weight 0), so that
        all ranks run as many backward passes.
        """
        epoch, index = divmod(number, self.steps_per_epoch)
        lines: list[Line] = [tuple(self._rows[r] for r in self._lines[i]) for i in self._order(epoch)[index]]
        chunks = [lines[i : i + self._batch_size] for i in range(0, len(lines), self._batch_size)]
        blank = [tuple(replace(row, response=(False,) * len(row)) for row in lines[-1])]
        chunks += [blank] * (-len(chunks) % self._world)
        return [collate(chunk, self._pad_id) for chunk in chunks[self._rank :: self._world]]


class Alternation:
    """The batches of a training that takes turns: ``guide_steps`` on guide rows, ``task_steps`` on the task's, again.

    Like `Batches` a function of the step alone. A pass over the rows is one over the task's: steps on guide rows take
    the place of others, they are not added.
    """

    def __init__(self, guide: Batches, guide_steps: int, task: Batches, task_steps: int) -> None:
        if guide_steps < 1 or task_steps < 1:
            raise ConfigError(
                f"Cannot take turns: got {guide_steps} steps on guide rows and {task_steps} on the task's, expected at "
                "least 1 of each. Do: raise the smaller one."
            )
        self._guide, self._guide_steps, self._task, self._task_steps = guide, guide_steps, task, task_steps

    @property
    def steps_per_epoch(self) -> int:
        """Those of the task's rows alone."""
        return self._task.steps_per_epoch

    def step(self, number: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step ``number`` (from 0)."""
        turn, at = divmod(number, self._guide_steps + self._task_steps)
        if at < self._guide_steps:
            return self._guide.step(turn * self._guide_steps + at)
        return self._task.step(turn * self._task_steps + at - self._guide_steps)
