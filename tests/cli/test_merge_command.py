"""``holdfast merge``: adapters on disk, rules side by side, sweeps, what it takes, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.close import assert_close
from tests.methods.merging.expert_plans import adapter
from tests.methods.merging.test_apply import logits
from tests.zoo import tiny

from holdfast.cli.dial import sweep_values
from holdfast.core.errors import ConfigError
from holdfast.core.files import sha256_of
from holdfast.layers.adapters import LowRank, added, read_peft, write_peft
from holdfast.models.adapter import record_base
from holdfast.models.config import ModelConfig
from holdfast.models.load import load_model


@pytest.fixture(scope="module")
def given(model, tmp_path_factory):
    """Three adapters of the tiny model, and files of rows for them."""
    home = tmp_path_factory.mktemp("adapters")
    loaded = load_model(ModelConfig(source=str(model)))
    for number, rank in enumerate((2, 3, 1)):
        folder = home / f"A{number}"
        write_peft(adapter(loaded, rank, seed=number + 1), folder)
        record_base(folder, loaded.source, loaded.weights)
        lines = ({"prompt": f"What is {n} of {number}?", "answer": f"It is {n * 7 + number}."} for n in range(6))
        (home / f"rows{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home


def words(given: Path, *names: str) -> list[str]:
    return [str(given / name) for name in names]


def test_two_adapters_become_one_by_what_their_rows_need(command, given, model, tmp_path):
    out = tmp_path / "out"
    rows = ["--utility", *words(given, "rows0.jsonl"), "--safety", *words(given, "rows1.jsonl")]
    code, text, err = command(
        "merge", *words(given, "A0", "A1"), *rows, "--base", str(model), "--weights", "1,3", "-o", str(out)
    )
    assert code == 0, err
    assert "sst" in text
    assert "Note: 2 adapters, 14 layers, ranks 2 to 3." in text
    assert "Note: sst: two halves of the rows " in text
    record = json.loads((out / "merge.json").read_text())
    assert (record["config"]["rule"], record["weights"]) == ("sst", [1.0, 3.0])
    assert record["origin"]["names"] == ["A0", "A1"]
    assert record["origin"]["n_rows"] == [6, 6]
    code, text, err = command("eval", str(model), "--adapter", str(out), "--task", "lab/choice", "--limit", "1")
    assert code == 0, err


def test_several_rules_are_made_at_once_and_compared_with_peft(command, given, model, tmp_path):
    out = tmp_path / "out"
    code, text, err = command(
        "merge", *words(given, "A0", "A1"), "--rule", "cat, ties", "--density", "0.9", "--base", str(model),
        "-o", str(out), "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(text)
    assert [(each["rule"], each["folder"]) for each in made["merged"]] == [
        ("cat", str(out / "cat")),
        ("ties", str(out / "ties")),
    ]
    assert all(each["apart"] < 1e-3 for each in made["merged"])
    assert json.loads((out / "ties" / "merge.json").read_text())["config"]["density"] == 0.9
    assert "density" not in json.loads((out / "cat" / "merge.json").read_text())["config"]
    loaded = load_model(ModelConfig(source=str(model)))
    with added(loaded.model, read_peft(given / "A0")), added(loaded.model, read_peft(given / "A1")):
        expected = logits(loaded.model)
    with added(loaded.model, read_peft(out / "cat")):
        assert_close(logits(loaded.model), expected)


def test_without_a_base_adapters_are_merged_and_it_is_said_that_answers_were_not_compared(command, given, tmp_path):
    code, text, err = command(
        "merge", *words(given, "A0", "A1", "A2"), "--rule", "task_arithmetic", "--weights", "1,-0.5,2",
        "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, err
    assert "not compared" in text
    assert "Note: No --base: the files read back bit for bit; answers were not compared with PEFT's." in text
    merged, parts = read_peft(tmp_path / "out"), [read_peft(given / f"A{n}") for n in range(3)]
    for name in merged.deltas:
        assert_close(merged.delta(name), sum(w * p.delta(name) for w, p in zip((1, -0.5, 2), parts, strict=True)))


def test_rows_stand_in_the_order_of_more_than_two_adapters(command, given, model, tmp_path):
    rows = [word for n in range(3) for word in ("--rows", str(given / f"rows{n}.jsonl"))]
    out = tmp_path / "out"
    code, _, err = command(
        "merge", *words(given, "A0", "A1", "A2"), *rows, "--base", str(model), "--set", "samples=4",
        "--set", "fisher=diagonal", "--rank", "2", "-o", str(out),
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((out / "merge.json").read_text())
    assert record["origin"]["n_rows"] == [4, 4, 4]
    known = {"rule": "sst", "samples": 4, "fisher": "diagonal", "rank": 2}
    assert {key: record["config"][key] for key in known} == known
    assert {delta.rank for delta in read_peft(out).deltas.values()} == {2}


def test_a_sweep_makes_a_folder_for_each_weight_of_the_last_adapter_and_looks_at_rows_once(
    command, given, model, tmp_path, monkeypatch
):
    from holdfast.methods.merging import evidence

    looked = []
    gather = evidence.core_gradients
    monkeypatch.setattr(evidence, "core_gradients", lambda *a, **k: looked.append(1) or gather(*a, **k))
    rows = ["--utility", *words(given, "rows0.jsonl"), "--safety", *words(given, "rows1.jsonl")]
    out = tmp_path / "out"
    code, text, err = command(
        "merge", *words(given, "A0", "A1"), *rows, "--base", str(model), "--rule", "sst,cat",
        "--weights", "2", "--sweep", "alpha=0:1:0.5", "-o", str(out), "--json",
    )  # fmt: skip
    assert code == 0, err
    assert len(looked) == 2, "the rows of each adapter"
    folders = [each["folder"] for each in json.loads(text)["merged"]]
    assert folders == [str(out / rule / f"alpha-{value}") for rule in ("sst", "cat") for value in ("0", "0.5", "1")]
    for folder, value in zip(folders, (0.0, 0.5, 1.0) * 2, strict=True):
        assert json.loads((Path(folder) / "merge.json").read_text())["weights"] == [2.0, value]
    first, whole = read_peft(given / "A0"), read_peft(out / "sst" / "alpha-0")
    for name, delta in whole.deltas.items():
        assert_close(delta.dense(), first.delta(name))
    for name, delta in read_peft(out / "cat" / "alpha-0.5").deltas.items():
        assert_close(delta.dense(), 2 * first.delta(name) + 0.5 * read_peft(given / "A1").delta(name))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("alpha=0:2:0.25", [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]),
        ("alpha=0.1:0.35:0.1", [0.1, 0.2, 0.3]),
        ("alpha=0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
        ("alpha=0.1,0.3,1", [0.1, 0.3, 1]),
        ("alpha=-1:0:0.5", [-1, -0.5, 0]),
        ("alpha=2", [2]),
        ("", []),
    ],
)
def test_a_sweep_is_a_range_with_both_ends_or_a_list(words, values):
    assert sweep_values(words) == values


def test_a_sweep_has_at_most_a_thousand_values_and_more_are_refused_before_they_are_made():
    assert len(sweep_values("alpha=0:999:1")) == 1000
    listed = ",".join(map(str, range(1001)))
    for asked, count in (("alpha=0:1000:1", "1001"), (f"alpha={listed}", "1001"), ("alpha=0:1:1e-300", "1e.300")):
        with pytest.raises(ConfigError, match=rf"has {count}.* a folder for each: expected at most 1,000\. Do: take"):
            sweep_values(asked)


@pytest.mark.parametrize(
    "words",
    [
        "beta=1",
        "alpha",
        "alpha=",
        "alpha=1:2",
        "alpha=2:1:0.5",
        "alpha=0:1:0",
        "alpha=0:inf:1",
        "alpha=1,1",
        "alpha=a",
        "alpha=nan,1",
        "alpha=-inf:1:1",
        "alpha=1,inf",
    ],
)
def test_a_sweep_that_cannot_be_read_is_refused(words):
    with pytest.raises(ConfigError, match=r"--sweep"):
        sweep_values(words)


def test_plan_says_what_it_takes_and_writes_nothing(command, given, model, tmp_path, monkeypatch):
    rows = ["--utility", *words(given, "rows0.jsonl"), "--safety", *words(given, "rows1.jsonl")]
    asked = ["merge", *words(given, "A0", "A1"), *rows, "--base", str(model), "--rule", "sst,svd", "--plan"]
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(b"no weights")
    try:
        code, text, err = command(*asked, "--sweep", "alpha=1,2", "-o", str(tmp_path / "out"))
        found = json.loads(command(*asked, "--json")[1])
    finally:
        (model / "model.safetensors").write_bytes(weights)
    assert code == 0, err
    assert not (tmp_path / "out").exists()
    assert text.splitlines()[0].startswith(f"2 adapters of ranks 2 to 3 on {model}, ")
    assert "rows: [6, 6]" in text
    assert [line.split()[:3] for line in text.splitlines()[2:]] == [["sst", "14", "2"], ["svd", "14", "2"]]
    assert (found["adapters"], found["ranks"], found["rows"]) == (2, [2, 3], [6, 6])
    sst, svd = found["rules"]
    assert sst["memory_bytes"] > svd["memory_bytes"] > 5e8
    assert {sst["time"], svd["time"]} == {"seconds"}
    assert sst["scratch_bytes"] == svd["scratch_bytes"] == 0
    monkeypatch.setattr("holdfast.methods.merging.cost.HELD_BYTES", 0)
    sst, svd = json.loads(command(*asked, "--json")[1])["rules"]
    assert sst["scratch_bytes"] > 4 * 12 * 14, "12 rows on 14 layers"
    assert svd["scratch_bytes"] == 0
    command("merge", *words(given, "A0", "A1"), "--rule", "svd", "-o", str(tmp_path / "svd"))
    written = (tmp_path / "svd" / "adapter_model.safetensors").stat().st_size
    assert svd["disk_bytes"] <= written <= 1.2 * svd["disk_bytes"] + 4000


def test_an_existing_folder_is_refused_before_anything_is_made(command, given, tmp_path):
    (tmp_path / "out" / "ties").mkdir(parents=True)
    (tmp_path / "out" / "ties" / "notes.txt").write_text("mine")
    asked = ["merge", *words(given, "A0", "A1"), "-o", str(tmp_path / "out"), "--rule"]
    code, _, err = command(*asked, "svd,ties")
    assert code == 2
    assert f"Output folder {tmp_path / 'out' / 'ties'} exists already. Do: give another with -o, or remove it." in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ties"]
    assert command(*asked, "svd")[0] == 2
    again = ["merge", *words(given, "A0"), "--rule", "svd", "-o", str(tmp_path / "one")]
    assert command(*again)[0] == 0
    assert command(*again)[0] == 2, "also one that it wrote itself"


PAIR = ["{A0}", "{A1}"]
ROWS = ["--utility", "{u}", "--safety", "{s}", "--base", "{model}"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ([*PAIR, "--rule", "ties"], "No folder to write to. Do: add -o FOLDER, or --plan"),
        ([*PAIR, "--rule", "tie", "-o", "x"], "rule: unknown 'tie', did you mean 'ties'?"),
        ([*PAIR, "--rule", ",", "-o", "x"], "No rule was named"),
        ([*PAIR, "-o", "x"], "rule sst reads rows of every adapter: got 0 files for 2 adapters"),
        ([*PAIR, "--utility", "u", "-o", "x"], "got 1 file for 2 adapters"),
        (
            [*PAIR, "--utility", "u", "--safety", "s", "-o", "x"],
            "rule sst reads rows on the base model. Do: add --base",
        ),
        ([*PAIR, "--rows", "u", "--safety", "s", "-o", "x"], "--rows and --utility or --safety exclude each other"),
        (["{A0}", "{A1}", "{A2}", "--utility", "u", "--safety", "s", "-o", "x"], "are for two adapters: got 3"),
        ([*PAIR, "--rule", "ties", "--safety", "s", "-o", "x"], "rule ties reads no rows. Do: take --utility"),
        ([*PAIR, "--rule", "svd", "--density", "0.5", "-o", "x"], "density has no effect with rule svd"),
        ([*PAIR, "--rule", "ties", "--density", "1.5", "-o", "x"], "density: should be less than or equal to 1"),
        ([*PAIR, "--rule", "ties", "--set", "damping=1", "-o", "x"], "damping has no effect with rule ties"),
        ([*PAIR, "--rule", "ties", "--set", "densty=1", "-o", "x"], "densty: unknown key, did you mean 'density'?"),
        ([*PAIR, "--rule", "ties", "--set", "weights=1", "-o", "x"], "weights has an option of its own"),
        ([*PAIR, "--rule", "ties", "--weights", "1,b", "-o", "x"], "Cannot read --weights '1,b'"),
        ([*PAIR, "--rule", "ties", "--weights", "1,nan", "-o", "x"], "finite number"),
        (
            [*PAIR, "--rule", "ties", "--sweep", "alpha=nan,1", "-o", "x"],
            "Cannot read --sweep 'nan,1': expected finite numbers",
        ),
        (
            [*PAIR, "--rule", "ties", "--weights", "1,7", "--sweep", "alpha=1,2", "-o", "x"],
            "--weights is for the others: got 2 for 1. Do: give 1, or none.",
        ),
        (
            [*PAIR, "--rule", "cat,ties", "--weights", "0", "--sweep", "alpha=1,0", "-o", "x"],
            "merge with weights 0, 0: 1 problem\n  (top level): weights are all 0; give at least one other",
        ),
        ([*PAIR, "--rule", "average", "--sweep", "alpha=-1:0:1", "-o", "x"], "by the sum of the weights, and it is 0"),
        ([*PAIR, *ROWS, "--sweep", "alpha=-1,1", "-o", "x"], "rule sst weighs losses, so no weight may be below 0"),
        ([*PAIR, *ROWS, "--weights", "1,-1", "-o", "x"], "rule sst weighs losses, so no weight may be below 0"),
        ([*PAIR, "--rule", "ties", "--weights", "1", "-o", "x"], "got 1 weight for 2 adapters"),
        (["{A0}", "--rule", "safe_merge", "-o", "x"], "rule safe_merge takes two adapters, utility and then safety"),
        ([*PAIR, "--rule", "ties", "--sweep", "beta=1", "-o", "x"], "Cannot read --sweep 'beta=1'"),
        ([*PAIR, "--rule", "ties", "--sweep", "alpha=0:1:1e-9", "-o", "x"], "has 1e+09 values, a folder for each"),
        (
            [*PAIR, "--rule", "cat", "--weights", "1e300,1e300", "-o", "x"],
            "rule cat gave NaN or infinity in layers.0.down_proj, expected numbers. Do: use smaller weights.",
        ),
        (
            [*PAIR, *ROWS, "--rule", "sst_projection", "--weights", "1e300,1", "-o", "x"],
            "rule sst_projection gave NaN or infinity in layers.0.down_proj, expected numbers. Do: use smaller",
        ),
        (["{A0}", "/nowhere", "--rule", "ties", "-o", "x"], "Cannot load an adapter from /nowhere: no such folder"),
        (["{A0}", "{empty}", "--rule", "ties", "-o", "x"], "got a folder without adapter_config.json"),
        (["{A0}", "{dora}", "--rule", "ties", "-o", "x"], "use_dora: DoRA also trains magnitudes"),
        (["{A0}", "{bias}", "--rule", "ties", "-o", "x"], "bias is 'all': biases were trained"),
        (["{A0}", "{saved}", "--rule", "ties", "-o", "x"], "modules_to_save: whole modules were trained"),
        (["{A0}", "{zero}", "--rule", "ties", "-o", "x"], "expected rank 0 as in adapter_config.json, at least 1"),
        (["{A0}", "{nan}", "--rule", "ties", "-o", "x"], "got NaN or infinity in model.layers.0"),
        (["{A0}", "{other}", "--rule", "ties", "-o", "x"], "different bases: got A0: "),
        (["{A0}", "{other}", "--rule", "ties", "--base", "{model}", "-o", "x"], "was made for org/other, got"),
        (["{A0}", "{wide}", "--rule", "ties", "-o", "x"], "expected one shape. Do: merge adapters of one base model"),
        (
            [*PAIR, "--utility", "{u}", "--safety", "{u}", "--base", "{model}", "-o", "x"],
            "A0 and A1 have the same rows",
        ),
        ([*PAIR, "--utility", "{u}", "--safety", "{none}", "--base", "{model}", "-o", "x"], "is empty, expected rows"),
        (
            [*PAIR, *ROWS, "--rule", "sst_projection", "--set", "k=7", "-o", "x"],
            "k is larger than the evidence: got 7, expected at most 6, the directions that the safety rows use",
        ),
        (
            [*PAIR, *ROWS, "--rule", "sst_projection", "--set", "damping=1e-30", "-o", "x"],
            "Do: raise damping to at least",
        ),
        ([*PAIR, *ROWS, "--set", "damping=1e-30", "-o", "x"], "Do: raise damping to at least"),
        ([*PAIR, *ROWS, "--set", "damping=0", "-o", "x"], "damping: should be greater than 0"),
        ([*PAIR, "--utility", "{u}", "--safety", "{mute}", "--base", "{model}", "-o", "x"], "no answer to learn in 1"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(command, given, model, tmp_path, monkeypatch, asked, sentence):
    monkeypatch.chdir(tmp_path)
    places = {name: str(given / name) for name in ("A0", "A1", "A2")} | {"model": str(model)}
    places |= {"u": str(given / "rows0.jsonl"), "s": str(given / "rows1.jsonl")} | spoilt(given, tmp_path)
    code, out, err = command("merge", *(word.format(**places) for word in asked))
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["{A0}", "{other}", "--rule", "ties"], "different bases: got A0: "),
        (["{A0}", "{other}", "--rule", "ties", "--base", "{model}"], "was made for org/other, got"),
        (["{A0}", "{wide}", "--rule", "ties"], "expected one shape. Do: merge adapters of one base model"),
        (["{wide}", "--rule", "svd", "--base", "{model}"], "adapter does not belong to this LlamaForCausalLM"),
        (
            [*PAIR, "--utility", "{u}", "--safety", "{u}", "--base", "{model}"],
            "A0 and A1 have the same rows",
        ),
        ([*PAIR, "--utility", "{u}", "--safety", "{mute}", "--base", "{model}"], "no answer to learn in 1"),
        (
            [*PAIR, *ROWS, "--rule", "sst_projection", "--set", "k=400"],
            "k is larger than the evidence: got 400, expected at most 6, the directions that the safety rows use",
        ),
        ([*PAIR, "--rule", "della", "--set", "epsilon=0.9"], "epsilon of rule della: got 0.9 around density 0.7"),
        ([*PAIR, "--rule", "svd", "-o", "{given}"], "exists already. Do: give another with -o, or remove it."),
    ],
)
def test_what_cannot_be_merged_gets_no_estimate_either(command, given, model, tmp_path, asked, sentence):
    places = {name: str(given / name) for name in ("A0", "A1")} | {"model": str(model), "given": str(given)}
    places |= {"u": str(given / "rows0.jsonl"), "s": str(given / "rows1.jsonl")} | spoilt(given, tmp_path)
    code, out, err = command("merge", *(word.format(**places) for word in asked), "--plan")
    assert (code, out) == (2, "")
    assert sentence in err


def test_an_adapter_that_knows_its_base_by_its_weights_gets_an_estimate_wherever_the_base_lies(
    command, given, model, tmp_path
):
    shutil.copytree(given / "A0", tmp_path / "B0")
    known = json.loads((given / "A0" / "holdfast_base.json").read_text())["weights_sha256"]
    record_base(tmp_path / "B0", "moved/since", known)
    config = tmp_path / "B0" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "moved/since"}))
    code, _, err = command("merge", str(tmp_path / "B0"), "--rule", "svd", "--base", str(model), "--plan")
    assert code == 0, err


def spoilt(given: Path, home: Path) -> dict[str, str]:
    """Adapters and rows that no rule can take."""
    changes = {
        "dora": {"use_dora": True},
        "bias": {"bias": "all"},
        "saved": {"modules_to_save": ["embed_tokens"]},
        "zero": {"r": 0, "lora_alpha": 0},
        "other": {"base_model_name_or_path": "org/other"},
    }
    for name, keys in changes.items():
        shutil.copytree(given / "A1", home / name)
        config = home / name / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | keys))
        (home / name / "holdfast_base.json").unlink()
    (home / "empty").mkdir()
    whole = read_peft(given / "A1")
    first = next(iter(whole.deltas))
    shutil.copytree(given / "A1", home / "nan")
    import safetensors.torch

    file = home / "nan" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    key = next(key for key in tensors if whole.paths[first] in key)
    safetensors.torch.save_file(tensors | {key: tensors[key] * torch.nan}, file)
    wide = tiny("llama")
    other = adapter(wide, 1, seed=9)
    narrow = {name: LowRank(d.A[:, :8], d.B[:8]) for name, d in other.deltas.items()}
    write_peft(type(other)(narrow, "", other.paths), home / "wide")
    (home / "none.jsonl").write_text("")
    (home / "mute.jsonl").write_text('{"prompt": "Why?", "answer": ""}\n')
    names = ("empty", "nan", "wide", *changes)
    return {name: str(home / name) for name in names} | {n: str(home / f"{n}.jsonl") for n in ("none", "mute")}


def test_an_adapter_of_another_base_may_be_asked_for(command, given, model, tmp_path):
    other = spoilt(given, tmp_path)["other"]
    asked = ["merge", other, "--rule", "svd", "--base", str(model), "-o", str(tmp_path / "out")]
    assert command(*asked)[0] == 2
    code, _, err = command(*asked, "--any-base")
    assert code == 0, err


def test_without_a_base_adapters_of_other_weights_are_refused_unless_any_base_is_asked_for(command, given, tmp_path):
    shutil.copytree(given / "A1", tmp_path / "B1")
    record_base(tmp_path / "B1", read_peft(given / "A1").base, "another")
    out = tmp_path / "out"
    asked = ["merge", str(given / "A0"), str(tmp_path / "B1"), "--rule", "svd", "-o", str(out)]
    code, _, err = command(*asked)
    assert code == 2
    assert "different bases: got A0: " in err
    assert "(weights another), expected one base" in err
    code, text, err = command(*asked, "--any-base")
    assert code == 0, err
    assert "(weights another); it was asked to take any base." in text
    origin = json.loads((out / "merge.json").read_text())["origin"]
    assert origin["bases"][1] == "another"
    assert origin["adapters"] == [sha256_of(given / "A0"), sha256_of(tmp_path / "B1")]
    assert not (out / "holdfast_base.json").exists()


def test_a_pickled_adapter_is_merged_on_its_base(command, given, model, tmp_path):
    import safetensors.torch

    shutil.copytree(given / "A1", tmp_path / "B1")
    weights = tmp_path / "B1" / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    rest = ["--rule", "svd", "--base", str(model), "-o", str(tmp_path / "out")]
    code, _, err = command("merge", str(given / "A0"), str(tmp_path / "B1"), *rest)
    assert code == 0, err


def test_layers_that_one_adapter_does_not_touch_are_joined_and_it_is_said(command, given, tmp_path):
    whole, part = read_peft(given / "A0"), read_peft(given / "A1")
    few = {name: delta for name, delta in part.deltas.items() if name.endswith("q_proj")}
    write_peft(type(part)(few, part.base, {name: part.paths[name] for name in few}), tmp_path / "few")
    asked = ["merge", str(given / "A0"), str(tmp_path / "few"), "--rule", "cat", "-o", str(tmp_path / "out")]
    code, text, err = command(*asked)
    assert code == 0, err
    assert "Note: The change of few is 0 in 12 of them." in text
    merged = read_peft(tmp_path / "out")
    for name, delta in merged.deltas.items():
        assert_close(delta.dense(), whole.delta(name) + (part.delta(name) if name in few else 0))


def test_ctrl_c_in_a_sweep_says_what_is_finished_and_leaves_nothing_half_made(command, given, tmp_path, monkeypatch):
    from holdfast.methods.merging import apply

    merges, made = apply.merge, []

    def stopped_at_the_third(plan):
        made.append(plan)
        if len(made) == 3:
            raise KeyboardInterrupt
        return merges(plan)

    monkeypatch.setattr(apply, "merge", stopped_at_the_third)
    out = tmp_path / "out"
    asked = ["merge", *words(given, "A0", "A1"), "--rule", "svd", "--sweep", "alpha=0:1:0.25", "-o", str(out)]
    code, text, err = command(*asked)
    assert (code, text) == (130, "")
    first, second = (str(out / "svd" / f"alpha-{value}") for value in ("0", "0.25"))
    assert f"stopped with Ctrl-C after 2 of 5 adapters. Finished adapters stay: {first}, {second}." in err
    assert sorted(str(path) for path in (out / "svd").iterdir()) == [first, second]
    assert all(read_peft(Path(folder)).deltas for folder in (first, second))
