import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError
from tests.training.helpers import config, examples
from tests.zoo import tiny

from holdfast.core.errors import ConfigError, DataError, LayerError, NumericsError
from holdfast.methods.rotation.baselines import check, dispatch, run
from holdfast.methods.rotation.baselines.config import BaselineConfig, ControlName
from holdfast.models.load import LoadedModel

BASELINES: TypeAdapter[Any] = TypeAdapter(BaselineConfig)
SMALL = {"safety_rank": 4, "task_rank": 4}


def made(name: str, **keys: Any) -> Any:
    return BASELINES.validate_python({"name": name} | keys)


def test_every_baseline_of_the_union_can_be_run_or_is_the_control_of_a_plan() -> None:
    mapping = BASELINES.json_schema()["discriminator"]["mapping"]
    assert mapping.keys() == dispatch.SETUPS.keys() | set(get_args(ControlName))


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValidationError, match="safe_lora"):
        made("safelora")


def test_the_keys_are_read_without_torch() -> None:
    code = "import sys, holdfast.methods.rotation.baselines; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "keys", "params", "safety", "unaligned", "message"),
    [
        ("salora", {}, "full", True, False, "not defined for params: full: expected lora"),
        ("safe_lora", {}, "qlora", False, True, "not defined for params: qlora: expected full or lora"),
        ("asft", {}, "lora", False, False, "needs an unaligned model"),
        ("replay", {}, "full", False, False, "needs safety rows"),
        ("lisa", {}, "full", False, False, "needs safety rows"),
        ("lisa", {"alignment_steps": 0}, "full", True, False, "does not use safety rows"),
        ("constrained_sft", {}, "full", True, False, "does not use safety rows"),
        ("replay", {}, "full", True, True, "does not use an unaligned model"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, keys: dict[str, Any], params: str, safety: bool, unaligned: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(made(name, **keys), params, safety=safety, unaligned=unaligned)


def start(name: str, loaded: LoadedModel, unaligned: LoadedModel | None = None, **keys: Any) -> Any:
    """What `run` says; the training itself must not begin."""
    safety = examples(8, seed=3) if made(name).uses_safety else []
    baseline = keys.pop("baseline", {})
    settings = config(**({"params": "lora"} | keys))
    return lambda out: run(made(name, **baseline), loaded, examples(12), safety, settings, out=out, unaligned=unaligned)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (start("asft", tiny("llama"), tiny("llama")), NumericsError, "layers.0.q_proj is the same in"),
        (start("safe_lora", tiny("llama"), tiny("gpt2")), ConfigError, "got shape .32, 32. for layers.0.k_proj"),
        (start("asft", tiny("llama"), tiny("llama", 1), lora={"targets": ["lm_head"]}), LayerError, "cannot name"),
        (start("salora", tiny("llama"), lora={"targets": ["qproj"]}), LayerError, "Did you mean 'q_proj'"),
        (start("salora", tiny("llama"), lora={"rank": 4}), ConfigError, "got safety_rank 32, expected at most 31"),
        (start("salora", tiny("llama"), lora={"rank": 40}, baseline=SMALL), ConfigError, "got lora.rank 40"),
        (start("replay", tiny("llama"), baseline={"share": 0.01}), ConfigError, "replay adds nothing"),
        (start("constrained_sft", tiny("llama"), steps=10), ConfigError, "warms up for 10 steps: got a training of 10"),
        (
            start("constrained_sft", tiny("llama"), warmup=0.1, baseline={"warmup_steps": 2}),
            ConfigError,
            "two warm-ups",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_a_sentence(
    tmp_path: Any, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert not any(tmp_path.iterdir())


def test_too_few_tokens_for_the_directions_are_refused(tmp_path: Any) -> None:
    settings = config(params="lora", lora={"rank": 2, "targets": ["o_proj"]})
    baseline = made("salora", safety_rank=31, task_rank=4, samples=1)
    row = examples(1)[0]
    short = [type(row)(row.id, row.messages, "no")]
    with pytest.raises(DataError, match="tokens in safety rows"):
        run(baseline, tiny("llama"), examples(12), short, settings, out=tmp_path)
