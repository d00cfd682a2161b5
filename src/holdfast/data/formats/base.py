"""What a row format is: a literal that says which columns it needs and how one record becomes examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from holdfast.core.errors import DataError, did_you_mean
from holdfast.data.examples import ROLES, Example, Message, Role

Examples = Iterable[Example]
FIELDS = tuple(field.name for field in fields(Example) if field.name not in {"id", "messages", "answer", "options"})


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file and where it stands, so that every error can say so."""

    record: Mapping[str, Any]
    index: int
    """Position among the records of its file, from 0."""
    stem: str
    """The file's name without folder and suffix, e.g. ``algebra_test``; on the hub the configuration's name."""
    split: str = ""
    seed: int = 0
    attacks: Mapping[str, tuple[str, ...]] | None = None
    """Attack instructions by category, for formats that pair contexts with attacks."""

    @property
    def where(self) -> str:
        """Name of the row for a sentence."""
        return f"{self.stem} row {self.index + 1}"

    def text(self, *names: str) -> str:
        """The first of the named columns that is present, as text; it must hold something."""
        value = self.optional(*names)
        if not value:
            there = [name for name in names if name in self.record]
            if there:
                raise DataError(
                    f"{self.where}: column {there[0]!r} is empty, expected text. Do: fill it in, or take the row out."
                )
            raise DataError(
                f"{self.where}: column {names[0]!r} is absent, expected text. "
                f"{did_you_mean(names[0], map(str, self.record))}"
            )
        return value

    def optional(self, *names: str) -> str:
        """Like `text`, but absent, null and empty give ``""``."""
        for name in names:
            value = self.record.get(name)
            if value is None:
                continue
            if isinstance(value, Mapping | list | tuple):
                raise DataError(
                    f"{self.where}: column {name!r} holds a {type(value).__name__}, expected text. "
                    "Do: map another column to it with 'columns'."
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise DataError(
                    f"{self.where}: column {name!r} holds the number {value}, expected text. "
                    "Do: write the text, or leave the cell empty where there is none."
                )
            if str(value):
                return str(value)
        return ""

    def name(self, family: str, *columns: str) -> str:
        """A stable identity: the record's own where it has one, else its position."""
        return f"{family}/{self.optional(*columns) or self.index}"


@dataclass(frozen=True, slots=True)
class Home:
    """Where the public set lives on the hub."""

    id: str
    subset: str | None
    train: str | None
    test: str | None
    """Names of the splits there; ``None`` where the set has none."""

    def split(self, wanted: str) -> str:
        """Our split name (``train`` or ``test``) as the set calls it; any other name is passed through."""
        known = {"train": self.train or self.test, "test": self.test or self.train}
        return known.get(wanted) or wanted


@dataclass(frozen=True, slots=True)
class Format:
    """How the records of one kind of file become examples."""

    name: str
    needs: tuple[str, ...]
    """Columns that must be there; ``"text|prompt"`` means either."""
    read: Callable[[Row], Examples]
    summary: str
    also: tuple[str, ...] = ()
    """Columns that it reads where they are there."""
    answers: tuple[str, ...] = ()
    """Columns of which the first that holds something is the answer; empty where rows have none to learn."""
    headerless: tuple[str, ...] = ()
    """Column names for a CSV of this width that comes without a header."""
    home: Home | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it can read."""
        needed = (name for need in self.needs for name in need.split("|"))
        return tuple(dict.fromkeys((*needed, *self.answers, *self.also)))

    def missing(self, present: Iterable[str]) -> list[str]:
        """Needed columns that are not among ``present``.

        >>> Format("f", ("a|b", "c"), lambda row: [], "").missing(["b"])
        ['c']
        """
        have = set(present)
        return [need.split("|")[0] for need in self.needs if not have & set(need.split("|"))]


def user(content: str, *, system: str = "", data: str = "") -> tuple[Message, ...]:
    """A prompt of up to three turns: system, user, data."""
    turns: list[tuple[Role, str]] = [("system", system), ("user", content), ("data", data)]
    return tuple(Message(role, text) for role, text in turns if text)


def role(name: str, row: Row) -> Role:
    """A chat role as ours; ``tool`` is third-party text, hence ``data``."""
    known: dict[str, Role] = {r: r for r in ROLES} | {"tool": "data"}
    if name not in known:
        raise DataError(f"{row.where}: unknown role {name!r}. {did_you_mean(name, known)}")
    return known[name]
