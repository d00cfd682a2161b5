"""The panel of rotation as Markdown blocks and as terminal lines."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.reports.markdown import charted, table, text
from holdfast.reports.rotation_panel import CHECK, PROVED, RotationPanel

TERMINAL_MASKS = 2
"""Masks told in the terminal."""
LIST_HEAD = ("Step", "Mask", "Certificate", "Largest leak", "Output drift")


def blocks(panel: RotationPanel) -> Iterable[str]:
    """Markdown: certificates first, then what was held and what moved."""
    yield "## Rotation"
    yield from (f"**{text(held.id)}: {held.status}.** {text(held.sentence)}" for held in panel.cards)
    if panel.held:
        yield f"{text(PROVED)} Check it: `{CHECK}`."
    if panel.counted:
        yield text(panel.counted)
        yield table(LIST_HEAD, listed(panel))
    yield from (f"Mask **{text(name)}**: {text(sentence)}" for name, sentence in panel.masks)
    for chart in (*panel.spectra, *panel.frozen, *([panel.drift] if panel.drift else [])):
        yield from charted(chart)


def listed(panel: RotationPanel) -> list[tuple[str, ...]]:
    """A row a held step."""
    return [(held.id, held.mask, held.status, held.leak, held.drift) for held in panel.held]


def lines(panel: RotationPanel) -> Iterable[str]:
    """Terminal: a line a certificate and a mask, the first of them."""
    for held in panel.cards:
        leak = f", largest leak {held.leak}" if held.holds else ""
        yield f"{held.id}: {held.status}{leak}; drift {held.drift}"
    if len(panel.held) > len(panel.cards):
        sound = sum(held.holds is True for held in panel.held)
        yield f"{sound} of {len(panel.held)} held steps have a certificate that holds; above, the first of each mask."
    yield from (f"{name}: {sentence}" for name, sentence in panel.masks[:TERMINAL_MASKS])
    if len(panel.masks) > TERMINAL_MASKS:
        yield f"{len(panel.masks) - TERMINAL_MASKS} more masks are in the report."
    if panel.held:
        yield f"Check the certificates: {CHECK}"
