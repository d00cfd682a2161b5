"""Figures by layer: in order of kind and depth, and their range in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from holdfast.core.results import Metric
from holdfast.reports.charts import Points

KINDS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
LAYER = "layer="


def place(name: str) -> tuple[str, int]:
    """Kind and block of a layer, or of a group of layers.

    >>> place("layer=layers.3.q_proj"), place("layers.11.mlp_input"), place("lm_head")
    (('q_proj', 3), ('mlp_input', 11), ('lm_head', 0))
    """
    block, _, kind = name.removeprefix(LAYER).rpartition(".")
    number = block.rpartition(".")[2]
    return kind, int(number) if number.isdecimal() else 0


def in_order(kinds: Iterable[str], known: Sequence[str]) -> list[str]:
    """Each kind once, those that are known first."""
    return sorted(dict.fromkeys(kinds), key=lambda kind: known.index(kind) if kind in known else len(known))


def by_kind(metrics: Iterable[Metric]) -> dict[str, Points]:
    """Figures by layer as (block, value), by kind of layer."""
    found: dict[str, list[tuple[float, float]]] = {}
    for metric in metrics:
        kind, block = place(metric.group)
        if metric.value is not None:
            found.setdefault(kind, []).append((float(block), metric.value))
    return {kind: tuple(found[kind]) for kind in in_order(found, KINDS)}


def median_range(points: Points) -> str:
    """Median with the lowest and the highest."""
    values = [y for _, y in points]
    low, high = bare(min(values)), bare(max(values))
    return percent(median(values)) + ("" if low == high else f" [{low}, {high}]")


def percent(value: float) -> str:
    """A share with one decimal, a small one with two digits.

    >>> percent(0.9829), percent(0.5), percent(0.0011), percent(0.0)
    ('98.3 %', '50.0 %', '0.11 %', '0 %')
    """
    return f"{bare(value)} %"


def bare(value: float) -> str:
    """The same without its unit."""
    scaled = 100 * value
    return f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2g}"
