"""What the rivals look at: the alignment, and Fisher diagonals and input moments in a layer's own coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.curvature.moments import moments
from holdfast.curvature.samples import sample_gradients
from holdfast.data.batches import Encoded
from holdfast.layers.adapters import Adapter, added
from holdfast.layers.address import Layer, LayerMap
from holdfast.layers.alignment import alignments
from holdfast.methods.merging.repair_config import WITH_UNALIGNED, RepairConfig
from holdfast.models.load import LoadedModel


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """One layer; what a rival does not read is left out."""

    alignment: Tensor | None = None
    """``V_oi``."""
    safety: Tensor | None = None
    """Mean squared gradient of safety rows, ``(o, i)``."""
    utility: Tensor | None = None
    """The same of utility rows."""
    inputs: Tensor | None = None
    """Second moment of the inputs on utility rows, ``(i, i)``."""


def gather(
    config: RepairConfig,
    loaded: LoadedModel,
    adapter: Adapter,
    names: Sequence[str],
    rows: tuple[Sequence[Encoded], Sequence[Encoded]],
    unaligned: LoadedModel | None,
) -> dict[str, Seen]:
    """By layer; the model is left as it was. ``prune`` looks at safety rows where repair does, ``irr`` at the base.

    Args:
        rows: Utility, then safety.
        unaligned: The base before its alignment.
    Raises:
        ConfigError: the method goes by the alignment, and there is no unaligned model, or another kind of model.
        NumericsError: something is not finite, or a layer is the same in both models.
    """
    utility, safety = rows
    aligned: Mapping[str, Tensor] = {}
    if config.method in WITH_UNALIGNED:
        if unaligned is None:
            raise ConfigError(
                f"method {config.method} goes by what aligned the base: got no unaligned model. Do: give the model "
                "before its alignment as 'unaligned'."
            )
        aligned = alignments(loaded, unaligned, names)
    harm: Mapping[str, Tensor] = {}
    use: Mapping[str, Tensor] = {}
    inputs: Mapping[str, Tensor] = {}
    if config.method == "irr":
        harm = squares(loaded, safety, names)
        with added(loaded.model, adapter):
            inputs = _inputs(loaded, utility, names)
    elif config.method == "prune":
        with added(loaded.model, adapter, config.point):
            harm = squares(loaded, safety, names)
        with added(loaded.model, adapter):
            use = squares(loaded, utility, names)
    return {name: Seen(aligned.get(name), harm.get(name), use.get(name), inputs.get(name)) for name in names}


def squares(loaded: LoadedModel, rows: Sequence[Encoded], names: Sequence[str]) -> dict[str, Tensor]:
    """The diagonal of each layer's Fisher matrix in the weight's own coordinates, ``(o, i)``.

    Raises:
        DataError: no rows, or one without an answer.
        NumericsError: a gradient is not finite.
    """
    sums: dict[str, Tensor] = {}

    def consume(layer: Layer, _number: int, G_oi: Tensor) -> None:
        squared_oi = G_oi.square_().div_(len(rows))
        sums[layer.name] = sums[layer.name].add_(squared_oi) if layer.name in sums else squared_oi

    sample_gradients(loaded, rows, LayerMap.of(loaded.model).select(list(names)), consume)
    return sums


def _inputs(loaded: LoadedModel, rows: Sequence[Encoded], names: Sequence[str]) -> dict[str, Tensor]:
    layers = LayerMap.of(loaded.model).select(list(names))
    found = moments(loaded, rows, layers)
    return {layer.name: found[layer.group].matrix for layer in layers}
