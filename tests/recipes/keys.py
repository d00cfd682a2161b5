"""For each kind of recipe step a plain one, what it may name, and for each of its keys the smallest change of it."""

HELD_OUT = {"validation": ["lab/textops"], "evaluate_every": 2}
TRAIN = {"do": "train", "data": ["lab/textops"], "steps": 5}
EVALUATE = {"do": "evaluate", "tasks": ["lab/arithmetic"], "limit": 4}
BASIS = {"do": "basis", "data": ["lab/harmful"]}
IMPORTANCE = {"do": "importance", "of": "basis"}
MASK = {"do": "mask", "of": "scores"}
CAUSAL = {"do": "causal", "cases": ["lab/injection"]}
TABLE = {"do": "table", "before": "before", "rows": {"p": "first", "q": "second"}, "reference": "p"}
LORA_TRAIN = {**TRAIN, "params": "lora"}
PAIR = ["lora1", "lora2"]
WITH_ROWS = [{"adapter": "lora1", "data": ["lab/textops"]}, {"adapter": "lora2", "data": ["lab/harmful"]}]
MERGE = {"do": "merge", "adapters": WITH_ROWS}
SELECT = {"weights": [0.5, 2.0], "safety": ["lab/harmful"], "utility": ["lab/textops"], "drop": 0.1, "rows": 3}
REPAIR = {"do": "repair", "adapter": "lora1", "utility": ["lab/textops"], "safety": ["lab/harmful"]}
ADAPTER = {"do": "adapter", "source": "org/adapter"}
ATTACK = {"do": "attack", "cases": ["lab/injection"], "limit": 2}
VERIFY = {"do": "verify", "cases": ["lab/injection"]}
RETENTION = {"do": "retention", "alone": {"p": "first"}, "rows": {"sst": ["second", "third"]}}
FRONT = {"do": "front", "rows": {"p": "merged1", "q": "merged2"}, "reference": "p"}
PLAIN = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "basis": BASIS,
    "importance": IMPORTANCE,
    "mask": MASK,
    "causal": CAUSAL,
    "table": TABLE,
    "adapter": ADAPTER,
    "merge": MERGE,
    "repair": REPAIR,
    "front": FRONT,
    "retention": RETENTION,
    "attack": ATTACK,
    "verify": VERIFY,
}
EARLIER = {
    "basis": BASIS,
    "other": {**BASIS, "samples": 2},
    "scores": {"do": "importance", "of": "basis", "importance": "abs", "task": ["lab/textops"]},
    "mask": MASK,
    "steady": CAUSAL,
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
        "objective": {"objective": "steady"},
        "best_by": {"evaluate_every": 2, "keep": "best", "best_by": {"cases": ["lab/injection"]}},
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
    "causal": {
        "layers": {"layers": ["q_proj"]},
        "tokens": {"tokens": "prompt"},
        "lambda_task": {"lambda_task": 2.0},
        "lambda_causal": {"lambda_causal": 2.0},
        "lambda_spurious": {"lambda_spurious": 2.0},
        "lambda_preference": {"lambda_preference": 2.0},
        "gradient": {"gradient": "both"},
        "temperature": {"temperature": 0.1},
        "partners": {"partners": 2},
        "guard": {"guard": 0.5},
        "twin": {"twin": True},
        "beta": {"lambda_preference": 2.0, "beta": 0.2},
        "samples": {"samples": 9},
        "seed": {"seed": 9},
        "model": {"model": "org/other"},
        "cases": {"cases": [{"source": "lab/injection", "seed": 2}]},
        "validation": {"validation": [{"source": "lab/injection", "split": "validation"}]},
        "force": {"force": True},
    },
    "table": {
        "before": {"before": "third"},
        "rows": {"rows": {"p": "first", "q": "third"}},
        "reference": {"reference": "q"},
        "title": {"title": "Rows"},
    },
    "adapter": {
        "source": {"source": "org/second"},
        "model": {"model": "org/other"},
        "any_base": {"any_base": True},
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
        "any_base": {"adapters": [{**WITH_ROWS[0], "adapter": "org/one"}, WITH_ROWS[1]], "any_base": True},
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
        "any_base": {"adapter": "org/one", "any_base": True},
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
    "attack": {
        "limit": {"limit": 3},
        "probes": {"probes": 5},
        "defence": {"defence": "sandwich"},
        "false_positives": {"defence": "perplexity", "false_positives": 0.1},
        "best_of": {"best_of": 3},
        "gcg": {"gcg": {"steps": 3}},
        "max_new_tokens": {"max_new_tokens": 5},
        "batch_size": {"batch_size": 3},
        "seed": {"seed": 9},
        "model": {"model": "org/other"},
        "cases": {"cases": [{"source": "lab/injection", "seed": 2}]},
    },
    "verify": {
        "layers": {"layers": ["q_proj"]},
        "rows": {"rows": 7},
        "draws": {"draws": 1999},
        "bound": {"bound": 0.1},
        "seed": {"seed": 9},
        "model": {"model": "org/other"},
        "against": {"against": "org/base"},
        "cases": {"cases": [{"source": "lab/injection", "seed": 2}]},
    },
    "retention": {
        "alone": {"alone": {"p": "before"}},
        "rows": {"rows": {"sst": ["second"]}},
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
    "part": (0.2, 0.5),
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
