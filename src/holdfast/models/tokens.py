"""Text to tokens, where only the template may speak control tokens: the same words inside a turn stay words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from holdfast.core.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of rendered text; ``owner`` is the index of the message it is from, ``None`` for the template."""

    text: str
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids with the character range ``[start, end)`` of each in the text they were made from."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """First and one-past-last token that overlap the characters ``[start, end)``; empty but in place where none."""
        inside = [i for i, (first, last) in enumerate(self.offsets) if first < end and last > start]
        if inside:
            return inside[0], inside[-1] + 1
        before = sum(last <= start for _, last in self.offsets)
        return before, before


class Encoder:
    """Encodes template and content together, as the tokenizer itself would, but adds and invents no control tokens.

    Control tokens are the tokenizer's special tokens and every added token that the template names. Where one is
    spelt inside content, exactly that stretch is encoded letter by letter through the ordinary vocabulary.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ConfigError(
                f"Cannot use the tokenizer {type(tokenizer).__name__}: it has no tokenizer.json. "
                "Do: save it as a fast tokenizer (PreTrainedTokenizerFast) beside the weights."
            )
        state = json.loads(backend.to_str())
        state |= {"post_processor": None, "truncation": None, "padding": None}
        for token in state["added_tokens"]:
            token["special"] = bool(token["special"]) or token["content"] in template
        self.control = {t["content"]: int(t["id"]) for t in state["added_tokens"] if t["special"]}
        self._first = Tokenizer.from_str(json.dumps(state))
        self._inner = Tokenizer.from_str(json.dumps(_without_prefix_space(state)))
        self._plain = Tokenizer.from_str(json.dumps(_without_prefix_space(state)))
        self._plain.encode_special_tokens = True
        longest_first = sorted((t for t in self.control if t), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, pieces: Sequence[Piece], *, inner: bool = False) -> Tokens:
        """Token ids and character ranges of the joined pieces.

        Args:
            inner: The text goes on from other text, so a tokenizer that puts a space before the first word must not.
        """
        text = "".join(piece.text for piece in pieces)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, plain in self._stretches(text, pieces):
            coder = self._plain if plain else self._inner if inner or start else self._first
            coded = coder.encode(text[start:end], add_special_tokens=False)
            if plain and not set(self.control.values()).isdisjoint(coded.ids):
                raise DataError(
                    f"Cannot encode {text[start:end]!r} inside a turn: this tokenizer has it only as a control "
                    "token. Do: remove it from the row."
                )
            ids += coded.ids
            offsets += [(start + first, start + last) for first, last in coded.offsets]
        return Tokens(tuple(ids), tuple(offsets))

    def first_control(self, text: str) -> str | None:
        """The first control token spelt in ``text``, if any."""
        found = self._pattern.search(text)
        return found.group() if found else None

    def _stretches(self, text: str, pieces: Sequence[Piece]) -> list[tuple[int, int, bool]]:
        """Cut ``text`` so that control words touching content stand alone: ``(start, end, plain)``."""
        contents, at = [], 0
        for piece in pieces:
            if piece.owner is not None:
                contents.append((at, at + len(piece.text)))
            at += len(piece.text)
        cuts, done = [], 0
        for word in self._pattern.finditer(text):
            if any(word.start() < end and word.end() > start for start, end in contents):
                cuts += [(done, word.start(), False), (word.start(), word.end(), True)]
                done = word.end()
        cuts.append((done, len(text), False))
        return [cut for cut in cuts if cut[0] < cut[1]]


def _without_prefix_space(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tokenizer's state in which ``Metaspace`` puts no space before the first word."""
    return json.loads(json.dumps(state).replace('"prepend_scheme": "first"', '"prepend_scheme": "never"'))  # type: ignore[no-any-return]
