"""Figures as the text of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.reports.names import DASH

if TYPE_CHECKING:
    from holdfast.reports.view import Figure


def shown(figure: Figure | None) -> str:
    """A figure with its interval; a dash where there is none."""
    if figure is None or figure.value is None:
        return DASH
    return f"{figure.text} {figure.bounds}".strip()


def reasoned(figure: Figure) -> str:
    """A figure with its interval; the reason where one of them is missing."""
    if figure.value is None:
        return f"{DASH} ({figure.reason})"
    reason = "" if figure.bounds or not figure.reason else f"({figure.reason})"
    return " ".join(filter(None, (figure.text, figure.bounds, reason)))


def written(figure: Figure) -> str:
    """The same, with n and what was invalid."""
    if figure.value is None:
        return reasoned(figure)
    invalid = f", {figure.n_invalid} invalid" if figure.n_invalid else ""
    return f"{reasoned(figure)} (n = {figure.n}{invalid})"
