"""The step ``do: verify``: what reaches the verification, what it leaves, and what is told before it runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.test_verify_causal_command import a_set, write

from holdfast.core.errors import ConfigError
from holdfast.core.results import Metric, Verdict
from holdfast.methods.causal.verify import Verification
from holdfast.methods.causal.verify_config import VerifyConfig
from holdfast.recipes.context import Context
from holdfast.recipes.estimate import estimate
from holdfast.recipes.schema import parse_recipe, quickened
from holdfast.recipes.steps import EXECUTORS

pytest.importorskip("causallearn")
FOUND = Verification(
    (Metric(name="causal/attack_success", value=0.5, n=4),),
    (Verdict(name="causal/data", holds=True, statistic=None, p_value=None, n=4, null="none"),),
    {"power/outcome": [(0.0, 0.05)]},
    ("So.",),
)


def document(cases: Path, **keys: Any) -> dict[str, Any]:
    step = {"do": "verify", "cases": [str(cases)], **keys}
    return {"name": "r", "model": "lab", "steps": {"verified": step}}


def test_every_key_reaches_the_verification_and_its_findings_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def verify(loaded: Any, cases: Any, settings: Any, before: Any, **rest: Any) -> Verification:
        seen.update(loaded=loaded, cases=cases, settings=settings, before=before, **rest)
        return FOUND

    monkeypatch.setattr("holdfast.methods.causal.verify.verify", verify)
    monkeypatch.setattr(
        "holdfast.models.load.load_model", lambda c: SimpleNamespace(source=c.source, notes=(), name=c.source)
    )
    keys = {"layers": ["q_proj"], "rows": 7, "families": ["role_claim"], "draws": 1999, "bound": 0.5, "seed": 9}
    given = document(write(tmp_path / "c.jsonl", a_set(8)), against="org/base", model="org/hard", **keys)
    outcome = EXECUTORS["verify"](Context(parse_recipe(given, "r"), "verified", tmp_path, {}, False, lambda *_: None))
    assert seen["settings"] == VerifyConfig(**keys)
    assert (seen["loaded"].source, seen["before"].source, seen["adapter"]) == ("org/hard", "org/base", None)
    assert len(seen["cases"]) == 11
    assert (outcome.metrics, outcome.verdicts) == (FOUND.metrics, FOUND.verdicts)
    assert (outcome.curves, outcome.notes) == (FOUND.curves, FOUND.notes)


def test_quick_asks_fewer_cases_and_certifies_nothing(tmp_path: Path) -> None:
    step = quickened(document(tmp_path / "c.jsonl", bound=0.05))["steps"]["verified"]
    assert (step["rows"], step["bound"]) == (50, None)


def test_against_may_name_an_earlier_step_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps\.verified\.against: no step 'bse'"):
        parse_recipe(document(tmp_path / "c.jsonl", against="bse"), "r")


def test_check_counts_cases_and_tells_what_a_verification_would_refuse(tmp_path: Path) -> None:
    file = write(tmp_path / "c.jsonl", a_set(8))
    needs = estimate(parse_recipe(document(file), "r"), "r")
    assert needs.steps[0].rows == {str(file): 11}
    with pytest.raises(ConfigError, match=r"steps\.verified: Too few rows to certify"):
        estimate(parse_recipe(document(file, bound=0.05), "r"), "r")
    with pytest.raises(ConfigError, match=r"steps\.verified: .*no such file"):
        estimate(parse_recipe(document(tmp_path / "none.jsonl"), "r"), "r")
