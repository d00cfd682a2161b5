"""How figures are written and what they are called: numbers to text, metric names to words."""

from __future__ import annotations

from holdfast.core.results import Metric
from holdfast.core.wording import WORDS

DASH = "–"
"""Stands for a value that is missing; the reason stands beside it."""

BREAKDOWNS = {
    "risk_area": "risk area",
    "attack": "attack family",
    "position": "position of the injection",
    "family": "subject",
    "label": "kind of prompt",
}
"""Fields by which figures are broken down, as a heading says them."""


def split_name(name: str) -> tuple[str, str, str]:
    """Suite, task and measure of a metric's name; the measure begins where a known word does.

    >>> split_name("safety/lab/jailbreak/attack_success_rate/all")
    ('safety', 'lab/jailbreak', 'attack_success_rate/all')
    >>> split_name("training/tokens_per_second")
    ('training', '', 'tokens_per_second')
    """
    suite, *rest = name.split("/")
    known = [position for position, part in enumerate(rest) if part in WORDS]
    start = known[0] if known else len(rest) - 1
    return suite, "/".join(rest[:start]), "/".join(rest[start:])


def measure_words(measure: str) -> str:
    """A measure for readers.

    >>> measure_words("attack_success_rate/all")
    'Attack success, counted over all answers'
    >>> measure_words("exact_match,strict")
    'Exact match,strict'
    """
    first, *rest = (WORDS.get(part, part.replace("_", " ")) for part in measure.split("/"))
    return ", ".join([first[:1].upper() + first[1:], *rest])


def plain(word: str) -> str:
    """An identifier as words.

    >>> plain("prefix_injection")
    'prefix injection'
    """
    return word.replace("_", " ")


def is_rate(metric: Metric) -> bool:
    """Rates print as percent; means as they are, and so does what a hold let through, of any size."""
    return metric.k is not None and metric.name not in ("rotation/leak", "rotation/drift")


def number(value: float, *, rate: bool, signed: bool = False) -> str:
    """A number without its unit: percent with one decimal, means with three, large ones with thousands.

    >>> number(0.4567, rate=True), number(0.4567, rate=False), number(1526.13, rate=False)
    ('45.7', '0.457', '1,526.1')
    >>> number(-0.02, rate=True, signed=True)
    '−2.0'
    """
    scaled = 100 * value if rate else value
    if not rate and 0 < abs(scaled) < 5e-4:
        return f"{scaled:{'+' if signed else ''}.1e}".replace("-", "−")
    digits = 1 if rate or abs(scaled) >= 10 else 3
    text = f"{scaled:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text.removeprefix("-")
    sign = "+" if signed and not text.startswith("-") else ""
    return sign + text.replace("-", "−")


def size(count: int | None) -> str:
    """Bytes as people read them.

    >>> size(1_436_520_448), size(None)
    ('1.44 GB', '–')
    """
    if count is None:
        return DASH
    scaled = float(count)
    for unit in ("B", "kB", "MB"):
        if scaled < 1000:
            return f"{scaled:.0f} {unit}"
        scaled /= 1000
    return f"{scaled:.2f} GB"


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> duration(7.24), duration(59.663), duration(3725)
    ('7.2 s', '1 min 00 s', '1 h 02 min')
    """
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
