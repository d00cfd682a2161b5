"""Memory and disk of the three phases of rotation, from the shapes of the planned layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from holdfast.core.sizes import FLOAT_BYTES, ROW_TOKENS

if TYPE_CHECKING:
    from holdfast.layers.address import Layer
    from holdfast.methods.rotation.config import ImportanceConfig, MaskConfig

EIGENVECTORS = 9
"""What computing the eigenvectors of a moment takes beside its halves, in sizes of it: the whole, and in float64 the
matrix, its eigenvectors and LAPACK's workspace of two."""
HALVES = 2


def hidden_bytes(rows: Iterable[int | None], hidden: int, width: int) -> int:
    """Of the hidden states of all rows between two blocks, ``width`` bytes a number."""
    return sum(n or 0 for n in rows) * ROW_TOKENS * hidden * width


def moments_bytes(layers: Sequence[Layer], halves: int = HALVES) -> int:
    """The most that the second moments of one block take, each ``halves`` times, and then its widest eigenvectors."""
    blocks: dict[int, dict[str, int]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, {})[layer.group] = FLOAT_BYTES * layer.in_features**2
    return max(halves * sum(block.values()) + EIGENVECTORS * max(block.values()) for block in blocks.values())


def basis_disk(layers: Sequence[Layer], control: bool) -> int:
    """The vectors of each group; a control's moments beside them."""
    groups = {layer.group: FLOAT_BYTES * layer.in_features**2 for layer in layers}
    return (1 + control) * sum(groups.values())


def scores_bytes(layers: Sequence[Layer], config: ImportanceConfig) -> int:
    """One score of every direction or element."""
    by_element = config.importance in ("abs", "square", "taylor")
    return FLOAT_BYTES * sum(layer.in_features * (layer.out_features if by_element else 1) for layer in layers)


def mask_disk(layers: Sequence[Layer], config: MaskConfig) -> int:
    """A byte for every direction or element; the basis is linked, not copied."""
    return sum(layer.in_features * (layer.out_features if config.unit == "element" else 1) for layer in layers)
