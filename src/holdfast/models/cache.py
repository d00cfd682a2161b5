"""Keys and values of a batch whose rows come and go, and of text of which the newest tokens may be taken back."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from holdfast.core.errors import ConfigError

_ROOM = 64
"""Columns allocated ahead, so that a step writes its column instead of copying all of them."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, ``(slots, heads, columns, width)``, the last column being the newest token of all.

    Columns ``start`` to ``end`` of the buffers are in use. Every column is kept in sliding-window layers too; the
    attention mask, which the model makes from column numbers, limits them to the window.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.start = 0
        self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty buffers shaped like the first states."""
        self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        more = key_states.shape[2]
        if self.end + more > self.keys.shape[2]:
            self.keys, self.values = (self._moved(x, more + _ROOM) for x in (self.keys, self.values))
            self.start, self.end = 0, self.end - self.start
        self.keys[:, :, self.end : self.end + more] = key_states
        self.values[:, :, self.end : self.end + more] = value_states
        self.end += more
        return self.keys[:, :, self.start : self.end], self.values[:, :, self.start : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next call sees, and the number of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.end - self.start

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest columns, in sliding-window layers as well."""
        self.end -= tokens_to_remove

    def _moved(self, x: Tensor, room: int) -> Tensor:
        used = self.end - self.start
        fresh = x.new_empty(*x.shape[:2], used + room, x.shape[3])
        fresh[:, :, :used] = x[:, :, self.start : self.end]
        return fresh


class SlotCache(Cache):  # type: ignore[misc]
    """The layers of one model; all hold the same slots and columns.

    Raises:
        ConfigError: a layer of the model keeps something other than keys and values.
    """

    def __init__(self, config: Any) -> None:
        usual = DynamicCache(config=config).layers
        odd = [type(layer).__name__ for layer in usual if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)]
        if odd:
            raise ConfigError(
                f"Cannot generate with {config.model_type}: got a {odd[0]}, expected attention layers only. "
                "Do: use a model whose layers are all attention."
            )
        if usual:
            super().__init__(layers=[SlotLayer() for _ in usual])
        else:
            super().__init__(layer_class_to_replicate=SlotLayer)

    def keep(self, slots: Tensor) -> None:
        """Keep these slots, in this order."""
        for layer in self.layers:
            layer.keys, layer.values = (x.index_select(0, slots) for x in (layer.keys, layer.values))

    def drop(self, columns: int) -> None:
        """Forget the oldest columns."""
        for layer in self.layers:
            layer.start += columns

    def put(self, slots: Tensor, other: SlotCache, rows: Tensor) -> None:
        """Write these rows of ``other``, which has no more columns, into these slots, ending in the same column."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            first = mine.end - theirs.get_seq_length()
            mine.keys[slots, :, first : mine.end] = theirs.keys[rows, :, theirs.start : theirs.end]
            mine.values[slots, :, first : mine.end] = theirs.values[rows, :, theirs.start : theirs.end]


class BlockCache(Cache):  # type: ignore[misc]
    """A block beside the model's own, whichever of their numbers it has."""

    def __init__(self) -> None:
        super().__init__(layers=[SlotLayer()])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all of them."""
        states: tuple[Tensor, Tensor] = super().update(key_states, value_states, 0, *args, **kwargs)
        return states
