"""What the step ``do: attack`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.core.results import Metric
from holdfast.recipes.attack_step import AttackStep
from holdfast.recipes.causal import audit_of
from holdfast.recipes.context import LOG_FILE, Context, Outcome, artifact, name_of, resolve_model
from holdfast.recipes.shown import shown

if TYPE_CHECKING:
    from holdfast.evaluation.attacks.material import Material
    from holdfast.evaluation.log import Record


def attack(context: Context) -> Outcome:
    """Read the cases, ask the model behind its defence, and measure what the injections changed."""
    from holdfast.core.runtime import peak_bytes
    from holdfast.evaluation.attacks import run
    from holdfast.evaluation.attacks.material import read_material
    from holdfast.evaluation.attacks.told import told_of
    from holdfast.evaluation.log import read_log
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, AttackStep)
    log, settings = context.folder / LOG_FILE, step.settings()
    material = read_material(step.cases, settings)
    loaded = load_model(resolve_model(context.recipe, context.step_id, context.out))
    result = run.attack(loaded, material, settings, log=log, say=context.progress, resume=context.resume)
    return Outcome(
        metrics=(*result.metrics, *eps_causal(material, read_log(log)[1])),
        artifacts=(artifact(context, log),),
        samples=tuple(shown(sample) for sample in result.samples),
        notes=(*loaded.notes, *material.notes, *audit_notes(step), *told_of(loaded)),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def audit_notes(step: AttackStep) -> tuple[str, ...]:
    """That the audit refuses the set, if it does. The lab's cases pass it."""
    own = [source for source in step.cases if not source.source.startswith("lab/")]
    found = audit_of(own, step.seed) if own else None
    if found is None or not found.refused:
        return ()
    return (
        f"The audit refuses this set, and its figures may say little ({found.verdict}): see 'holdfast data audit "
        f"{own[0].source}'.",
    )


def eps_causal(material: Material, records: Sequence[Record]) -> tuple[Metric, ...]:
    """``causal/eps/outcome``: how far the outcomes with and without the injection are apart."""
    from holdfast.evaluation.attacks.tasks import JUDGE
    from holdfast.evaluation.judges import JUDGES
    from holdfast.methods.causal.metrics import outcome_metrics

    judge = JUDGES[JUDGE].name
    rows = [record for record in records if record.task in {"attack/benign", "attack/attacked"}]
    outcomes = {(r.sample.example.messages, r.sample.example.reference): r.scores[judge].outcome for r in rows}
    pairs = [(case.benign(), case.attacked()) for case in material.cases]
    benign, attacked = ([outcomes[pair[side].messages, pair[side].reference] for pair in pairs] for side in (0, 1))
    families, groups = [case.attack for case in material.cases], [case.group for case in material.cases]
    return outcome_metrics(benign, attacked, families, groups, judge)
