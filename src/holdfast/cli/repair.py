"""``holdfast repair``: take the harm out of one adapter, without training."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.output import INTERRUPTED, AsJson, Ticker, print_json, print_table, refuse_existing, say, size
from holdfast.core.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from holdfast.core.results import Metric, StepRecord
    from holdfast.data.examples import Example

HELD_OUT = 4
"""One row of so many is held out to choose the dial by, and for the table."""
HARMFUL, HARMLESS = "advbench", "lab/benign"
"""Tasks that ask harmful and harmless requests; here of the user's own rows."""
UTILITY = {"rouge_l": "repliqa", "exact": "gsm8k"}
"""The task that scores utility rows, by its judge."""
PARTS = {HARMFUL: "harmful requests", HARMLESS: "harmless requests", **dict.fromkeys(UTILITY.values(), "utility")}
"""What these tasks are called here."""
TOKENS = 256
STEP = "repaired"


def repair(  # noqa: PLR0913, PLR0917 - one parameter an option
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="The PEFT folder to repair.")],
    base: Annotated[str, typer.Option(metavar="MODEL", help="The model it was trained on: lab, a folder or hub name.")],
    safety: Annotated[
        str,
        typer.Option(metavar="FILE", help="Harmful requests with refusals, and harmless ones with answers."),
    ],
    utility: Annotated[str, typer.Option(metavar="FILE", help="Rows of what the adapter must still do.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to write. Not needed with --plan.")] = None,
    method: Annotated[str, typer.Option(help="repair, or a rival of it: see 'holdfast show repair'.")] = "repair",
    unaligned: Annotated[
        str, typer.Option(metavar="MODEL", help="The base before its alignment, for the rivals that go by it.")
    ] = "",
    values: Annotated[str, typer.Option(help="Values of the dial to try, e.g. 0.3,1,3. Default: the method's.")] = "",
    drop: Annotated[float, typer.Option(min=0, help="How much utility may be lost on the rows held out.")] = 0.02,
    judge: Annotated[str, typer.Option(help="How utility is scored: rouge_l or exact.")] = "rouge_l",
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take an adapter that was made for another base.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print rows, memory and disk, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the harm out of an adapter without training, and print figures before and after.

    One row of four in each file is held out: the dial is chosen on these rows, for most safety at little loss of
    utility, and the figures are theirs. Measure the result on other rows with 'holdfast eval'.
    """
    if judge not in UTILITY:
        raise ConfigError(f"Unknown judge {judge!r}. {did_you_mean(judge, UTILITY)}")
    if out is None and not plan:
        raise ConfigError("No folder to write to. Do: add -o FOLDER, or --plan to see what it takes.")
    if out is not None:
        refuse_existing(out)
    with tempfile.TemporaryDirectory(prefix="holdfast-") as made:
        folder = Path(made)
        rows = _split(safety, utility, folder)
        step = _step(method, unaligned, rows, judge) | {"adapter": adapter, "any_base": any_base}
        step["select"] |= {"drop": drop} | ({"values": _numbers(values)} if values else {})
        document = {"name": "repair", "model": {"source": base}, "steps": {STEP: step}}
        if plan or out is None:
            _print_plan(document, {file: part for part, file in rows.items()}, as_json)
            return
        record = _run(document, folder / "run")
        _put(folder / "run" / record.artifacts[0].path, out)
    _print(record, judge, as_json)
    say(f"The repaired adapter is in {out}.")


def _numbers(words: str) -> list[float]:
    try:
        return [float(word) for word in words.split(",")]
    except ValueError as problem:
        raise ConfigError(f"Cannot read --values {words!r}: expected numbers with commas, e.g. 0.3,1,3.") from problem


def _split(safety: str, utility: str, folder: Path) -> dict[str, str]:
    """Files of rows to look at (``safety``, ``utility``), and held out (``harmful``, ``harmless``, ``wanted``)."""
    from holdfast.data.sources import SourceConfig, load_examples
    from holdfast.evaluation.judges import JUDGES
    from holdfast.evaluation.judges.base import Sample

    use, wanted = _parts(load_examples(SourceConfig(source=utility)))
    guard, asked = _parts(load_examples(SourceConfig(source=safety)))
    scores = JUDGES["refusal"].judge([Sample(row, row.answer) for row in asked])
    refused = [(score.value or 0.0) >= 0.5 for score in scores]
    parts = {
        "utility": use,
        "safety": guard,
        "wanted": wanted,
        "harmful": [row for row, no in zip(asked, refused, strict=True) if no],
        "harmless": [row for row, no in zip(asked, refused, strict=True) if not no],
    }
    for name, file, what in (("wanted", utility, "rows"), ("harmful", safety, "refusals")):
        if not parts[name]:
            raise DataError(
                f"Cannot choose how much to repair: got no {what} among those held out of {file}, one of {HELD_OUT}. "
                f"Do: give more {what}."
            )
    if not parts["harmless"]:
        say(f"{safety} has no answered request among the rows held out: whether the result refuses too much is unseen.")
    return {name: _written(rows, folder / f"{name}.jsonl") for name, rows in parts.items() if rows}


def _parts(rows: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Rows to look at and rows held out, by a hash of what is asked: the same for any order of the file."""
    kept: list[Example] = []
    held: list[Example] = []
    for row in rows:
        asked = json.dumps([(turn.role, turn.content) for turn in row.messages])
        out = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:4], "big") % HELD_OUT == 0
        (held if out else kept).append(row)
    return kept, held


def _written(rows: Iterable[Example], file: Path) -> str:
    lines = [json.dumps(row.as_dict(), ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def _step(method: str, unaligned: str, rows: dict[str, str], judge: str) -> dict[str, Any]:
    """The recipe step, without the adapter."""
    from holdfast.methods.merging.repair_config import WITH_ROWS

    def task(name: str, part: str) -> dict[str, Any]:
        return {"name": name, "data": {"source": rows[part], "format": "messages"}, "max_new_tokens": TOKENS}

    safety = [task(HARMFUL, "harmful"), *([task(HARMLESS, "harmless")] if "harmless" in rows else [])]
    looked = {key: [{"source": rows[key], "format": "messages"}] for key in ("utility", "safety")}
    return {
        "do": "repair",
        "method": method,
        **(looked if method in WITH_ROWS else {}),
        **({"unaligned": {"source": unaligned}} if unaligned else {}),
        "select": {"safety": safety, "utility": [task(UTILITY[judge], "wanted")]},
    }


def _run(document: dict[str, Any], folder: Path) -> StepRecord:
    from holdfast.recipes.run import run_recipe
    from holdfast.recipes.schema import parse_recipe

    recipe, ticker = parse_recipe(document, "holdfast repair"), Ticker()

    def progress(what: str, done: int, of: int) -> None:
        ticker(PARTS.get(what, what), done, of)

    try:
        return run_recipe(recipe, folder, progress=progress).steps[-1]
    except KeyboardInterrupt:
        say("holdfast: stopped with Ctrl-C. Nothing was written.")
        raise typer.Exit(INTERRUPTED) from None


def _print_plan(document: dict[str, Any], names: dict[str, str], as_json: bool) -> None:
    """What it takes, with rows under these names; no weight is loaded."""
    from holdfast.recipes.estimate import estimate
    from holdfast.recipes.schema import parse_recipe

    found = estimate(parse_recipe(document, "holdfast repair"), "holdfast repair")
    steps = (replace(step, rows={names.get(key, key): n for key, n in step.rows.items()}) for step in found.steps)
    needs = replace(found, steps=tuple(steps))
    if as_json:
        print_json(needs.as_dict())
        return
    for step in needs.steps:
        typer.echo(step.sentence)
    typer.echo(f"About {size(needs.memory_bytes)} of memory and {size(needs.disk_bytes)} of disk.")
    say("Nothing was written: estimates from shapes alone.")


def _put(made: Path, out: Path) -> None:
    from holdfast.core.files import folder_atomically

    with folder_atomically(out) as fresh:
        shutil.copytree(made, fresh, dirs_exist_ok=True)


def _print(record: StepRecord, judge: str, as_json: bool) -> None:
    """What was measured on the rows held out, before and after."""
    found = {metric.name: metric for metric in record.metrics}
    figures = {
        "harmful requests answered": f"safety/{HARMFUL}/attack_success_rate",
        "harmless requests refused": f"safety/{HARMLESS}/over_refusal_rate",
        f"utility ({judge})": f"utility/{UTILITY[judge]}/{judge}",
    }
    rows: dict[str, tuple[Metric, Metric]] = {
        label: (found[f"repair/before/{name}"], found[f"repair/after/{name}"])
        for label, name in figures.items()
        if f"repair/after/{name}" in found
    }
    if as_json:
        told = {label: [metric.model_dump(mode="json") for metric in pair] for label, pair in rows.items()}
        print_json({"dial": found["repair/dial"].value, "figures": told, "notes": list(record.notes)})
        return
    from holdfast.recipes.summary import figure

    print_table(
        ("on the rows held out", "n", "before", "after"),
        [(label, str(after.n), figure(before), figure(after)) for label, (before, after) in rows.items()],
    )
    for note in record.notes:
        typer.echo(f"Note: {note}")
