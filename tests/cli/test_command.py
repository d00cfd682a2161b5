"""The command as a whole: light to start, one sentence for a problem and exit code 2, completion, its printing."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.cli.main import main
from holdfast.cli.output import print_table, size
from holdfast.core.errors import ConfigError


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["report", "--help"], ["--version"]])
def test_help_imports_nothing_heavy_and_costs_little(words):
    heavy = {"torch", "transformers", "datasets", "scipy", "numpy", "yaml"}  # pydantic is typer's own
    code = (
        "import sys\nfrom holdfast.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"print('heavy:', sorted({heavy!r} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # bytecode is compiled once
    costs = []
    for _ in range(3):  # what other processes add to one reading is no cost of ours
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "heavy: []" in done.stdout
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.4, "seconds of CPU"


def test_list_imports_no_torch():
    code = (
        "import sys\nfrom holdfast.cli.main import main\ntry: main(['list'])\nexcept SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert "lab/arithmetic" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "quikstart"], "holdfast: No recipe 'quikstart'"),
        (["check", "quickstart", "--set", "steps.tuned.learning_rat=1"], "unknown key, did you mean 'learning_rate'?"),
        (["check", "quickstart", "--set", "steps.tund.steps=1"], "no step 'tund'. Did you mean 'tuned'?"),
        (["list", "task"], "Cannot list 'task'. Did you mean 'tasks'?"),
        (["show", "train.learning_rat"], "Did you mean 'train.learning_rate'?"),
        (["report", "/nowhere"], "no run.json there"),
        (["eval"], "No model was named"),
        (["eval", "lab", "--rescore", "x"], "--rescore reads a log and uses no model"),
        (["eval", "--rescore", "x", "--limit", "3"], "--limit has no effect with --rescore"),
        (["run", "quickstart", "--only", "tuned", "--from", "after"], "--only and --from exclude each other"),
        (["eval", "lab", "--suite", "safty"], "Did you mean 'safety'?"),
        (["eval", "lab", "--task", "gsm8"], "Did you mean 'gsm8k'?"),
        (["eval", "lab", "--data", "rows.jsonl"], "--data needs one --task"),
        (["eval", "lab", "--format", "gsm8k"], "--format says how --data is read"),
        (["eval", "lab", "--judge", "prefix"], "--judge is for the --tasks that are named: got none"),
        (["eval", "lab", "--labels", "x.csv"], "--labels is for the --tasks that are named: got none"),
        (["eval", "lab", "--task", "gsm8k", "--labels", "x.csv"], "labels correct a rate of attack_success_rate"),
        (["eval", "--rescore", "x", "--labels", "y"], "--labels has no effect with --rescore"),
        (["eval", "lab", "--task", "gsm8k", "--judge", "prefx"], "unknown judge 'prefx'. Did you mean 'prefix'?"),
        (["eval", "lab", "--task", "gsm8k", "--judge", "chta:x"], "Unknown kind of judge 'chta'. Did you mean 'chat'?"),
        (["eval", "lab", "--task", "gsm8k", "--judge", "chat:http://x,grader"], "expected chat:WHERE,key=value,..."),
        (["eval", "lab", "--task", "gsm8k", "--judge", "chat:http://x"], "judge.model: missing"),
        (["eval", "lab", "--task", "arc_easy", "--harness", "lm-eval", "--judge", "exact"], "no effect with harness"),
        (["eval", "./lba"], "Cannot load a model from ./lba: no such folder"),
        (["eval", "--rescore", "/nowhere.jsonl"], "no such file"),
        (["compare", "/nowhere", "/nowhere"], "no such file"),
    ],
)
def test_a_problem_is_one_sentence_on_stderr_and_exit_2(command, words, sentence):
    code, out, err = command(*words)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_wherever_it_stands():
    for words in (["--debug", "run", "quikstart"], ["run", "quikstart", "--debug"]):
        with pytest.raises(ConfigError):
            main(words)


def test_a_full_disk_is_one_sentence(command, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/data/run.json")

    monkeypatch.setattr("holdfast.cli.output.print_json", full)
    monkeypatch.setattr("holdfast.cli.listing.print_json", full)
    code, _, err = command("list", "--json")
    assert code == 2
    assert err.startswith("holdfast: Cannot read or write /data/run.json: No space left on device. What was saved")
    assert err.endswith("Do: make room on the disk, then go on with --resume.\n")


def test_ctrl_c_is_one_sentence_and_exit_130(command, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.cli.listing.print_json", stop)
    assert command("list", "--json") == (130, "", "holdfast: stopped with Ctrl-C.\n")


def test_completion_is_offered():
    environment = os.environ | {"_HOLDFAST_COMPLETE": "complete_bash", "COMP_WORDS": "holdfast do", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).parent / "holdfast"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["doctor"]


def test_tables_are_aligned_and_sizes_readable(capsys):
    print_table(("a", "b"), [("long", "x"), ("s", "y")])
    assert capsys.readouterr().out == "a     b\nlong  x\ns     y\n"
    assert [size(n) for n in (0, 999, 1500, 2_500_000, 3e9, 4e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
        "4.0 TB",
    ]
