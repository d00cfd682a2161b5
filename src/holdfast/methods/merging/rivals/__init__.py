"""Published ways to take the harm out of a fine-tuning without training, each as a pure function of one layer's change.

Replay is a training, ``baseline: {name: replay}`` of a train step, and SafeMERGE a merge with a safety adapter,
``rule: safe_merge``.
"""

from holdfast.methods.merging.rivals.evidence import Seen, gather
from holdfast.methods.merging.rivals.table import RIVALS, Rival

__all__ = ["RIVALS", "Rival", "Seen", "gather"]
