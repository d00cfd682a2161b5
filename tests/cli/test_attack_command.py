"""``holdfast attack``: what it prints, keeps and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.attack_cases import rows


@pytest.fixture
def cases(tmp_path: Path) -> str:
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(2)), encoding="utf-8")
    return str(path)


def test_families_and_places_are_printed_and_the_log_is_rescored(
    command: Any, model: Any, cases: str, tmp_path: Path
) -> None:
    words = ("attack", str(model), "--data", cases, "--probes", "2", "--max-new-tokens", "3")
    code, out, err = command(*words, "-o", str(tmp_path / "out"))
    assert code == 0, err
    for line in ("ignore", "role_claim", "before", "after", "benign/refused", "attacked/followed/worst_family"):
        assert any(row.startswith(line) for row in out.splitlines()), line
    assert "Note: The audit refuses this set" in out
    assert f"see 'holdfast data audit {cases}'." in out
    assert f"Every answer: {tmp_path / 'out' / 'attacked' / 'log.jsonl'}" in err
    code, out, _ = command("eval", "--rescore", str(tmp_path / "out" / "attacked" / "log.jsonl"), "--json")
    assert code == 0
    known = {(metric["name"], metric["group"]): metric["value"] for metric in json.loads(out)}
    record = json.loads((tmp_path / "out" / "run.json").read_text())["steps"][0]
    kept = {(m["name"], m["group"]): m["value"] for m in record["metrics"] if not m["name"].startswith("causal/")}
    assert known == kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lab",), "No cases were named. Do: add --data FILE, or --data lab."),
        (("lab", "--data", "lab", "--gcg", "steps"), "Cannot read --gcg 'steps': expected key=value"),
        (("lab", "--data", "lab", "--gcg", "stepz=4"), "gcg.stepz: unknown key, did you mean 'steps'?"),
        (("lab", "--data", "lab", "--defence", "sandwitch"), "Did you mean 'sandwich'?"),
        (("lab", "--data", "lab/textops"), "'lab/textops' holds no attacked cases, expected 'lab/injection'"),
        (("lab", "--data", "no.jsonl"), "Cannot read no.jsonl: no such file"),
    ],
)
def test_bad_input_is_one_sentence(command: Any, words: tuple[str, ...], said: str) -> None:
    code, _, err = command("attack", *words)
    assert code == 2
    assert said in err


def test_a_file_without_test_cases_is_refused(command: Any, model: Any, cases: str) -> None:
    kept = [line for line in Path(cases).read_text().splitlines() if json.loads(line)["split"] == "train"]
    Path(cases).write_text("\n".join(kept) + "\n", encoding="utf-8")
    code, _, err = command("attack", str(model), "--data", cases)
    assert code == 2
    assert "has no case of split 'test', got train" in err
