"""A named open set: judges, sources, tasks. It is filled by literals, never by import side effects."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from holdfast.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping whose lookup error names the nearest entry.

    >>> Registry("judge", {"keyword": 1})["keywrod"]
    Traceback (most recent call last):
    holdfast.core.errors.ConfigError: Unknown judge 'keywrod'. Did you mean 'keyword'? Known: keyword.
    """

    def __init__(self, noun: str, entries: Mapping[str, T]) -> None:
        self._noun = noun
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ConfigError(f"Unknown {self._noun} {name!r}. {did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
