"""What the step ``do: token_weighting`` does, and the objective of a training that names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from holdfast.core.results import Metric
from holdfast.recipes.context import Context, Outcome, artifact, load_named, name_of, resolve_model
from holdfast.recipes.rows import Rows
from holdfast.recipes.token_weighting_step import READ, TokenWeightingStep
from holdfast.recipes.train_step import TrainStep

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.methods.token_weighting.critic import Critic
    from holdfast.methods.token_weighting.noise import Found
    from holdfast.methods.token_weighting.objective import WeightedObjective
    from holdfast.methods.token_weighting.plan import TokenWeightingPlan
    from holdfast.models.load import LoadedModel

PLAN_FOLDER, CRITIC_FOLDER = "plan", "critic"
"""What the step leaves under its folder."""
LOSSES_FOLDER = "losses"
"""Under what steps share: the losses of references, for every plan of the run with the same reference and rows."""


def plan(context: Context) -> Outcome:
    """Look at the rows with the model and what its scorer reads, and keep the plan."""
    from holdfast.core.runtime import peak_bytes
    from holdfast.data.columns import read_column
    from holdfast.data.sources import load_all
    from holdfast.methods.token_weighting import noise, store
    from holdfast.methods.token_weighting import plan as planning
    from holdfast.models.load import load_model

    step = context.recipe.steps[context.step_id]
    assert isinstance(step, TokenWeightingStep)
    rows = load_all(step.data)
    column = read_column(step.data, step.column) if step.base == "column" and step.column else None
    loaded = load_model(resolve_model(context.recipe, context.step_id, context.out))
    critic = _critic(context, step, loaded, rows) if step.base == "critic" else None
    made = planning.plan(
        step.planning(),
        loaded,
        rows,
        _references(context, step),
        critic=critic,
        column=column,
        cache=context.shared / LOSSES_FOLDER,
    )
    store.save_plan(made, context.folder / PLAN_FOLDER)
    found = noise.planted(made, loaded, rows)
    folders = (PLAN_FOLDER, CRITIC_FOLDER) if critic else (PLAN_FOLDER,)
    return Outcome(
        metrics=(*_weights(made), *_noise(made, found), *(critic.figures.metrics() if critic else ())),
        artifacts=tuple(artifact(context, context.folder / folder) for folder in folders),
        notes=(
            *loaded.notes,
            *made.notes(),
            *(critic.figures.notes() if critic else ()),
            *(f"{key} is not read by scorer: {step.base}." for key in step.waiting),
        ),
        model_name=name_of(context, loaded),
        peak_bytes=peak_bytes(),
    )


def _references(context: Context, step: TokenWeightingStep) -> dict[str, LoadedModel]:
    """The models that the scorer reads, by what they are for."""
    wanted = {key: getattr(step, key) for key in READ.get(step.base, ()) if key in type(step).refers}
    return {key: load_named(context, model) for key, model in wanted.items()}


def _critic(context: Context, step: TokenWeightingStep, loaded: LoadedModel, rows: list[Example]) -> Critic:
    """A critic of the model; of a step that goes on, the one that it has left."""
    from holdfast.methods.token_weighting.critic import load_critic, save_critic, train_critic
    from holdfast.methods.token_weighting.rewards import answers_for

    folder = context.folder / CRITIC_FOLDER
    if context.resume and folder.exists():
        return load_critic(folder)
    config = step.teaching()
    made = train_critic(loaded, answers_for(loaded, rows, config), config)
    save_critic(made, folder)
    return made


def _weights(made: TokenWeightingPlan) -> Iterator[Metric]:
    """How the weights are spread."""
    (row,) = made.table()
    for name, value in row.items():
        if name not in ("scorer", "tokens"):
            of_rows = "/" in name  # a critic's, which has figures on its own answers too
            yield Metric(
                name=name if of_rows else f"weights/{name}",
                value=value,
                n=made.origin.n_looked_at,
                group="of=the rows" if of_rows else "",
            )


def _noise(made: TokenWeightingPlan, found: Found | None) -> Iterator[Metric]:
    """What the scores say of planted noise."""
    if found is not None:
        tokens = found.n_noise + found.n_clean
        yield Metric(name="noise/auroc", value=found.auroc, n=tokens, k=None)
        yield Metric(name="noise/share", value=found.n_noise / tokens, n=tokens, k=found.n_noise)
        yield Metric(name="noise/weight", value=found.noise_weight, n=found.n_noise, higher_is_better=False)


def objective(context: Context, plan_id: str, loaded: LoadedModel, own: Rows) -> tuple[WeightedObjective, Rows]:
    """The objective of a plan, and its rows, those left out that weigh nothing; ``own`` holds no others.

    Raises:
        ConfigError: the plan is of another model, chat template or tokenizer.
        DataError: the rows are not those of the plan.
    """
    from holdfast.data.sources import load_all
    from holdfast.methods.token_weighting import apply, store
    from holdfast.methods.token_weighting.plan import training_rows

    step, training = context.recipe.steps[plan_id], context.recipe.steps[context.step_id]
    assert isinstance(step, TokenWeightingStep)
    assert isinstance(training, TrainStep)
    made = store.load_plan(context.out / plan_id / PLAN_FOLDER)
    return apply.apply(loaded, made, training.loss_over), Rows(training_rows(made, load_all(step.data)))
