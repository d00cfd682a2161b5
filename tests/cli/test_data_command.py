"""``holdfast data audit``: a verdict that a script can act on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.data.counterfactual import read_unchecked
from holdfast.data.sources import SourceConfig


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's training cases, every fourth of them called test."""
    found = read_unchecked(SourceConfig(source="lab/injection", rows=40))[:40]
    doubled = [replace(case, id=f"{case.id}/{s}", split=s).as_dict() for case in found for s in ("train", "test")]
    path = tmp_path_factory.mktemp("data") / "leaky.jsonl"
    path.write_text("".join(json.dumps(case) + "\n" for case in doubled), encoding="utf-8")
    return path


def test_the_lab_passes_with_exit_code_0(command) -> None:
    code, out, _ = command("data", "audit", "lab")
    assert code == 0
    assert out.splitlines()[0] == "lab: 1500 cases (500 train, 500 validation, 500 test)"
    assert out.splitlines()[-1] == "lab passes"


def test_a_leak_is_refused_with_exit_code_1_and_forced_with_0(command, leaky: Path) -> None:
    code, out, _ = command("data", "audit", str(leaky))
    assert code == 1
    assert out.splitlines()[-1].startswith(f"{leaky} refused: groups apart, test data unseen")
    for name in ("groups apart", "test data unseen", "injections unseen", "held-out families"):
        assert any(line.startswith(f"{name}. Do: ") for line in out.splitlines()), name
    assert "validity. Do:" not in out, "what holds needs no remedy"
    code, forced, _ = command("data", "audit", str(leaky), "--force")
    assert (code, forced) == (0, out)


def test_json_holds_the_verdict_and_every_check(command, leaky: Path) -> None:
    code, out, _ = command("data", "audit", str(leaky), "--json")
    found = json.loads(out)
    assert (code, found["passes"], found["cases"]) == (1, False, 80)
    assert {check["name"] for check in found["checks"]} >= {"validity", "words do not tell", "held-out families"}
    assert all(check["said"] for check in found["checks"])


def test_what_cannot_be_read_is_one_sentence_with_exit_code_2(command, tmp_path: Path) -> None:
    code, out, errors = command("data", "audit", str(tmp_path / "none.jsonl"))
    assert (code, out) == (2, "")
    assert "no such file" in errors
    code, _, errors = command("data", "audit", "lab/injection", "--format", "sep")
    assert (code, errors.count("\n")) == (2, 1)
