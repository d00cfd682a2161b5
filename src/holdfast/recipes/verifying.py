"""What the step ``do: verify`` does, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.recipes.context import Context, Outcome, load_named, name_of, resolve_model
from holdfast.recipes.verify_step import VerifyStep

if TYPE_CHECKING:
    from holdfast.data.counterfactual import Counterfactual
    from holdfast.recipes.checks import Checks


def verify(context: Context) -> Outcome:
    """Read and check the cases, load the models, ask them everything."""
    from holdfast.core.runtime import peak_bytes
    from holdfast.layers.adapters import read_peft
    from holdfast.methods.causal import verify as method
    from holdfast.models.load import load_model
    from holdfast.models.sources import local_folder

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, VerifyStep)
    cases = _cases(step)
    method.prepare(cases, step.settings())
    config = resolve_model(context.recipe, context.step_id, context.out)
    folder = None if config.adapter is None else local_folder(config.adapter, marker="adapter_config.json")
    loaded = load_model(config)
    before = None if step.against is None else load_named(context, step.against)
    found = method.verify(
        loaded,
        cases,
        step.settings(),
        before,
        adapter=None if folder is None else read_peft(folder),
        say=context.progress,
    )
    return Outcome(
        metrics=found.metrics,
        verdicts=found.verdicts,
        curves=found.curves,
        notes=(*loaded.notes, *found.notes),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _cases(step: VerifyStep) -> list[Counterfactual]:
    from holdfast.methods.causal.verify_rows import read

    return [case for source in step.cases for case in read(source)]


def count_cases(checks: Checks, step_id: str, step: VerifyStep) -> dict[str, int | None]:
    """Cases by source; of files and the lab, all that a verification would refuse is a problem now."""
    from holdfast.methods.causal.verify import prepare
    from holdfast.recipes.checks import on_hub

    if any(on_hub(source) for source in step.cases):
        return {source.source: None for source in step.cases}
    cases = checks.tried(step_id, lambda: _cases(step))
    if cases is None:
        return {}
    checks.tried(step_id, lambda: prepare(cases, step.settings()))
    return {", ".join(source.source for source in step.cases): len(cases)}
