"""``holdfast verify causal``: 0 where claims hold or abstain, 1 where one fails, 2 for input that carries nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.methods.causal.made_cases import case

from holdfast.core.results import Metric, Verdict
from holdfast.data.counterfactual import Counterfactual
from holdfast.methods.causal.verify import Verification
from holdfast.models.config import ModelConfig

Command = Callable[..., tuple[int, str, str]]


def write(path: Path, cases: list[Counterfactual]) -> Path:
    path.write_text("".join(json.dumps(each.as_dict()) + "\n" for each in cases), encoding="utf-8")
    return path


def a_set(n: int) -> list[Counterfactual]:
    trained = [case(100 + i, "train", group=f"t{i}", attack="naive") for i in range(3)]
    return [*trained, *(case(i, "test", group=f"g{i}", attack="role_claim") for i in range(n))]


def verdict(name: str, holds: bool | None) -> Verdict:
    reason = {True: "holds; effect 0.1", False: "fails; effect 0.9", None: "abstains (power too low)"}[holds]
    return Verdict(name=name, holds=holds, statistic=0.1, p_value=0.5, n=9, null="x", reason=reason)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[ModelConfig]]:
    """Replace the verification by one with these verdicts; gives the models that are asked for."""

    def replaced(*holds: bool | None) -> list[ModelConfig]:
        asked: list[ModelConfig] = []
        metrics = [
            Metric(name="causal/attack_success", value=0.25, n=8, k=2, low=0.03, high=0.65),
            Metric(name="causal/attack_success/all", value=0.2, n=10, k=2, n_invalid=2),
            Metric(name="causal/attack_success", value=0.75, n=8, k=6, group="model=undefended"),
            Metric(name="causal/eps/outcome/worst", value=0.5, n=8, group="attack=role_claim"),
            Metric(name="causal/eps/outcome/worst", value=0.9, n=8, group="model=undefended, attack=naive"),
            Metric(name="causal/bound/Seeger", value=1.0, n=8, reason="vacuous"),
        ]
        made = Verification(
            tuple(metrics), tuple(verdict(f"causal/c{i}", h) for i, h in enumerate(holds)), {}, ("So.",)
        )
        monkeypatch.setattr("holdfast.methods.causal.verify.verify", lambda *_, **__: made)

        def load_model(config: ModelConfig) -> SimpleNamespace:
            asked.append(config)
            return SimpleNamespace(notes=("An adapter of another model.",) if config.adapter_base == "any" else ())

        monkeypatch.setattr("holdfast.models.load.load_model", load_model)
        return asked

    return replaced


@pytest.mark.parametrize(("holds", "code"), [((True, True), 0), ((True, None), 0), ((True, False, None), 1)])
def test_the_exit_code_says_whether_a_claim_fails(
    holds: tuple[bool | None, ...], code: int, found: Callable[..., Any], command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("causallearn")
    found(*holds)
    given, out, _ = command("verify", "causal", "lab", "--data", str(write(tmp_path / "c.jsonl", a_set(8))))
    assert given == code
    for i, each in enumerate(holds):
        line = next(line for line in out.splitlines() if line.startswith(f"c{i} "))
        assert {True: "holds", False: "FAILS", None: "abstains"}[each] in line


def test_figures_stand_beside_those_of_the_undefended_model(
    found: Callable[..., Any], command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("causallearn")
    found(True)
    _, out, _ = command(
        "verify", "causal", "lab", "--data", str(write(tmp_path / "c.jsonl", a_set(8))), "--against", "x"
    )
    lines = [line.split() for line in out.splitlines()]
    assert ["attack", "success", "0.250", "[0.030,", "0.650]", "0.750"] in lines
    assert ["over", "invalid", "answers", "too", "0.200", "(2", "invalid)", "–"] in lines
    assert ["worst", "family", "0.500", "role_claim", "0.900", "naive"] in lines
    assert ["Seeger", "bound", "1.000", "(vacuous)", "–"] in lines


def test_an_adapter_of_another_model_is_taken_where_that_is_said_and_a_note_tells_it(
    found: Callable[..., Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("causallearn")
    monkeypatch.setattr("holdfast.layers.adapters.read_peft", lambda _: None)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    words = ("verify", "causal", "lab", "--data", str(write(tmp_path / "c.jsonl", a_set(8))))
    asked = found(True)
    code, out, _ = command(*words, "--adapter", str(tmp_path), "--any-base")
    assert (code, asked) == (0, [ModelConfig(source="lab", adapter=str(tmp_path), adapter_base="any")])
    assert "An adapter of another model." in out.splitlines()
    code, out, _ = command(*words, "--adapter", str(tmp_path))
    assert asked[1:] == [ModelConfig(source="lab", adapter=str(tmp_path))]
    assert "An adapter of another model." not in out
    code, _, err = command(*words, "--any-base")
    assert (code, len(asked)) == (2, 2)
    assert "there is no --adapter" in err


def test_cases_without_a_sign_of_obeying_exit_with_2_before_a_model_loads(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("causallearn")
    cases = [replace(each, witness="", payload_answer="") for each in a_set(8)]
    file = write(tmp_path / "c.jsonl", cases)
    code, _, err = command("verify", "causal", "no/such-model", "--data", str(file))
    assert code == 2
    assert "Cannot tell whether an injection was followed: none of 8 test cases" in err


def test_json_and_the_written_record_have_everything(
    found: Callable[..., Any], command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("causallearn")
    found(True, False)
    file = str(write(tmp_path / "c.jsonl", a_set(8)))
    code, out, _ = command("verify", "causal", "lab", "--data", file, "--json", "-o", str(tmp_path / "r.json"))
    assert code == 1
    assert json.loads(out) == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert json.loads(out)["fails"] == ["causal/c1"]
    assert json.loads(out)["metrics"][0]["name"] == "causal/attack_success"


@pytest.mark.parametrize(
    ("n", "words", "sentence"),
    [
        (1, (), "1 test cases in 1 groups, expected at least 6 groups"),
        (8, ("--bound", "0.05"), "got role_claim 8 (one of each scenario counts), expected at least 59"),
        (8, ("--draws", "10"), "draws: should be greater than or equal to 999 (got 10)"),
        (8, ("--bound", "2"), "bound: should be less than 1 (got 2"),
    ],
)
def test_input_that_carries_nothing_exits_with_2_before_a_model_loads(
    n: int, words: tuple[str, ...], sentence: str, command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("causallearn")
    file = str(write(tmp_path / "c.jsonl", a_set(n)))
    code, _, err = command("verify", "causal", "no/such-model", "--data", file, *words)
    assert code == 2
    assert sentence in err


def test_without_a_held_out_family_it_exits_with_2(command: Command, tmp_path: Path) -> None:
    cases = [case(i, "test", group=f"g{i}", attack="naive") for i in range(8)]
    file = write(tmp_path / "c.jsonl", [case(99, "train", group="t", attack="naive"), *cases])
    code, _, err = command("verify", "causal", "lab", "--data", str(file))
    assert code == 2
    assert "no held-out family" in err


@pytest.mark.slow
def test_a_tiny_model_is_verified_for_real(command: Command, tmp_path: Path, model: Path) -> None:
    pytest.importorskip("causallearn")
    file = str(write(tmp_path / "c.jsonl", a_set(24)))
    code, out, err = command("verify", "causal", str(model), "--data", file, "--against", str(model), "--json")
    assert code in {0, 1}, err
    record = json.loads(out)
    assert {"causal/graph", "causal/graph/undefended", "causal/data"} <= {each["name"] for each in record["verdicts"]}
    assert bool(record["fails"]) == (code == 1)
