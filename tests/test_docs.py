"""What the documentation says, holds: commands, links, keys, examples, recipes."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.methods.merging.expert_plans import adapter
from tests.zoo import CONFIGS, byte_tokenizer
from typer.main import get_command

from holdfast.cli.main import app
from holdfast.data.counterfactual import read_cases
from holdfast.data.sources import load_examples
from holdfast.evaluation.suite import evaluate
from holdfast.layers.adapters import read_peft, write_peft
from holdfast.methods.rotation.certificate import verify
from holdfast.models.build import new_model
from holdfast.models.load import ModelConfig, load_model
from holdfast.recipes.merge_step import MergeStep
from holdfast.recipes.schema import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path, word: str) -> list[list[str]]:
    """Lines of code blocks, and code in the text, that start with a command's name."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [shlex.split(line, comments=True) for line in lines if re.match(rf"{word}\s", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for words in commands(page, "holdfast"):
        if words[1].startswith("-"):
            continue
        assert words[1] in known, words
        inner = getattr(known[words[1]], "commands", {})
        command = inner.get(words[2], known[words[1]]) if len(words) > 2 else known[words[1]]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help", "--debug"}
        used = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
        assert used <= options, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in commands(page, "make"):
        assert words[1] in targets, words


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the hosts of repositories make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("script", ["recipe_keys.py", "merge_rules.py", "lab_samples.py"])
def test_written_pages_are_current(script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "scripts" / script, "--check"], check=False)
    assert done.returncode == 0, "Do: make docs"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_shipped_recipes_are_valid_also_when_quick(recipe: Path) -> None:
    assert load_recipe(recipe).steps
    assert load_recipe(recipe, quick=True).steps


def test_a_quick_run_of_the_story_merges_by_few_rows() -> None:
    for quick, rows in ((False, 512), (True, 16)):
        step = load_recipe(ROOT / "recipes" / "story.yaml", quick=quick).steps["merged"]
        assert isinstance(step, MergeStep)
        found = {each.adapter: sum(source.rows or 0 for source in each.data) for each in step.adapters}
        assert found == dict.fromkeys(("held", "hardened", "refusals"), rows)


def test_the_recipe_of_every_page_is_valid(tmp_path: Path) -> None:
    found = [(page, b) for page in PAGES for b in blocks(page) if re.search(r"^steps:", b, re.MULTILINE)]
    assert found
    for page, block in found:
        file = tmp_path / f"{page.stem}.yaml"
        file.write_text(block, encoding="utf-8")
        load_recipe(file)


def test_the_trees_paths_exist() -> None:
    tree = next(block for block in blocks(ROOT / "README.md") if "src/holdfast/" in block)
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "src" / "holdfast" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), line


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = byte_tokenizer()
    new_model({**CONFIGS["llama"], "max_position_embeddings": 1024}, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_measuring_example_prints_figures(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(ROOT / "examples" / "measure.py").main(str(model_folder), "4")
    assert "utility/lab/arithmetic/exact: 0.00" in capsys.readouterr().out


def test_the_fine_tuning_and_judging_examples_follow_each_other(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(ROOT / "examples" / "finetune.py").main(str(model_folder), str(tmp_path), "2", "4")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert "utility/lab/arithmetic/exact changed: 0.000 before" in capsys.readouterr().out
    load(ROOT / "examples" / "custom_judge.py").main(str(tmp_path / "before.jsonl"))
    assert "safety/lab/jailbreak/safety_rate: " in capsys.readouterr().out


def runs(code: str, folder: Path) -> None:
    """A page's Python, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def python_of(page: Path) -> str:
    (code,) = [block for block in blocks(page) if block.startswith("from ")]
    return code


def test_the_readmes_python_runs(model_folder: Path, tmp_path: Path) -> None:
    code = python_of(ROOT / "README.md").replace('"lab"', repr(str(model_folder)))
    runs(code.replace("limit=100", "limit=2").replace("steps=100", "steps=1"), tmp_path)


def test_the_python_of_rotation_runs_and_leaves_a_certificate(model_folder: Path, tmp_path: Path) -> None:
    code = python_of(ROOT / "docs" / "rotation.md").replace('"lab"', repr(str(model_folder)))
    runs(code.replace("rows=400", "rows=8").replace("steps=100", "steps=1"), tmp_path)
    proofs, problems = verify(tmp_path / "runs" / "held")
    assert (len(proofs), problems) == (14, [])


def test_the_python_of_baselines_runs(model_folder: Path, tmp_path: Path) -> None:
    for name in ("task", "refusals"):
        rows = "".join(json.dumps({"prompt": f"{name} {i}?", "answer": f"{i}."}) + "\n" for i in range(4))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    runs(python_of(ROOT / "docs" / "baselines.md").replace("path/to/model", str(model_folder)), tmp_path)
    assert (tmp_path / "runs" / "lisa" / "model" / "model.safetensors").is_file()


def test_the_python_of_causal_audits_trains_and_attacks(model_folder: Path, tmp_path: Path) -> None:
    code = python_of(ROOT / "docs" / "causal.md").replace('"lab"', repr(str(model_folder)))
    code = (
        code.replace("rows=400", "rows=24")
        .replace("steps=100", "steps=1")
        .replace("limit=20, probes=20", "limit=1, probes=1")
    )
    runs(code + "assert 'injection/attack/attacked/followed' in {m.name for m in found.metrics}\n", tmp_path)
    assert (tmp_path / "runs" / "hardened").is_dir()


def test_the_holding_example_leaves_a_certificate(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(ROOT / "examples" / "hold.py").main(str(model_folder), str(tmp_path / "held"), "1")
    assert "certified: outputs on safety rows moved by " in capsys.readouterr().out
    assert verify(tmp_path / "held")[1] == []


@pytest.mark.slow
def test_the_composing_example_goes_the_whole_way_to_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load(ROOT / "examples" / "compose.py")
    for name, read in (("load_examples", load_examples), ("read_cases", read_cases)):
        monkeypatch.setattr(example, name, lambda source, read=read: read(source.model_copy(update={"rows": 16})))
    monkeypatch.setattr(example, "evaluate", lambda *what, **how: evaluate(*what, **how | {"limit": 2}))
    example.main("lab", str(tmp_path), "1")
    told = capsys.readouterr().out
    assert "certified, of held: outputs on safety rows moved by " in told
    assert "causal/independence/outcome: " in told
    assert "safety/lab/harmful/attack_success_rate changed: " in told
    assert verify(tmp_path / "held")[1] == []
    merged = read_peft(tmp_path / "merged")
    assert {name for name, each in merged.deltas.items() if each.rank > 16}, "more than one adapter is in it"


def test_the_python_of_merging_runs_and_its_part_is_in_the_span_of_the_rows(model_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(source=str(model_folder)))
    for seed, name in enumerate(("task-adapter", "safety-adapter")):
        write_peft(adapter(loaded, 2, seed=seed), tmp_path / name)
    code = python_of(ROOT / "docs" / "merging.md").replace('"lab"', repr(str(model_folder)))
    runs(
        code
        + "assert share == 0\n"
        + "outside = found.dual_nk.T @ sum(G[name].double() @ part[name] for name in G)\n"
        + "assert outside[4:].abs().max() < 1e-6 * outside[:4].abs().max()\n",
        tmp_path,
    )
    assert (tmp_path / "merged-0.3" / "adapter_config.json").is_file()
