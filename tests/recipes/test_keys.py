"""Every key of a recipe reaches the code that acts on it, and changes the fingerprint of its step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.recipes.keys import (
    ASFT,
    BASIS,
    CAUSAL,
    EARLIER,
    EVALUATE,
    IMPORTANCE,
    KEYS,
    LORA,
    MASK,
    MERGE,
    MODELS,
    NEW,
    PLAIN,
    RHO1,
    SOURCE,
    TABLE,
    TASKS,
    TRAIN,
    WEIGHTS,
)

from holdfast.data.sources import SourceConfig
from holdfast.evaluation.tasks import TaskConfig
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.rotation.baselines.config import Replay
from holdfast.methods.rotation.config import BasisConfig, ImportanceConfig, MaskConfig
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.models.config import ModelConfig
from holdfast.recipes.context import Context
from holdfast.recipes.fingerprint import step_fingerprint
from holdfast.recipes.rows import Rows
from holdfast.recipes.schema import STEP_TYPES, CompareStep, parse_recipe
from holdfast.recipes.steps import EXECUTORS
from holdfast.training.best import BY_LOSS
from holdfast.training.config import LoraConfig, TrainConfig

CASES = [(do, key) for do, keys in KEYS.items() for key in keys]


def test_no_key_is_left_out_of_this_file():
    assert KEYS.keys() == PLAIN.keys() == STEP_TYPES.keys() - {"compare"}
    for do, keys in KEYS.items():
        assert set(keys) == set(STEP_TYPES[do].model_fields) - {"do", "quick"}, do
    assert set(CompareStep.model_fields) == {"do", "before", "after"}
    assert set(LORA) == set(LoraConfig.model_fields)
    assert set(SOURCE) == set(SourceConfig.model_fields)
    assert {key for model in MODELS for key in model} == set(ModelConfig.model_fields)
    assert {key for task in TASKS for key in task} == set(TaskConfig.model_fields)


def recipe(step, **keys):
    return parse_recipe({"name": "r", "model": "lab", "steps": {**EARLIER, "a": {**step, **keys}}}, "r.yaml")


@pytest.mark.parametrize(("do", "key"), CASES)
def test_every_key_changes_the_fingerprint_of_its_step(do, key):
    earlier = {name: name for name in EARLIER}
    plain = step_fingerprint(recipe(PLAIN[do]), "a", earlier)
    assert step_fingerprint(recipe(dict(PLAIN[do])), "a", earlier) == plain
    assert step_fingerprint(recipe(PLAIN[do], **KEYS[do][key]), "a", earlier) != plain


class ReachedError(Exception):
    """The step came to the code that does the work."""


def loaded_from(seen):
    """A reader of phases that keeps the ids of the steps it was asked for."""

    def load(folder, *rest):
        seen.loads.append(folder.parent.name)
        return SimpleNamespace(origin=SimpleNamespace(n_rows=3))

    return load


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """Execute step ``a`` with everything heavy replaced; what the replaced functions were called with."""

    def execute(parsed):
        seen = SimpleNamespace(models=[], sources=[], loads=[], adapters=[], vocabulary=None)

        def stop(name):
            def consumer(loaded, what, *rest, **options):
                setattr(seen, name, (what, *rest, options))
                raise ReachedError

            return consumer

        def called(name):
            def consumer(*given, **options):
                setattr(seen, name, (given, options))
                raise ReachedError

            return consumer

        def tokenizer(rows, size, **options):
            seen.vocabulary = (size, options)
            return SimpleNamespace(save_pretrained=lambda folder: None)

        def model(config):
            seen.models.append(config)
            return SimpleNamespace(source=config.source, weights="")

        def expert(folder, name, rows, on, *, any_base):
            seen.adapters.append((folder, on.source, any_base))
            return name

        monkeypatch.setattr("holdfast.models.load.load_model", model)
        monkeypatch.setattr("holdfast.models.sources.local_folder", lambda source, **_: Path(source))
        monkeypatch.setattr("holdfast.methods.merging.read.read_expert", expert)
        monkeypatch.setattr("holdfast.methods.merging.plan.plan", called("merge"))
        monkeypatch.setattr("holdfast.data.sources.load_examples", lambda source: seen.sources.append(source) or [])
        monkeypatch.setattr("holdfast.models.build.train_tokenizer", tokenizer)
        monkeypatch.setattr("holdfast.training.loop.train", stop("train"))
        monkeypatch.setattr("holdfast.evaluation.suite.evaluate", stop("evaluate"))
        monkeypatch.setattr("holdfast.evaluation.table.table", called("table"))
        for phase in ("basis", "importance", "mask"):
            monkeypatch.setattr(f"holdfast.methods.rotation.plan.{phase}", called(phase))
            load = "load_plan" if phase == "mask" else f"load_{phase}"
            monkeypatch.setattr(f"holdfast.methods.rotation.store.{load}", loaded_from(seen))
        monkeypatch.setattr("holdfast.methods.rotation.apply.apply", lambda loaded, plan: plan)
        monkeypatch.setattr("holdfast.methods.rotation.baselines.run", called("baseline"))
        monkeypatch.setattr("holdfast.recipes.causal.read", lambda sources: [s.split or s.seed for s in sources])
        monkeypatch.setattr("holdfast.data.counterfactual.of_families", lambda cases, named: [*cases, *named])
        monkeypatch.setattr("holdfast.recipes.causal.audited", lambda *_: SimpleNamespace(refused=()))
        monkeypatch.setattr("holdfast.methods.causal.plan.plan", called("causal"))
        monkeypatch.setattr("holdfast.methods.token_weighting.plan.plan", called("weights"))
        monkeypatch.setattr(
            "holdfast.data.columns.read_column", lambda sources, name: ([] if sources else sources, name)
        )
        monkeypatch.setattr("holdfast.methods.token_weighting.rewards.answers_for", lambda *given: given)
        monkeypatch.setattr("holdfast.methods.token_weighting.critic.train_critic", lambda loaded, answers, keys: keys)
        monkeypatch.setattr("holdfast.methods.token_weighting.critic.save_critic", lambda *_: None)
        monkeypatch.setattr(
            "holdfast.recipes.objectives.MAKERS",
            {"causal": lambda context, name, *_: ((name, context.recipe.steps["a"].loss_over), Rows())},
        )
        monkeypatch.setattr("holdfast.recipes.best_by.rule", lambda config, cases: (config, cases))
        context = Context(parsed, "a", tmp_path, {}, False, lambda *_: None)
        with pytest.raises(ReachedError):
            EXECUTORS[parsed.steps["a"].do](context)
        return seen

    return execute


@pytest.mark.parametrize("key", sorted(TrainConfig.model_fields))
def test_every_training_key_reaches_the_loop(reached, key):
    parsed = recipe(TRAIN, **KEYS["train"][key])
    _, config, _ = reached(parsed).train
    assert type(config) is TrainConfig
    assert getattr(config, key) == getattr(parsed.steps["a"], key) != getattr(recipe(TRAIN).steps["a"], key)


def test_every_adapter_key_reaches_the_loop(reached):
    _, config, _ = reached(recipe(TRAIN, params="lora", lora=LORA)).train
    assert config.lora == LoraConfig(**LORA)


def test_a_new_tokenizer_is_trained_as_asked(reached):
    model = {**NEW, "tokenizer": "trained"}
    seen = reached(recipe(TRAIN, model=model, tokenizer={"vocab_size": 300, "min_frequency": 7}))
    assert seen.vocabulary == (300, {"min_frequency": 7})
    assert Path(seen.models[0].tokenizer).parts[-2:] == ("a", "tokenizer")


def test_every_key_of_rows_reaches_their_reader(reached):
    seen = reached(recipe(TRAIN, data=[SOURCE, "lab/choice"], validation=[SOURCE], evaluate_every=1))
    own = SourceConfig(**SOURCE)
    assert seen.sources == [own, SourceConfig(source="lab/choice"), own]
    assert seen.train[2]["validation"] is None, "no rows came of the replaced reader"


@pytest.mark.parametrize("model", MODELS)
def test_every_key_of_a_model_reaches_its_loader(reached, model):
    for step in (TRAIN, EVALUATE):
        if "adapter" not in model or step is EVALUATE:
            assert reached(recipe(step, model=model)).models == [ModelConfig(**model)]


def test_every_key_of_an_evaluation_reaches_the_suite(reached):
    tasks, options = reached(recipe(EVALUATE, tasks=TASKS, limit=5, batch_size=3, seed=9)).evaluate
    assert tasks == tuple(TaskConfig(**task) for task in TASKS)
    assert (options["limit"], options["batch_size"], options["seed"]) == (5, 3, 9)
    by_suite, _ = reached(recipe({"do": "evaluate"}, suite="injection")).evaluate
    assert [task.name for task in by_suite] == ["lab/injection", "lab/injection_clean", "lab/quoting"]
    by_harness, _ = reached(recipe({"do": "evaluate"}, tasks=["arc_easy"], harness="lm-eval")).evaluate
    assert by_harness == (TaskConfig(name="arc_easy", harness="lm-eval"),)


def all_of(do):
    """Every key of a kind of step at once, each saying something else than its default."""
    return {key: value for keys in KEYS[do].values() for key, value in keys.items()}


def test_every_key_of_a_basis_reaches_its_phase(reached):
    step = all_of("basis")
    seen = reached(recipe(BASIS, **step))
    (config, _, rows, seed), _ = seen.basis
    assert config == BasisConfig(**{key: step[key] for key in BasisConfig.model_fields})
    assert (rows, seed) == ([], 9)
    assert seen.models == [ModelConfig(source="org/other")]
    assert seen.sources == [SourceConfig(source="lab/jailbreak")]


def test_every_key_of_an_importance_reaches_its_phase(reached):
    seen = reached(recipe(IMPORTANCE, **all_of("importance")))
    (config, *_), _ = seen.importance
    assert config == ImportanceConfig(importance="square")
    assert seen.loads == ["other"]
    assert seen.sources == [SourceConfig(source="lab/harmful"), SourceConfig(source="lab/textops")]


def test_every_key_of_a_mask_reaches_its_phase(reached):
    step = all_of("mask") | {"of": "scores"}
    seen = reached(recipe(MASK, **step))
    (config, _), _ = seen.mask
    assert config == MaskConfig(**{key: step[key] for key in MaskConfig.model_fields})
    assert seen.loads == ["basis", "scores"]
    assert reached(recipe(MASK, of="energies")).loads == ["basis", "energies"]


def test_a_constraint_reaches_the_loop(reached):
    seen = reached(recipe(TRAIN, constraint="mask"))
    assert seen.loads == ["mask"]
    assert seen.train[-1]["constraint"] is not None
    assert reached(recipe(TRAIN)).train[-1]["constraint"] is None


def test_every_key_of_a_causal_plan_reaches_it(reached):
    step = all_of("causal")
    seen = reached(recipe(CAUSAL, **step))
    (config, _, cases, validation), _ = seen.causal
    assert config == CausalConfig(**{key: step[key] for key in CausalConfig.model_fields})
    assert seen.models == [ModelConfig(source="org/other")]
    assert (cases, validation) == ([2, "naive"], ["validation"])


@pytest.mark.parametrize("key", sorted(set(TokenWeightingConfig.model_fields) - {"reference", "seed"}))
def test_every_key_of_token_weights_reaches_its_plan(reached, key):
    parsed = recipe(WEIGHTS, **KEYS["token_weighting"][key])
    (config, *_), _ = reached(parsed).weights
    assert type(config) is TokenWeightingConfig
    assert getattr(config, key) == getattr(parsed.steps["a"], key) != getattr(recipe(WEIGHTS).steps["a"], key)


def test_what_scorers_read_reaches_their_plan(reached):
    seen = reached(recipe(WEIGHTS, **RHO1, model="org/other"))
    (_, loaded, rows, references), _ = seen.weights
    assert [model.source for model in seen.models] == ["org/other", "org/reference"]
    assert (loaded.source, rows, {name: model.source for name, model in references.items()}) == (
        "org/other",
        [],
        {"reference": "org/reference"},
    )
    assert seen.sources == [SourceConfig(source="lab/arithmetic")]
    both = {"scorer": "contrast", "degraded": "org/degraded", "utility": "org/utility"}
    assert reached(recipe(WEIGHTS, **both)).weights[0][3].keys() == {"degraded", "utility"}
    assert reached(recipe(WEIGHTS, scorer="column", column="own")).weights[1]["column"] == ([], "own")
    taught = reached(recipe(WEIGHTS, scorer="critic", seed=9, critic={"samples": 3})).weights[1]["critic"]
    assert (taught.samples, taught.seed) == (3, 9)
    control = {"scorer": "shuffled", "of": "dft", "seed": 9}
    assert reached(recipe(WEIGHTS, **control)).weights[0][0].seed == 9


def test_an_objective_and_its_factor_reach_the_loop(reached):
    seen = reached(recipe(TRAIN, objective="steady", loss_over="rows"))
    assert seen.train[-1]["objective"] == ("steady", "rows")
    half = reached(recipe(TRAIN, objective={"steady": 0.5})).train[-1]["objective"]
    assert (half.factor, half.of) == (0.5, ("steady", "tokens"))
    assert reached(recipe(TRAIN)).train[-1]["objective"] is None


def test_what_is_best_reaches_the_loop(reached):
    keys = {"cases": [{"source": "lab/injection", "seed": 4}], "within": 0.1, "batch_size": 3}
    parsed = recipe(TRAIN, evaluate_every=2, keep="best", best_by=keys)
    assert reached(parsed).train[-1]["best"] == (parsed.steps["a"].best_by, [4])
    assert reached(recipe(TRAIN)).train[-1]["best"] is BY_LOSS


def test_a_baseline_with_what_it_reads_reaches_its_own_door(reached):
    seen = reached(recipe(TRAIN, baseline={"name": "replay", "share": 0.2}, safety=["lab/harmful"], seed=9))
    (config, _, rows, safety, settings), options = seen.baseline
    assert config == Replay(name="replay", share=0.2)
    assert (rows, safety, settings.seed, options["unaligned"]) == ([], [], 9, None)
    assert seen.sources == [SourceConfig(source="lab/textops"), SourceConfig(source="lab/harmful")]
    assert reached(recipe(TRAIN, **ASFT)).models == [ModelConfig(), ModelConfig(source="org/base")]


def test_every_key_of_a_table_reaches_it(reached):
    """All but the title, which is for the report alone."""
    step = all_of("table") | KEYS["table"]["rows"] | {"synergy": []}
    (before, rows, reference, synergy), _ = reached(recipe(TABLE, **step)).table
    assert before.parent.name == "third"
    assert synergy == ()
    assert reached(recipe(TABLE, **KEYS["table"]["synergy"])).table[0][3] == ("q", "r", "s")
    assert {label: [path.parent.name for path in logs] for label, logs in rows.items()} == {
        "p": ["first"],
        "q": ["third"],
    }
    assert reference == "q"


@pytest.mark.parametrize("key", sorted(MergingConfig.model_fields))
def test_every_key_of_a_rule_reaches_its_plan(reached, key):
    parsed = recipe(MERGE, **KEYS["merge"][key])
    (config, _, experts), _ = reached(parsed).merge
    assert type(config) is MergingConfig
    assert getattr(config, key) == getattr(parsed.steps["a"], key) != getattr(recipe(MERGE).steps["a"], key)
    assert experts == ["lora1", "lora2"]


def test_the_adapters_of_a_merge_are_read_with_their_rows_on_its_model(reached, tmp_path):
    own = [{"adapter": "org/one", "data": [SOURCE]}, {"adapter": "org/two", "data": ["lab/choice", "lab/textops"]}]
    seen = reached(recipe(MERGE, model="org/other", adapters=own))
    assert seen.models == [ModelConfig(source="org/other")]
    assert seen.adapters == [(Path("org/one"), "org/other", False), (Path("org/two"), "org/other", False)]
    assert seen.sources == [
        SourceConfig(**SOURCE),
        SourceConfig(source="lab/choice"),
        SourceConfig(source="lab/textops"),
    ]
    assert seen.merge[0][2] == ["one", "two"]
    given = reached(recipe(MERGE, model="org/other", adapters=own, any_base=True)).adapters
    assert [any_base for *_, any_base in given] == [True, True]
    made_here = reached(recipe(MERGE))
    assert [folder for folder, *_ in made_here.adapters] == [tmp_path / f"lora{n}" / "adapter" for n in (1, 2)]
