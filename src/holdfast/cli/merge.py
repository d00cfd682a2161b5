"""``holdfast merge``: several adapters on disk become one, by one rule or several, at one strength or over a range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.dial import DIAL, sweep_values, weights_of
from holdfast.cli.merge_plan import print_plan
from holdfast.cli.output import INTERRUPTED, AsJson, Ticker, print_json, print_table, say
from holdfast.core.errors import ConfigError
from holdfast.core.wording import counted

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.methods.merging.config import MergingConfig
    from holdfast.methods.merging.plan import Expert, MergePlan
    from holdfast.methods.merging.spectrum import Spectrum
    from holdfast.models.adapter import Base
    from holdfast.models.load import LoadedModel

UNCHECKED = "No --base: the files read back bit for bit; answers were not compared with PEFT's."


@dataclass(frozen=True, slots=True)
class Job:
    """One adapter to be made."""

    rule: str
    alpha: float | None
    """The weight of the last adapter; ``None``: as ``--weights`` says."""
    folder: Path


@dataclass(frozen=True, slots=True)
class Made:
    """One adapter that was made."""

    rule: str
    alpha: float | None
    folder: str
    rank: int
    """The largest of its layers."""
    truncation: float
    """The most that cutting to the rank lost in a layer, as a share of its norm."""
    apart: float | None
    """How far PEFT's answers are from those of the base with the deltas added, as a share of what the adapter does."""


def merge(  # noqa: PLR0913, PLR0917 - one parameter an option
    adapters: Annotated[list[str], typer.Argument(help="PEFT folders or hub names, utility before safety.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to write. Not needed with --plan.")] = None,
    rule: Annotated[str, typer.Option(help="Rules with commas, e.g. sst,ties: see 'holdfast show merging'.")] = "sst",
    weights: Annotated[
        str, typer.Option(help="One for each adapter, e.g. 1,0.5; with --sweep, for all but the last. Default: 1.")
    ] = "",
    base: Annotated[str, typer.Option(metavar="MODEL", help="What they were trained on: lab, a folder, a name.")] = "",
    utility: Annotated[str, typer.Option(metavar="FILE", help="Rows of the first of two adapters.")] = "",
    safety: Annotated[str, typer.Option(metavar="FILE", help="Rows of the second.")] = "",
    rows: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Rows of an adapter, in their order. Repeatable.")
    ] = None,
    sweep: Annotated[
        str, typer.Option(help="Weights of the last adapter: alpha=0:2:0.25 or alpha=0.1,0.3,1; one folder each.")
    ] = "",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result.")] = None,
    density: Annotated[float | None, typer.Option(help="Share of entries that is kept.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the rules, e.g. damping=0.1. Repeatable."),
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take adapters that were made for another base.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print memory, time and disk, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge adapters of one base model into one that stock PEFT loads.

    Rules that read rows need --base and rows of each adapter. With --base, answers are compared with PEFT's.
    """
    values = sweep_values(sweep)
    settings = _settings(weights_of(weights, values, len(adapters)), rank, density, overrides or ())
    configs = _configs(rule, settings, len(adapters))
    for value in values:
        for config in configs.values():
            config.with_last(value, len(adapters))
    jobs = _jobs(list(configs), values, out or Path())
    files = _files(configs, len(adapters), utility, safety, rows or [])
    if files and not base:
        raise ConfigError(f"rule {_reading(configs)[0]} reads rows on the base model. Do: add --base MODEL.")
    if out is None and not plan:
        raise ConfigError("No folder to write to. Do: add -o FOLDER, or --plan to see what it takes.")
    if out is not None:
        _refuse_existing(jobs)
    if plan:
        folders = Counter(job.rule for job in jobs)
        print_plan(configs, folders, _read_unloaded(adapters, files, base, any_base), base, as_json)
        return
    loaded, experts = _read(adapters, files, base, any_base)
    try:
        made, notes = _make(configs, jobs, loaded, experts)
    except KeyboardInterrupt:
        _say_stopped(jobs)
        raise typer.Exit(INTERRUPTED) from None
    _print_made(made, notes, as_json)


def _settings(
    weights: Sequence[float], rank: int | None, density: float | None, overrides: Sequence[str]
) -> dict[str, Any]:
    from holdfast.core.config import apply_overrides

    given: dict[str, Any] = {"rank": rank, "density": density}
    found = {key: value for key, value in given.items() if value is not None}
    if weights:
        found["weights"] = list(weights)
    more = apply_overrides({}, overrides)
    twice = sorted(set(more) & (set(found) | {"rule", "weights"}))
    if twice:
        raise ConfigError(f"{twice[0]} has an option of its own. Do: give --{twice[0]} alone, not --set.")
    return found | more


def _configs(rules: str, settings: Mapping[str, Any], adapters: int) -> dict[str, MergingConfig]:
    """By rule, its settings: of those that were given, the ones that it reads."""
    from pydantic import ValidationError

    from holdfast.core.config import explain
    from holdfast.methods.merging.config import PAIRS, READ_BY_ALL, READS, MergingConfig

    names = [name.strip() for name in rules.split(",") if name.strip()]
    read = READ_BY_ALL.union(*(READS.get(name, frozenset()) for name in names))
    unread = [key for key in settings if key in MergingConfig.model_fields and key not in read]
    if unread:
        raise ConfigError(f"{unread[0]} has no effect with rule {', '.join(names)}. Do: take it out.")
    found = {}
    for name in names:
        taken = READ_BY_ALL | READS.get(name, frozenset())
        own = {key: value for key, value in settings.items() if key in taken or key not in MergingConfig.model_fields}
        try:
            found[name] = MergingConfig.model_validate({"rule": name, **own})
            found[name].weights_of(adapters)
        except ValidationError as problem:
            raise explain(problem, "merge", MergingConfig) from problem
        except ValueError as problem:
            raise ConfigError(f"Cannot merge: {problem}. Do: change --weights.") from problem
        if name in PAIRS and adapters != 2:
            raise ConfigError(f"rule {name} takes two adapters, utility and then safety: got {adapters}.")
    if not found:
        raise ConfigError("No rule was named. Do: give --rule, e.g. --rule sst.")
    return found


def _jobs(rules: Sequence[str], values: Sequence[float], out: Path) -> list[Job]:
    """One rule goes into ``out`` itself, several into a folder each, and so does each value of a sweep."""
    if values:
        return [Job(rule, value, out / rule / f"{DIAL}-{value:g}") for rule in rules for value in values]
    return [Job(rule, None, out / rule if len(rules) > 1 else out) for rule in rules]


def _refuse_existing(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.folder.exists() and (not job.folder.is_dir() or any(job.folder.iterdir())):
            raise ConfigError(f"Output folder {job.folder} exists already. Do: give another with -o, or remove it.")


def _say_stopped(jobs: Sequence[Job]) -> None:
    """A folder is there whole or not at all, so what is there is finished."""
    done = [str(job.folder) for job in jobs if job.folder.is_dir() and any(job.folder.iterdir())]
    kept = (
        f"Finished adapters stay: {', '.join(done)}. Give another folder with -o." if done else "Nothing was written."
    )
    say(f"holdfast: stopped with Ctrl-C after {len(done)} of {counted(len(jobs), 'adapter')}. {kept}")


def _reading(configs: Mapping[str, MergingConfig]) -> list[str]:
    """The rules that read rows."""
    from holdfast.methods.merging.config import WITH_ROWS

    return [rule for rule in configs if rule in WITH_ROWS]


def _files(
    configs: Mapping[str, MergingConfig], adapters: int, utility: str, safety: str, rows: Sequence[str]
) -> list[str]:
    """The file of each adapter's rows; none where no rule reads any."""
    pair = [word for word in (utility, safety) if word]
    if pair and rows:
        raise ConfigError("--rows and --utility or --safety exclude each other. Do: give --rows for each adapter.")
    if (pair or rows) and not _reading(configs):
        raise ConfigError(f"rule {', '.join(configs)} reads no rows. Do: take --utility, --safety and --rows out.")
    if not _reading(configs):
        return []
    if pair and adapters != 2:
        raise ConfigError(f"--utility and --safety are for two adapters: got {adapters}. Do: give --rows for each.")
    files = list(rows) or pair
    if len(files) != adapters:
        raise ConfigError(
            f"rule {_reading(configs)[0]} reads rows of every adapter: got {counted(len(files), 'file')} for "
            f"{counted(adapters, 'adapter')}. "
            "Do: give --utility FILE --safety FILE, or --rows FILE for each in order."
        )
    return files


def _read(
    adapters: Sequence[str], files: Sequence[str], base: str, any_base: bool
) -> tuple[LoadedModel | None, list[Expert]]:
    """The base, if there is one, and the adapters with their rows."""
    from holdfast.models.adapter import Base
    from holdfast.models.config import ModelConfig
    from holdfast.models.load import load_model
    from holdfast.models.sources import local_folder

    folders, given = _folders(adapters), _given(adapters, files)
    loaded = load_model(ModelConfig(source=base)) if base else None
    on = None if loaded is None else Base(loaded.source, local_folder(base), loaded.weights)
    return loaded, _experts(adapters, folders, given, [on] * len(folders), any_base)


def _read_unloaded(adapters: Sequence[str], files: Sequence[str], base: str, any_base: bool) -> list[Expert]:
    """The adapters with their rows, without the base's weights: only names tell whether they were made for it.

    An adapter that knows its base by the hash of the weights is held against that when the merge is made.
    """
    from holdfast.models.adapter import Base, recorded_weights
    from holdfast.models.sources import local_folder

    folders, given = _folders(adapters), _given(adapters, files)
    named = Base(base, local_folder(base, weights=False), "") if base else None
    on = [None if recorded_weights(folder) else named for folder in folders]
    return _experts(adapters, folders, given, on, any_base)


def _folders(adapters: Sequence[str]) -> list[Path]:
    from holdfast.models.sources import local_folder

    return [local_folder(adapter, marker="adapter_config.json") for adapter in adapters]


def _given(adapters: Sequence[str], files: Sequence[str]) -> list[list[Example]]:
    return [_rows(file) for file in files] or [[] for _ in adapters]


def _experts(
    adapters: Sequence[str],
    folders: Sequence[Path],
    given: Sequence[Sequence[Example]],
    on: Sequence[Base | None],
    any_base: bool,
) -> list[Expert]:
    """Called by their folders' names where these differ."""
    from holdfast.methods.merging.read import read_expert

    names = [folder.name for folder in folders] if len({f.name for f in folders}) == len(folders) else adapters
    return [
        read_expert(folder, name, own, base, any_base=any_base)
        for folder, name, own, base in zip(folders, names, given, on, strict=True)
    ]


def _rows(file: str) -> list[Example]:
    from holdfast.data.sources import SourceConfig, check_answers, load_examples

    source = SourceConfig(source=file)
    found = load_examples(source)
    check_answers(source, found)
    return found


def _make(
    configs: Mapping[str, MergingConfig], jobs: Sequence[Job], loaded: LoadedModel | None, experts: Sequence[Expert]
) -> tuple[list[Made], list[str]]:
    """Every adapter, written and read back, and what there is to say about them."""
    made: list[Made] = []
    notes = [note for expert in experts for note in expert.notes]
    tick = Ticker()
    for rule, config in configs.items():
        for each, told in _of_rule(config, [job for job in jobs if job.rule == rule], loaded, experts):
            made.append(each)
            notes += [note for note in told if note not in notes]
            tick("merged", len(made), len(jobs))
    return made, [*notes, *(() if loaded is not None else (UNCHECKED,))]


def _of_rule(
    config: MergingConfig, jobs: Sequence[Job], loaded: LoadedModel | None, experts: Sequence[Expert]
) -> Iterator[tuple[Made, list[str]]]:
    """Adapters of one rule; what it looks at is looked at once for all values of a sweep."""
    from holdfast.methods.merging import apply, output, spectrum
    from holdfast.methods.merging.plan import plan

    looked = plan(config, loaded, experts)
    spectra = spectrum.spectra(looked)
    notes = [*looked.notes(), *_stable(config.rule, spectra)]
    for job in jobs:
        weighed: MergePlan = looked if job.alpha is None else looked.with_last(job.alpha)
        merged = apply.merge(weighed)
        apart = output.save(merged, job.folder, loaded, spectra)
        rank = max(delta.rank for delta in merged.adapter.deltas.values())
        yield Made(job.rule, job.alpha, str(job.folder), rank, max(merged.truncation.values()), apart), notes


def _stable(rule: str, spectra: Sequence[Spectrum]) -> list[str]:
    from holdfast.methods.merging.spectrum import agreement

    found = agreement(spectra)
    if found is None:
        return []
    agree = {True: "agree", False: "do not agree", None: "cannot be compared"}[found.holds]
    return [f"{rule}: two halves of the rows {agree} on the leading directions: {found.words()}."]


def _print_made(made: Sequence[Made], notes: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({"merged": [asdict(each) for each in made], "notes": list(notes)})
        return
    print_table(
        ("rule", DIAL, "rank", "cut off", "differs from PEFT", "folder"),
        [
            (
                each.rule,
                "" if each.alpha is None else f"{each.alpha:g}",
                str(each.rank),
                f"{each.truncation:.2g}",
                "not compared" if each.apart is None else f"{each.apart:.1g}",
                each.folder,
            )
            for each in made
        ],
    )
    for note in notes:
        typer.echo(f"Note: {note}")
