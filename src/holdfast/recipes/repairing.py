"""What the step ``do: repair`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.results import Metric
from holdfast.recipes.context import (
    ADAPTER_FOLDER,
    Context,
    Outcome,
    artifact,
    keep_base,
    load_named,
    name_of,
    resolve_model,
)
from holdfast.recipes.merging import (
    TRIED_FOLDER,
    curves,
    expert_of,
    mean_figure,
    measured_at,
    reference,
    split_half,
)
from holdfast.recipes.repair_step import RepairStep

if TYPE_CHECKING:
    from holdfast.evaluation.suite import EvaluationResult
    from holdfast.evaluation.tasks import TaskConfig
    from holdfast.layers.adapters import Adapter
    from holdfast.methods.merging.plan import Expert
    from holdfast.methods.merging.repair import RepairPlan
    from holdfast.methods.merging.select import Selection
    from holdfast.methods.merging.spectrum import Spectrum
    from holdfast.models.config import ModelConfig
    from holdfast.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Chosen:
    """The plan with its dial chosen, why, and what was measured before and with the chosen value."""

    plan: RepairPlan
    selection: Selection
    before: EvaluationResult
    after: EvaluationResult
    reference: float | None
    """Safety before; ``None`` where a figure of it could not be computed."""


def repair(context: Context) -> Outcome:
    """Plan, choose the dial where that is asked for, repair, save and read back."""
    from holdfast.core.runtime import peak_bytes
    from holdfast.methods.merging import output, spectrum
    from holdfast.methods.merging import repair as method
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, RepairStep)
    base = resolve_model(context.recipe, context.step_id, context.out)
    loaded = load_model(base)
    tuned = None if step.tuned is None else load_named(context, step.tuned)
    expert = _expert(context, step, base, loaded, tuned)
    keep_base(context, base, loaded)
    plan = _planned(context, step, loaded, expert)
    chosen = _chosen(context, step, loaded, plan, tuned) if step.select is not None else None
    plan = plan if chosen is None else chosen.plan
    selection = None if chosen is None else chosen.selection
    mended, spectra = method.repair(plan), spectrum.spectra(plan.pair)
    folder = context.folder / ADAPTER_FOLDER
    output.save(mended, folder, loaded, spectra, selection)
    lost = Metric(
        name="repair/truncation",
        value=max(mended.truncation.values()),
        n=len(mended.truncation),
        higher_is_better=False,
    )
    return Outcome(
        metrics=(lost, *_cut_away(expert.adapter), *_stability(spectra), *(() if chosen is None else _figures(chosen))),
        verdicts=split_half(spectra, "repair"),
        artifacts=(artifact(context, folder),),
        curves=curves(spectra, selection),
        notes=(*loaded.notes, *expert.notes, *plan.notes(), *_of_tuned(expert.adapter), *_said(step, selection)),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _expert(
    context: Context, step: RepairStep, base: ModelConfig, loaded: LoadedModel, tuned: LoadedModel | None
) -> Expert:
    """What is repaired, and its rows."""
    from holdfast.data.sources import load_all
    from holdfast.methods.merging.plan import Expert
    from holdfast.methods.merging.repair import delta_of

    if tuned is not None:
        return Expert(tuned.name, delta_of(loaded, tuned, step.delta_rank), load_all(step.utility))
    assert step.adapter is not None
    return expert_of(context, step.adapter, step.utility, base, loaded, any_base=step.any_base)


def _planned(context: Context, step: RepairStep, loaded: LoadedModel, expert: Expert) -> RepairPlan:
    from holdfast.data.sources import load_all
    from holdfast.methods.merging.repair import repair_plan

    unaligned = None if step.unaligned is None else load_named(context, step.unaligned)
    return repair_plan(step.repairing(), loaded, expert, load_all(step.safety), unaligned)


def _chosen(
    context: Context, step: RepairStep, loaded: LoadedModel, plan: RepairPlan, tuned: LoadedModel | None
) -> Chosen:
    """Repair and measure at every value of the dial on validation rows, and take one by the rule."""
    from holdfast.evaluation.suite import evaluate
    from holdfast.layers.adapters import added
    from holdfast.methods.merging.repair import repair
    from holdfast.methods.merging.select import choose

    assert step.select is not None
    safety, utility = step.select.tasks(step.seed)
    folder = context.folder / TRIED_FOLDER

    def measured(adapter: Adapter, log: Path) -> EvaluationResult:
        with added(loaded.model, adapter):
            return asked(loaded, log)

    def asked(model: LoadedModel, log: Path) -> EvaluationResult:
        tasks: Sequence[TaskConfig] = (*safety, *utility)
        return evaluate(model, tasks, batch_size=step.batch_size, seed=step.seed, log=log, say=context.progress)

    log = folder / "before.jsonl"
    before = measured(plan.adapter, log) if tuned is None else asked(tuned, log)
    against = reference(before, utility, "what is to be repaired")
    found = {value: measured(repair(plan.at(value)).adapter, folder / f"{value:g}.jsonl") for value in step.tries()}
    tried = [measured_at(value, each, safety, utility) for value, each in found.items()]
    selection = choose(tried, against, step.select.drop)
    taken = selection.taken.value
    return Chosen(plan.at(taken), selection, before, found[taken], mean_figure(before, safety))


def _figures(chosen: Chosen) -> tuple[Metric, ...]:
    """The dial, and every task's figure before and after, on validation rows."""
    taken, selection = chosen.selection.taken, chosen.selection
    told = [
        ("dial", taken.value),
        ("before/safety", chosen.reference),
        ("after/safety", taken.safety),
        ("before/utility", selection.reference),
        ("after/utility", taken.utility),
    ]
    tasks = [
        metric.model_copy(update={"name": f"repair/{when}/{metric.name}"})
        for when, result in (("before", chosen.before), ("after", chosen.after))
        for metric in result.metrics
        if not metric.group
    ]
    return (*(_told(f"repair/{key}", value, len(selection.tried)) for key, value in told), *tasks)


def _told(name: str, value: float | None, n: int) -> Metric:
    return Metric(name=name, value=value, n=n, reason="a figure of it could not be computed" if value is None else "")


def _stability(spectra: Sequence[Spectrum]) -> list[Metric]:
    return [
        Metric(name=f"repair/{key}", value=value, n=found.k, group=f"layer={found.layer}")
        for found in spectra
        for key, value in (("ratio", found.values[0]), ("stability", found.stability))
    ]


def _cut_away(adapter: Adapter) -> tuple[Metric, ...]:
    """How much of a full fine-tuning's change was cut off, the mean over layers and the most."""
    lost = adapter.metadata.get("truncation")
    if not isinstance(lost, dict) or "of" not in adapter.metadata:
        return ()
    return (Metric(name="repair/delta_cut", value=sum(lost.values()) / len(lost), n=len(lost), higher_is_better=False),)


def _of_tuned(adapter: Adapter) -> tuple[str, ...]:
    """What a full fine-tuning loses by becoming an adapter."""
    found = _cut_away(adapter)
    if not found:
        return ()
    dropped = adapter.metadata["dropped"]
    others = f" Changes of {len(dropped)} other weights are dropped: {', '.join(dropped[:5])}." if dropped else ""
    return (
        f"The change of {adapter.metadata['of']} was cut to rank {max(d.rank for d in adapter.deltas.values())}; "
        f"the mean relative norm of what was cut off and dropped is {found[0].value:.3f}.{others}",
    )


def _said(step: RepairStep, selection: Selection | None) -> tuple[str, ...]:
    if selection is None:
        return ()
    taken, rule = selection.taken, f"most safety with utility at most {selection.drop:g} below that before repair"
    missed = "" if selection.kept else " No value kept that much utility."
    return (
        f"{step.dial.key} {taken.value:g}, by the rule: {rule}; else most utility. On validation rows: safety "
        f"{taken.safety:.3f}, utility {taken.utility:.3f} (before repair {selection.reference:.3f}).{missed}",
        *selection.left_out(),
    )
