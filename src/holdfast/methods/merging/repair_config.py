"""The keys of repair: which way, which dial, and on which evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from holdfast.core.config import Config

RepairMethod = Literal["repair", "scale", "safe_lora", "lox", "csulora", "irr", "prune"]
WITH_UNALIGNED = ("safe_lora", "lox", "csulora", "irr")
"""Methods that go by what aligned the base."""
WITH_ROWS = ("repair", "irr", "prune")
"""Methods that read rows; the others read weights alone."""


@dataclass(frozen=True, slots=True)
class Dial:
    """The one number of a method that says how much is repaired."""

    key: str
    """Its key in `RepairConfig`."""
    values: tuple[float, ...]
    """Those that are tried where none are named, from little to much."""


DIALS: dict[RepairMethod, Dial] = {
    "repair": Dial("mu", (0.001, 0.01, 0.1, 1.0, 10.0)),
    "scale": Dial("factor", (0.9, 0.7, 0.5, 0.3, 0.1)),
    "safe_lora": Dial("threshold", (0.1, 0.2, 0.35, 0.5, 1.0)),
    "lox": Dial("alpha", (0.1, 0.3, 0.6, 1.25, 2.5)),
    "csulora": Dial("penalty", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "irr": Dial("share", (0.1, 0.25, 0.5, 0.75, 1.0)),
    "prune": Dial("share", (0.02, 0.05, 0.1, 0.3, 0.6)),
}
READS: dict[RepairMethod, frozenset[str]] = {
    "repair": frozenset({"mu", "fisher", "labels", "point", "samples", "damping", "seed"}),
    "scale": frozenset({"factor"}),
    "safe_lora": frozenset({"threshold"}),
    "lox": frozenset({"alpha", "directions"}),
    "csulora": frozenset({"penalty", "directions"}),
    "irr": frozenset({"share", "samples", "damping"}),
    "prune": frozenset({"share", "samples", "damping", "point"}),
}
"""The keys that each method reads, beside those that all read; any other is refused."""
_ALL = frozenset({"method", "layers", "rank"})


class RepairConfig(Config):
    """How the harm is taken out of one fine-tuning, without training."""

    method: RepairMethod = "repair"
    """``repair``: the change that loses least on utility rows as it is and on safety rows as the base was, with full
    Fisher matrices. The others are its published rivals (`holdfast.methods.merging.rivals`)."""
    layers: tuple[str, ...] = ()
    """Kinds (``q_proj``), names (``layers.3.q_proj``) or globs; empty means every layer of the adapter. Layers that are
    left out keep their change."""
    mu: float = Field(default=1.0, ge=0)
    """``repair``: how much a loss on safety rows weighs against one on utility rows; 0 changes nothing."""
    factor: float = Field(default=0.5, ge=0, le=1)
    """``scale``: the change is multiplied by this."""
    threshold: float = Field(default=0.35, ge=-1, le=1)
    """``safe_lora``: layers whose change is at most this much like the alignment are projected; 1 projects all."""
    alpha: float = Field(default=1.25, ge=0)
    """``lox``: how far the alignment is extrapolated."""
    penalty: float = Field(default=1.0, ge=0)
    """``csulora``: strength of the pull on what lies outside the alignment's directions."""
    share: float = Field(default=0.5, ge=0, le=1)
    """``irr``: of the entries that oppose the alignment, the share that is removed. ``prune``: of all entries."""
    directions: int = Field(default=6, ge=1)
    """``lox`` and ``csulora``: leading singular directions of the alignment that count."""
    fisher: Literal["full", "block", "diagonal"] = "full"
    """The form of the Fisher matrices: all entries of a layer, a block for each output of its core, or its squares."""
    labels: Literal["empirical", "sampled"] = "empirical"
    """``empirical``: the rows' own answers. ``sampled``: answers drawn from the model, of utility rows alone: what
    must be kept of safety is the rows' answers."""
    point: float = Field(default=0.5, ge=0, le=1)
    """Share of the change under which gradients of safety rows are taken: 0 is the base, 1 the fine-tuned model. Half
    way, the model has begun to comply and still knows better."""
    samples: int | None = Field(default=None, ge=2)
    """At most this many rows of each kind, the first ones; all of them where it is left out."""
    damping: float = Field(default=0.01, gt=0)
    """Added to every Fisher matrix, as a share of its mean eigenvalue."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the result; where it is left out, nothing is cut off."""
    seed: int = Field(default=0, ge=0)
    """Of drawn labels."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Self:
        known = set(RepairConfig.model_fields) - _ALL - READS[self.method] - {"seed"}
        unread = sorted(self.model_fields_set & known)
        if unread:
            raise ValueError(f"{unread[0]} has no effect with method: {self.method}; take it out")
        return self

    @property
    def dial(self) -> Dial:
        """The method's."""
        return DIALS[self.method]

    @property
    def strength(self) -> float:
        """Where the dial stands."""
        value: float = getattr(self, self.dial.key)
        return value

    def at(self, value: float) -> Self:
        """The same with the dial at another value.

        Raises:
            ValueError: the method has no such value.
        """
        return self.only(type(self), **{self.dial.key: value})
