"""The laws about lm-evaluation-harness: our plain GSM8K and MMLU agree with it row by row, on the same model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tests.public_data import public
from tests.zoo import CONFIGS, byte_tokenizer

from holdfast.core.errors import ConfigError, MissingExtra
from holdfast.data.sources import SourceConfig, load_examples
from holdfast.evaluation.harness import run_harness
from holdfast.evaluation.log import Record, read_log
from holdfast.evaluation.suite import evaluate, rescore
from holdfast.evaluation.tasks import TaskConfig
from holdfast.models.build import new_model
from holdfast.models.chat import ChatFormat
from holdfast.models.load import LoadedModel

LONG = {**CONFIGS["llama"], "max_position_embeddings": 4096}
SAID = " 3 + 4 = 7.\n#### 7.\nOr $1,250"
"""What the taught model answers: the first marked number and the last number are not the same."""


@pytest.fixture(scope="module")
def random_model() -> LoadedModel:
    tokenizer = byte_tokenizer()
    return LoadedModel(
        new_model(LONG, tokenizer, 0).eval(), tokenizer, ChatFormat(tokenizer), "random", "new", "random"
    )


@pytest.fixture(scope="module")
def taught_model() -> LoadedModel:
    """A tiny Llama that says `SAID` after any question."""
    tokenizer = byte_tokenizer()
    model = new_model({**LONG, "initializer_range": 0.05}, tokenizer, 0)
    said = [*tokenizer(SAID)["input_ids"], tokenizer.eos_token_id]
    questions = [row.messages[0].content for row in load_examples(_train().model_copy(update={"rows": 80}))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i in range(0, 80, 4):
        rows = [tokenizer(f"{q:>90}\nAnswer:")["input_ids"][-90:] + said for q in questions[i : i + 4]]
        for _ in range(4):
            ids = torch.tensor(rows)
            labels = ids.clone()
            labels[:, : -len(said)] = -100
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
    return LoadedModel(model.eval(), tokenizer, ChatFormat(tokenizer), "taught", "new", "taught")


def _train() -> SourceConfig:
    return SourceConfig(source=str(public("gsm8k/train.jsonl")), format="gsm8k")


def _both(loaded: LoadedModel, ours: TaskConfig, theirs: TaskConfig, folder: Path) -> tuple:
    native = evaluate(loaded, [ours], batch_size=4, log=folder / "ours.jsonl")
    quoted = evaluate(loaded, [theirs], batch_size=4, log=folder / "theirs.jsonl")
    assert rescore(folder / "theirs.jsonl") == quoted.metrics
    return native, quoted, read_log(folder / "ours.jsonl")[1], read_log(folder / "theirs.jsonl")[1]


def _harness(name: str, few_shot: int, files: dict[str, Path]) -> TaskConfig:
    data_files = {split: str(path) for split, path in files.items()}
    options = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data_files}}
    return TaskConfig(name=name, harness="lm-eval", prompting="plain", few_shot=few_shot, options=options)


def _sums(folder: Path, n: int) -> Path:
    """Real GSM8K questions; two of three get for an answer a number that the taught model says."""
    lines = public("gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    rows = [json.loads(line) for line in lines]
    for i, row in enumerate(rows):
        if i % 3:
            row["answer"] = f"So it is.\n#### {('7', '1,250')[i % 3 - 1]}"
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _check_gsm8k(loaded: LoadedModel, folder: Path, rows: int, few_shot: int) -> list[Record]:
    train, test = public("gsm8k/train.jsonl"), _sums(folder, rows)
    ours = TaskConfig(
        name="gsm8k",
        prompting="plain",
        few_shot=few_shot,
        data=SourceConfig(source=str(test)),
        shots=SourceConfig(source=str(train)) if few_shot else None,
    )
    native, quoted, mine, theirs = _both(
        loaded, ours, _harness("gsm8k", few_shot, {"train": train, "test": test}), folder
    )
    assert [r.prompt for r in mine] == [r.prompt for r in theirs]
    assert [r.sample.output for r in mine] == [r.sample.output for r in theirs]
    values = {m.name: (m.value, m.n, m.k) for m in (*native.metrics, *quoted.metrics)}
    for reading, filter_name in (("strict_match", "strict-match"), ("flexible_extract", "flexible-extract")):
        assert _scores(mine, reading) == _scores(theirs, f"exact_match/{filter_name}")
        assert values[f"utility/gsm8k/{reading}"] == values[f"utility/gsm8k/exact_match/{filter_name}"]
    return mine


def _scores(records: list[Record], judge: str) -> list[float | None]:
    return [score.value for r in records for name, score in r.scores.items() if name.startswith(f"{judge}@")]


def _mmlu_file(subject: str, split: str, folder: Path, n: int) -> Path:
    """The rows of our CSV with the columns of the set on the hub, which the harness reads."""
    config = SourceConfig(source=str(public(f"mmlu/{split}/{subject}_{split}.csv")), format="mmlu")
    path = folder / f"{subject}_{split}.jsonl"
    rows = [
        {
            "question": example.messages[0].content.rsplit("\nA. ", 1)[0],
            "subject": subject,
            "choices": list(example.options),
            "answer": "ABCD".index(example.reference),
        }
        for example in load_examples(config)[:n]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _check_mmlu(loaded: LoadedModel, folder: Path, subject: str, rows: int, few_shot: int) -> list[Record]:
    files = {split: _mmlu_file(subject, split, folder, rows) for split in ("dev", "test")}
    ours = TaskConfig(
        name="mmlu",
        prompting="plain",
        few_shot=few_shot,
        data=SourceConfig(source=str(files["test"])),
        shots=SourceConfig(source=str(files["dev"])) if few_shot else None,
    )
    native, quoted, mine, theirs = _both(loaded, ours, _harness(f"mmlu_{subject}", few_shot, files), folder)
    assert [r.prompt for r in mine] == [r.prompt for r in theirs]
    assert [r.sample.output for r in mine] == [r.sample.output for r in theirs]
    assert _scores(mine, "choice") == _scores(theirs, "acc")
    assert (native.metrics[0].value, native.metrics[0].k) == (quoted.metrics[0].value, quoted.metrics[0].k)
    return mine


def test_plain_gsm8k_agrees_with_lm_eval_row_by_row(taught_model: LoadedModel, tmp_path: Path) -> None:
    mine = _check_gsm8k(taught_model, tmp_path, rows=6, few_shot=0)
    assert _scores(mine, "strict_match") == [0.0, 1.0, 0.0] * 2
    assert _scores(mine, "flexible_extract") == [0.0, 0.0, 1.0] * 2


def test_plain_mmlu_agrees_with_lm_eval_row_by_row(random_model: LoadedModel, tmp_path: Path) -> None:
    mine = _check_mmlu(random_model, tmp_path, "abstract_algebra", rows=16, few_shot=2)
    assert len({record.sample.output for record in mine}) > 1


@pytest.mark.peers
def test_plain_gsm8k_agrees_with_lm_eval_on_many_rows_after_drawn_examples(
    random_model: LoadedModel, tmp_path: Path
) -> None:
    _check_gsm8k(random_model, tmp_path, rows=40, few_shot=3)


@pytest.mark.peers
@pytest.mark.parametrize("subject", ["computer_security", "elementary_mathematics", "moral_disputes"])
def test_plain_mmlu_agrees_with_lm_eval_in_every_subject(
    random_model: LoadedModel, tmp_path: Path, subject: str
) -> None:
    _check_mmlu(random_model, tmp_path, subject, rows=60, few_shot=3)


def test_a_task_that_the_harness_does_not_know_is_named(random_model: LoadedModel) -> None:
    with pytest.raises(ConfigError, match=r"lm-eval has no task 'gsm8kk'\. Did you mean"):
        run_harness(random_model, TaskConfig(name="gsm8kk", harness="lm-eval"), limit=1, batch_size=1)


def test_without_the_extra_the_command_to_install_it_is_said(
    random_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'holdfast\[lm-eval\]'"):
        run_harness(random_model, TaskConfig(name="gsm8k", harness="lm-eval"), limit=1, batch_size=1)


def test_keys_that_only_the_other_harness_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match="judge has no effect with harness lm-eval"):
        _ = TaskConfig(name="gsm8k", harness="lm-eval", judge="exact").task
    with pytest.raises(ConfigError, match="options has no effect with harness native"):
        _ = TaskConfig(name="gsm8k", options={"dataset_path": "json"}).task
