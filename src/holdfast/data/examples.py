"""The one row type that everything reads: a conversation, the wanted answer, and what a scorer needs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Role = Literal["system", "user", "data", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "data", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``data`` is third-party text (a document, an e-mail, a tool result) that is not an instruction."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One frozen row.

    ``messages`` is the prompt, without the final answer; when it is empty, ``answer`` is plain text to be
    modelled whole (the base stage). ``answer`` is the training target; ``reference`` is what a scorer compares with,
    where that differs (``42`` against ``... #### 42``).
    """

    id: str
    messages: tuple[Message, ...]
    answer: str = ""
    family: str = ""
    """Task family or source, e.g. ``arithmetic``, ``requests/harmful``, ``gsm8k``."""
    split: str = ""
    """``train``, ``validation`` or ``test``."""
    group: str = ""
    """The thing or entity the row is about: the key for clustered intervals and for disjoint splits."""
    reference: str = ""
    witness: str = ""
    """A string that appears in the output only if an injected payload was obeyed."""
    payload_answer: str = ""
    """What an obeying model would answer."""
    tests: str = ""
    """Python source that raises unless the answer's code is right."""
    entry_point: str = ""
    """Name of the function that ``tests`` call."""
    options: tuple[str, ...] = ()
    """Choices of a multiple-choice question; ``reference`` is the letter of the right one."""
    risk_area: str = ""
    attack: str = ""
    """Attack or jailbreak family; empty where the row is not attacked."""
    position: str = ""
    """Where an injection stands in the data: ``before``, ``middle`` or ``after``."""
    label: str = ""
    """Ground-truth class where a set has one, e.g. ``safe`` or ``unsafe`` (XSTest)."""
    without_noise: str = ""
    """``answer`` before noise was planted in it, of the same length: characters that differ are noise."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; empty fields are left out."""
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        out: dict[str, Any] = {"id": self.id, "messages": turns}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in out and value:
                out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Example:
        """Inverse of `as_dict`."""
        kwargs = dict(row)
        kwargs["messages"] = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        kwargs["options"] = tuple(row.get("options", ()))
        return cls(**kwargs)
