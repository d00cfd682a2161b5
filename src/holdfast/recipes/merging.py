"""What the step ``do: merge`` does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.errors import DataError
from holdfast.core.results import Metric, Verdict
from holdfast.models.config import ModelConfig
from holdfast.recipes.context import ADAPTER_FOLDER, Context, Outcome, artifact, keep_base, name_of, resolve_model
from holdfast.recipes.merge_step import MergeStep, Select

if TYPE_CHECKING:
    from holdfast.data.sources import SourceConfig
    from holdfast.evaluation.suite import EvaluationResult
    from holdfast.evaluation.tasks import TaskConfig
    from holdfast.methods.merging.apply import Merged
    from holdfast.methods.merging.plan import Expert, MergePlan
    from holdfast.methods.merging.select import Selection, Tried, Unmeasured
    from holdfast.methods.merging.spectrum import Spectrum
    from holdfast.models.load import LoadedModel

TRIED_FOLDER = "tried"
"""Where the answers of every tried weight are kept."""


def merge(context: Context) -> Outcome:
    """Plan, choose the weight where that is asked for, merge, save and read back."""
    from holdfast.core.runtime import peak_bytes
    from holdfast.methods.merging import apply, output, plan, spectrum
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, MergeStep)
    base = resolve_model(context.recipe, context.step_id, context.out)
    loaded = load_model(base)
    experts = _experts(context, step, base, loaded)
    keep_base(context, base, loaded)
    began = time.perf_counter()
    made = plan.plan(step.merging(), loaded, experts)
    planned = time.perf_counter() - began
    selection = None
    if step.select is not None:
        made, selection = _selected(context, step, step.select, loaded, experts, made)
    began = time.perf_counter()
    merged = apply.merge(made)
    seconds = planned + time.perf_counter() - began
    spectra = spectrum.spectra(made)
    folder = context.folder / ADAPTER_FOLDER
    output.save(merged, folder, loaded, spectra, selection)
    return Outcome(
        metrics=(_timed(seconds, experts), *_figures(merged, spectra, selection)),
        verdicts=split_half(spectra),
        artifacts=(artifact(context, folder),),
        curves=curves(spectra, selection),
        notes=(*loaded.notes, *(note for each in experts for note in each.notes), *made.notes(), *_said(selection)),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _experts(context: Context, step: MergeStep, base: ModelConfig, loaded: LoadedModel) -> list[Expert]:
    return [expert_of(context, item.adapter, item.data, base, loaded, any_base=step.any_base) for item in step.adapters]


def expert_of(
    context: Context,
    adapter: str,
    data: Sequence[SourceConfig],
    base: ModelConfig,
    loaded: LoadedModel,
    *,
    any_base: bool,
) -> Expert:
    """An adapter of a step or in a folder, known to stand on the base unless ``any_base``, and its rows."""
    from holdfast.data.sources import load_all
    from holdfast.methods.merging.read import read_expert
    from holdfast.models.adapter import Base
    from holdfast.models.sources import local_folder

    stored = None if base.source == "new" else local_folder(base.source, revision=base.revision)
    made_here = adapter in context.recipe.steps
    folder = (
        context.out / adapter / ADAPTER_FOLDER if made_here else local_folder(adapter, marker="adapter_config.json")
    )
    return read_expert(
        folder,
        adapter if made_here else folder.name,
        load_all(data),
        Base(loaded.source, stored, loaded.weights),
        any_base=any_base,
    )


def _selected(
    context: Context, step: MergeStep, select: Select, loaded: LoadedModel, experts: Sequence[Expert], made: MergePlan
) -> tuple[MergePlan, Selection]:
    """Merge and measure at every weight and setting on validation rows, and take one by the rule."""
    from holdfast.evaluation.suite import evaluate
    from holdfast.layers.adapters import Adapter, added
    from holdfast.methods.merging import apply
    from holdfast.methods.merging.select import choose, resettled

    safety, utility = select.tasks(step.seed)

    def measured(adapter: Adapter, tasks: Sequence[TaskConfig], log: Path) -> EvaluationResult:
        with added(loaded.model, adapter):
            return evaluate(loaded, tasks, batch_size=step.batch_size, seed=step.seed, log=log, say=context.progress)

    folder = context.folder / TRIED_FOLDER
    alone = measured(experts[0].adapter, utility, folder / "first.jsonl")
    against = reference(alone, utility, "the first adapter alone")
    tried = []
    for settings in select.settings():
        varied = resettled(made, settings)
        for value in select.weights:
            adapter = apply.merge(varied.with_last(value)).adapter
            found = measured(adapter, (*safety, *utility), folder / _answers(value, settings))
            tried.append(replace(measured_at(value, found, safety, utility), settings=settings))
    selection = choose(tried, against, select.drop)
    return resettled(made, selection.taken.settings).with_last(selection.taken.value), selection


def _answers(value: float, settings: Mapping[str, float]) -> str:
    """The file of what was measured there: ``0.3.jsonl``, ``0.3,k=4.jsonl``."""
    return ",".join((f"{value:g}", *(f"{key}={each:g}" for key, each in settings.items()))) + ".jsonl"


def measured_at(
    value: float, found: EvaluationResult, safety: Sequence[TaskConfig], utility: Sequence[TaskConfig]
) -> Tried | Unmeasured:
    """What a value of the dial showed, or which figures it left unknown."""
    from holdfast.methods.merging.select import Tried, Unmeasured

    shown = mean_figure(found, safety), mean_figure(found, utility)
    if shown[0] is None or shown[1] is None:
        return Unmeasured(value, _unknown(found, (*safety, *utility)))
    return Tried(value, shown[0], shown[1])


def reference(found: EvaluationResult, utility: Sequence[TaskConfig], whose: str) -> float:
    """The utility that others are held against.

    Raises:
        DataError: a figure of it could not be computed.
    """
    value = mean_figure(found, utility)
    if value is None:
        raise DataError(
            f"Cannot choose a value of the dial: got no {'; '.join(_unknown(found, utility))} of {whose}, expected the "
            "utility that others are held against. Do: give other validation tasks."
        )
    return value


def mean_figure(found: EvaluationResult, tasks: Sequence[TaskConfig]) -> float | None:
    """The mean of the tasks' figures, each turned so that 1 is best; ``None`` where one could not be computed."""
    values = [None if m.value is None else m.value if m.higher_is_better else 1 - m.value for m in _of(found, tasks)]
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def _of(found: EvaluationResult, tasks: Sequence[TaskConfig]) -> list[Metric]:
    """The figure of each task."""
    by_name = {metric.name: metric for metric in found.metrics if not metric.group}
    return [by_name[task.task.primary] for task in tasks]


def _unknown(found: EvaluationResult, tasks: Sequence[TaskConfig]) -> tuple[str, ...]:
    return tuple(f"{metric.name} ({metric.reason})" for metric in _of(found, tasks) if metric.value is None)


def _timed(seconds: float, experts: Sequence[Expert]) -> Metric:
    """Seconds that planning and one merge took, without loading, choosing a weight, saving and checking."""
    return Metric(name="merging/seconds", value=seconds, n=len(experts), higher_is_better=False)


def _figures(merged: Merged, spectra: Sequence[Spectrum], selection: Selection | None) -> tuple[Metric, ...]:
    lost = max(merged.truncation.values())
    cut = Metric(name="merging/truncation", value=lost, n=len(merged.truncation), higher_is_better=False)
    rows = [
        Metric(name=f"merging/{key}", value=value, n=found.k, group=f"layer={found.layer}")
        for found in spectra
        for key, value in (("ratio", found.values[0]), ("stability", found.stability))
    ]
    if selection is None:
        return (cut, *rows)
    taken = selection.taken
    shown = {"weight": taken.value, **taken.settings}
    shown |= {"validation/safety": taken.safety, "validation/utility": taken.utility}
    told = [Metric(name=f"merging/{key}", value=value, n=len(selection.tried)) for key, value in shown.items()]
    return (cut, *told, *rows)


def split_half(spectra: Sequence[Spectrum], method: str = "merging") -> tuple[Verdict, ...]:
    """Whether both halves of the rows give the same leading directions: beyond chance, and by enough."""
    from holdfast.methods.merging.spectrum import agreement

    found = agreement(spectra)
    if found is None:
        return ()
    return (
        Verdict(
            name=f"{method}/split_half",
            holds=found.holds,
            statistic=found.overlap,
            p_value=found.p_value,
            n=found.layers,
            null="the leading directions of the two halves of the rows overlap as random ones do",
            reason=found.words(),
        ),
    )


def curves(spectra: Sequence[Spectrum], selection: Selection | None) -> dict[str, list[tuple[float, float]]]:
    """The spectra of all layers, and what was measured over the values of the dial, else set as was taken."""
    found = {
        f"spectrum/{each.layer}": [(float(rank), value) for rank, value in enumerate(each.values, 1)]
        for each in spectra
    }
    if selection is None:
        return found
    points = [each for each in selection.tried if each.settings == selection.taken.settings]
    return found | {
        "tried/safety": [(each.value, each.safety) for each in points],
        "tried/utility": [(each.value, each.utility) for each in points],
    }


def _said(selection: Selection | None) -> tuple[str, ...]:
    from holdfast.methods.merging.select import worded

    if selection is None:
        return ()
    taken = selection.taken
    missed = "" if selection.kept else " No weight kept that much utility."
    return (
        f"Weight {taken.value:g} of the last adapter{worded(taken.settings)}, by the rule: {selection.rule}. On "
        f"validation rows: safety {taken.safety:.3f}, utility {taken.utility:.3f} (first adapter alone "
        f"{selection.reference:.3f}).{missed}",
        *selection.left_out(),
    )
