"""Plans and objectives of tiny models."""

from typing import Any

from tests.training.helpers import examples
from tests.zoo import tiny

from holdfast.data.batches import Batch, collate
from holdfast.data.examples import Example
from holdfast.methods.token_weighting.apply import apply
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.objective import WeightedObjective
from holdfast.methods.token_weighting.plan import TokenWeightingPlan, plan
from holdfast.methods.token_weighting.reference import learnt_tokens
from holdfast.models.load import LoadedModel


def column_of(loaded: LoadedModel, rows: list[Example]) -> dict[str, list[float]]:
    """Weights that differ from token to token, some of them 0."""
    sizes = {row.id: learnt_tokens(loaded.chat.training(row)) for row in rows}
    return {name: [float((7 * n + len(name)) % 4) for n in range(size)] for name, size in sizes.items()}


def planned(loaded: LoadedModel, rows: list[Example], **keys: Any) -> TokenWeightingPlan:
    """A plan with what its scorer needs: other random models for references."""
    config = TokenWeightingConfig(**keys)
    sources: dict[str, Any] = {}
    if config.base == "rho1":
        sources["references"] = {"reference": tiny("llama", 1)}
    elif config.base == "contrast":
        sources["references"] = {"degraded": tiny("llama", 1), "utility": tiny("llama", 2)}
    elif config.base == "column":
        sources["column"] = column_of(loaded, rows)
    return plan(config, loaded, rows, **sources)


def objective_of(loaded: LoadedModel, rows: list[Example], over: Any = "tokens", **keys: Any) -> WeightedObjective:
    """The objective of such a plan."""
    return apply(loaded, planned(loaded, rows, **keys), over)


def batch_of(loaded: LoadedModel, rows: list[Example]) -> Batch:
    """All rows, a line each."""
    return collate([loaded.chat.training(row) for row in rows], loaded.chat.pad_id)


def few(n: int = 6) -> list[Example]:
    """Rows of unequal length."""
    return examples(n, seed=4)
