"""What the step ``do: causal`` does, and the objective of a training that names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.results import Metric, Verdict
from holdfast.recipes.causal_step import CausalStep
from holdfast.recipes.context import Context, Outcome, artifact, name_of, resolve_model
from holdfast.recipes.rows import Rows
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.data.audit import Audit, Check
    from holdfast.data.counterfactual import Counterfactual
    from holdfast.data.sources import SourceConfig
    from holdfast.methods.causal.capacity import Capacity
    from holdfast.methods.causal.objective import CausalObjective
    from holdfast.methods.causal.plan import CausalPlan
    from holdfast.models.load import LoadedModel

PLAN_FOLDER = "plan"
PLACE = "cases stand where they belong"
"""The check that no test case is trained on."""
SHOWN = 3
"""Cases that a sentence names."""


def plan(context: Context) -> Outcome:
    """Audit the set, look at the model on its cases, and keep the plan."""
    from holdfast.core.runtime import peak_bytes
    from holdfast.data.counterfactual import of_families
    from holdfast.evaluation.attacks.told import told_of
    from holdfast.methods.causal import plan as planning
    from holdfast.methods.causal import store
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, CausalStep)
    cases, validation = of_families(read(step.cases), step.families), read(step.validation)
    found = audited(step, cases, validation)
    if found.refused and not step.force:
        said = "; ".join(f"{check.name} ({check.said})" for check in found.refused)
        raise DataError(
            f"The cases of step {context.step_id} prove nothing: {said}. Do: mend the set ('holdfast data audit FILE' "
            "says all), or set force: true to train on it all the same."
        )
    loaded = load_model(resolve_model(context.recipe, context.step_id, context.out))
    made = planning.plan(step.planning(), loaded, cases, validation)
    store.save_plan(made, context.folder / PLAN_FOLDER)
    needs = _capacities(context, made, loaded)
    forced = ("Force: the audit refuses this set, and it is trained on.",) if found.refused else ()
    return Outcome(
        metrics=(*_figures(made), *_counts(made), *_needs(needs)),
        verdicts=tuple(_verdict(check, found) for check in found.checks),
        artifacts=(artifact(context, context.folder / PLAN_FOLDER),),
        notes=(
            *loaded.notes,
            *made.notes(),
            *told_of(loaded),
            f"Audit of {found.cases:,} cases: {found.verdict}.",
            *forced,
            *(f"Training {name}: {note}" for name, need in needs.items() for note in need.notes()),
        ),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def read(sources: Sequence[SourceConfig]) -> list[Counterfactual]:
    """The cases of all sources, in order."""
    from holdfast.data.counterfactual import read_cases

    return [case for source in sources for case in read_cases(source)]


def audited(step: CausalStep, cases: Sequence[Counterfactual], validation: Sequence[Counterfactual]) -> Audit:
    """What is found in all splits of the sources, and whether ``cases`` and ``validation`` are of the right ones."""
    found = audit_of((*step.cases, *step.validation), step.seed)
    return replace(found, checks=(*found.checks, _placed(cases, validation)))


def audit_of(sources: Sequence[SourceConfig], seed: int) -> Audit:
    """What is found in all splits of the sources."""
    from holdfast.data.audit import audit
    from holdfast.data.counterfactual import read_unchecked

    whole = [case for source in _whole(sources) for case in read_unchecked(source)]
    names = dict.fromkeys(source.source for source in sources)
    return audit(list(dict.fromkeys(whole)), ", ".join(names), seed)


def _whole(sources: Sequence[SourceConfig]) -> Iterator[SourceConfig]:
    """Each source once and with all its rows; of the lab, the most rows that are asked for."""
    found: dict[str, SourceConfig] = {}
    for source in sources:
        in_lab = source.source.startswith("lab/")
        every = source.model_copy(
            update={"split": "", "part": None, "rows": source.rows if in_lab else None, "at_most": None}
        )
        key = every.model_copy(update={"rows": None}).model_dump_json()
        known = found.get(key)
        if known is None or (every.rows or 0) > (known.rows or 0):
            found[key] = every
    yield from found.values()


def _placed(cases: Sequence[Counterfactual], validation: Sequence[Counterfactual]) -> Check:
    from holdfast.data.audit import Check

    wrong = [case for case in cases if case.split != "train"]
    wrong += [case for case in validation if case.split not in {"train", "validation"}]
    named = ", ".join(f"{case.id!r} of split {case.split!r}" for case in wrong[:SHOWN])
    said = f"{len(wrong)} of {len(cases) + len(validation)} cases are of another split than they are used for"
    told = f"{said}: {named}; set split: train on their source" if wrong else said
    return Check(PLACE, not wrong, told, value=len(wrong) / (len(cases) + len(validation)))


def _verdict(check: Check, found: Audit) -> Verdict:
    return Verdict(
        name=f"audit/{check.name}",
        holds=check.holds,
        statistic=check.value,
        p_value=None,
        n=check.n or found.cases,
        null="the set proves nothing: it is faulty, seen in training, or solved by words alone",
        reason=check.said,
    )


def _figures(made: CausalPlan) -> Iterator[Metric]:
    """What each representation of the undefended model shows, on the cases that were looked at."""
    for row in made.table():
        for key in ("stability", "separation", "random_cosine", "effective_rank"):
            yield Metric(
                name=f"causal/undefended/{key}",
                value=row[key],
                n=made.window if key == "effective_rank" else made.origin.n_looked_at,
                group=f"layer={row['layer']}/{row['tokens']}",
            )


def _counts(made: CausalPlan) -> Iterator[Metric]:
    """Cases to train on, by attack and by position."""
    n = made.cases.n_train
    for key, each in (("attack", made.cases.attacks[:n]), ("position", made.cases.positions[:n])):
        for name in sorted(set(each)):
            share = each.count(name) / n
            yield Metric(name="causal/cases", value=share, n=n, k=each.count(name), group=f"{key}={name or 'none'}")


def _capacities(context: Context, made: CausalPlan, loaded: LoadedModel) -> dict[str, Capacity]:
    """What each training that names this plan takes."""
    from holdfast.methods.causal.capacity import capacity

    takers = {
        name: step
        for name, step in context.recipe.steps.items()
        if isinstance(step, TrainStep) and context.step_id in step.objective
    }
    return {name: capacity(made, loaded, step.training()) for name, step in takers.items()}


def _needs(needs: dict[str, Capacity]) -> Iterator[Metric]:
    for name, need in needs.items():
        for key in ("steps", "tokens", "learnt_tokens", "longest", "memory_bytes"):
            value = float(getattr(need, key))
            yield Metric(name=f"causal/needs/{key}", value=value, n=1, higher_is_better=False, group=f"step={name}")


def objective(context: Context, plan_id: str, loaded: LoadedModel, own: Rows) -> tuple[CausalObjective, Rows]:
    """The objective of a plan, and the benign views of its cases; the rows of the step itself are plain ones.

    Raises:
        ConfigError: the plan is of another model or chat template.
        DataError: a plain row has the id of a case, or a case is longer than the training takes.
    """
    from holdfast.data.counterfactual import of_families
    from holdfast.methods.causal import apply, store
    from holdfast.methods.causal.plan import training_rows

    step, training = context.recipe.steps[plan_id], context.recipe.steps[context.step_id]
    assert isinstance(step, CausalStep)
    assert isinstance(training, TrainStep)
    made = store.load_plan(context.out / plan_id / PLAN_FOLDER)
    _check_lengths(made, plan_id, training.max_length)
    brought = Rows(training_rows(of_families(read(step.cases), step.families)), training_rows(read(step.validation)))
    return apply.apply(loaded, made, training.loss_over, (*own.train, *own.validation)), brought


def _check_lengths(made: CausalPlan, plan_id: str, most: int) -> None:
    """Every view that has gradients fits ``max_length``, which the loop itself only knows of benign ones."""
    for view in ("benign", "attacked", "payload"):
        rows = made.cases.views.get(view, ())
        for number in range(len(rows)):
            if len(rows[number]) > most:
                raise ConfigError(
                    f"The {view} view of case {rows[number].id!r} of {plan_id} is too long: got {len(rows[number])} "
                    f"tokens, expected at most {most}. Do: raise max_length, or leave the case out."
                )
