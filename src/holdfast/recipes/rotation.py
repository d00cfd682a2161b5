"""What the steps of rotation do: `basis`, `importance`, `mask`, and the hold and certificate of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.errors import NumericsError
from holdfast.core.results import Metric, Verdict
from holdfast.methods.rotation.baselines.config import Control
from holdfast.methods.rotation.config import BasisConfig, ImportanceConfig, MaskConfig
from holdfast.models.config import ModelConfig
from holdfast.recipes import processes
from holdfast.recipes.context import BASE_FOLDER, Context, Outcome, artifact, load_named, name_of, resolve_model
from holdfast.recipes.schema import BasisStep, ImportanceStep, MaskStep
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.data.examples import Example
    from holdfast.methods.rotation.apply import RotationHold
    from holdfast.methods.rotation.plan import Basis, RotationPlan
    from holdfast.methods.rotation.proof import LayerProof
    from holdfast.models.load import LoadedModel
    from holdfast.training.loop import TrainResult

PLAN_FOLDER = "plan"
"""Where each phase leaves its part, under the step's folder."""
SPECTRUM_POINTS = 30
OTHER_COORDINATES = ("random_subspace", "unrotated")
"""Controls that have a basis of their own."""


def find_basis(context: Context) -> Outcome:
    """Phase 1."""
    from holdfast.methods.rotation import store

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, BasisStep)
    loaded, rows = _safety(context, context.step_id)
    found = store.find_basis(step.only(BasisConfig), loaded, rows, step.seed, context.folder / PLAN_FOLDER)
    return Outcome(
        artifacts=(artifact(context, context.folder / PLAN_FOLDER),),
        curves=_spectra(found),
        notes=(*loaded.notes, *found.notes()),
        model_name=name_of(context, loaded),
    )


def _spectra(found: Basis) -> dict[str, list[tuple[float, float]]]:
    """By group, the share of energy in the first directions against the share of directions, at some 30 points."""
    curves = {}
    for group, energies in found.energies.items():
        whole = energies.sum(0).double().sort(descending=True).values
        reached = (whole.cumsum(0) / whole.sum()).tolist()
        width = len(reached)
        at = sorted({round(width * part / SPECTRUM_POINTS) for part in range(1, SPECTRUM_POINTS + 1)} - {0})
        curves[f"spectrum/{group}"] = [(count / width, reached[count - 1]) for count in at]
    return curves


def score(context: Context) -> Outcome:
    """Phase 2."""
    from holdfast.data.sources import load_all
    from holdfast.methods.rotation import plan, store

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, ImportanceStep)
    found = store.load_basis(context.out / step.of / PLAN_FOLDER)
    loaded, rows = _safety(context, step.of)
    task = load_all(step.task)
    config = step.only(ImportanceConfig)
    scored = plan.importance(config, loaded, rows[: found.origin.n_rows], found, task)
    store.save_importance(scored, context.folder / PLAN_FOLDER)
    return Outcome(artifacts=(artifact(context, context.folder / PLAN_FOLDER),))


def choose(context: Context) -> Outcome:
    """Phase 3."""
    from holdfast.methods.rotation import plan, store

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, MaskStep)
    scored_by = context.recipe.steps[step.of]
    assert isinstance(scored_by, ImportanceStep)
    basis_in = context.out / scored_by.of / PLAN_FOLDER
    scored = store.load_importance(context.out / step.of / PLAN_FOLDER, store.load_basis(basis_in))
    made = plan.mask(step.only(MaskConfig), scored)
    store.save_plan(made, context.folder / PLAN_FOLDER, basis_in)
    kept = artifact(context, context.folder / PLAN_FOLDER)
    return Outcome(metrics=_figures(made), artifacts=(kept,), notes=_outdated(context))


def _outdated(context: Context) -> tuple[str, ...]:
    """Which finished trainings were certified with another plan of this step."""
    from holdfast.methods.rotation.certificate import FILE, certified_with_another

    plan = context.folder / PLAN_FOLDER
    folders = [path.parent for path in sorted(context.out.glob(f"*/{FILE}"))]
    told = [folder.name for folder in folders if certified_with_another(plan, folder)]
    if not told:
        return ()
    return (
        f"This plan is not the one that {', '.join(told)} trained under: what certifies them no longer verifies. "
        "Do: run with --resume, which trains them anew, or choose in another output folder.",
    )


def _safety(context: Context, basis_id: str) -> tuple[LoadedModel, list[Example]]:
    """The model and the safety rows of a basis step."""
    from holdfast.data.sources import load_all
    from holdfast.models.load import load_model

    step = context.recipe.steps[basis_id]
    assert isinstance(step, BasisStep)
    rows = load_all(step.data)
    return load_model(resolve_model(context.recipe, basis_id, context.out)), rows


def _figures(made: RotationPlan) -> tuple[Metric, ...]:
    """Stability of the mask, and a row a layer: the share frozen and the energy in it."""
    table = made.table()
    chance = f"independent masks of this size would overlap by {made.stability_by_chance:.3f}"
    overall = Metric(
        name="rotation/mask/stability", value=made.stability, n=sum(row["of"] for row in table), reason=chance
    )
    rows = [
        Metric(name=f"rotation/{name}", value=row[key], n=row["of"], k=row["frozen"], group=f"layer={row['layer']}")
        for row in table
        for name, key in (("frozen_share", "share"), ("frozen_energy", "energy"))
        if row[key] is not None
    ]
    return (overall, *rows)


def starts_in_no_folder(step: TrainStep, model: ModelConfig) -> bool:
    """Whether a certificate needs a copy of the start: it is new, has an adapter merged in, or was cast."""
    cast = model.dtype != "auto" and step.params == "full"
    return step.constraint is not None and (model.source == "new" or model.adapter is not None or cast)


def hold(context: Context, step: TrainStep, loaded: LoadedModel) -> RotationHold:
    """The constraint of a mask step, of a plan's folder, or the control of it that ``baseline`` names.

    Raises:
        ConfigError: it was planned for another model.
    """
    from holdfast.methods.rotation import apply, store
    from holdfast.methods.rotation.controls import control

    folder = _plan_folder(context, step)
    made = store.load_plan(folder)
    if isinstance(step.baseline, Control):
        made = control(made, step.baseline.name, step.seed)
        own_basis = step.baseline.name in OTHER_COORDINATES
        kept = context.folder / PLAN_FOLDER
        processes.on_main(lambda: store.save_plan(made, kept, None if own_basis else folder))
    return apply.apply(loaded, made)


def _plan_folder(context: Context, step: TrainStep) -> Path:
    """Where the plan that ``constraint`` names was left."""
    assert step.constraint is not None
    if step.constraint in context.recipe.steps:
        return context.out / step.constraint / PLAN_FOLDER
    return Path(step.constraint).expanduser()


def baseline(
    context: Context, step: TrainStep, loaded: LoadedModel, rows: list[Example], validation: list[Example] | None
) -> TrainResult:
    """Train as another published method does."""
    from holdfast.data.sources import load_all
    from holdfast.methods.rotation import baselines

    assert step.baseline is not None
    return baselines.run(
        step.baseline,
        loaded,
        rows,
        load_all(step.safety),
        step.training(),
        out=context.folder,
        validation=validation,
        unaligned=None if step.unaligned is None else load_named(context, step.unaligned),
        resume=context.resume,
    )


def certify(context: Context, step: TrainStep, result: Path) -> Outcome:
    """The certificate of a held training, its figures by layer, and what it says."""
    from holdfast.methods.rotation import certificate
    from holdfast.methods.rotation.proof import Files
    from holdfast.models.sources import local_folder
    from holdfast.training.loop import HELD, HELD_FILE

    base = resolve_model(context.recipe, context.step_id, context.out)
    kept = context.folder / BASE_FOLDER
    files = Files(
        kept if kept.exists() else local_folder(base.source, revision=base.revision),
        context.folder / PLAN_FOLDER if isinstance(step.baseline, Control) else _plan_folder(context, step),
        context.folder / HELD / HELD_FILE,
        result,
    )
    try:
        proofs = certificate.certify_files(context.folder, files)
    except NumericsError as problem:
        return Outcome(verdicts=(_verdict(False, (), str(problem)),))
    metrics = tuple(
        Metric(
            name=f"rotation/{name}",
            value=getattr(proof, name),
            n=proof.of,
            k=None if name == "moved_share" else proof.frozen,
            higher_is_better=name == "moved_share",
            group=f"layer={proof.layer}",
        )
        for proof in proofs
        for name in ("drift", "leak", "moved_share")
    )
    verdict = _verdict(True, proofs, certificate.statement(proofs))
    return Outcome(metrics, (verdict,), (artifact(context, context.folder / certificate.FILE),))


def _verdict(holds: bool, proofs: Sequence[LayerProof], reason: str) -> Verdict:
    return Verdict(
        name="rotation/certificate",
        holds=holds,
        statistic=max((proof.leak for proof in proofs), default=None),
        p_value=None,
        n=len(proofs),
        null="a frozen coordinate moved, or the result is not what base, plan and coordinates give",
        reason=reason,
    )
