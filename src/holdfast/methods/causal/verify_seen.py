"""What a model does on the rows of a verification: representations, outcomes, and how far answers vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.core.sizes import VERIFY_ROWS
from holdfast.data.counterfactual import Counterfactual
from holdfast.data.examples import Example
from holdfast.evaluation.judges import Sample
from holdfast.evaluation.judges.injection import INJECTION
from holdfast.layers.address import LayerMap
from holdfast.methods.causal.metrics import answer_variation, see
from holdfast.methods.causal.representations import Kind, Representation, choose_layers, represent
from holdfast.methods.causal.verify_rows import Swaps
from holdfast.models.generate import generate
from holdfast.models.load import LoadedModel

MORE_TOKENS = 16
"""An answer may be this much longer than the longest that is wanted."""
Say = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """One model."""

    views: dict[str, Representation]
    """Of every test case, by view: benign, attacked, obeyed."""
    sides: tuple[Representation, Representation]
    """Of the swapped cases, with either injection."""
    clean: Representation
    """Of the same cases with nothing injected."""
    crossed: Tensor | None
    """The deepest representation at the end of the prompt, of every crossed row, ``(n, i)``."""
    apart: list[Tensor]
    """Of every test case, the total variation at each token of the wanted answer."""
    benign: list[str]
    """Outcomes of the test cases, without the attack."""
    attacked: list[str]
    outcomes: list[str]
    """Of the crossed rows."""


def kinds_of(cases: Sequence[Counterfactual]) -> tuple[Kind, ...]:
    """Where representations are read: over the response only where every payload has an answer."""
    return ("prompt", "response") if all(case.payload_answer.strip() for case in cases) else ("prompt",)


def deepest(names: Sequence[str]) -> str:
    """The last layer's representation at the end of the prompt."""
    return [name for name in names if name.endswith("/prompt")][-1]


def look(
    loaded: LoadedModel, cases: Sequence[Counterfactual], swaps: Swaps, layers: Sequence[str], say: Say, what: str
) -> Seen:
    """Ask one model everything.

    Args:
        what: Which model, for progress.
    Raises:
        DataError: a row does not fit the model's context.
        NumericsError: a representation is not finite, or the same for all cases.
    """
    kinds = kinds_of(cases)
    chosen = choose_layers(LayerMap.of(loaded.model), layers)
    apart = answer_variation(loaded, cases)
    views = see(loaded, cases, layers, kinds, VERIFY_ROWS)
    for name, R_nd in views["benign"].items():
        if not bool((R_nd != R_nd[0]).any()):
            raise NumericsError(
                f"The representation at {name} of {what} is the same for all {len(R_nd)} cases, expected a "
                "difference: it has collapsed, or is read before the text comes in. Do: choose other layers."
            )

    def of(rows: Sequence[Example], where: Sequence[Kind]) -> Representation:
        return represent(loaded, [loaded.chat.training(row) for row in rows], chosen, where, VERIFY_ROWS)

    first, second = (of([case.attacked() for case in side], kinds) for side in swaps.swapped)
    place = {case.id: number for number, case in enumerate(cases)}
    kept = [place[case.id] for case in swaps.cases]
    crossed = [asked.row for asked in swaps.crossed]
    prompts = of(crossed, ("prompt",)) if crossed else None
    return Seen(
        views=views,
        sides=(first, second),
        clean={name: R_nd[kept] for name, R_nd in views["benign"].items()},
        crossed=None if prompts is None else prompts[deepest(list(prompts))],
        apart=apart,
        benign=answered(loaded, [case.benign() for case in cases], say, f"{what}, clean"),
        attacked=answered(loaded, [case.attacked() for case in cases], say, f"{what}, attacked"),
        outcomes=answered(loaded, crossed, say, f"{what}, crossed"),
    )


def answered(loaded: LoadedModel, rows: Sequence[Example], say: Say, what: str) -> list[str]:
    """The outcome of each row: ``task_done``, ``followed``, ``refused``, ``other`` or ``invalid``."""
    if not rows:
        return []
    longest = max(sum(loaded.chat.training(row).response) for row in rows)
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        say(what, done, len(rows))

    prompts = [loaded.chat.prompt(row.messages, id=row.id) for row in rows]
    made = generate(loaded, prompts, max_new_tokens=longest + MORE_TOKENS, batch_size=VERIFY_ROWS, progress=progress)
    samples = [Sample(row, loaded.chat.said(each.text), each.finish) for row, each in zip(rows, made, strict=True)]
    return [score.outcome for score in INJECTION.judge(samples)]
