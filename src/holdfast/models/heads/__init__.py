"""Extra heads that predict further ahead: built on any causal model, saved beside it, exported for servers."""

from holdfast.models.heads.export import export_deepseek, export_medusa
from holdfast.models.heads.kinds import Heads, Kind, ValueHead
from holdfast.models.heads.store import load_heads, save_heads
from holdfast.models.heads.trunk import Trunk, Unembedding, read_trunk, unembedding

__all__ = [
    "Heads",
    "Kind",
    "Trunk",
    "Unembedding",
    "ValueHead",
    "export_deepseek",
    "export_medusa",
    "load_heads",
    "read_trunk",
    "save_heads",
    "unembedding",
]
