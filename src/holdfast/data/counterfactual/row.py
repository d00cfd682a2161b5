"""One case of prompt injection and its four views: benign, twin, attacked, obeyed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from holdfast.data.examples import Example, Message, Role
from holdfast.data.formats.injection import place


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A task on untrusted text, and an attack on it: what counterfactual training and its verification read.

    Trusted are ``system`` and ``instruction``; everything else that reaches the model is not.
    """

    id: str
    group: str
    """The scenario, template and goal that the case is made of: no group stands in two splits."""
    system: str
    instruction: str
    """The user's own; empty only where the system turn is the whole task (then ``channel`` is ``user``)."""
    data: str
    """The untrusted text, clean."""
    answer: str
    """The wanted answer, whatever is injected; empty where the source has none (such cases can only be evaluated)."""
    payload: str
    """The injected instruction, bare."""
    injection: str
    """The text that the attacker adds: the payload as its attack dresses it."""
    witness: str
    """A string that appears in the output only if the payload was obeyed; empty where the source has none."""
    payload_answer: str
    """What an obeying model would answer; empty where the source has none."""
    attack: str
    """Family of the attack: how the payload is dressed."""
    position: str
    """``before``, ``middle`` or ``after`` in the data; empty where the source tells no place."""
    split: str
    """``train``, ``validation``, ``test``, or ``unused``: see `splits`."""
    twin_data: str = ""
    """Other clean text with the same answer; empty where there is none."""
    twin_instruction: str = ""
    """Another wording of the instruction with the same answer; empty where there is none."""
    attacked_answer: str = ""
    """The wanted answer to the attack, where it leaves no task to do: a refusal. Empty: ``answer``."""
    attacked_data: str = ""
    """The text with the injection in it; empty: the injection on a line of its own at ``position``."""
    category: str = ""
    """What the payload is about, where the source says so (BIPIA's categories)."""
    family: str = ""
    """The source, as examples name it: ``injection``, ``alpaca``, ``bipia``."""
    channel: Role = "data"
    """The turn that the untrusted text stands in: ``data``, or ``user`` where a source attacks the user's turn."""

    def attacked_text(self) -> str:
        """The untrusted text as the attacker leaves it."""
        return self.attacked_data or place(self.injection, self.data, self.position)

    def with_injection(self, injection: str, attack: str = "") -> Counterfactual:
        """The same case with another injected text in the place of this one, for searches over attacks."""
        text = self.attacked_text().replace(self.injection, injection, 1)
        return replace(self, injection=injection, attacked_data=text, attack=attack or self.attack)

    def benign(self) -> Example:
        """Nothing injected."""
        return self._view("benign", self.instruction, self.data)

    def twin(self) -> Example | None:
        """Nothing injected, another wording or other data, the same answer; ``None`` where the source has none."""
        if not (self.twin_data or self.twin_instruction):
            return None
        return self._view("twin", self.twin_instruction or self.instruction, self.twin_data or self.data)

    def attacked(self) -> Example:
        """The injection at its place; the wanted answer is still the benign one."""
        row = self._view("attacked", self.instruction, self.attacked_text())
        answer = self.attacked_answer or self.answer
        return replace(row, answer=answer, reference=answer, attack=self.attack, position=self.position)

    def obeyed(self) -> Example:
        """The payload as the user's own instruction, on clean data; its answer is the payload's."""
        row = self._view("obeyed", self.payload, self.data if self.channel == "data" else "")
        return replace(row, answer=self.payload_answer, reference=self.payload_answer, witness="", payload_answer="")

    def _view(self, name: str, instruction: str, text: str) -> Example:
        turns: list[tuple[Role, str]] = [("system", self.system), ("user", instruction), (self.channel, text)]
        return Example(
            id=f"{self.id}/{name}",
            messages=tuple(Message(role, content) for role, content in turns if content),
            answer=self.answer,
            family=self.family,
            split=self.split,
            group=self.group,
            reference=self.answer,
            witness=self.witness,
            payload_answer=self.payload_answer,
            risk_area=self.category,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able form, one line of a file of cases; empty optional fields are left out."""
        return {name: value for name, value in asdict(self).items() if value or name in NEEDED}


NEEDED = ("instruction", "data", "answer", "injection", "attack", "position")
"""Columns that a file of cases must have; the others default to nothing, ``payload`` to ``injection``."""
