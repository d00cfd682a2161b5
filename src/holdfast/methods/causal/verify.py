"""Verify that an instruction inside the data changes nothing: the set, tests with power, the graph, bounds.

``S`` is the task, ``U = (U_data, U_instr)`` the untrusted text, ``R`` what named layers read, ``O`` the outcome. The
claim is ``P(O | do(S), u_data, u_instr) = P(O | do(S), u_data)``; since we can intervene, we swap ``U_instr`` and hold
the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from holdfast.core.errors import MissingExtra
from holdfast.core.results import Metric, Verdict
from holdfast.data.audit import Audit, audit
from holdfast.data.counterfactual import Counterfactual
from holdfast.evaluation.attacks.told import told_of
from holdfast.layers.adapters import Adapter
from holdfast.methods.causal import verify_bounds as bounds
from holdfast.methods.causal import verify_independence as independence
from holdfast.methods.causal import verify_rows
from holdfast.methods.causal.metrics import outcome_metrics, representation_metrics, variation_metrics
from holdfast.methods.causal.verify_config import VerifyConfig
from holdfast.methods.causal.verify_graph import abstained, graph
from holdfast.methods.causal.verify_rows import Swaps, Tested
from holdfast.methods.causal.verify_seen import Say, Seen, answered, deepest, look
from holdfast.models.load import LoadedModel

BASE = "undefended"
"""How figures of the model before its defence are marked: ``model=undefended``."""
EXACT = (
    "A network is a function of its whole input, so with enough cases no representation is exactly independent of an "
    "injection; causal/moved says by how much it moves."
)


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found, as a record holds it."""

    metrics: tuple[Metric, ...]
    """Those of the undefended model have ``model=undefended`` in their group."""
    verdicts: tuple[Verdict, ...]
    curves: Mapping[str, list[tuple[float, float]]]
    """``power/NAME``: how often planted dependence is found, by its size; at 0 the size of the test."""
    notes: tuple[str, ...]

    @property
    def fails(self) -> tuple[Verdict, ...]:
        """Verdicts that something does not hold."""
        return tuple(verdict for verdict in self.verdicts if verdict.holds is False)


def prepare(cases: Sequence[Counterfactual], settings: VerifyConfig) -> tuple[Tested, Swaps]:
    """The cases that are asked, and their swaps; all that can be wrong with them is said before a model loads.

    Raises:
        DataError: see `verify_rows.tested` and `verify_rows.swaps`.
        MissingExtra: causal-learn is not installed.
    """
    if find_spec("causallearn") is None:
        raise MissingExtra("causal discovery", "verify")
    found = verify_rows.tested(cases, settings)
    return found, verify_rows.swaps(found.cases, settings.seed)


def verify(
    loaded: LoadedModel,
    cases: Sequence[Counterfactual],
    settings: VerifyConfig,
    undefended: LoadedModel | None = None,
    *,
    adapter: Adapter | None = None,
    say: Say = lambda *_: None,
) -> Verification:
    """Ask ``loaded`` everything; nothing of it is changed.

    Args:
        cases: Checked cases of all splits: those of ``test`` are asked, the others say what was trained on.
        undefended: The model before its defence: its figures stand beside, and its graph is discovered too.
        adapter: The defence as an adapter that ``loaded`` holds, for PAC-Bayes bounds.
        say: Progress.
    Raises:
        DataError: the cases carry no verification, or a row does not fit a model's context.
        LayerError: a pattern matches no layer.
        NumericsError: a representation is not finite, or the same for all cases.
        MissingExtra: causal-learn is not installed.
    """
    tested, swaps = prepare(cases, settings)
    seen = look(loaded, tested.cases, swaps, settings.layers, say, loaded.name)
    others = [case.attacked() for case in swaps.others.values()]
    swapped = answered(loaded, others, say, f"{loaded.name}, injections swapped")
    metrics, verdicts, curves = _independence(seen, swapped, tested, swaps, settings)
    metrics += _figures(seen, tested, swaps, settings.seed)
    of_data = _data(audit(cases, seed=settings.seed))
    made, said = _graph(seen, swaps, settings.seed, hardened=True)
    metrics += made
    verdicts += [*said, *bounds.held_out(tested, seen.attacked, settings.most), of_data]
    if adapter is not None:
        made, said = bounds.randomised(loaded, adapter, tested, settings.most, settings.seed, say)
        metrics += made
        verdicts += said
    if undefended is not None:
        before = look(undefended, tested.cases, swaps, settings.layers, say, undefended.name)
        made, said = _graph(before, swaps, settings.seed, hardened=False)
        metrics += independence.with_model([*_figures(before, tested, swaps, settings.seed), *made], BASE)
        verdicts += [v.model_copy(update={"name": f"{v.name}/{BASE}"}) for v in said]
    notes = (*tested.notes, *swaps.notes, EXACT, *told_of(loaded))
    return Verification(tuple(metrics), tuple(verdicts), curves, notes)


def _independence(
    seen: Seen, swapped: Sequence[str], tested: Tested, swaps: Swaps, settings: VerifyConfig
) -> tuple[list[Metric], list[Verdict], independence.Curves]:
    groups = [case.group for case in swaps.cases]
    draws, seed = settings.draws, settings.seed
    said = independence.outcomes(seen.benign, seen.attacked, [case.group for case in tested.cases], draws, seed)
    exchanged = independence.outcomes(
        [seen.attacked[number] for number in swaps.others],
        independence.obeying_is_another(swapped),
        [tested.cases[number].group for number in swaps.others],
        draws,
        seed,
        "outcome/swapped",
    )
    pairs = independence.swaps(seen.sides, groups, draws, seed)
    name = deepest(list(seen.clean))
    levels = independence.levels(name, [side[name] for side in (seen.clean, *seen.sides)], draws, seed)
    return (
        [*said[0], *exchanged[0], *pairs[0], *levels[0]],
        [*said[1], *exchanged[1], *pairs[1], *levels[1]],
        said[2] | exchanged[2] | pairs[2],
    )


def _figures(seen: Seen, tested: Tested, swaps: Swaps, seed: int) -> list[Metric]:
    """What is measured of either model."""
    cases = tested.cases
    groups, attacks = [case.group for case in cases], [case.attack for case in cases]
    return [
        *bounds.success(cases, seen.attacked),
        *outcome_metrics(seen.benign, seen.attacked, attacks, groups, bounds.JUDGE),
        *variation_metrics(seen.apart, cases, seed),
        *representation_metrics(seen.views, groups, seed),
        *independence.moved(seen.sides, seen.clean, [case.group for case in swaps.cases], seed),
    ]


def _graph(seen: Seen, swaps: Swaps, seed: int, *, hardened: bool) -> tuple[list[Metric], list[Verdict]]:
    if seen.crossed is None:
        return [], [abstained(swaps.reason, 0)]
    groups = [swaps.cases[asked.case].group for asked in swaps.crossed]
    return graph(swaps.crossed, seen.crossed, seen.outcomes, groups, seed, hardened=hardened)


def _data(found: Audit) -> Verdict:
    """The audit of the set in one verdict."""
    reasons = [f"{check.name}: {check.said}" for check in found.checks if check.holds is False]
    told = [check.said for check in found.checks if check.name == "words do not tell"]
    unasked = any(check.holds is None for check in found.checks)
    return Verdict(
        name="causal/data",
        holds=False if found.refused else None if unasked else True,
        statistic=None,
        p_value=None,
        n=found.cases,
        null="none: the audit of the set",
        reason="; ".join([found.verdict, *(reasons or told)]),
    )
