"""The sentences a user may read. Form: what failed: got X, expected Y. Do Z."""

from collections.abc import Iterable
from difflib import get_close_matches


class HoldfastError(Exception):
    """A problem that the user can act on. The command prints it without a traceback and exits 2."""


class ConfigError(HoldfastError):
    """A recipe, an option or a combination of options is wrong."""


class DataError(HoldfastError):
    """A file, row, column or label is missing, empty or malformed."""


class LayerError(HoldfastError):
    """A layer pattern matches nothing, or a model's layers are not the ones expected."""


class NumericsError(HoldfastError):
    """A number is not finite, not positive definite or not what the mathematics needs."""


class AdapterError(HoldfastError):
    """An adapter cannot be read, or does not belong to this model."""


class MissingExtra(HoldfastError):  # noqa: N818 - the name says what to install
    """An optional dependency is not installed."""

    def __init__(self, needed_for: str, extra: str) -> None:
        super().__init__(f"{needed_for} needs an optional dependency. Do: pip install 'holdfast[{extra}]'")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown word: the nearest known one, then all of them.

    >>> did_you_mean("trian", ["train", "evaluate"])
    "Did you mean 'train'? Known: evaluate, train."
    """
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names) or '(none)'}."
