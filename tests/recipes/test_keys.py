"""Every key of a recipe reaches the code that acts on it, and changes the fingerprint of its step."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.data.sources import SourceConfig
from holdfast.evaluation.tasks import TaskConfig
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.rotation.baselines.config import Replay
from holdfast.methods.rotation.config import BasisConfig, ImportanceConfig, MaskConfig
from holdfast.models.config import ModelConfig
from holdfast.recipes.context import Context
from holdfast.recipes.fingerprint import step_fingerprint
from holdfast.recipes.schema import STEP_TYPES, CompareStep, parse_recipe
from holdfast.recipes.steps import EXECUTORS
from holdfast.training.config import LoraConfig, TrainConfig

HELD_OUT = {"validation": ["lab/textops"], "evaluate_every": 2}
TRAIN = {"do": "train", "data": ["lab/textops"], "steps": 5}
EVALUATE = {"do": "evaluate", "tasks": ["lab/arithmetic"], "limit": 4}
BASIS = {"do": "basis", "data": ["lab/harmful"]}
IMPORTANCE = {"do": "importance", "of": "basis"}
MASK = {"do": "mask", "of": "scores"}
TABLE = {"do": "table", "before": "before", "rows": {"p": "first", "q": "second"}, "reference": "p"}
LORA_TRAIN = {**TRAIN, "params": "lora"}
PAIR = ["lora1", "lora2"]
WITH_ROWS = [{"adapter": "lora1", "data": ["lab/textops"]}, {"adapter": "lora2", "data": ["lab/harmful"]}]
MERGE = {"do": "merge", "adapters": WITH_ROWS}
SELECT = {"weights": [0.5, 2.0], "safety": ["lab/harmful"], "utility": ["lab/textops"], "drop": 0.1, "rows": 3}
REPAIR = {"do": "repair", "adapter": "lora1", "utility": ["lab/textops"], "safety": ["lab/harmful"]}
FRONT = {"do": "front", "rows": {"p": "merged1", "q": "merged2"}, "reference": "p"}
PLAIN = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "basis": BASIS,
    "importance": IMPORTANCE,
    "mask": MASK,
    "table": TABLE,
    "merge": MERGE,
    "repair": REPAIR,
    "front": FRONT,
}
EARLIER = {
    "basis": BASIS,
    "other": {**BASIS, "samples": 2},
    "scores": {"do": "importance", "of": "basis", "importance": "abs", "task": ["lab/textops"]},
    "mask": MASK,
    "before": EVALUATE,
    "first": EVALUATE,
    "second": EVALUATE,
    "energies": IMPORTANCE,
    "third": EVALUATE,
    "lora1": LORA_TRAIN,
    "lora2": {**LORA_TRAIN, "seed": 5},
    "merged1": {**MERGE, "select": SELECT},
    "merged2": {**MERGE, "select": SELECT, "seed": 5},
}
"""Steps that the step under test may name."""
REPLAY = {"baseline": {"name": "replay"}, "safety": ["lab/harmful"]}
ASFT = {"baseline": {"name": "asft"}, "unaligned": "org/base"}
NEW = {"source": "new", "config": {"model_type": "llama"}, "tokenizer": "some/folder"}

UNALIGNED = {"utility": [], "safety": [], "unaligned": "org/base"}

KEYS: dict[str, dict[str, dict]] = {
    "train": {
        "params": {"params": "lora"},
        "lora": {"params": "lora", "lora": {"rank": 3}},
        "loss_over": {"loss_over": "rows"},
        "learning_rate": {"learning_rate": 1e-5},
        "schedule": {"schedule": "linear"},
        "warmup": {"warmup": 0.5},
        "steps": {"steps": 6},
        "epochs": {"steps": None, "epochs": 2.0},
        "batch_size": {"batch_size": 3},
        "accumulate": {"accumulate": 2},
        "max_length": {"max_length": 99},
        "too_long": {"too_long": "drop"},
        "packing": {"packing": True},
        "optimizer": {"optimizer": "amsgrad"},
        "weight_decay": {"weight_decay": 0.5},
        "beta2": {"beta2": 0.5},
        "clip": {"clip": None},
        "precision": {"precision": "bf16"},
        "gradient_checkpointing": {"gradient_checkpointing": True},
        "evaluate_every": HELD_OUT,
        "patience": {**HELD_OUT, "patience": 1},
        "keep": {**HELD_OUT, "keep": "best"},
        "save_every": {"save_every": 2},
        "trackers": {"trackers": ["tensorboard"]},
        "seed": {"seed": 9},
        "model": {"model": "org/other"},
        "data": {"data": ["lab/arithmetic"]},
        "validation": HELD_OUT,
        "tokenizer": {"model": {**NEW, "tokenizer": "trained"}, "tokenizer": {"vocab_size": 300}},
        "constraint": {"constraint": "mask"},
        "baseline": {"baseline": {"name": "constrained_sft"}},
        "safety": REPLAY,
        "unaligned": ASFT,
    },
    "evaluate": {
        "model": {"model": "org/other"},
        "tasks": {"tasks": ["lab/harmful"]},
        "suite": {"suite": "safety"},
        "harness": {"harness": "lm-eval"},
        "limit": {"limit": 5},
        "batch_size": {"batch_size": 3},
        "seed": {"seed": 9},
    },
    "basis": {
        "layers": {"layers": ["q_proj"]},
        "tokens": {"tokens": "prompt"},
        "samples": {"samples": 3},
        "space": {"space": "random"},
        "model": {"model": "org/other"},
        "data": {"data": ["lab/jailbreak"]},
        "seed": {"seed": 9},
    },
    "importance": {
        "importance": {"importance": "square"},
        "of": {"of": "other"},
        "task": {"task": ["lab/textops"]},
    },
    "mask": {
        "unit": {"unit": "element"},
        "scope": {"scope": "global"},
        "frozen_share": {"frozen_share": 0.2},
        "choose": {"choose": "random"},
        "rest": {"rest": "free"},
        "spare": {"spare": "task"},
        "seed": {"seed": 9},
        "of": {"of": "energies"},
    },
    "table": {
        "before": {"before": "third"},
        "rows": {"rows": {"p": "first", "q": "third"}},
        "reference": {"reference": "q"},
        "title": {"title": "Rows"},
    },
    "merge": {
        "rule": {"rule": "regmean"},
        "layers": {"layers": ["q_proj"]},
        "weights": {"weights": [1.0, 2.0]},
        "rank": {"rank": 3},
        "density": {"rule": "ties", "adapters": PAIR, "density": 0.5},
        "semantics": {"rule": "ties", "adapters": PAIR, "semantics": "peft"},
        "election": {"rule": "ties", "adapters": PAIR, "election": "count"},
        "rescale": {"rule": "dare_linear", "adapters": PAIR, "rescale": False},
        "gamma": {"rule": "breadcrumbs", "adapters": PAIR, "gamma": 0.2},
        "epsilon": {"rule": "della", "adapters": PAIR, "epsilon": 0.1},
        "tau": {"rule": "safe_merge", "adapters": PAIR, "tau": 0.2},
        "seed": {"seed": 9},
        "fisher": {"fisher": "block"},
        "share": {"fisher": "topk", "share": 0.5},
        "labels": {"labels": "sampled"},
        "point": {"point": "mean"},
        "samples": {"samples": 3},
        "damping": {"damping": 0.5},
        "k": {"rule": "sst_projection", "k": 3},
        "directions": {"rule": "sst_projection", "directions": "random"},
        "layer_weights": {"rule": "sst_projection", "layer_weights": {"q_proj": 3.0}},
        "raw_weights": {"rule": "sst_projection", "raw_weights": True},
        "model": {"model": {"source": "lab", "dtype": "bfloat16"}},
        "adapters": {"adapters": [{**WITH_ROWS[0], "data": ["lab/choice"]}, WITH_ROWS[1]]},
        "select": {"select": SELECT},
        "batch_size": {"select": SELECT, "batch_size": 3},
    },
    "repair": {
        "method": {"method": "prune"},
        "layers": {"layers": ["q_proj"]},
        "mu": {"mu": 2.0},
        "factor": {"method": "scale", "utility": [], "safety": [], "factor": 0.2},
        "threshold": {**UNALIGNED, "method": "safe_lora", "threshold": 0.2},
        "alpha": {**UNALIGNED, "method": "lox", "alpha": 0.2},
        "penalty": {**UNALIGNED, "method": "csulora", "penalty": 0.2},
        "share": {"method": "prune", "share": 0.2},
        "directions": {**UNALIGNED, "method": "lox", "directions": 3},
        "fisher": {"fisher": "block"},
        "labels": {"labels": "sampled"},
        "point": {"point": 0.3},
        "samples": {"samples": 3},
        "damping": {"damping": 0.5},
        "rank": {"rank": 3},
        "seed": {"seed": 9},
        "model": {"model": {"source": "lab", "dtype": "bfloat16"}},
        "adapter": {"adapter": "lora2"},
        "tuned": {"adapter": None, "tuned": "org/tuned"},
        "delta_rank": {"adapter": None, "tuned": "org/tuned", "delta_rank": 3},
        "utility": {"utility": ["lab/choice"]},
        "safety": {"safety": ["lab/jailbreak"]},
        "unaligned": {**UNALIGNED, "method": "lox"},
        "select": {"select": {key: SELECT[key] for key in ("safety", "utility")}},
        "batch_size": {"select": {key: SELECT[key] for key in ("safety", "utility")}, "batch_size": 3},
    },
    "front": {
        "rows": {"rows": {"p": "merged2", "q": "merged1"}},
        "reference": {"reference": "q"},
    },
}
"""For each key the smallest change of a plain step in which it says something else than its default."""
LORA = {"rank": 3, "alpha": 5.0, "dropout": 0.1, "targets": ["q_proj"]}
SOURCE = {
    "source": "x.csv",
    "format": "bipia",
    "columns": {"prompt": "p"},
    "subset": "main",
    "split": "test",
    "rows": 3,
    "at_most": 4,
    "seed": 2,
    "attacks": "a.json",
}
MODELS = [
    {
        "source": "org/other",
        "adapter": "org/adapter",
        "adapter_base": "any",
        "revision": "main",
        "dtype": "bfloat16",
        "device": "cpu",
        "attention": "eager",
        "quantization": "4bit",
        "chat_template": "plain",
        "trust_remote_code": True,
    },
    {**NEW, "seed": 4},
]
TASKS = [
    {
        "name": "gsm8k",
        "data": SOURCE,
        "prompting": "plain",
        "few_shot": 2,
        "shots": SOURCE,
        "judge": "exact",
        "max_new_tokens": 3,
    },
    {"name": "advbench", "labels": SOURCE},
    {"name": "arc_easy", "harness": "lm-eval", "options": {"a": 1}},
]
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


def test_a_baseline_with_what_it_reads_reaches_its_own_door(reached):
    seen = reached(recipe(TRAIN, baseline={"name": "replay", "share": 0.2}, safety=["lab/harmful"], seed=9))
    (config, _, rows, safety, settings), options = seen.baseline
    assert config == Replay(name="replay", share=0.2)
    assert (rows, safety, settings.seed, options["unaligned"]) == ([], [], 9, None)
    assert seen.sources == [SourceConfig(source="lab/textops"), SourceConfig(source="lab/harmful")]
    assert reached(recipe(TRAIN, **ASFT)).models == [ModelConfig(), ModelConfig(source="org/base")]


def test_every_key_of_a_table_reaches_it(reached):
    """All but the title, which is for the report alone."""
    (before, rows, reference), _ = reached(recipe(TABLE, **all_of("table"))).table
    assert before.parent.name == "third"
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
    made_here = reached(recipe(MERGE))
    assert [folder for folder, *_ in made_here.adapters] == [tmp_path / f"lora{n}" / "adapter" for n in (1, 2)]
